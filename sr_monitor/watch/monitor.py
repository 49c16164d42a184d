"""The monitor of a training: prompts, schedule, measurements, records and writers, put together.

Call `step` after each update of the optimizer; it measures when the schedule says so. Each rank
makes every call: they share the pairs, and the first of them writes.

    monitor = Monitor(prompts, writers=[TensorBoardWriter("runs/1")], log_dir="runs/1")
    monitor.step(model, 0)
    for step, batch in enumerate(loader, start=1):
        train(model, batch)
        monitor.step(model, step)
    monitor.close()
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from sr_monitor.display.writers import as_writers
from sr_monitor.display.writers.base import Writer
from sr_monitor.errors import InputError, check_folder_name, check_kind, warn
from sr_monitor.model.anatomy import check_layer, dissect
from sr_monitor.model.engine import Way
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.undisturbed import preserving_global_state
from sr_monitor.model.wrappers import is_partitioned
from sr_monitor.probes.base import built_in
from sr_monitor.probes.keys import FAILURES, NAME, of_run
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.sets import as_given, by_name
from sr_monitor.results.record import Record
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.guard import ErrorGuard, OnError
from sr_monitor.watch.pace import Pace
from sr_monitor.watch.samples import Sample, Sets, samples_of
from sr_monitor.watch.schedule import Schedule, check_schedule, every
from sr_monitor.watch.series import Series

Tokens: TypeAlias = int | Callable[[], int | None] | None
"""A number of tokens, or a function that returns it."""

_SCHEMA = 1
_EXPERIMENTAL = (
    "sr-monitor under DeepSpeed ZeRO-3 is experimental: it was never run there; if training "
    "stalls, take the callback out and measure saved checkpoints instead"
)


class Monitor:
    """Measures a model while it is trained, and never disturbs the training."""

    def __init__(
        self,
        prompts: Sets,
        config: MonitorConfig | None = None,
        *,
        writers: Any = (),
        schedule: Schedule | None = None,
        log_dir: str | os.PathLike[str] | RecordStore | None = None,
        name: str = NAME,
        on_error: OnError | ErrorGuard = "warn",
        ranks: RankGroup | None = None,
    ) -> None:
        """Measure nothing yet.

        Args:
            prompts: What is measured, the same at every step; several sets by name, such as
                {"train": ..., "code": ...}, are measured side by side.
            config: How much, and where; by default `MonitorConfig()`.
            writers: Where the first rank shows results: a writer, a `SummaryWriter`, or several.
            schedule: When to measure; by default every 500 steps, from step 0 on.
            log_dir: Where records are kept, in its folder `name`, or a `RecordStore`; None keeps
                none.
            name: The folder of the records, and what every logged name begins with. If another
                monitor is using it, a number is added.
            on_error: "warn" lets training go on whatever happens; "raise" does not. Or a guard.
            ranks: The ranks that measure together, if they have the same prompts already; by
                default all there are at the first step, with the leader's prompts.
        """
        check_kind("config", config, MonitorConfig | None, "pass a MonitorConfig")
        check_kind(
            "log_dir", log_dir, str | os.PathLike | RecordStore | None, "pass the path of a folder"
        )
        check_folder_name("name", name)
        schedule = every(500) if schedule is None else schedule
        check_schedule(schedule)
        self.writers = as_writers("writers", writers)
        self.config = MonitorConfig() if config is None else config
        samples = samples_of(prompts, self.config)
        self.pace = Pace(schedule)
        self.guard = on_error if isinstance(on_error, ErrorGuard) else ErrorGuard(on_error)
        self.store = (
            log_dir if isinstance(log_dir, RecordStore) else _store(log_dir, name, self.config)
        )
        self.series = [Series(sample, self.config, self.store) for sample in samples]
        """The curves: one for each set of prompts, and with `resample` one more beside each."""
        self.last_step = -1
        self.ranks = ranks or ALONE
        """The ranks that measure together; if none were given, known from the first step on."""
        self._looks_for_ranks = ranks is None
        self._is_open = False

    @property
    def prompts(self) -> PromptSet:
        """The prompts of the first set."""
        return self.series[0].sample.prompts

    def step(
        self,
        model: nn.Module,
        step: int,
        *,
        tokens: Tokens = None,
        also: bool = False,
        last: bool = False,
    ) -> Record | None:
        """Measure if it is time to, and nobody has measured this step before.

        Of several sets, the record of the first is returned; `series` has the others'.

        Args:
            model: The model that is trained, as the framework calls it.
            step: How many times the optimizer has updated it.
            tokens: How many tokens it was trained on, if that is known, or a function that returns
                it, called only if a measurement is made.
            also: Measure at this step whatever the schedule says, if the budget allows.
            last: The training ends here: as `also`, with pictures.
        """
        self.start(model, step)
        if not self._is_open or step <= self.last_step:
            return None
        pace, measured, also = self.pace, self.last_step, also or last
        is_off, ranks = self.guard.is_off, self.ranks
        with self._catching(f"measuring at step {step}", step):
            if not pace.may_be_due(step, measured=measured, also=also):
                return None
            with preserving_global_state():
                if pace.is_due(step, measured=measured, also=also, is_off=is_off, ranks=ranks):
                    record = self.measure(model, step, tokens=tokens, last=last)
                    self.guard.reset()
                    return record
        return None

    @preserving_global_state()
    def measure(
        self, model: nn.Module, step: int, *, tokens: Tokens = None, last: bool = False
    ) -> Record:
        """Measure now, whatever the schedule says; errors are raised."""
        self._open(model, step)
        began = time.perf_counter()
        try:
            with self.ranks.failing_together():
                about = {
                    "tokens": tokens() if callable(tokens) else tokens,
                    "processes": self.ranks.size,
                    "share_of_time": self.pace.account.spent_share,
                    "failures": self.guard.failures,
                }
            records = [self._measure(each, model, step, about, last=last) for each in self.series]
        finally:
            self.last_step = max(step, self.last_step)
            self.pace.account.spend(time.perf_counter() - began)
        return records[0]

    def start(self, model: nn.Module, step: int) -> None:
        """Check that it can work here, and go on with earlier records; `step` calls it, too."""
        if not self._is_open and not self.guard.is_off:
            starting = self._catching("starting sr-monitor", step, final=True)
            with preserving_global_state(), starting:
                self._open(model, step)

    @preserving_global_state()
    def close(self) -> None:
        """Draw what was measured last, if it was not drawn; the last call."""
        with ExitStack() as stack:  # whatever fails, the rest is closed
            stack.callback(self.store.close)
            if not self.ranks.is_leader:
                return
            for writer in self.writers:
                stack.enter_context(self.guard.catching(f"closing {type(writer).__name__}"))
                stack.callback(writer.close)
            for series in self.series:
                with self.guard.catching("drawing what was measured last"):
                    series.finish()

    @preserving_global_state()
    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs in order to go on, as plain values."""
        folder = self.store.folder
        return {
            "schema": _SCHEMA,
            "step": self.last_step,
            "prompts": as_given({each.name: each.prompts.to_json() for each in self._kept}),
            "account": self.pace.account.state_dict(),
            "folder": folder and str(folder),
            "way": as_given({series.sample.name: series.way for series in self.series}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run was; the prompts stay those that this monitor was given."""
        check_state(state)
        self.pace.account.load_state_dict(state.get("account", {}))
        folder, ways = state.get("folder"), by_name(state.get("way"))
        for series in self.series:
            name = series.sample.name
            series.store.came_from = folder and str(Path(folder) / name)
            series.way = ways.get(name)
        if self.store.folder is None:  # no records tell what was measured
            self.last_step = int(state.get("step", -1))

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _kept(self) -> list[Sample]:
        """The samples whose pairs are the same at every step."""
        return [each.sample for each in self.series if not each.sample.is_resampled]

    def _measure(
        self, series: Series, model: nn.Module, step: int, about: dict[str, Any], *, last: bool
    ) -> Record:
        with self.ranks.failing_together():
            record = series.take(model, step, ranks=self.ranks, **about)
        with self.ranks.failing_together():
            if self.ranks.is_leader:
                series.keep(record, last=last)
        return record

    def _open(self, model: nn.Module, step: int) -> None:
        """Check the model and take up earlier records, the first time."""
        if self._is_open:
            return
        if self._looks_for_ranks:  # not when it was made: the group may be formed later
            self._looks_for_ranks = False
            self.ranks = RankGroup.present()
            for series in self.series:
                series.sample = self.ranks.broadcast(series.sample)
        with self.ranks.failing_together():
            built_in()  # imports them all
            self.pace.begin(step)
            anatomy = dissect(model, self.config.layer_path)
            check_layer(anatomy, self.config.layer)
            if is_partitioned(model) and self.ranks.is_leader:
                warn(_EXPERIMENTAL, stacklevel=4)
            new = [writer for writer in self.writers if getattr(writer, "is_new", False)]
            earlier = self._go_on(step, new) if self.ranks.is_leader else []
        ways: list[Way | None] = [series.way for series in self.series]
        follow = self.ranks.broadcast((self.last_step, ways, self.pace.shared))
        self.last_step, ways, self.pace.shared = follow
        for series, way in zip(self.series, ways, strict=True):
            series.way = way
        self._is_open = True
        # A writer that fails here is no reason not to measure.
        with self.guard.catching("showing the prompts"), self.ranks.failing_together():
            for series, records in zip(self.series, earlier, strict=False):  # on the leader
                series.introduce(step, records, new)

    def _go_on(self, step: int, new: Sequence[Writer]) -> list[Iterator[Record]]:
        """Take up the records of the run that this one continues; return those of each curve."""
        writer: Any
        for writer in self.writers:
            if len(self.series) > 1 and hasattr(writer, "compare"):
                writer.compare([series.store.name for series in self.series])
        for series in self.series:
            series.last_step = self.last_step
        earlier = [series.open(self.writers, step, new=new) for series in self.series]
        # Of a run that was killed between two sets, the step is measured again for all.
        self.last_step = min(series.last_step for series in self.series)
        return earlier

    @contextmanager
    def _catching(self, what: str, step: int, *, final: bool = False) -> Iterator[None]:
        """Guard the block, and log the number of failures if it grows and writers still work."""
        failures = self.guard.failures
        with self.guard.catching(what, final=final):
            yield
        if self.guard.failures > failures and self.ranks.is_leader:
            name = of_run(FAILURES.name, self.store.name)
            for writer in self.writers:
                with suppress(Exception), preserving_global_state():
                    writer.scalar(name, float(self.guard.failures), step)
                    writer.flush()


def _store(log_dir: str | os.PathLike[str] | None, name: str, config: MonitorConfig) -> RecordStore:
    store = RecordStore(log_dir, name, probes=config.measured)
    if store.name != name:
        warn(
            f"Monitor(log_dir={str(log_dir)!r}): another monitor has the folder {name!r} there, "
            f"this one takes {store.name!r}; if the other has ended, call its close(), else pass "
            "name= to tell them apart",
            stacklevel=3,
        )
    return store


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse a state that a newer version has saved."""
    schema = state.get("schema", _SCHEMA)
    if schema > _SCHEMA:
        raise InputError(
            f"the saved state of sr-monitor has schema {schema}, this version reads up to schema "
            f"{_SCHEMA}; run: pip install --upgrade sr-monitor"
        )
