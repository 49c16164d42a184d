"""What the callbacks of all frameworks have in common: options, prompts, writers, a monitor.

An adapter says what its framework knows (the model, the step, where logs go, what is trained on)
and when something happens; everything else is here. It may be called on every process, and never
raises unless it was asked to.

    class StableRegionCallback(CallbackCore, FrameworkCallback):
        def on_start(self, trainer):
            self.begin(trainer.model, trainer.step, log_dir=..., find_writers=..., sample=...)
            self.at_step(trainer.model, trainer.step)
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from sr_monitor.display.writers import as_writers
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import InputError, check_folder_name, check_kind, warn, whole
from sr_monitor.model.precision import Precision
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.stream import Output
from sr_monitor.probes import keys
from sr_monitor.probes.base import Probe
from sr_monitor.probes.sampling import Sampling
from sr_monitor.prompts.corpora import WindowRequest
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.token_ids import token_ids_of
from sr_monitor.prompts.training_data import prompts_from_batch, prompts_from_dataset
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.guard import ErrorGuard, OnError
from sr_monitor.watch.monitor import Monitor, check_state, share_prompts
from sr_monitor.watch.schedule import Schedule, check_schedule, every

_MOST_BATCHES = 100  # to collect prompts from
_FEW_PAIRS = 32

every_n_steps = every  # the callback's own `every` is a number

Prompts: TypeAlias = PromptSet | str | os.PathLike[str]
_PROMPTS_FIX = (
    "pass a PromptSet, the file of a saved one, or nothing, to take them from the training data; "
    "when to measure is said by every="
)


class CallbackCore:
    """A `Monitor` that is made, fed and closed by a framework's events."""

    def __init__(
        self,
        prompts: Prompts | None = None,
        *,
        every: int = 500,
        schedule: Schedule | None = None,
        with_save: bool = False,
        with_eval: bool = False,
        num_pairs: int = 256,
        num_steps: int = 51,
        sampling: Sampling = "grid",
        num_slices: int = 4,
        slice_resolution: int = 41,
        layer: int = 1,
        num_tokens: int = 10,
        output: Output = "final_norm",
        precision: Precision = "run",
        engine: EngineName = "auto",
        layer_path: str | None = None,
        max_tokens: int | None = None,
        probes: Sequence[str | Probe] = (),
        log_dir: str | os.PathLike[str] | None = None,
        name: str = keys.PREFIX.rstrip("/"),
        writer: Any = None,
        on_error: OnError = "warn",
        seed: int = 0,
    ) -> None:
        """Does nothing until the training begins.

        Args:
            prompts: What is measured: a `PromptSet`, or the file of a saved one; None takes them
                from the training data.
            every: Measure at step 0 and then every so many steps.
            schedule: When to measure, instead of `every`: `log_spaced()`, `at([...])`,
                `budget(0.01, schedule=...)`, or any function of the step.
            with_save: Measure also whenever the framework saves a checkpoint.
            with_eval: Measure also whenever the framework evaluates.
            num_pairs: Paths to take.
            num_steps: Alphas on a path, both ends included.
            sampling: "grid", or "adaptive" for the same slopes from fewer points.
            num_slices: Slices to take; 0 for none.
            slice_resolution: Points along a side of a slice.
            layer: Where the stream is cut; 0 is the embedding.
            num_tokens: The length of a prompt that is taken from the training data.
            output: What is looked at for a change; see `measure_paths`.
            precision: "run" is the run's own; "float32" is full precision, where the weights are.
            engine: The way to run points; see `measure_paths`.
            layer_path: The path of the list of decoder blocks, where it is not found by itself.
            max_tokens: How many tokens one forward may take; by default chosen from the device.
            probes: What else is measured: probes, or their names.
            log_dir: Where records go, in its folder `name`; by default the run's own.
            name: That folder, and what every logged name begins with. A second callback on the
                same folder gets a number.
            writer: Where results are shown: a writer, a `SummaryWriter`, or several of them; by
                default the TensorBoard and Weights & Biases runs of the framework, or a
                TensorBoard run of our own beside the records.
            on_error: "warn" lets training go on whatever happens; "raise" does not.
            seed: Of the choice of prompts.
        """
        super().__init__()
        self.config = MonitorConfig(
            num_pairs=num_pairs,
            num_steps=num_steps,
            sampling=sampling,
            num_slices=num_slices,
            slice_resolution=slice_resolution,
            layer=layer,
            output=output,
            precision=precision,
            engine=engine,
            layer_path=layer_path,
            max_tokens=max_tokens,
            probes=probes,
        )
        every_so_many = every_n_steps(whole("every", every, least=1))
        self.schedule = every_so_many if schedule is None else schedule
        check_schedule(self.schedule)
        check_kind("prompts", prompts, PromptSet | str | os.PathLike | None, _PROMPTS_FIX)
        check_kind("log_dir", log_dir, str | os.PathLike | None, "pass the path of a folder")
        check_folder_name("name", name)
        self.with_save = with_save
        self.with_eval = with_eval
        self.log_dir = log_dir
        self.name = name
        self.seed = whole("seed", seed)
        self.num_tokens = whole("num_tokens", num_tokens, least=2)
        self.monitor: Monitor | None = None
        """The monitor of the training that is going on, once it has begun."""
        self._prompts = prompts
        self._writers = None if writer is None else as_writers("writer", writer)
        self._on_error: OnError = on_error
        self._guard = ErrorGuard(on_error)
        self._rows: list[list[int]] = []  # of batches that held too little
        self._num_batches = 0

    def begin(
        self,
        model: nn.Module,
        step: int,
        *,
        run: object,
        log_dir: str | os.PathLike[str] | None,
        find_writers: Callable[[], Sequence[Writer]],
        sample: Callable[[], PromptSet | None],
        find_state: Callable[[str], Mapping[str, Any] | None],
        is_last_chance: bool,
    ) -> bool:
        """Makes the monitor; whether it could: without prompts, `begin` again with a batch.

        Args:
            model: The model that is trained.
            step: The step that the run begins at.
            run: What stands for this training; another callback of it has a folder of its own, and
                one of an earlier training has none any more.
            log_dir: Where records go if the user has not said it; None keeps none.
            find_writers: The framework's own loggers, as writers; asked on the first process.
            sample: Prompts from the training data; None if it holds none that can be found.
            find_state: What was saved for the monitor of this name when the run was interrupted.
            is_last_chance: Whether there will be nothing more to take prompts from.
        """
        self.end()
        ranks = RankGroup.present()
        self._guard = ErrorGuard(self._on_error, tells=ranks.is_leader)
        with self._guard.catching("starting sr-monitor", final=True), ranks.failing_together():
            store = RecordStore(log_dir and (self.log_dir or log_dir), self.name, run)
            try:
                state = find_state(store.name)
                prompts = self._choose_prompts(store, step, state, sample)
                prompts = share_prompts(ranks, prompts)
                if prompts is None:
                    if is_last_chance:
                        raise InputError(
                            "StableRegionCallback: no token ids were found in the training data, "
                            f"or fewer than three prompts of num_tokens={self.num_tokens}; pass "
                            "prompts=, a PromptSet"
                        )
                    store.close()
                    return False
                monitor = self._make_monitor(prompts, store, state)
                if ranks.is_leader:
                    monitor.writers = self._open_writers(store, step, find_writers)
            except BaseException:
                store.close()
                raise
            monitor.guard = self._guard
            self.monitor = monitor
        if self.monitor is not None:
            try:
                self.monitor.start(model, step)
            except BaseException:  # the folder is to be free for another try
                self.end()
                raise
        return True

    def sample(self, batch: Any, loader: Any, tokenizer: Any) -> PromptSet | None:
        """Prompts from the batch, if there is one, or from what the training's loader reads."""
        request = WindowRequest(
            "StableRegionCallback",
            num_tokens=self.num_tokens,
            num_prompts=self.config.num_prompts,
            seed=self.seed,
        )
        if batch is None:
            self._rows, self._num_batches = [], 0
            return prompts_from_dataset(getattr(loader, "dataset", None), request, tokenizer)
        prompts = prompts_from_batch(batch, request, tokenizer)
        if prompts is not None:
            return prompts
        # This batch and those before it, where one alone holds too little.
        self._rows += token_ids_of(batch) or []
        self._num_batches += 1
        return prompts_from_batch({"input_ids": self._rows}, request, tokenizer)

    def is_last_chance(self, batch: Any) -> bool:
        """Whether further batches would not help: this one holds no ids, or there were many."""
        if batch is None:
            return False
        return self._num_batches + 1 >= _MOST_BATCHES or not token_ids_of(batch)

    def at_step(
        self,
        model: nn.Module,
        step: int,
        *,
        tokens: int | Callable[[], int | None] | None = None,
        also: bool = False,
        last: bool = False,
    ) -> None:
        """Measures if it is time to; see `Monitor.step`."""
        if self.monitor is not None:
            self.monitor.step(model, step, tokens=tokens, also=also, last=last)

    def end(self) -> None:
        """The training is over: the last pictures are drawn and the writers closed."""
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = None

    # ---- inside --------------------------------------------------------------------------------

    def _choose_prompts(
        self,
        store: RecordStore,
        step: int,
        state: Mapping[str, Any] | None,
        sample: Callable[[], PromptSet | None],
    ) -> PromptSet | None:
        """The user's, else those of the run that is resumed, else from the training data."""
        given = self._prompts
        if given is None:
            saved = _saved_prompts(store, step, state)
            return self._sampled(sample) if saved is None else saved
        return given if isinstance(given, PromptSet) else PromptSet.load(Path(given))

    def _sampled(self, sample: Callable[[], PromptSet | None]) -> PromptSet | None:
        prompts, wanted = sample(), self.config.num_pairs
        if (
            prompts is not None
            and prompts.num_pairs < min(wanted, _FEW_PAIRS)
            and self._guard.tells
        ):
            warn(
                f"StableRegionCallback: {prompts.num_pairs} pairs of prompts were found, and "
                f"num_pairs={wanted} are to be measured: the curve will be rough. They are from "
                f"{prompts.source}; pass prompts=, a PromptSet with more",
                stacklevel=2,
            )
        return prompts

    def _make_monitor(
        self, prompts: PromptSet, store: RecordStore, state: Mapping[str, Any] | None
    ) -> Monitor:
        monitor = Monitor(
            prompts,
            self.config,
            schedule=self.schedule,
            log_dir=store,
            on_error=self._on_error,
        )
        if state is not None:
            monitor.load_state_dict(state)
        return monitor

    def _open_writers(
        self, store: RecordStore, step: int, find_writers: Callable[[], Sequence[Writer]]
    ) -> list[Writer]:
        """The user's writers, else the framework's, else one of our own, beside the records."""
        if self._writers is not None:
            return list(self._writers)
        found = list(find_writers())
        if found or store.folder is None:
            return found
        purge_step = step + 1 if step > 1 else 0
        try:
            own: Writer = TensorBoardWriter(store.folder, purge_step=purge_step)
            watch = f"to watch: tensorboard --logdir {shlex.quote(str(store.folder.parent))}"
        except InputError:  # TensorBoard is not installed
            own = JSONLWriter(store.folder / "log.jsonl", purge_step=purge_step)
            watch = "for TensorBoard: pip install 'sr-monitor[tensorboard]'"
        print(f"sr-monitor: results in {store.folder}; {watch}", file=sys.stderr)  # noqa: T201
        return [own]


def _saved_prompts(
    store: RecordStore, step: int, state: Mapping[str, Any] | None
) -> PromptSet | None:
    """The prompts of the run that is resumed: in its state, or beside its records."""
    if state is not None:
        check_state(state)
        if "prompts" in state:
            return PromptSet.from_json(state["prompts"], call="the saved state of sr-monitor")
    beside = None if store.folder is None else store.folder / "prompts.json"
    if step > 1 and beside is not None and beside.is_file():
        return PromptSet.load(beside)
    return None
