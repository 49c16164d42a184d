"""The watcher that the callbacks of all frameworks hold: it makes, feeds and closes a monitor.

An adapter says what its framework knows (a `Training`) and when something happens; everything else
is here. Every rank makes every call, and no call raises unless `on_error="raise"`.

    class StableRegionCallback(FrameworkCallback):
        @takes(WatchOptions)
        def __init__(self, *args, **options):
            self.watcher = Watcher(WatchOptions(*args, **options))

        def on_start(self, trainer):
            self.watcher.begin(lambda: Training(model=trainer.model, step=trainer.step, ...))
            self.watcher.at_step(trainer.model, trainer.step)
"""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import InputError, tell, warn
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.undisturbed import preserving_global_state
from sr_monitor.prompts.corpora import WindowRequest
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.sets import as_given, by_name
from sr_monitor.prompts.token_ids import token_ids_of
from sr_monitor.prompts.training_data import prompts_from_batch, prompts_from_dataset
from sr_monitor.results.record import Record
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import WatchOptions
from sr_monitor.watch.guard import ErrorGuard
from sr_monitor.watch.monitor import Monitor, Tokens, check_state
from sr_monitor.watch.tokens import TokenCount

_MOST_BATCHES = 100  # to collect prompts from
_EVAL = "eval_dataset"

_Options = TypeVar("_Options", bound=WatchOptions)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What an adapter knows of the training that begins."""

    model: nn.Module
    step: int
    """The step that it begins at."""
    run: object
    """Stands for the training: its callbacks get a folder each; an earlier one's lose theirs."""
    log_dir: str | os.PathLike[str] | None
    """Where records go by default; None keeps none, whatever the user says."""
    find_writers: Callable[[], Sequence[Writer]]
    """Returns the framework's own loggers, as writers; called on the first rank."""
    writes_own: bool = False
    """Whether a TensorBoard run of our own is written beside the framework's loggers, too."""
    find_state: Callable[[str], Mapping[str, Any] | None]
    """Returns what was saved under this name when the training was interrupted."""
    loaders: Sequence[Any] = ()
    """Data loaders; the first whose data set holds token ids gives the prompts."""
    datasets: Mapping[str, Any] = field(default_factory=dict)
    """Other data sets by the names that prompts= takes, such as "eval_dataset"."""
    tokenizer: Any = None
    """Gives the prompts their texts, if it is known."""
    is_last_chance: bool = False
    """Whether prompts have to be found now, because later batches cannot be looked at."""


