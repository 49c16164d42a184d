"""Turn a planned checkpoint into its record: fetch it, load it, measure it, delete the download.

job = Job(config=MonitorConfig(), options=ReplayOptions(), downloads=Path("out/.downloads"))
outcome = job.outcome(planned, partial(job.fetch, planned), lambda: samples, ModelKeeper(options))
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeAlias
from urllib.parse import quote

from torch import nn

from sr_monitor.errors import InputError, describe, explained
from sr_monitor.model.engine import Way
from sr_monitor.probes.base import Progress, no_progress
from sr_monitor.probes.measuring import Bar, no_bar
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from sr_monitor.replay.fetch import fetch
from sr_monitor.replay.hashes import check_downloads
from sr_monitor.replay.hub import HubCheckpoint
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.replay.retry import HubGone, Stopped, raise_if_stopped
from sr_monitor.replay.urls import UrlCheckpoint
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measure import take_record
from sr_monitor.watch.samples import Sample

WayOf: TypeAlias = Mapping[str, Way | None]
"""The slowest way so far, by the name of the sample."""

_PAUSES = (30, 60, 120, 240, 480)  # seconds, while the hub is unreachable
_log = logging.getLogger("sr_monitor")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a checkpoint was not measured."""

    reason: str
    is_general: bool = False
    """Whether the call is wrong, and not the checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to do with each checkpoint."""

    config: MonitorConfig
    options: ReplayOptions
    downloads: Path
    """Where each checkpoint from the hub has a private folder, while it is needed."""
    sweep: bool = False
    """Whether models are compared by their size."""

    def fetch(
        self,
        planned: PlannedCheckpoint,
        stop: Event | None = None,
        progress: Progress = no_progress,
    ) -> LocalCheckpoint:
        """Return the checkpoint on this machine, downloaded if need be."""
        stop = stop or Event()
        if planned.source.problem:
            raise InputError(planned.source.problem)
        if isinstance(planned.source, LocalCheckpoint):
            check_downloads(planned.source.weights(), partial(raise_if_stopped, stop))
            return planned.source
        if isinstance(planned.source, UrlCheckpoint):
            planned.source.fetch(self._folder(planned), progress, stop)
            return replace(find_checkpoints(self._folder(planned))[0], name=planned.name)
        # transformers imports a model's own code under the folder's name: a commit is unique.
        folder, keep = self._folder(planned) / planned.source.commit, self.options.keep_downloads
        pauses = list(_PAUSES)
        while True:
            try:
                fetch(planned.source, folder, keep=keep, progress=progress, stop=stop)
                break
            except HubGone as error:
                if not pauses:
                    raise
                _log.error("%s; waiting %d s for the hub", error, pauses[0])
                if stop.wait(pauses.pop(0)):
                    raise Stopped from error
        return replace(find_checkpoints(folder)[0], name=planned.name, config=folder)

    def outcome(
        self,
        planned: PlannedCheckpoint,
        find_local: Callable[[], LocalCheckpoint],
        find_samples: Callable[[], Sequence[Sample]],
        keeper: ModelKeeper,
        bar: Bar = no_bar,
        ways: WayOf | None = None,
    ) -> list[Record] | Failure:
        """Return a record of each sample, or the reason why there are none.

        No faster way is taken than `ways` says, by the sample's name.
        """
        try:
            local, progress = find_local(), bar("loading")
            progress(0, 1)
            with explained(f"{str(local.path)!r} cannot be loaded"):
                model = keeper.load(local)
            progress(1, 1)
            samples = find_samples()
            try:
                return [
                    self._measure(planned, model, each, bar, (ways or {}).get(each.name))
                    for each in samples
                ]
            except InputError as error:
                return Failure(reason=str(error), is_general=not self.sweep)
        except Exception as error:
            if isinstance(error, OSError):  # `describe` would advise on log_dir=
                error = InputError(f"{type(error).__name__}: {error}")
            return Failure(reason=describe(error))
        finally:
            shutil.rmtree(self._folder(planned), ignore_errors=True)

    def _folder(self, planned: PlannedCheckpoint) -> Path:
        return self.downloads / quote(planned.label, safe="@")

    def _measure(
        self,
        planned: PlannedCheckpoint,
        model: nn.Module,
        sample: Sample,
        bar: Bar,
        way: Way | None,
    ) -> Record:
        size = sum(weight.numel() for weight in model.parameters())
        about: dict[str, Any] = {}
        if isinstance(planned.source, HubCheckpoint):
            about = {"commit": planned.source.commit, "files_sha256": planned.source.fingerprint}
        return take_record(
            model,
            sample,
            sample.measured_as(self.config),
            step=size if self.sweep else planned.name.step,
            tokens=planned.name.tokens,
            way=way,
            bar=bar,
            source=planned.label,
            parameters=size,
            x_axis="parameters" if self.sweep else "step",
            texts=sample.prompts.source,
            **about,
        )
