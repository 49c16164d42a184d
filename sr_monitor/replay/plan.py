"""Which checkpoints are measured, in which order, and which curve each belongs to.

A source is a folder, a file, or `owner/name@GLOB`, revisions on the hub. Each run of a source (its
main line, a parallel branch, a stage whose steps start again) is a curve of its own, in a folder
of its own. Several models without steps are a sweep: one curve over the number of parameters.

    stops = make_plan(["allenai/OLMo-1B-0724-hf@step*"], num=20)
    sum(stop.missing_bytes for stop in stops)
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sr_monitor.errors import InputError
from sr_monitor.replay.checkpoints import Checkpoint, find_checkpoints
from sr_monitor.replay.hub import Item, Revision, bill, list_revisions
from sr_monitor.replay.names import (
    CheckpointName,
    choose_spaced,
    choose_tokens,
    match_names,
    read_name,
    read_names,
    split_runs,
)

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """One checkpoint on the way."""

    name: CheckpointName
    """Step, tokens, stage, branch."""
    source: str
    """What the user called it by: a folder, or a repository."""
    run: str = ""
    """The folder of its curve; "" is the only one."""
    checkpoint: Checkpoint | None = None
    """Where it lies, if it lies on this machine."""
    item: Item | None = None
    """What it needs, if it is on the hub."""

    @property
    def label(self) -> str:
        """What it is called in messages and records."""
        if self.item is not None:
            return f"{self.item.repo}@{self.item.revision.name}"
        assert self.checkpoint is not None
        return str(self.checkpoint.path)

    @property
    def has_step(self) -> bool:
        """Whether its place on the x-axis is a step; that of a bare model is its size."""
        return self.name.step > 0 or read_name(self.name.text) is not None

    @property
    def problem(self) -> str:
        """Why it cannot be measured; empty where nothing is known against it."""
        if self.item is not None:
            return self.item.problem
        assert self.checkpoint is not None
        return self.checkpoint.problem or ""

    @property
    def num_bytes(self) -> int:
        """How large it is."""
        if self.item is not None:
            return self.item.num_bytes
        assert self.checkpoint is not None
        path = self.checkpoint.path
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())

    @property
    def missing_bytes(self) -> int:
        """What is still to be downloaded."""
        return 0 if self.item is None else self.item.missing_bytes

    @property
    def weights(self) -> str | None:
        """Equal for equal weights and configs; None where that is not known."""
        if self.item is None or self.item.problem:
            return None
        return f"{self.item.weights} {self.item.config}"


def make_plan(
    sources: Sequence[str], *, num: int | None = None, tokens: Sequence[float] | None = None
) -> list[Stop]:
    """The checkpoints to measure, run by run, in the order of their steps.

    Args:
        sources: Folders, files, or `owner/name@GLOB`; `owner/name` is its revision main.
        num: At most so many of each run, evenly spaced in the logarithm of the step.
        tokens: The nearest to these numbers of tokens.
    """
    if not sources:
        raise InputError("replay: name at least one source, a folder or owner/name@GLOB")
    found = [_stops(source, num, tokens) for source in sources]
    if len(found) == 1:
        return found[0]
    if all(len(stops) == 1 for stops in found):
        return _pooled([stops[0] for stops in found])
    return [stop for stops in found for stop in _under(stops, _folder_of(stops[0].source))]


def is_sweep(stops: Sequence[Stop]) -> bool:
    """Whether models of different sizes are compared, and not steps of one training."""
    return len(stops) > 1 and not any(stop.has_step for stop in stops)


def _stops(source: str, num: int | None, tokens: Sequence[float] | None) -> list[Stop]:
    if Path(source).exists() or not _is_repo(source):
        return _choose(_on_disk(source), num, tokens)
    return _on_hub(source, num, tokens)


def _is_repo(source: str) -> bool:
    """Whether it can only be meant as a repository of the hub."""
    repo = source.partition("@")[0]
    return bool(_REPO.fullmatch(repo)) and not Path(repo).parent.is_dir()


def _on_disk(source: str) -> list[Stop]:
    by_name = {checkpoint.name: checkpoint for checkpoint in find_checkpoints(source)}
    return [
        Stop(name=name, source=source, run=run, checkpoint=by_name[name])
        for run, names in split_runs(by_name).items()
        for name in names
    ]


def _on_hub(source: str, num: int | None, tokens: Sequence[float] | None) -> list[Stop]:
    repo, _, pattern = source.partition("@")
    by_name = {revision.name: revision for revision in list_revisions(repo)}
    if not by_name:
        raise InputError(f"{repo!r} has no revisions on the hub")
    matched = match_names(pattern or "main", list(by_name))
    names = read_names(matched) or [CheckpointName(name) for name in matched[:1]]
    # Of all revisions, because only all of them show how a stage counts.
    runs = split_runs([*read_names(by_name), *(n for n in names if read_name(n.text) is None)])
    run_of = {name.text: run for run, members in runs.items() for name in members}
    blank = [Stop(name=name, source=repo, run=run_of[name.text]) for name in names]
    chosen = _choose(blank, num, tokens)
    items = bill(repo, [_revision(by_name, stop) for stop in chosen])
    return [replace(stop, item=item) for stop, item in zip(chosen, items, strict=True)]


def _revision(by_name: dict[str, Revision], stop: Stop) -> Revision:
    return by_name[stop.name.text]


def _choose(stops: Iterable[Stop], num: int | None, tokens: Sequence[float] | None) -> list[Stop]:
    stops = list(stops)
    names = [stop.name for stop in stops]
    if tokens is not None:
        names = choose_tokens(names, tokens)
    if num is not None:
        names = choose_spaced(names, num)
    wanted = set(names)
    chosen = [stop for stop in stops if stop.name in wanted]
    if len({stop.run for stop in chosen}) == 1:
        return [replace(stop, run="") for stop in chosen]
    return chosen


def _pooled(stops: list[Stop]) -> list[Stop]:
    """Single checkpoints: steps of one training, or models to compare."""
    if all(stop.has_step for stop in stops):
        steps = [stop.name.step for stop in stops]
        if len(set(steps)) == len(steps):
            return sorted(stops, key=lambda stop: stop.name.step)
    elif not any(stop.has_step for stop in stops):
        return stops
    return [each for stop in stops for each in _under([stop], _folder_of(stop.source))]


def _under(stops: Sequence[Stop], folder: str) -> list[Stop]:
    return [replace(stop, run="/".join(filter(None, [folder, stop.run]))) for stop in stops]


def _folder_of(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else source.replace("/", "--")
