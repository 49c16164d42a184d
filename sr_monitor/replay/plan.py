"""Plan which checkpoints are measured, in which order, and which curve each belongs to.

Each run of a training (its main line, a parallel branch, a stage whose steps restart) is a curve.
Several models without steps are a sweep: one curve over the number of parameters.

    planned = make_plan(["allenai/OLMo-1B-0724-hf@step*"], num=20)
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from sr_monitor.errors import InputError
from sr_monitor.probes.base import Progress, no_progress
from sr_monitor.replay.discover import (
    REPO,
    LocalCheckpoint,
    NothingYet,
    describe_missing,
    distinct,
    find_checkpoints,
    is_repo,
)
from sr_monitor.replay.hub import HubCheckpoint, list_commits, list_files, list_revisions
from sr_monitor.replay.names import (
    CheckpointName,
    add_tokens,
    choose_spaced,
    choose_tokens,
    match_names,
    parse_tokens,
    read_name,
    read_names,
    split_runs,
)
from sr_monitor.replay.readers import outermost
from sr_monitor.replay.urls import UrlCheckpoint, is_list, read_list

COMMITS = "commits"
"""What stands for the commits of a training that pushed while it went on."""
SIZES = "sizes"
"""The curve of a sweep, whichever models are on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCheckpoint:
    """One checkpoint to measure."""

    name: CheckpointName
    training: str
    """The repository, or the folder that the steps of its training lie in."""
    source: LocalCheckpoint | HubCheckpoint | UrlCheckpoint
    tokens: int | None = None
    """The tokens that its name says, and those of the stages before; None if it says none."""
    wanted: tuple[int | float, ...] = ()
    """The numbers of tokens that it was chosen for."""
    run: str = ""
    """The folder of its curve; "" if that is the only one."""
    curve: str = ""
    """Which curve that is, whatever its folder is called: a training, and a branch of it."""

    @property
    def label(self) -> str:
        """Its name in messages and records."""
        return self.source.label


def is_sweep(planned: Sequence[PlannedCheckpoint]) -> bool:
    """Return whether models of different sizes are compared, and not steps of one training."""
    return len(planned) > 1 and not any(each.name.has_step for each in planned)


def find_duplicates(
    planned: Sequence[PlannedCheckpoint], recorded: Mapping[str, str | None] = MappingProxyType({})
) -> dict[str, PlannedCheckpoint]:
    """Map each duplicate's label to the earlier checkpoint with the same weights.

    `recorded` has fingerprints, by label, of checkpoints whose files were not looked up now.
    """
    first: dict[str, PlannedCheckpoint] = {}
    duplicates: dict[str, PlannedCheckpoint] = {}
    for each in () if is_sweep(planned) else planned:
        known = each.source.fingerprint or recorded.get(each.label) or each.label
        earlier = first.setdefault(known, each)
        if earlier is not each:
            duplicates[each.label] = earlier
    return duplicates


def make_plan(
    sources: Sequence[str | Path],
    *,
    num: int | None = None,
    tokens: Sequence[int | float] | str | None = None,
    revisions: str = "refs",
) -> list[PlannedCheckpoint]:
    """Return the checkpoints to measure, run by run, in the order of their steps.

    The arguments mean what they do in `replay`. Files on the hub are looked up by `with_files`.
    """
    if not sources:
        raise InputError("replay: name at least one source, a folder or owner/name@GLOB")
    if "" in sources:
        raise InputError("replay: a source is empty; name a folder ('.' is this one) or owner/name")
    tokens = parse_tokens(tokens) if isinstance(tokens, str) else tokens
    planned = []
    default = COMMITS if revisions == COMMITS else "main"
    for found in _trainings([os.fspath(source) for source in sources], default):
        if tokens is not None:
            chosen = choose_tokens({each.name: each.tokens for each in found}, tokens)
            found = [replace(e, wanted=tuple(chosen[e.name])) for e in found if e.name in chosen]
        names = [each.name for each in found]
        names = names if num is None else choose_spaced(names, num)
        planned += [each for each in found if each.name in set(names)]
    if is_sweep(planned):
        return [replace(each, run="", curve=SIZES) for each in planned]
    return _one_for_each_step(_with_folders(planned))


def with_files(
    planned: Sequence[PlannedCheckpoint], progress: Progress = no_progress
) -> list[PlannedCheckpoint]:
    """Look up the files of those on the hub, by one request for each; `progress` counts them."""
    hub = [each.source for each in planned if isinstance(each.source, HubCheckpoint)]
    found = {source.label: source for source in list_files(hub, progress)}
    return [replace(each, source=found.get(each.label, each.source)) for each in planned]


def _trainings(sources: Iterable[str], default: str) -> list[list[PlannedCheckpoint]]:
    """Return what the sources hold, training by training, each checkpoint once.

    `default` is the pattern for a repository that is named without one.
    """
    local: dict[str, list[LocalCheckpoint]] = {}
    lists: list[list[PlannedCheckpoint]] = []
    globs: dict[str, list[str]] = {}
    for source in sources:
        if is_repo(source):
            repo, _, glob = source.partition("@")
            local.setdefault(repo, [])
            globs.setdefault(repo, []).append(glob or default)
        elif is_list(source):
            lists.append(_plan_list(source))
        else:
            for training, checkpoint in _in_folder(source):
                local.setdefault(training, []).append(checkpoint)
    return [
        _plan_repo(training, globs[training])
        if training in globs
        else _plan_folder(training, distinct(found))
        for training, found in local.items()
    ] + lists


