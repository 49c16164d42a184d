"""Measure many checkpoints: fetch and load each, measure it once, keep its record.

Each run of a training leaves what a live run leaves: records, prompts and a TensorBoard run in
`OUT/RUN/stable_regions`.

    report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=256)
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from sr_monitor.display.writers.base import import_or_refuse
from sr_monitor.errors import InputError, check_kind, refused
from sr_monitor.model.loading import find_device
from sr_monitor.options import declared, explains
from sr_monitor.probes.measuring import Bar, no_bar
from sr_monitor.prompts.sets import as_given, by_name
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.fetch import one_ahead, temporary_folder
from sr_monitor.replay.folder import Folder
from sr_monitor.replay.follow import follow
from sr_monitor.replay.job import Failure, Job, WayOf
from sr_monitor.replay.models import ModelKeeper, config_of
from sr_monitor.replay.options import ReplayOptions, check_list
from sr_monitor.replay.plan import (
    PlannedCheckpoint,
    find_duplicates,
    is_sweep,
    make_plan,
    with_files,
)
from sr_monitor.replay.prompts import NamedSets, PromptChoice, Ways, live_ways, slowest_way
from sr_monitor.replay.ray import import_ray, on_ray
from sr_monitor.replay.report import Report
from sr_monitor.replay.retry import HubGone
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.samples import Sample, sample_names, samples_of

_log = logging.getLogger("sr_monitor")


@explains(ReplayOptions)
def replay(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    bar: Bar = no_bar,
    config: MonitorConfig | None = None,
    **options: Any,
) -> Report:
    """Measure saved checkpoints as a live run would have.

        replay(["allenai/OLMo-1B-0724-hf@step*"], "replays/olmo", num=20, num_pairs=64)

    The sources are folders, files, or `owner/name@GLOB`, revisions on the hub. Records and a
    TensorBoard run go to `out`; a run that was stopped goes on there. `config` says what is
    measured; its entries may also be given by their names, such as `num_pairs=64`, all but
    `engine`, the way to run points. `bar` starts a progress bar by its name.

    No record takes a faster way to run points than an earlier step of its curve, here or in the
    live run beside the checkpoints, so a replay that was stopped and resumed gives the same bits.

    Raises:
        InputError: Nothing can be measured as asked for; the message names the fix.
    """
    fix = "pass a list of folders, files or owner/name@GLOB, such as ['runs/gpt2']"
    check_list("sources", sources, str | Path, fix)
    check_kind("out", out, str | Path, "pass a folder")
    own, config = _split(config, options)
    missing = "replay: TensorBoard is not installed; run: pip install 'sr-monitor[tensorboard]'"
    import_or_refuse("tensorboard", missing)
    if own.engine == "local":
        find_device(own.device)
    else:
        import_ray()
    plan = partial(make_plan, sources, num=own.num, tokens=own.tokens, revisions=own.revisions)
    keeper, prompts = ModelKeeper(own), dict[str, NamedSets]()

    def measure(planned: list[PlannedCheckpoint]) -> Report:
        return _Replay(planned, Path(out), own, config, bar, keeper, prompts).run()

    return follow(plan, measure, own.until) if own.follow else measure(plan())


class _Replay:
    def __init__(
        self,
        planned: list[PlannedCheckpoint],
        out: Path,
        options: ReplayOptions,
        config: MonitorConfig,
        bar: Bar,
        keeper: ModelKeeper,
        prompts: dict[str, NamedSets],
    ) -> None:
        """Refuse what cannot be measured, or contradicts what is in `out`.

        `prompts` has those of trainings that an earlier round has chosen for, and takes more.
        """
        check_base(planned, options)
        self.planned, self.options, self.bar = planned, options, bar
        downloads, self.sweep = out.resolve() / ".downloads", is_sweep(planned)
        self.job = Job(config=config, options=options, downloads=downloads, sweep=self.sweep)
        self.choice = PromptChoice(options, config.num_prompts)
        self.report = Report()
        self.live: dict[tuple[str, str], Ways] = {}
        self.keeper, self.prompts = keeper, prompts
        if not self.sweep:
            new = [each for each in planned if each.training not in prompts]
            prompts |= self.choice.for_trainings(new)
        self.duplicates: dict[str, PlannedCheckpoint] = {}
        recorded = config.recorded("curve", "record") | options.recorded("curve")
        # One entry for each probe and each training, so that a later replay may add some.
        probes = recorded.pop("probes", {}).items()
        recorded |= {f"probe {name}": described for name, described in probes}
        for training, sets in () if self.sweep else self.prompts.items():
            of = {f"{name} " * bool(name): each.fingerprint for name, each in sets.items()}
            recorded |= {f"{name}prompts of {training}": print for name, print in of.items()}
        if self.sweep:
            recorded["prompts"] = self.choice.described()
        curves = {each.run: each.curve for each in planned}
        names = dict.fromkeys(name for each in planned for name in self._names_of(each))
        self.folder = Folder(out, recorded, curves, config.measured, list(names))

    def run(self) -> Report:
        """Measure what is not measured yet."""
        with self.folder.open(), temporary_folder(self.job.downloads):
            todo = [each for each in self.planned if self._missing(each)]
            left = {each.label for each in todo}
            self.report.kept = [each.label for each in self.planned if each.label not in left]
            self.folder.begin(todo)
            try:
                todo = with_files(todo, self.bar("listing"))
                self.duplicates = self._same_measurements(todo)
                self._measure(todo)
            except HubGone as error:
                tried = self.report.measured, self.report.same, self.report.failures
                self.report.left = len(todo) - sum(map(len, tried))
                _log.error("%s", error)
            self.folder.finish()
        return self.report

    def _measure(self, todo: list[PlannedCheckpoint]) -> None:
        alone = [each for each in todo if each.label not in self.duplicates]
        total = len(self.planned)
        progress = self.bar("checkpoints")
        progress(total - len(todo), total)
        measuring = (
            self._locally(alone)
            if self.options.engine == "local"
            else on_ray(alone, self._to_measure, self._ways_of, self.job)
        )
        with closing(measuring):
            for number, planned in enumerate(todo, start=total - len(todo) + 1):
                if (first := self.duplicates.get(planned.label)) is not None:
                    self._keep_duplicate(planned, first)
                else:
                    self._keep(*next(measuring))
                progress(number, total)
                if (reason := self.report.failures.get(planned.label)) is not None:
                    _log.error("%s: %s", planned.label, reason)
                else:
                    _log.info("%s: done, %d of %d", planned.label, number, total)

    def _locally(
        self, planned: Sequence[PlannedCheckpoint]
    ) -> Generator[tuple[PlannedCheckpoint, list[Record] | Failure], None, None]:

        def fetch(each: PlannedCheckpoint, stop: Event) -> LocalCheckpoint:
            return self.job.fetch(each, stop, self.bar("download"))

        with closing(one_ahead(planned, fetch)) as fetched:
            for each, local in fetched:
                if isinstance(gone := local.exception(), HubGone):
                    raise gone
                samples, ways = partial(self._to_measure, each), self._ways_of(each)
                outcome = self.job.outcome(each, local.result, samples, self.keeper, self.bar, ways)
                yield each, outcome

    def _names_of(self, planned: PlannedCheckpoint) -> list[str]:
        """Return the names of its samples; in a sweep, before there are prompts."""
        sets = by_name(self.options.prompts) if self.sweep else self.prompts[planned.training]
        return sample_names(sets, self.job.config)

    def _missing(self, planned: PlannedCheckpoint) -> list[str]:
        """Return the names of the samples that it has no record of."""
        return [name for name in self._names_of(planned) if self.folder.find(planned, name) is None]

    def _samples_of(self, planned: PlannedCheckpoint) -> dict[str, Sample]:
        """Return those of its training, or in a sweep its own, drawn when they are needed."""
        owner = planned.label if self.sweep else planned.training
        if owner not in self.prompts:
            self.prompts[owner] = self.choice.for_model(planned)
        samples = samples_of(as_given(self.prompts[owner]), self.job.config)
        return {sample.name: sample for sample in samples}

    def _to_measure(self, planned: PlannedCheckpoint) -> list[Sample]:
        samples = self._samples_of(planned)
        return [samples[name] for name in self._missing(planned)]

    def _ways_of(self, planned: PlannedCheckpoint) -> WayOf:
        """Return the slowest way that earlier steps took, in the live run and on the curve."""
        if self.sweep:
            return dict.fromkeys(self._names_of(planned))
        for name, sample in self._samples_of(planned).items():
            if (key := (planned.training, name)) not in self.live:
                self.live[key] = live_ways(planned, sample, self.job.config)
        return {
            name: slowest_way(
                (self.live[planned.training, name], self.folder.ways(planned, name)),
                planned.name.step,
            )
            for name in self._names_of(planned)
        }

    def _same_measurements(self, todo: Sequence[PlannedCheckpoint]) -> dict[str, PlannedCheckpoint]:
        """Map the label of each duplicate to the checkpoint with its weights and its prompts."""
        if self.job.config.resample:  # at another step, other pairs are measured
            return {}
        listed = {each.label: each for each in todo}
        every = [listed.get(each.label, each) for each in self.planned]
        names = {each.label: self._names_of(each) for each in self.planned}
        records = {
            each.label: self.folder.find(each, names[each.label][0]) for each in self.planned
        }
        recorded = {label: r.metadata.get("files_sha256") for label, r in records.items() if r}
        training_of = {each.label: each.training for each in self.planned}
        prompts = {
            training: {name: each.fingerprint for name, each in sets.items()}
            for training, sets in self.prompts.items()
        }
        return {
            label: first
            for label, first in find_duplicates(every, recorded).items()
            if prompts[training_of[label]] == prompts[first.training]
        }

    def _keep(self, planned: PlannedCheckpoint, outcome: list[Record] | Failure) -> None:
        if not isinstance(outcome, Failure):
            for record in outcome:
                self._save(planned, record)
            self.report.measured.append(planned.label)
        elif outcome.is_general and not any(c.outlines for c in self.folder.curves.values()):
            raise InputError(outcome.reason)
        else:
            self.report.failures[planned.label] = outcome.reason

    def _keep_duplicate(self, planned: PlannedCheckpoint, first: PlannedCheckpoint) -> None:
        """Keep a copy of the first record of these weights, at the step of the duplicate."""
        label, name = planned.label, planned.name
        found = [self.folder.load(first, each) for each in self._names_of(planned)]
        records = [record for record in found if record is not None]
        if len(records) < len(found):
            reason = f"its weights are those of {first.label}: {self.report.failures[first.label]}"
            self.report.failures[label] = reason
            return
        own = {"source": label, "commit": planned.source.commit, "same_weights_as": first.label}
        for record in records:
            metadata = record.metadata | own
            copy = replace(record, step=name.step, tokens=name.tokens, metadata=metadata)
            self._save(planned, copy)
        self.report.same[label] = first.label

    def _save(self, planned: PlannedCheckpoint, record: Record) -> None:
        prompts = self._samples_of(planned)[record.set_name].prompts
        if self.sweep:
            tokenizer = self.choice.tokenizer_of(planned)
            record = replace(record, metadata=record.metadata | {"tokenizer": tokenizer})
        self.folder.save(planned, record, prompts)


def check_base(planned: Sequence[PlannedCheckpoint], loading: ReplayOptions) -> None:
    """Refuse at once if a base is needed and missing, or cannot be loaded."""
    local = [each.source for each in planned if isinstance(each.source, LocalCheckpoint)]
    bare = [checkpoint for checkpoint in local if checkpoint.needs_base]
    if bare and (loading.base is not None or len(bare) == len(planned)):
        config_of(bare[0], loading)


def _split(
    config: MonitorConfig | None, options: dict[str, Any]
) -> tuple[ReplayOptions, MonitorConfig]:
    """Separate the entries of the config; for an unknown name, suggest the nearest."""
    fix = "pass a MonitorConfig, or its entries by their names"
    check_kind("config", config, MonitorConfig | None, fix)
    ours, entries = declared(ReplayOptions), declared(MonitorConfig)
    for name in options.keys() - ours.keys() - entries.keys():
        (nearest,) = get_close_matches(name, [*entries, *ours], n=1, cutoff=0.0)
        fix = f"there is no such option; the nearest is {nearest!r}"
        raise refused(name, options[name], fix)
    own = {name: options.pop(name) for name in ours if name in options}
    return ReplayOptions(**own), replace(config or MonitorConfig(), **options)
