"""From a checkpoint's place to its record: fetch it, load it, measure it, take it out again.

job = Job(config=MonitorConfig(), loading=Loading(), keep_downloads=False, sweep=False)
outcome = job.outcome(stop, lambda: bring(stop), lambda: prompts, ModelKeeper(job.loading))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from torch import nn

from sr_monitor.errors import InputError, describe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.cache import Journal
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from sr_monitor.replay.downloads import Fetched, discard, fetch, fetch_again
from sr_monitor.replay.models import Loading, ModelKeeper
from sr_monitor.replay.stops import Stop
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measure import take_record
from sr_monitor.watch.measurement import Bar, no_bar

_TRIES = 4  # each other replay takes a checkpoint away at most once


@dataclass(kw_only=True, slots=True)
class Here:
    """A checkpoint on this machine, and what was downloaded for it."""

    stop: Stop
    """Which one."""
    fetched: Fetched | None = None
    """None where it was on disk before."""

    @property
    def is_whole(self) -> bool:
        """Whether what was downloaded is still there."""
        return self.fetched is None or self.fetched.is_whole

    def find(self) -> LocalCheckpoint:
        """Where it lies."""
        if self.fetched is None:
            assert self.stop.checkpoint is not None
            return self.stop.checkpoint
        found = find_checkpoints(self.fetched.folder)[0]
        if not self.is_whole:  # or else it could pass for one without a config
            raise InputError(f"{self.stop.label} has gone from the hub's cache")
        return replace(found, name=self.stop.name)

    def fetch_again(self, progress: Callable[[int, int], object]) -> None:
        """Downloads what another replay has taken out of the hub's cache."""
        if self.fetched is not None:
            self.fetched = fetch_again(self.fetched, progress)

    def leave(self) -> None:
        """Takes out what was downloaded; a second call does nothing."""
        if self.fetched is not None:
            discard(self.fetched)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A checkpoint that was not measured."""

    reason: str
    """Why, and what helps."""
    is_general: bool = False
    """Whether what was asked for is wrong, not the checkpoint."""


def bring(
    stop: Stop,
    *,
    stop_event: Event | None = None,
    journal: Journal | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Here:
    """Has the checkpoint on this machine, by a download if need be."""
    if stop.problem:
        raise InputError(stop.problem)
    if stop.checkpoint is not None:
        return Here(stop=stop)
    assert stop.item is not None
    repo, revision = stop.item.repo, stop.item.revision
    fetched = fetch(repo, revision, progress=progress, stop=stop_event, journal=journal)
    return Here(stop=stop, fetched=fetched)


class _Refusal(InputError):
    """What was asked for cannot be measured in this model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is done with every checkpoint."""

    config: MonitorConfig
    """What is measured."""
    loading: Loading
    """How it becomes a model."""
    keep_downloads: bool = False
    """Leave in the hub's cache what is downloaded."""
    sweep: bool = False
    """Whether models are compared by their size."""

    def outcome(
        self,
        stop: Stop,
        arrive: Callable[[], Here],
        find_prompts: Callable[[], PromptSet],
        keeper: ModelKeeper,
        bar: Bar = no_bar,
    ) -> Record | Failure:
        """The record; whatever goes wrong with one checkpoint is its outcome, in words."""
        try:
            here = arrive()
            try:
                model = self._load(here, keeper, bar)
                return self._measure(stop, model, find_prompts(), bar)
            finally:
                if not self.keep_downloads:
                    here.leave()
        except _Refusal as error:
            return Failure(reason=str(error), is_general=not self.sweep)
        except Exception as error:
            return Failure(reason=_reason(error))

    def _load(self, here: Here, keeper: ModelKeeper, bar: Bar) -> nn.Module:
        """The model; what another replay of the repository takes away meanwhile comes again."""
        for tries in range(_TRIES):
            if tries:
                here.fetch_again(bar("download"))
            try:
                return self._loaded(here, keeper, bar)
            except (InputError, OSError):
                if here.is_whole:
                    raise
        raise InputError(
            f"{here.stop.label} does not stay in the hub's cache; does another program clear it?"
        )

    def _loaded(self, here: Here, keeper: ModelKeeper, bar: Bar) -> nn.Module:
        progress = bar("loading")
        progress(0, 1)
        model = keeper.load(here.find())
        progress(1, 1)
        return model

    def _measure(self, stop: Stop, model: nn.Module, prompts: PromptSet, bar: Bar) -> Record:
        size = sum(weight.numel() for weight in model.parameters())
        about: dict[str, Any] = {"commit": stop.commit} if stop.commit else {}
        try:
            return take_record(
                model,
                prompts,
                self.config,
                step=size if self.sweep else stop.name.step,
                tokens=stop.name.tokens,
                bar=bar,
                source=stop.label,
                parameters=size,
                x_axis="parameters" if self.sweep else "step",
                texts=prompts.source,
                **about,
            )
        except InputError as error:
            raise _Refusal(str(error)) from error


def _reason(error: Exception) -> str:
    """In one line; `describe` speaks to somebody who trains."""
    if isinstance(error, OSError) and not isinstance(error, InputError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return describe(error)