class Watcher(Generic[_Options]):
    """A `Monitor` that is made, fed and closed by a framework's events."""

    def __init__(self, options: _Options) -> None:
        """Do nothing until the training begins."""
        self.options = options
        self.guard = ErrorGuard(options.on_error)
        self.training: Training | None = None
        self.monitor: Monitor | None = None
        """The monitor of the training, once there are prompts."""
        self.has_begun = False
        """Whether `begin` was called for it, with or without success."""
        self.tokens = TokenCount(None)
        """The tokens it has seen, where the adapter adds its batches."""
        self.wanted = False
        """Whether to measure at the next step, whatever the schedule says."""
        self.states: dict[str, Mapping[str, Any]] = {}
        """States by name: those that were restored, and those of trainings that have ended."""
        self._closing = ExitStack()
        self._batches: list[list[list[int]]] = []  # the rows of each batch so far
        self._state: Mapping[str, Any] | None = None  # what was saved when it was interrupted

    @property
    def is_waiting(self) -> bool:
        """Whether the training has begun, but a batch has to give the prompts."""
        return self.has_begun and self.monitor is None and not self.guard.is_off

    @preserving_global_state()
    def begin(self, describe: Callable[[], Training], batch: Sequence[Any] | None = None) -> bool:
        """Make the monitor; return False if no prompts are found: `begin` again with a batch.

        Errors of `describe` are caught, too. `batch` is what each data loader gave.
        """
        if batch is None:
            self.end()
        self.has_begun = True
        self.guard = ErrorGuard(self.options.on_error)
        ranks = RankGroup.present()
        try:
            with self.guard.catching("starting sr-monitor", final=True), ranks.failing_together():
                now = describe()
                if batch is None:
                    is_new = now.step == 0
                    self.states = {} if is_new else self.states
                    self.tokens = TokenCount(0 if is_new else None)
                # However late there are prompts, the training began where it did.
                step = now.step if batch is None or self.training is None else self.training.step
                self.training = replace(now, step=step)
                self.monitor = self._make_monitor(self.training, batch, ranks)
                if self.monitor is None:
                    return False
                if batch is not None:
                    self.monitor.pace.asked = step - 1  # what was missed meanwhile is made up for
                num = min(len(each.sample.prompts.token_ids) for each in self.monitor.series)
                if len(self._batches) > 1 and num >= self.options.num_prompts and ranks.is_leader:
                    tell(f"all {num} prompts are found at step {now.step}; measuring begins")
            if self.monitor is not None:
                self.monitor.start(self.training.model, self.training.step)
        except BaseException:  # the folder is to be free for another try
            self.end()
            raise
        return True

    def at_step(
        self,
        model: nn.Module,
        step: int,
        *,
        tokens: Tokens = None,
        also: bool = False,
        last: bool = False,
    ) -> Record | None:
        """Measure if it is time to; see `Monitor.step`."""
        training = self.training
        if last and self.is_waiting and training is not None:  # take what the batches held
            self.begin(lambda: replace(training, step=step), [])
        if self.monitor is None:
            return None
        also, self.wanted = also or self.wanted, False
        return self.monitor.step(model, step, tokens=tokens, also=also, last=last)

    def until_end(self, call: Callable[[], object]) -> None:
        """Call this when the training ends."""
        self._closing.callback(call)

    @preserving_global_state()
    def end(self) -> None:
        """Draw the last pictures and close the writers: the training is over."""
        self._closing.close()
        states: dict[str, Any] = {}
        self.add_state(states)
        self.states = states
        monitor, self.monitor, self.training = self.monitor, None, None
        self.has_begun = self.wanted = False
        self._batches = []
        if monitor is not None:
            monitor.close()

    def add_state(self, states: dict[str, Any]) -> None:
        """Add what a resumed run needs to go on to the states of other callbacks, by its name.

        What was restored and could not be used stays for whoever can use it.
        """
        for name, state in self.states.items():
            states.setdefault(name, state)
        if self.monitor is not None:
            own = {"tokens": self.tokens.total}
            with self.guard.catching("saving the state of sr-monitor"):
                states[self.monitor.store.name] = self.monitor.state_dict() | own

    # ---- inside --------------------------------------------------------------------------------

    def _make_monitor(
        self, training: Training, batch: Sequence[Any] | None, ranks: RankGroup
    ) -> Monitor | None:
        options = self.options
        log_dir = training.log_dir and (options.log_dir or training.log_dir)
        store = RecordStore(log_dir, options.name, training.run, probes=options.measured)
        with ExitStack() as undo:
            undo.callback(store.close)
            if batch is None:
                self._state = training.find_state(store.name)
            state = self._state
            last_chance = self._collect(batch) or training.is_last_chance
            wanted = by_name(options.prompts)
            named = {
                name: self._choose_prompts(name, given, store, training, state)
                for name, given in wanted.items()
            }
            if ranks.is_leader:
                # Those that batches may complete first: while they wait, no other is drawn.
                for name in sorted(named, key=lambda name: wanted[name] is not None):
                    named[name] = named[name] or self._sample(
                        wanted[name], training, batch, last_chance=last_chance
                    )
                    if named[name] is None:
                        break
            # The leader's, whichever rank has none.
            named, last_chance = ranks.broadcast((named, last_chance))
            found = {
                name: replace(prompts, tokenizer=prompts.tokenizer or training.tokenizer)
                for name, prompts in named.items()
                if prompts is not None
            }
            if len(found) < len(named) and last_chance:
                raise InputError(
                    "StableRegionCallback: no token ids were found in the training data, or fewer "
                    f"than three prompts of num_tokens={options.num_tokens}; pass prompts=, a "
                    "PromptSet"
                )
            if len(found) < len(named):
                return None
            monitor = Monitor(
                as_given(found),
                options,
                writers=self._open_writers(store, training) if ranks.is_leader else (),
                schedule=options.when,
                log_dir=store,
                on_error=self.guard,
                ranks=ranks,
            )
            if state is not None:
                monitor.load_state_dict(state)
                self.tokens = TokenCount(state.get("tokens"))
            undo.pop_all()
            return monitor

    def _collect(self, batch: Sequence[Any] | None) -> bool:
        """Keep the rows of a batch; return whether no later batch would give more."""
        if batch is None:
            return False
        found = [rows for part in batch if (rows := token_ids_of(part)) is not None]
        self._batches += found[:1]
        return not found or len(self._batches) >= _MOST_BATCHES

    def _choose_prompts(
        self,
        name: str,
        given: Any,
        store: RecordStore,
        training: Training,
        state: Mapping[str, Any] | None,
    ) -> PromptSet | None:
        """Return the user's, else those of the run that is resumed."""
        if given is not None and not _is_of_trainer(given):
            return given if isinstance(given, PromptSet) else PromptSet.load(Path(given))
        if state is not None:
            check_state(state)
            if saved := by_name(state.get("prompts")).get(name):
                return PromptSet.from_json(saved, call="the saved state of sr-monitor")
        own = store.of_set(name) if name else store
        return own.load_prompts() if training.step > 1 else None

    def _sample(
        self, given: Any, training: Training, batch: Sequence[Any] | None, *, last_chance: bool
    ) -> PromptSet | None:
        """Draw prompts; None while later batches may complete the set; warn of fewer than asked."""
        wanted = self.options.num_prompts
        prompts: PromptSet | None
        if given is not None:
            prompts, batch = self._draw_from(given, training), None
        else:
            prompts = self._draw(training, batch)
        if prompts is None or (found := len(prompts.token_ids)) >= wanted:
            return prompts
        if batch is not None and not last_chance:
            return None
        warn(
            f"StableRegionCallback: {found} prompts were found, {wanted} are wanted "
            f"(num_pairs={self.options.num_pairs}), so the curve will be rough. They are from "
            f"{prompts.source}; pass prompts=, a PromptSet with more",
            stacklevel=2,
        )
        return prompts

    def _draw(self, training: Training, batch: Sequence[Any] | None) -> PromptSet | None:
        """Draw prompts from the batches so far, if there are any, else from what loaders read."""
        request = self._request()
        if batch is not None:
            rows, count = {"input_ids": list(chain(*self._batches))}, len(self._batches)
            return prompts_from_batch(rows, request, training.tokenizer, num_batches=count)
        datasets = (getattr(loader, "dataset", None) for loader in training.loaders)
        drawn = (prompts_from_dataset(each, request, training.tokenizer) for each in datasets)
        return next((prompts for prompts in drawn if prompts is not None), None)

    def _draw_from(self, name: str, training: Training) -> PromptSet:
        """Draw prompts from another data set of the trainer, before its loader reads it."""
        call = f"StableRegionCallback(prompts={{...: {name!r}}})"
        if (dataset := training.datasets.get(name)) is None:
            there = ", ".join(map(repr, training.datasets)) or "none"
            raise InputError(f"{call}: the trainer has no such data set; it has: {there}")
        drawn = prompts_from_dataset(dataset, self._request(), training.tokenizer)
        if drawn is None:
            raise InputError(
                f"{call}: no token ids were found in it, fewer than three prompts of num_tokens="
                f"{self.options.num_tokens}, or reading it runs code of its own; pass a PromptSet"
            )
        return replace(drawn, source=drawn.source.replace("the training data", name))

    def _request(self) -> WindowRequest:
        return WindowRequest(
            "StableRegionCallback",
            num_tokens=self.options.num_tokens,
            num_prompts=self.options.num_prompts,
            seed=self.options.seed,
        )

    def _open_writers(self, store: RecordStore, training: Training) -> Sequence[Writer]:
        """Return the user's writers, else the framework's, else one of our own."""
        if self.options.writer is not None:
            return list(self.options.writer)
        found = list(training.find_writers())
        if store.folder is None or (found and not training.writes_own):
            return found
        purge_step = training.step + 1 if training.step > 1 else 0
        try:
            own: Writer = TensorBoardWriter(store.folder, purge_step=purge_step)
            watch = f"to watch: tensorboard --logdir {shlex.quote(str(store.folder.parent))}"
        except InputError:  # TensorBoard is not installed
            own = JSONLWriter(store.folder / "log.jsonl", purge_step=purge_step)
            watch = "for TensorBoard: pip install 'sr-monitor[tensorboard]'"
        tell(f"results in {store.folder}; {watch}")
        return [*found, own]


def name_datasets(given: Any) -> dict[str, Any]:
    """Name a trainer's data sets for evaluation as prompts= does: one, or several by name."""
    if isinstance(given, Mapping):
        return {f"{_EVAL}.{name}": each for name, each in given.items()}
    return {} if given is None else {_EVAL: given}


def _is_of_trainer(given: Any) -> bool:
    return isinstance(given, str) and given.partition(".")[0] == _EVAL
