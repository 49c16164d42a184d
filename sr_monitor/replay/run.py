"""Measure many checkpoints: fetch and load each, measure it once, keep its record.

Each run of a training leaves what a live run leaves: records, prompts and a TensorBoard run in
`OUT/RUN/stable_regions`. A checkpoint that cannot be measured is reported with the reason, and the
others are measured.

    report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=256)
    report.failures
"""

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from threading import Event
from typing import Any, Literal

from sr_monitor.display.writers.base import import_or_refuse
from sr_monitor.errors import InputError, check_kind, check_word, refused, whole
from sr_monitor.model.engine import Way
from sr_monitor.model.loading import find_device
from sr_monitor.probes.measuring import Bar, no_bar
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.fetch import one_ahead, temporary_folder
from sr_monitor.replay.folder import Folder
from sr_monitor.replay.job import Failure, Job
from sr_monitor.replay.live import Ways, live_ways, slowest_way
from sr_monitor.replay.models import Loading, ModelKeeper, config_of
from sr_monitor.replay.plan import PlannedCheckpoint, find_duplicates, is_sweep, make_plan
from sr_monitor.replay.prompts import PromptChoice
from sr_monitor.replay.ray import import_ray, on_ray
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig

Engine = Literal["local", "ray"]


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of each checkpoint, by name."""

    measured: list[str] = field(default_factory=list)
    """Measured now."""
    kept: list[str] = field(default_factory=list)
    """Measured by an earlier replay."""
    same: dict[str, str] = field(default_factory=dict)
    """Duplicates, each with the checkpoint whose measurement it shares."""
    failures: dict[str, str] = field(default_factory=dict)
    """Not measured, and why."""


def replay(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    prompts: PromptSet | str | Path | None = None,
    num: int | None = None,
    tokens: Sequence[int | float] | None = None,
    num_tokens: int = 10,
    seed: int = 0,
    base: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    keep_downloads: bool = False,
    engine: Engine = "local",
    ray_address: str | None = None,
    bar: Bar = no_bar,
    config: MonitorConfig | None = None,
    **options: Any,
) -> Report:
    """Measure saved checkpoints as a live run would have.

        replay(["allenai/OLMo-1B-0724-hf@step*"], "replays/olmo", num=20)

    No record takes a faster way to run points than an earlier step of its curve, here or in the
    live run beside the checkpoints, so a replay that was stopped and resumed gives the same bits.

    Args:
        sources: Folders, files, or `owner/name@GLOB`, revisions on the hub.
        out: Where records and the TensorBoard run go; a run that was stopped goes on there.
        prompts: A `PromptSet`, a file, or a data set's name on the hub; by default, for each
            training, those of the live run in its folder, else Python's help topics.
        num: At most so many checkpoints of each run, evenly spaced in the logarithm of the step.
        tokens: The checkpoints nearest to these numbers of tokens.
        num_tokens: The length of a prompt that is drawn from a text.
        seed: The seed that prompts are drawn with.
        base: A model of the same architecture, for checkpoints without a config; also whose
            tokenizer is used.
        dtype: The type of the weights; "auto" is as stored, and float32 on a CPU.
        device: Where to measure; "auto" is the accelerator if there is one.
        device_map: "auto" spreads a model over all accelerators of the machine.
        trust_remote_code: Run the code that comes with a model.
        keep_downloads: Keep downloads in the hub's cache instead of deleting each once measured.
        engine: "local" measures in this process, "ray" makes each checkpoint a Ray task. The way
            to run points is the entry `engine` of `config`.
        ray_address: A Ray cluster; by default that of RAY_ADDRESS, or else one on this machine.
        bar: Starts a progress bar by its name.
        config: What is measured; by default `MonitorConfig()`.
        options: Single entries of `config` by their names, such as `num_pairs=64`.

    Raises:
        InputError: Nothing can be measured as asked for; the message names the fix.
    """
    _check_kinds(sources, out, prompts, tokens)
    num = None if num is None else whole("num", num)
    num_tokens, seed = whole("num_tokens", num_tokens), whole("seed", seed)
    config = _with_options(config, options)
    check_word("engine", engine, Engine)
    missing = "replay: TensorBoard is not installed; run: pip install 'sr-monitor[tensorboard]'"
    import_or_refuse("tensorboard", missing)
    loading = Loading(
        base=base,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    if engine == "local":
        find_device(device)
    elif device_map is not None:
        raise InputError(
            "replay: engine='ray' gives each checkpoint one accelerator, and device_map="
            f"{device_map!r} wants all; pass one of the two"
        )
    else:
        import_ray()
    planned = make_plan([os.fspath(source) for source in sources], num=num, tokens=tokens)
    job = Job(
        config=config,
        loading=loading,
        downloads=Path(out).resolve() / ".downloads",
        keep_downloads=keep_downloads,
        sweep=is_sweep(planned),
    )
    choice = PromptChoice(
        given=prompts if isinstance(prompts, PromptSet | None) else os.fspath(prompts),
        loading=loading,
        num_tokens=num_tokens,
        num_prompts=config.num_prompts,
        seed=seed,
    )
    return _Replay(planned, Path(out), job, choice, bar).run(engine, ray_address)


class _Replay:
    """One run over checkpoints."""

    def __init__(
        self, planned: list[PlannedCheckpoint], out: Path, job: Job, choice: PromptChoice, bar: Bar
    ) -> None:
        """Refuse what cannot be measured, or contradicts what is in `out`."""
        check_base(planned, job.loading)
        self.planned, self.job, self.choice, self.bar = planned, job, choice, bar
        self.report = Report()
        self.live: dict[str, Ways] = {}
        self.prompts = {} if job.sweep else choice.for_trainings(planned)
        self.duplicates = self._same_measurements()
        options = job.config.recorded("curve", "record")
        options["dtype"] = job.loading.dtype
        # One entry for each probe and each training, so that a later replay may add some.
        probes = options.pop("probes", {}).items()
        options |= {f"probe {name}": described for name, described in probes}
        options |= {f"prompts of {name}": each.fingerprint for name, each in self.prompts.items()}
        if job.sweep:
            options["prompts"] = choice.described()
        curves = {each.run: each.curve for each in planned}
        self.folder = Folder(out, options, curves, job.config.measured)

    def run(self, engine: Engine, ray_address: str | None) -> Report:
        """Measure what is not measured yet."""
        with self.folder, temporary_folder(self.job.downloads):
            todo = [each for each in self.planned if self.folder.find(each) is None]
            left = {each.label for each in todo}
            self.report.kept = [each.label for each in self.planned if each.label not in left]
            self.folder.begin(todo)
            self._measure(todo, engine, ray_address)
            self.folder.finish()
        return self.report

    def _measure(self, todo: list[PlannedCheckpoint], engine: Engine, address: str | None) -> None:
        alone = [each for each in todo if each.label not in self.duplicates]
        total = len(self.planned)
        progress = self.bar("checkpoints")
        progress(total - len(todo), total)
        measuring = (
            self._locally(alone)
            if engine == "local"
            else on_ray(alone, self._prompts_of, self._way_of, self.job, address=address)
        )
        with closing(measuring):
            for number, planned in enumerate(todo, start=total - len(todo) + 1):
                if (first := self.duplicates.get(planned.label)) is not None:
                    self._keep_duplicate(planned, first)
                else:
                    self._keep(*next(measuring))
                progress(number, total)

    def _locally(
        self, planned: Sequence[PlannedCheckpoint]
    ) -> Generator[tuple[PlannedCheckpoint, Record | Failure], None, None]:
        """Measure one checkpoint while the next is fetched."""

        def fetch(each: PlannedCheckpoint, stop: Event) -> LocalCheckpoint:
            return self.job.fetch(each, stop, self.bar("download"))

        keeper = ModelKeeper(self.job.loading)
        with closing(one_ahead(planned, fetch)) as fetched:
            for each, local in fetched:
                prompts, way = partial(self._prompts_of, each), self._way_of(each)
                yield each, self.job.outcome(each, local.result, prompts, keeper, self.bar, way)

    def _prompts_of(self, planned: PlannedCheckpoint) -> PromptSet:
        """Return the prompts of its training, or in a sweep its own, drawn when they are needed."""
        owner = planned.label if self.job.sweep else planned.training
        if owner not in self.prompts:
            self.prompts[owner] = self.choice.for_model(planned)
        return self.prompts[owner]

    def _way_of(self, planned: PlannedCheckpoint) -> Way | None:
        """Return the slowest way that earlier steps took, in its live run and on its curve."""
        if self.job.sweep:
            return None
        if planned.training not in self.live:
            prompts = self._prompts_of(planned)
            self.live[planned.training] = live_ways(planned, prompts, self.job.config)
        ways = self.live[planned.training] + self.folder.ways(planned)
        return slowest_way(ways, planned.name.step)

    def _same_measurements(self) -> dict[str, PlannedCheckpoint]:
        """Map the label of each duplicate to the checkpoint with its weights and its prompts."""
        training_of = {each.label: each.training for each in self.planned}
        prompts = {name: each.fingerprint for name, each in self.prompts.items()}
        return {
            label: first
            for label, first in find_duplicates(self.planned).items()
            if prompts[training_of[label]] == prompts[first.training]
        }

    def _keep(self, planned: PlannedCheckpoint, outcome: Record | Failure) -> None:
        if isinstance(outcome, Record):
            self._save(planned, outcome)
            self.report.measured.append(planned.label)
        elif outcome.is_general and self.folder.is_empty:
            raise InputError(outcome.reason)
        else:
            self.report.failures[planned.label] = outcome.reason

    def _keep_duplicate(self, planned: PlannedCheckpoint, first: PlannedCheckpoint) -> None:
        """Keep the record of the first one with these weights at the step of the duplicate."""
        label, name = planned.label, planned.name
        record = self.folder.find(first)
        if record is None:
            reason = f"its weights are those of {first.label}: {self.report.failures[first.label]}"
            self.report.failures[label] = reason
            return
        own = {"source": label, "commit": planned.source.commit, "same_weights_as": first.label}
        metadata = record.metadata | own
        self._save(planned, replace(record, step=name.step, tokens=name.tokens, metadata=metadata))
        self.report.same[label] = first.label

    def _save(self, planned: PlannedCheckpoint, record: Record) -> None:
        prompts = self._prompts_of(planned)
        if self.job.sweep:
            tokenizer = self.choice.tokenizer_of(planned)
            record = replace(record, metadata=record.metadata | {"tokenizer": tokenizer})
        self.folder.save(planned, record, prompts)


def check_base(planned: Sequence[PlannedCheckpoint], loading: Loading) -> None:
    """Refuse at once if a base is needed and missing, or cannot be loaded."""
    local = [each.source for each in planned if isinstance(each.source, LocalCheckpoint)]
    bare = [checkpoint for checkpoint in local if checkpoint.needs_base]
    if bare and (loading.base is not None or len(bare) == len(planned)):
        config_of(bare[0], loading)


def _check_kinds(sources: Any, out: Any, prompts: Any, tokens: Any) -> None:
    """Refuse arguments of the wrong type."""
    place = str | Path
    fix = "pass a list of folders, files or owner/name@GLOB, such as ['runs/gpt2']"
    _check_list("sources", sources, place, fix)
    check_kind("out", out, place, "pass a folder")
    fix = "pass a PromptSet, a file, or a data set's name"
    check_kind("prompts", prompts, PromptSet | place | None, fix)
    if tokens is not None:
        _check_list("tokens", tokens, int | float, "pass a list of numbers, such as [4e9, 10e9]")


def _check_list(name: str, value: Any, kind: Any, fix: str) -> None:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(entry, kind) for entry in value):
        raise refused(name, value, fix)


def _with_options(config: Any, options: dict[str, Any]) -> MonitorConfig:
    """Replace single entries of the config; for an unknown name, suggest the nearest."""
    fix = "pass a MonitorConfig, or its entries by their names"
    check_kind("config", config, MonitorConfig | None, fix)
    entries = [entry.name for entry in fields(MonitorConfig)]
    for name in (name for name in options if name not in entries):
        known = [*entries, *signature(replay).parameters]
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        fix = f"there is no such option; the nearest is {nearest!r}"
        raise refused(name, options[name], fix)
    return replace(config or MonitorConfig(), **options)
