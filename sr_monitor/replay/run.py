"""The run over checkpoints: fetch, load, measure, keep; what is done is not done again.

Each run of checkpoints leaves what a live run leaves: records, prompts and a TensorBoard run in
`OUT/RUN/stable_regions`. A checkpoint that cannot be measured is named with its reason, and the
others are measured.

    report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=256)
    report.failures
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any, Literal

from sr_monitor import keys
from sr_monitor.album import Album
from sr_monitor.dashboards import TensorBoardWriter
from sr_monitor.demo import python_prompts
from sr_monitor.errors import InputError
from sr_monitor.files import write_whole
from sr_monitor.fuse import describe
from sr_monitor.loading import TokenizerOnDemand, check_hub
from sr_monitor.measurement import Bar, MonitorConfig, no_bar
from sr_monitor.prompts import PromptSet
from sr_monitor.records import Record, list_records, record_path
from sr_monitor.replay.cache import Journal, take_out_leftovers
from sr_monitor.replay.loading import Here, Loading, bring, measure_stop
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.plan import Stop, is_sweep, make_plan
from sr_monitor.replay.prefetch import Turn, prefetched
from sr_monitor.replay.ray_tasks import Job, on_ray

Engine = Literal["local", "ray"]

_SCHEMA = 1
_OPTIONS = "replay.json"
_NAME = keys.PREFIX.rstrip("/")


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of the checkpoints."""

    measured: list[str] = field(default_factory=list)
    """Those that were measured now."""
    kept: list[str] = field(default_factory=list)
    """Those that had been measured before."""
    same: dict[str, str] = field(default_factory=dict)
    """Those with the weights of another one, which was measured for both."""
    failures: dict[str, str] = field(default_factory=dict)
    """Those that could not be measured, and why."""


