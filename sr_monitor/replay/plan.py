"""Which checkpoints are measured, in which order, and which curve each belongs to.

A source is a folder, a file, or `owner/name@GLOB`, revisions on the hub. Each run of a training
(its main line, a parallel branch, a stage whose steps start again) is a curve of its own, in a
folder of its own; sources of the same training are put together. Several models without steps are
a sweep: one curve over the number of parameters.

    stops = make_plan(["allenai/OLMo-1B-0724-hf@step*"], num=20)
    sum(stop.missing_bytes for stop in stops)
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import (
    REPO,
    LocalCheckpoint,
    describe_missing,
    distinct,
    find_checkpoints,
    is_repo,
)
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
from sr_monitor.replay.readers.huggingface import FSDP_FOLDER
from sr_monitor.replay.stops import SIZES, Stop, is_sweep, says_step

_SHOWN = 5


def make_plan(
    sources: Sequence[str], *, num: int | None = None, tokens: Sequence[int | float] | None = None
) -> list[Stop]:
    """The checkpoints to measure, run by run, in the order of their steps.

    Args:
        sources: Folders, files, or `owner/name@GLOB`; `owner/name` is its revision main.
        num: At most so many of each run, evenly spaced in the logarithm of the step.
        tokens: The nearest to these numbers of tokens.
    """
    if not sources:
        raise InputError("replay: name at least one source, a folder or owner/name@GLOB")
    if not all(sources):
        raise InputError("replay: a source is empty; name a folder ('.' is this one) or owner/name")
    chosen = [stop for found in _trainings(sources) for stop in _choose(found, num, tokens)]
    stops = _billed(chosen)
    if is_sweep(stops):
        return [replace(stop, run="", curve=SIZES) for stop in stops]
    return _apart(_foldered(stops))


def _trainings(sources: Iterable[str]) -> list[list[Stop]]:
    """What the sources hold, training by training, each checkpoint once and with its run."""
    trainings: dict[str, list[LocalCheckpoint]] = {}
    patterns: dict[str, list[str]] = {}
    for source in sources:
        if is_repo(source):
            repo, _, pattern = source.partition("@")
            trainings.setdefault(repo, [])
            patterns.setdefault(repo, []).append(pattern or "main")
        else:
            for home, checkpoint in _on_disk(source):
                trainings.setdefault(home, []).append(checkpoint)
    return [
        _on_hub(home, patterns[home]) if home in patterns else _lying(home, distinct(found))
        for home, found in trainings.items()
    ]


def _on_disk(source: str) -> Iterator[tuple[str, LocalCheckpoint]]:
    """Each with its training, by real paths, which any working directory and spelling lead to."""
    there = Path(source).resolve()
    there = there.parent if there.name == FSDP_FOLDER else there
    found = [_resolved(checkpoint) for checkpoint in find_checkpoints(source)]
    for checkpoint in found:
        is_step = checkpoint.path == there and says_step(checkpoint.name)
        yield str(there.parent if is_step else there), checkpoint


def _lying(home: str, checkpoints: Iterable[LocalCheckpoint]) -> list[Stop]:
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    return [
        Stop(name=name, home=home, run=run, checkpoint=by_name[name])
        for run, names in split_runs(by_name).items()
        for name in names
    ]


def _resolved(checkpoint: LocalCheckpoint) -> LocalCheckpoint:
    config = checkpoint.config and checkpoint.config.resolve()
    return replace(checkpoint, path=checkpoint.path.resolve(), config=config)


def _on_hub(repo: str, patterns: Iterable[str]) -> list[Stop]:
    """Those that fit, not yet with what they need."""
    by_name = {revision.name: revision for revision in _revisions(repo)}
    names = sorted({name for pattern in patterns for name in _matched(repo, pattern, by_name)})
    # Of all revisions, because only all of them show how a stage counts.
    runs = split_runs([*read_names(by_name), *(n for n in names if read_name(n.text) is None)])
    run_of = {name.text: run for run, members in runs.items() for name in members}
    return [
        Stop(
            name=name,
            home=repo,
            run=run_of[name.text],
            item=Item(repo=repo, revision=by_name[name.text]),
        )
        for name in names
    ]


def _revisions(repo: str) -> list[Revision]:
    """All those on the hub."""
    try:
        found = list_revisions(repo)
    except InputError as error:
        if not Path(repo).parent.is_dir():
            raise
        raise InputError(f"{describe_missing(repo)}; and as a name on the hub: {error}") from error
    if not found:
        raise InputError(f"{repo!r} has no revisions on the hub")
    return found


def _matched(repo: str, pattern: str, known: Iterable[str]) -> list[CheckpointName]:
    """Those that say a step, or the one that says none."""
    matched = match_names(pattern, list(known))
    names = read_names(matched)
    if not names and len(matched) > 1:
        raise InputError(
            f"'{repo}@{pattern}' fits {len(matched)} revisions, none of which says a step "
            f"({', '.join(matched[:_SHOWN])}); name one of them"
        )
    return names or [CheckpointName(name) for name in matched]


def _billed(stops: list[Stop]) -> list[Stop]:
    """Those on the hub with what they need."""
    wanted: dict[str, list[Revision]] = {}
    for stop in stops:
        if stop.item is not None:
            wanted.setdefault(stop.item.repo, []).append(stop.item.revision)
    found = [item for repo, revisions in wanted.items() for item in _items(repo, revisions)]
    by_place = {(item.repo, item.revision): item for item in found}
    return [
        replace(stop, item=by_place[stop.item.repo, stop.item.revision]) if stop.item else stop
        for stop in stops
    ]


def _items(repo: str, revisions: Sequence[Revision]) -> list[Item]:
    """What each needs; one that the hub fails to tell of keeps no other from being measured."""
    try:
        return bill(repo, revisions)
    except InputError:
        items = [_item(repo, revision) for revision in revisions]
        if all(item.problem for item in items):
            raise
        return items


def _item(repo: str, revision: Revision) -> Item:
    try:
        return bill(repo, [revision])[0]
    except InputError as error:
        return Item(repo=repo, revision=revision, problem=str(error))


def _choose(stops: list[Stop], num: int | None, tokens: Sequence[int | float] | None) -> list[Stop]:
    names = [stop.name for stop in stops]
    if tokens is not None:
        names = choose_tokens(names, map(float, tokens))
    if num is not None:
        names = choose_spaced(names, num)
    wanted = set(names)
    return [stop for stop in stops if stop.name in wanted]


def _foldered(stops: list[Stop]) -> list[Stop]:
    """Each in the folder of its curve, and curve by curve."""
    folders = _folders(list(dict.fromkeys(stop.home for stop in stops)))
    curves: dict[tuple[str, str], list[Stop]] = {}
    for stop in stops:
        curves.setdefault((stop.home, stop.run), []).append(stop)
    return [
        replace(
            stop,
            run="" if len(curves) == 1 else "/".join(filter(None, [folders[home], run])),
            curve=", ".join(filter(None, [home, run])),
        )
        for (home, run), members in curves.items()
        for stop in members
    ]


def _folders(homes: list[str]) -> dict[str, str]:
    """A folder for each training: its last name, and as much before that as it takes."""
    if len(homes) == 1:
        return {homes[0]: ""}
    parts = {home: [part for part in re.split(r"[/\\]", home) if part] for home in homes}
    short: dict[str, str] = {}
    for length in range(1, max(map(len, parts.values())) + 1):
        short = {home: "--".join(parts[home][-length:]) for home in homes}
        if len(set(short.values())) == len(homes):
            break
    # A repository is called by its whole name.
    whole = {home: home.replace("/", "--") for home in homes if REPO.fullmatch(home)}
    return short | whole


def _apart(stops: list[Stop]) -> list[Stop]:
    """A curve has one point at a step: a second one is a curve of its own."""
    taken: set[tuple[str, int]] = set()
    apart = []
    for stop in stops:
        place = stop.run, stop.name.step
        if place in taken:
            own = re.sub(r"[^\w.=-]+", "-", stop.name.text)
            run, curve = "/".join(filter(None, [stop.run, own])), f"{stop.curve}, {stop.name.text}"
            apart.append(replace(stop, run=run, curve=curve))
        else:
            taken.add(place)
            apart.append(stop)
    return apart
