"""The run over checkpoints: fetch, load, measure, keep; what is done is not done again.

Each run of checkpoints leaves what a live run leaves: records, prompts and a TensorBoard run in
`OUT/RUN/stable_regions`. A checkpoint that cannot be measured is named with its reason, and the
others are measured.

    report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=256)
    report.failures
"""

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from threading import Event
from typing import Any, Literal, get_args

from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.arguments import check_kinds, with_options
from sr_monitor.replay.cache import Journal, take_out_leftovers
from sr_monitor.replay.curves import check_tensorboard
from sr_monitor.replay.folder import Folder
from sr_monitor.replay.job import Failure, Here, Job, bring
from sr_monitor.replay.models import Loading, ModelKeeper, config_of
from sr_monitor.replay.plan import make_plan
from sr_monitor.replay.prefetch import prefetched
from sr_monitor.replay.prompts import PromptChoice
from sr_monitor.replay.ray_tasks import import_ray, on_ray
from sr_monitor.replay.stops import Stop, is_sweep, twins
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measurement import Bar, no_bar

Engine = Literal["local", "ray"]
Outcomes = Generator[tuple[Stop, Record | Failure], None, None]


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of the checkpoints, by their names."""

    measured: list[str] = field(default_factory=list)
    """Those that were measured now."""
    kept: list[str] = field(default_factory=list)
    """Those that had been measured before."""
    same: dict[str, str] = field(default_factory=dict)
    """Those with the weights of another one, which was measured for both."""
    failures: dict[str, str] = field(default_factory=dict)
    """Those that could not be measured, and why."""


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
    """Measures saved checkpoints as a live run would have.

        replay(["allenai/OLMo-1B-0724-hf@step*"], "replays/olmo", num=20)

    Args:
        sources: Folders, files, or `owner/name@GLOB`, revisions on the hub.
        out: Where records and the TensorBoard run go; a run that was stopped goes on there.
        prompts: A `PromptSet`, a file, or a data set's name on the hub; by default, for each
            training, those of the live run in its folder, else the text that any Python brings
            along.
        num: At most so many checkpoints of each run, evenly spaced in the logarithm of the step.
        tokens: The checkpoints nearest to these numbers of tokens.
        num_tokens: The length of a prompt that is drawn from a text.
        seed: Of the choice of prompts.
        base: A model of the same architecture, for checkpoints without a config; also whose
            tokenizer is used.
        dtype: The type of the weights; "auto" is as stored, and float32 on a CPU.
        device: Where to measure; "auto" is the accelerator if there is one.
        device_map: "auto" spreads a model over all accelerators of the machine, for one that does
            not fit on one.
        trust_remote_code: Run the code that comes with a model.
        keep_downloads: Leave in the hub's cache what this run downloads.
        engine: "local" is this process; "ray" makes each checkpoint a Ray task.
        ray_address: A Ray cluster; by default that of RAY_ADDRESS, or else one on this machine.
        bar: Starts a progress bar by its name.
        config: What is measured; by default `MonitorConfig()`.
        options: Single entries of `config` by their names, such as `num_pairs=64`.

    Raises:
        InputError: Nothing can be measured as asked for; the message names the fix.
    """
    check_kinds(
        sources=sources,
        out=out,
        prompts=prompts,
        num=num,
        tokens=tokens,
        num_tokens=num_tokens,
        seed=seed,
        config=config,
    )
    config = with_options(config, options, known=signature(replay).parameters)
    if engine not in get_args(Engine):
        raise InputError(f"replay: engine={engine!r}: pass 'local' or 'ray'")
    check_tensorboard()
    loading = Loading(
        base=base,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    if engine == "ray":
        if device_map is not None:
            raise InputError(
                "replay: engine='ray' gives each checkpoint one accelerator, and device_map="
                f"{device_map!r} wants all; pass one of the two"
            )
        import_ray()
    else:
        loading.check_device()
    stops = make_plan([os.fspath(source) for source in sources], num=num, tokens=tokens)
    job = Job(
        config=config,
        loading=loading,
        keep_downloads=keep_downloads,
        sweep=is_sweep(stops),
    )
    choice = PromptChoice(
        given=os.fspath(prompts) if isinstance(prompts, Path) else prompts,
        loading=loading,
        num_tokens=num_tokens,
        num_prompts=job.config.num_prompts,
        seed=seed,
    )
    return Replay(stops, Path(out), job, choice, bar).run(engine, ray_address)


class Replay:
    """One run over checkpoints, on its way."""

    def __init__(
        self, stops: list[Stop], out: Path, job: Job, choice: PromptChoice, bar: Bar
    ) -> None:
        """Refuses what cannot be measured, or would not go together with what is in `out`."""
        check_base(stops, job.loading)
        self.stops, self.job, self.bar = stops, job, bar
        self.report = Report()
        self._choice = choice
        self._prompts = {} if job.sweep else choice.for_trainings(stops)
        self._twins = self._same_measurements(stops)
        options = job.config.recorded("curve", "record")
        options |= {"dtype": job.loading.dtype} | self._described_prompts()
        self._folder = Folder(out, options, {stop.run: stop.curve for stop in stops})
        self._journal = Journal(out / "downloads.json")

    def run(self, engine: Engine, ray_address: str | None) -> Report:
        """Measures what is not measured yet."""
        with self._folder:
            self.report.kept = [s.label for s in self.stops if self._folder.find(s) is not None]
            done = set(self.report.kept)
            todo = [stop for stop in self.stops if stop.label not in done]
            self._folder.begin(todo)
            take_out_leftovers(self._journal)
            self._measure(todo, engine, ray_address)
            self._folder.finish()
        return self.report

    def _measure(self, todo: list[Stop], engine: Engine, address: str | None) -> None:
        alone = [stop for stop in todo if stop.label not in self._twins]
        total = len(self.stops)
        progress = self.bar("checkpoints")
        progress(total - len(todo), total)
        measuring = self._locally(alone) if engine == "local" else self._on_ray(alone, address)
        with closing(measuring):
            for number, stop in enumerate(todo, start=total - len(todo) + 1):
                if (first := self._twins.get(stop.label)) is not None:
                    self._keep_twin(stop, first)
                else:
                    self._keep(*next(measuring))
                progress(number, total)

    def _locally(
        self, stops: Sequence[Stop]
    ) -> Generator[tuple[Stop, Record | Failure], None, None]:
        """Here, one after the other, the next one being fetched meanwhile."""
        keeper = ModelKeeper(self.job.loading)
        with prefetched(stops, self._bring, self._leave) as turns:
            for turn in turns:
                find = partial(self._prompts_of, turn.key)
                yield turn.key, self.job.outcome(turn.key, turn.result, find, keeper, self.bar)

    def _on_ray(self, stops: Sequence[Stop], address: str | None) -> Outcomes:
        return on_ray(stops, self._prompts_of, self.job, address=address)

    def _bring(self, stop: Stop, given_up: Event) -> Here:
        journal = None if self.job.keep_downloads else self._journal
        progress = self.bar("download")
        return bring(stop, stop_event=given_up, journal=journal, progress=progress)

    def _leave(self, here: Here) -> None:
        if not self.job.keep_downloads:
            here.leave()

    def _prompts_of(self, stop: Stop) -> PromptSet:
        """Those of its training; of a model in a sweep, chosen when its turn comes."""
        owner = stop.label if self.job.sweep else stop.home
        if owner not in self._prompts:
            self._prompts[owner] = self._choice.for_model(stop)
        return self._prompts[owner]

    def _described_prompts(self) -> dict[str, str]:
        """For each training apart, so that others may join it or stay away."""
        if self.job.sweep:
            return {"prompts": self._choice.described()}
        return {f"prompts of {home}": each.fingerprint for home, each in self._prompts.items()}

    def _same_measurements(self, stops: Sequence[Stop]) -> dict[str, Stop]:
        """Those with equal weights, as far as they get the same prompts."""
        found, home_of = twins(stops), {stop.label: stop.home for stop in stops}
        return {
            label: first
            for label, first in found.items()
            if self._prompts[home_of[label]].fingerprint == self._prompts[first.home].fingerprint
        }

    def _keep(self, stop: Stop, outcome: Record | Failure) -> None:
        if isinstance(outcome, Record):
            self._save(stop, outcome)
            self.report.measured.append(stop.label)
        elif outcome.is_general and self._folder.is_empty:
            raise InputError(outcome.reason)
        else:
            self.report.failures[stop.label] = outcome.reason

    def _keep_twin(self, stop: Stop, first: Stop) -> None:
        """The record of one with the same weights, at its own step."""
        record = self._folder.find(first)
        if record is None:
            reason = self.report.failures[first.label]
            self.report.failures[stop.label] = f"its weights are those of {first.label}: {reason}"
            return
        own = {"source": stop.label, "commit": stop.commit, "same_weights_as": first.label}
        metadata = record.metadata | own
        self._save(
            stop,
            replace(record, step=stop.name.step, tokens=stop.name.tokens, metadata=metadata),
        )
        self.report.same[stop.label] = first.label

    def _save(self, stop: Stop, record: Record) -> None:
        prompts = self._prompts_of(stop)
        if self.job.sweep:
            tokenizer = self._choice.tokenizer_of(stop)
            record = replace(record, metadata=record.metadata | {"tokenizer": tokenizer})
        self._folder.save(stop, record, prompts)


def check_base(stops: Sequence[Stop], loading: Loading) -> None:
    """Asks for a base at once where no checkpoint says of which architecture it is."""
    bare = [stop.checkpoint for stop in stops if stop.checkpoint is not None and stop.needs_base]
    if bare and (loading.base is not None or len(bare) == len(stops)):
        config_of(bare[0], loading)
