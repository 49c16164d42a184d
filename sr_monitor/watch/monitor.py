"""A training, watched: prompts, a schedule, measurements, records and writers, put together.

Call `step` after each update of the optimizer; now and then it measures. On several processes
every one makes every call: they share the pairs, and the first of them writes.

    monitor = Monitor(prompts, writers=[TensorBoardWriter("runs/1")], log_dir="runs/1")
    monitor.step(model, 0)
    for step, batch in enumerate(loader, start=1):
        train(model, batch)
        monitor.step(model, step)
    monitor.close()
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from sr_monitor.display.album import Album
from sr_monitor.display.writers import as_writers
from sr_monitor.display.writers.base import Writer
from sr_monitor.errors import InputError, check_folder_name, check_kind, warn
from sr_monitor.model.anatomy import check_layer, dissect
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.wrappers import is_partitioned, is_sharded
from sr_monitor.probes import keys
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.guard import ErrorGuard, OnError
from sr_monitor.watch.measure import take_record
from sr_monitor.watch.schedule import Budget, Schedule, budget, every

_SCHEMA = 1
_MOST_PASSED_OVER = 1000  # a step that counts tokens jumps by more
_EXPERIMENTAL = (
    "sr-monitor under DeepSpeed ZeRO-3 is experimental: it follows ZeRO's rules and was never run "
    "there; if training stalls, take the callback out and measure saved checkpoints instead"
)


class Monitor:
    """Measures a model while it is trained, and never disturbs the training."""

    def __init__(
        self,
        prompts: PromptSet,
        config: MonitorConfig | None = None,
        *,
        writers: Any = (),
        schedule: Schedule | None = None,
        log_dir: str | os.PathLike[str] | RecordStore | None = None,
        name: str = keys.PREFIX.rstrip("/"),
        on_error: OnError = "warn",
    ) -> None:
        """Measures nothing yet.

        Args:
            prompts: What is measured, the same at every step.
            config: How much, and where; by default `MonitorConfig()`.
            writers: Where results are shown: a writer, a `SummaryWriter`, or several of them; used
                by the first process alone.
            schedule: When to measure; by default every 500 steps, from step 0 on.
            log_dir: Where records are kept, in its folder `name`, or a `RecordStore`; None keeps
                none.
            name: The folder of the records, and what every logged name begins with. If another
                monitor is using it, a number is added.
            on_error: "warn" lets training go on whatever happens; "raise" does not.
        """
        fix = "pass a PromptSet; PromptSet.from_texts and PromptSet.from_token_ids make one"
        check_kind("prompts", prompts, PromptSet, fix)
        check_kind("config", config, MonitorConfig | None, "pass a MonitorConfig")
        check_kind(
            "log_dir", log_dir, str | os.PathLike | RecordStore | None, "pass the path of a folder"
        )
        check_folder_name("name", name)
        self.writers = as_writers("writers", writers)
        self.prompts = prompts
        self.config = MonitorConfig() if config is None else config
        schedule = every(500) if schedule is None else schedule
        self.schedule = schedule
        # An account of the time is kept in any case; one of 100% allows everything.
        self.account = schedule if isinstance(schedule, Budget) else budget(1.0, schedule=schedule)
        self.ranks = RankGroup.present()
        self.guard = ErrorGuard(on_error, tells=self.ranks.is_leader)
        self.store = log_dir if isinstance(log_dir, RecordStore) else _store(log_dir, name)
        self.last_step = -1
        self._album: Album | None = None
        self._latest: Record | None = None
        self._next_question = 0
        self._asked = -1  # the last step that the schedule was asked about
        self._opened_at = (0, 0.0)  # the step, and the wall time

    def step(
        self,
        model: nn.Module,
        step: int,
        *,
        tokens: int | Callable[[], int | None] | None = None,
        also: bool = False,
        last: bool = False,
    ) -> Record | None:
        """Measures if it is time to, and nobody has measured this step before.

        Args:
            model: The model that is trained, as the framework calls it.
            step: How many times the optimizer has updated it.
            tokens: How many tokens it was trained on, if that is known, or a function that tells;
                it is called only if a measurement is made.
            also: Measure at this step whatever the schedule says, if the budget allows.
            last: The training ends here: as `also`, with pictures; `close` draws those of a step
                that was measured before.
        """
        self.start(model, step)
        if self._album is None or step <= self.last_step:
            return None
        failures = self.guard.failures
        record = None
        with self.guard.catching(f"measuring at step {step}"):
            if not self._is_due(step, also=also or last):
                return None
            known = tokens() if callable(tokens) else tokens
            record = self.measure(model, step, tokens=known, last=last)
        if self.guard.failures == failures:
            self.guard.reset()
        else:
            self._log_failure(step)
        return record

    def measure(
        self, model: nn.Module, step: int, *, tokens: int | None = None, last: bool = False
    ) -> Record:
        """Measures now, whatever the schedule says; errors are raised."""
        self._open(model, step)
        began = time.perf_counter()
        try:
            with self.ranks.failing_together():
                record = take_record(
                    model,
                    self.prompts,
                    self.config,
                    step=step,
                    tokens=tokens,
                    ranks=self.ranks,
                    processes=self.ranks.size,
                    share_of_time=self.account.spent_share,
                    failures=self.guard.failures,
                )
            with self.ranks.failing_together():
                if self.ranks.is_leader:
                    self._write(record, last=last)
            self._latest = record
        finally:
            self.last_step = max(step, self.last_step)
            self.account.spend(time.perf_counter() - began)
        return record

    def start(self, model: nn.Module, step: int) -> None:
        """Looks whether it can work here, and goes on with earlier records; only the first time.

        `step` makes this call itself; a run that is resumed and measures much later learns of a
        mistake at once by it.
        """
        if self._album is None and not self.guard.is_off:
            with self.guard.catching("starting sr-monitor", final=True):
                self._open(model, step)
            if self.guard.failures:
                self._log_failure(step)

    def close(self) -> None:
        """Draws what was measured last, if it was not drawn; the last call."""
        with ExitStack() as stack:  # whatever fails, the rest is closed
            stack.callback(self.store.close)
            if not self.ranks.is_leader:
                return
            for writer in self.writers:
                stack.callback(self._close, writer)
            if self._album is not None and self._latest is not None:
                with self.guard.catching("drawing what was measured last"):
                    self._album.show(self._latest, prompts=self.prompts, last=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to go on, as plain values."""
        folder = self.store.folder
        return {
            "schema": _SCHEMA,
            "step": self.last_step,
            "prompts": self.prompts.to_json(),
            "account": self.account.state_dict(),
            "folder": None if folder is None else str(folder),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a saved run was; the prompts stay those that this monitor was given."""
        check_state(state)
        self.account.load_state_dict(state.get("account", {}))
        self.store.came_from = state.get("folder")
        if self.store.folder is None:  # no records tell what was measured
            self.last_step = int(state.get("step", -1))

    # ---- inside --------------------------------------------------------------------------------

    def _open(self, model: nn.Module, step: int) -> None:
        if self._album is not None:
            return
        self._opened_at = step, self.account.wall_seconds  # the clock starts here
        self.ranks = RankGroup.present()  # once more: it may have come together since
        self.guard.tells = self.ranks.is_leader
        with self.ranks.failing_together():
            anatomy = dissect(model, self.config.layer_path)
            check_layer(anatomy, self.config.layer)
            if self.ranks.size > 1:
                is_sharded(model)  # refuses what cannot be shared
            if is_partitioned(model) and self.ranks.is_leader:
                warn(_EXPERIMENTAL, stacklevel=4)
            self.prompts = share_prompts(self.ranks, self.prompts) or self.prompts
            album = Album(self.writers, prefix=f"{self.store.name}/")
            new = [writer for writer in self.writers if getattr(writer, "is_new", False)]
            earlier = self._go_on(album, step, keep=bool(new)) if self.ranks.is_leader else []
        self.last_step = self.ranks.broadcast_number(self.last_step)
        self._album = album
        # A writer that fails here is no reason not to measure.
        with self.guard.catching("showing the prompts"), self.ranks.failing_together():
            if self.ranks.is_leader:
                album.introduce(self.prompts, step)
                # Writers that start anew, as of a run that is resumed elsewhere, get all.
                for record in earlier:
                    Album(new, prefix=album.prefix).repeat(record)

    def _go_on(self, album: Album, step: int, *, keep: bool) -> list[Record]:
        """Takes up the records of the run that this one continues, and returns them to `keep`."""
        earlier = []
        described = {
            "config": self.config.recorded("curve"),
            "prompts": self.prompts.fingerprint,
        }
        for record in self.store.open(step, described):
            album.keep(record)
            earlier += [record] if keep else []
            self.last_step = record.step
        self.store.save_prompts(self.prompts)
        return earlier

    def _is_due(self, step: int, *, also: bool) -> bool:
        """Whether to measure now; all processes say the same."""
        if not (self._is_scheduled(step) or also):
            return False
        is_budget = self.schedule is self.account
        if self.ranks.size == 1:
            return not self.guard.is_off and (not is_budget or self.account.affordable())
        if is_budget and step < self._next_question and not also:
            return False
        # Clocks differ, and the leader's errors, in saving say, can be its alone.
        if not self.ranks.minimum(int(not self.guard.is_off)):
            return False
        wait = self.ranks.broadcast_number(self._steps_to_wait(step) if is_budget else 0)
        self._next_question = step + max(1, wait)
        return wait == 0

    def _is_scheduled(self, step: int) -> bool:
        """Whether the schedule names this step, or one that was passed over since the last call.

        Steps are passed over where this is called now and then, or several optimizers count.
        """
        earlier = max(self._asked, self.last_step)
        first = earlier + 1 if earlier >= 0 and step - earlier <= _MOST_PASSED_OVER else step
        self._asked = max(step, self._asked)
        return any(map(self.account.schedule, range(first, step + 1)))

    def _steps_to_wait(self, step: int) -> int:
        """In how many steps there will be time, at the pace since it was opened."""
        seconds = self.account.seconds_to_wait()
        if seconds <= 0:
            return 0
        opened_step, opened_wall = self._opened_at
        done = max(1, step - opened_step)
        pace = max(1e-6, (self.account.wall_seconds - opened_wall) / done)
        return max(1, min(round(seconds / pace), done))

    def _write(self, record: Record, *, last: bool) -> None:
        """Keeps the record and shows it; what fails in one does not keep the other from it."""
        assert self._album is not None
        try:
            self.store.save(record)
        finally:
            self._album.show(record, prompts=self.prompts, last=last)

    def _close(self, writer: Writer) -> None:
        with self.guard.catching(f"closing {type(writer).__name__}"):
            writer.close()

    def _log_failure(self, step: int) -> None:
        """One more failure in the log, if it can still be written to."""
        for writer in self.writers if self.ranks.is_leader else ():
            name = keys.FAILURES.name.replace(keys.PREFIX, f"{self.store.name}/", 1)
            with suppress(Exception):
                writer.scalar(name, float(self.guard.failures), step)
                writer.flush()


def _store(log_dir: str | os.PathLike[str] | None, name: str) -> RecordStore:
    store = RecordStore(log_dir, name)
    if store.name != name:
        warn(
            f"Monitor(log_dir={str(log_dir)!r}): another one has the folder {name!r} there, and "
            f"this one takes {store.name!r}; if the other has ended, call its close() first, and "
            "to tell two apart pass name=",
            stacklevel=3,
        )
    return store


def check_state(state: Mapping[str, Any]) -> None:
    """Refuses a state that a newer version has saved."""
    schema = state.get("schema", _SCHEMA)
    if schema > _SCHEMA:
        raise InputError(
            f"the saved state of sr-monitor has schema {schema}, this version reads up to schema "
            f"{_SCHEMA}; run: pip install --upgrade sr-monitor"
        )


def share_prompts(ranks: RankGroup, prompts: PromptSet | None) -> PromptSet | None:
    """The leader's prompts on every process, whatever the others had; None if it has none."""
    if ranks.size == 1:
        return prompts
    shape = (0, 0) if prompts is None else prompts.token_ids.shape
    is_chain = prompts is None or prompts.pairing == "chain"
    count, length, chain = ranks.broadcast(torch.tensor([*shape, is_chain])).tolist()
    if count == 0:
        return None
    mine = prompts is not None and ranks.is_leader
    ids = prompts.token_ids if prompts is not None and mine else torch.zeros(count, length).long()
    ids = ranks.broadcast(ids)
    if mine:
        return prompts
    return PromptSet(token_ids=ids, pairing="chain" if chain else "explicit")