def _in_folder(source: str) -> Iterator[tuple[str, LocalCheckpoint]]:
    """Yield each checkpoint with its training; real paths do not depend on where one is."""
    folder = outermost(Path(source).resolve())
    for found in find_checkpoints(source):
        config = found.config and found.config.resolve()
        checkpoint = replace(found, path=found.path.resolve(), config=config)
        is_step = checkpoint.path == folder and checkpoint.name.has_step
        yield str(folder.parent if is_step else folder), checkpoint


def _plan_folder(training: str, checkpoints: Iterable[LocalCheckpoint]) -> list[PlannedCheckpoint]:
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    tokens = add_tokens(by_name)
    return [
        PlannedCheckpoint(
            name=name, training=training, run=run, source=by_name[name], tokens=tokens.get(name)
        )
        for run, names in split_runs(by_name).items()
        for name in names
    ]


def _plan_list(source: str) -> list[PlannedCheckpoint]:
    """Return the checkpoints of a list of addresses, which says tokens as they add up."""
    training = source if source.startswith("http") else str(Path(source).resolve())
    by_name = dict(read_list(source))
    return [
        PlannedCheckpoint(
            name=name, training=training, run=run, source=by_name[name], tokens=name.tokens
        )
        for run, names in split_runs(by_name).items()
        for name in names
    ]


def _plan_repo(repo: str, globs: Collection[str]) -> list[PlannedCheckpoint]:
    """Return the matching revisions."""
    try:
        commits = list_revisions(repo)
    except InputError as error:
        if not Path(repo).parent.is_dir():
            raise
        raise InputError(f"{describe_missing(repo)}; and as a name on the hub: {error}") from error
    if COMMITS in globs and COMMITS not in commits:
        globs, commits = _pushed(repo, globs, commits)
    names = sorted({name for glob in globs for name in _matching(repo, glob, list(commits))})
    # All revisions: a selection does not show whether a stage restarts its steps.
    tokens = add_tokens(read_names(commits))
    runs = split_runs([*read_names(commits), *(n for n in names if read_name(n.text) is None)])
    run_of = {name.text: run for run, members in runs.items() for name in members}
    return [
        PlannedCheckpoint(
            name=name,
            training=repo,
            run=run_of[name.text],
            tokens=tokens.get(name),
            source=HubCheckpoint(repo=repo, revision=name.text, commit=commits[name.text]),
        )
        for name in names
    ]


def _pushed(
    repo: str, globs: Iterable[str], commits: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Add the commits whose titles say a step to the revisions of a repository."""
    pushed = list_commits(repo)
    if not pushed:
        raise NothingYet(
            f"'{repo}@{COMMITS}': no title of a commit says a step, such as 'Training in progress, "
            f"step 500'; for branches and tags, name {repo}@GLOB"
        )
    return [*(glob for glob in globs if glob != COMMITS), *pushed], {**pushed, **commits}


def _matching(repo: str, glob: str, revisions: Sequence[str]) -> list[CheckpointName]:
    """Return the matching revisions with a step, or the only one if it has none."""
    if glob.startswith("refs/"):
        raise InputError(
            f"'{repo}@{glob}' is no branch or tag; download it into a folder, and name that: "
            f"hf download {repo} --revision {glob} --local-dir FOLDER"
        )
    matching = match_names(glob, revisions)
    names = read_names(matching)
    if not names and len(matching) > 1:
        raise InputError(
            f"'{repo}@{glob}' fits {len(matching)} revisions, none of which says a step "
            f"({', '.join(matching[:5])}); name one of them"
        )
    return names or [CheckpointName(name) for name in matching]


def _with_folders(planned: list[PlannedCheckpoint]) -> list[PlannedCheckpoint]:
    """Give each the folder of its curve, and sort them curve by curve."""
    folders = _folders(list(dict.fromkeys(each.training for each in planned)))
    curves: dict[tuple[str, str], list[PlannedCheckpoint]] = {}
    for each in planned:
        curves.setdefault((each.training, each.run), []).append(each)
    named = []
    for (training, run), members in curves.items():
        folder = "" if len(curves) == 1 else "/".join(filter(None, [folders[training], run]))
        curve = ", ".join(filter(None, [training, run]))
        named += [replace(each, run=folder, curve=curve) for each in members]
    return named


def _folders(trainings: list[str]) -> dict[str, str]:
    """Name a folder for each training by the shortest ends of their paths that differ."""
    if len(trainings) == 1:
        return {trainings[0]: ""}
    parts = {name: [part for part in re.split(r"[/\\]", name) if part] for name in trainings}
    short: dict[str, str] = {}
    for length in range(1, max(map(len, parts.values())) + 1):
        short = {name: "--".join(parts[name][-length:]) for name in trainings}
        if len(set(short.values())) == len(trainings):
            break
    # A repository is called by its whole name.
    return short | {name: name.replace("/", "--") for name in trainings if REPO.fullmatch(name)}


def _one_for_each_step(planned: list[PlannedCheckpoint]) -> list[PlannedCheckpoint]:
    """Move a second checkpoint of a step to a curve of its own; a curve has one point a step."""
    taken: set[tuple[str, int]] = set()
    separate = []
    for each in planned:
        if (each.run, each.name.step) in taken:
            own = re.sub(r"[^\w.=-]+", "-", each.name.text)
            run = "/".join(filter(None, [each.run, own]))
            each = replace(each, run=run, curve=f"{each.curve}, {each.name.text}")
        taken.add((each.run, each.name.step))
        separate.append(each)
    return separate