def replay(
    sources: Sequence[str],
    out: str | Path,
    *,
    prompts: PromptSet | str | None = None,
    num: int | None = None,
    tokens: Sequence[float] | None = None,
    num_tokens: int = 10,
    seed: int = 0,
    base: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    keep_downloads: bool = False,
    engine: Engine = "local",
    ray_address: str | None = None,
    bar: Bar = no_bar,
    **config: Any,
) -> Report:
    """Measures saved checkpoints as a live run would have.

        replay(["allenai/OLMo-1B-0724-hf@step*"], "replays/olmo", num=20)

    Args:
        sources: Folders, files, or `owner/name@GLOB`, revisions on the hub.
        out: Where records and the TensorBoard run go; a run that was stopped goes on there.
        prompts: A `PromptSet`, a file, or a data set's name on the hub; by default those of the
            live run in the source's folder, else the text that any Python brings along.
        num: At most so many checkpoints of each run, evenly spaced in the logarithm of the step.
        tokens: The checkpoints nearest to these numbers of tokens.
        num_tokens: The length of a prompt that is drawn from a text.
        seed: Of the choice of prompts.
        base: A model of the same architecture, for checkpoints without a config; also whose
            tokenizer is used.
        dtype: The type of the weights; "auto" is as stored, and float32 on a CPU.
        device: Where to measure; "auto" is the accelerator if there is one.
        trust_remote_code: Run the code that comes with a model.
        keep_downloads: Leave in the hub's cache what this run downloads.
        engine: "local" is this process; "ray" makes each checkpoint a Ray task.
        ray_address: A Ray cluster; by default one on this machine.
        bar: Starts a progress bar by its name.
        config: What is measured; see `MonitorConfig`.

    Raises:
        InputError: Nothing can be measured as asked for; the message names the fix.
    """
    loading = Loading(base=base, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    stops = make_plan(sources, num=num, tokens=tokens)
    wanted = _Prompts(prompts, loading, num_tokens, seed, MonitorConfig(**config))
    return Replay(stops, Path(out), wanted, keep_downloads, bar).run(engine, ray_address)


@dataclass(frozen=True)
class _Prompts:
    """Where prompts come from: the same for all steps, its own for each model of a sweep."""

    given: PromptSet | str | None
    loading: Loading
    num_tokens: int
    seed: int
    config: MonitorConfig

    def for_stop(self, stop: Stop) -> PromptSet:
        given = self.given
        if isinstance(given, PromptSet):
            return given
        tokenizer = TokenizerOnDemand(
            self.loading.base or _tokenizer_of(stop), self.loading.trust_remote_code
        )
        options: dict[str, Any] = {
            "num_tokens": self.num_tokens,
            "num_prompts": self.config.num_prompts,
            "seed": self.seed,
        }
        if given is None:
            live = Path(stop.source) / _NAME / "prompts.json"
            return PromptSet.load(live) if live.is_file() else python_prompts(tokenizer, **options)
        if Path(given).is_file():
            return PromptSet.from_file(given, tokenizer, **options)
        check_hub(given, "dataset")
        return PromptSet.from_dataset(given, tokenizer, **options)


class Replay:
    """One run over checkpoints, on its way."""

    def __init__(
        self, stops: list[Stop], out: Path, prompts: _Prompts, keep_downloads: bool, bar: Bar
    ) -> None:
        """Looks at what is in `out` already, and refuses what would not go together with it."""
        self.stops = stops
        self.out = out
        self.loading = prompts.loading
        self.config = prompts.config
        self.sweep = is_sweep(stops)
        self.keep_downloads = keep_downloads
        self.bar = bar
        self.report = Report()
        self._find_prompts = prompts.for_stop
        self.prompts = {} if self.sweep else {"": prompts.for_stop(stops[0])}
        self._check_options()
        self.journal = Journal(out / "downloads.json")
        self.records = {run: self._earlier(run) for run in dict.fromkeys(s.run for s in stops)}

    def run(self, engine: Engine, ray_address: str | None) -> Report:
        """Measures what is not measured yet."""
        take_out_leftovers(self.journal)
        todo = [stop for stop in self.stops if not self._is_done(stop)]
        first, later = _without_twins(todo)
        progress, total = self.bar("checkpoints"), len(self.stops)
        progress(total - len(todo), total)
        measured = self._locally(first) if engine == "local" else self._on_ray(first, ray_address)
        for number, (stop, found) in enumerate(measured, start=total - len(todo) + 1):
            self._keep(stop, found)
            for twin in later.get(stop.label, ()):
                self._keep_twin(twin, stop, found)
            progress(number, total)
        self._show()
        return self.report

    # ---- before ----------------------------------------------------------------------------------

    def _check_options(self) -> None:
        """What is in `out` was measured in the same way, or is refused with both sides."""
        path = self.out / _OPTIONS
        prompts = None if self.sweep else self.prompts[""].fingerprint
        options = {**asdict(self.config), "dtype": self.loading.dtype, "prompts": prompts}
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there.get("schema", _SCHEMA) > _SCHEMA:
                raise InputError(
                    f"{str(path)!r} is of a newer sr-monitor; upgrade, or name another --out"
                )
            different = [
                f"{name} is {there['options'].get(name)!r} there and {value!r} now"
                for name, value in options.items()
                if there["options"].get(name, value) != value
            ]
            if different:
                raise InputError(
                    f"--out {str(self.out)!r} holds a replay with other options: "
                    f"{'; '.join(different)}; name another folder, or the same options"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"schema": _SCHEMA, "options": options}, indent=1).encode())

    def _earlier(self, run: str) -> dict[str, Record]:
        """The records of a run, by the label of their checkpoint."""
        found = map(Record.load, list_records(self.out / run / _NAME))
        return {str(record.metadata.get("source")): record for record in found}

    def _is_done(self, stop: Stop) -> bool:
        done = stop.label in self.records[stop.run]
        if done:
            self.report.kept.append(stop.label)
        return done

    # ---- measuring -------------------------------------------------------------------------------

    def _locally(self, stops: Sequence[Stop]) -> Iterator[tuple[Stop, Record | str]]:
        """Here, one after the other, the next one being fetched meanwhile."""
        keeper = self.loading.keeper()
        with prefetched(stops, self._bring, self._leave) as turns:
            for turn in turns:
                yield turn.key, self._measured(turn, keeper)

    def _measured(self, turn: Turn[Stop, Here], keeper: ModelKeeper) -> Record | str:
        """The record; whatever goes wrong with one checkpoint is its outcome, in words."""
        stop, loading = turn.key, self.bar("loading")
        try:
            here = turn.result()
            try:
                loading(0, 1)
                model = keeper.load(here.checkpoint)
                loading(1, 1)
                prompts = self._prompts_of(stop)
                return measure_stop(
                    stop, model, prompts, self.config, sweep=self.sweep, bar=self.bar
                )
            finally:
                self._leave(here)
        except Exception as error:
            return describe(error)

    def _bring(self, stop: Stop, given_up: Event) -> Here:
        journal = None if self.keep_downloads else self.journal
        progress = self.bar("download")
        return bring(stop, stop_event=given_up, journal=journal, progress=progress)

    def _leave(self, here: Here) -> None:
        if not self.keep_downloads:
            here.leave()

    def _on_ray(
        self, stops: Sequence[Stop], address: str | None
    ) -> Iterator[tuple[Stop, Record | str]]:
        prompts = {stop.label: self._prompts_of(stop) for stop in stops}
        job = Job(
            config=self.config,
            loading=self.loading,
            keep_downloads=self.keep_downloads,
            sweep=self.sweep,
        )
        return on_ray(stops, prompts, job, address=address)

    def _prompts_of(self, stop: Stop) -> PromptSet:
        return self._find_prompts(stop) if self.sweep else self.prompts[""]

    # ---- after -----------------------------------------------------------------------------------

    def _keep(self, stop: Stop, found: Record | str) -> None:
        if isinstance(found, str):
            self.report.failures[stop.label] = found
            return
        self._save(stop, found)
        self.report.measured.append(stop.label)

    def _keep_twin(self, twin: Stop, stop: Stop, found: Record | str) -> None:
        """The record of one with the same weights, at its own step."""
        if isinstance(found, str):
            self.report.failures[twin.label] = found
            return
        metadata = found.metadata | {"source": twin.label, "same_weights_as": stop.label}
        step = found.step if self.sweep else twin.name.step
        self._save(twin, replace(found, step=step, tokens=twin.name.tokens, metadata=metadata))
        self.report.same[twin.label] = stop.label

    def _save(self, stop: Stop, record: Record) -> None:
        folder = self.out / stop.run
        path = record_path(folder, record.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        record.save(path)
        self.records[stop.run][stop.label] = record

    def _show(self) -> None:
        """Every run as a TensorBoard run, made anew from all of its records."""
        for run, found in self.records.items():
            folder = self.out / run / _NAME
            records = sorted(found.values(), key=lambda record: record.step)
            if not records:
                continue
            prompts = self.prompts.get("") or self._find_prompts(self.stops[0])
            prompts.save(folder / "prompts.json")
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            with closing(TensorBoardWriter(folder)) as writer:
                album = Album([writer])
                album.introduce(prompts, records[0].step)
                for record in records:
                    album.show(record, prompts=prompts, last=record is records[-1])


def _tokenizer_of(stop: Stop) -> str:
    """The repository's or the folder's; a checkpoint of a training may have none of its own."""
    if stop.checkpoint is None:
        return stop.source
    folder = stop.checkpoint.path
    return str(folder if (folder / "tokenizer_config.json").is_file() else stop.source)


def _without_twins(stops: Sequence[Stop]) -> tuple[list[Stop], Mapping[str, list[Stop]]]:
    """Those to measure, and for each the later ones with the same weights."""
    first: dict[str, Stop] = {}
    later: dict[str, list[Stop]] = {}
    alone: list[Stop] = []
    for stop in stops:
        weights = stop.weights or stop.label
        if weights in first:
            later.setdefault(first[weights].label, []).append(stop)
        else:
            first[weights] = stop
            alone.append(stop)
    return alone, later
