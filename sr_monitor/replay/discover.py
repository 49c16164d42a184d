"""Find the checkpoints in a folder, and tell folders from repositories on the hub.

for checkpoint in find_checkpoints("runs/gpt2"):
    print(checkpoint.name.step, checkpoint.path)
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sr_monitor.errors import InputError
from sr_monitor.replay.names import CheckpointName, closest, read_name
from sr_monitor.replay.readers import CheckpointReader, looked_for, outermost, recognise
from sr_monitor.replay.readers.saved import Saved

REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""The name of a repository."""

_ADDRESS = re.compile(rf"https?://[^/]+/(?P<repo>{REPO.pattern})(/tree/(?P<revision>[^/?#]+))?.*")
_GLOB = re.compile(r"[*?\[]")
_LAST = re.compile(r"last(-v\d+)?\.ckpt")


class NothingYet(InputError):
    """The source holds no checkpoint that can be read, or none so far."""


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """One saved state of a model, on this machine."""

    name: CheckpointName
    path: Path
    reader: CheckpointReader | None
    """What reads files of its kind; None if the kind is not known."""
    config: Path | None = None
    """The folder with its config.json; None where the architecture has to be named."""
    problem: str | None = None
    """Why it cannot be read, and what to do, if that is known already."""
    # Known only for checkpoints on the hub.
    commit: ClassVar[None] = None
    missing_bytes: ClassVar[int] = 0
    fingerprint: ClassVar[None] = None

    @property
    def label(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def needs_base(self) -> bool:
        """Whether a base, a model of the same architecture, has to be named for its config."""
        return self.config is None and self.problem is None

    @property
    def num_bytes(self) -> int:
        """The size of the files that hold its weights."""
        return sum(file.stat().st_size for file in self.weights() if file.is_file())

    def weights(self) -> Iterable[Path]:
        """Return the files that hold its weights."""
        return [] if self.reader is None else self.reader.files(self.path)

    def architecture(self) -> dict[str, Any] | None:
        """Return its config, where its files say it in other words than a config.json."""
        return None if self.reader is None else self.reader.architecture(self.path)

    def tokenizer(self) -> str | None:
        """Return the name of the tokenizer that it was trained with, if its files say so."""
        return None if self.reader is None else self.reader.tokenizer(self.path)

    def read(self, config: Any) -> Mapping[str, Saved]:
        """Return its weights, by the names of a model of this config, not loaded yet."""
        if self.problem is not None or self.reader is None:
            raise InputError(self.problem or "")
        return self.reader.named(self.reader.read(self.path), config)


def is_repo(source: str) -> bool:
    """Return whether a source is a hub repository, with or without `@GLOB`."""
    return bool(REPO.fullmatch(source.partition("@")[0])) and not _exists(Path(source))


def find_checkpoints(source: str | Path) -> list[LocalCheckpoint]:
    """Return the checkpoints in a folder, or the folder itself if it is one, in order of step.

    In the output folder of a Trainer, its `checkpoint-N` are taken, and not the final model beside
    them. Lightning's `last.ckpt` is left out where another file has the same step.
    """
    path = Path(source)
    if not _exists(path):
        raise InputError(describe_missing(source))
    path = outermost(path)
    found = distinct(_inside(path))
    if not found:
        raise NothingYet(f"{str(source)!r} holds no known checkpoint; {_hint(path)}")
    if all(checkpoint.problem for checkpoint in found):
        raise NothingYet(found[0].problem)
    return sorted(found, key=lambda checkpoint: checkpoint.name)


def distinct(found: Iterable[LocalCheckpoint]) -> list[LocalCheckpoint]:
    """Return each checkpoint of a training once, however often it is linked.

    Lightning's `last.ckpt` (`last-v1.ckpt` of a second training) is a copy of the file with its
    step; of several links to a checkpoint, one that says a step is preferred.
    """

    def is_worse(checkpoint: LocalCheckpoint) -> tuple[bool, bool]:
        return read_name(checkpoint.path.name) is None, checkpoint.path.is_symlink()

    by_place: dict[Path, LocalCheckpoint] = {}
    for checkpoint in sorted(found, key=is_worse):
        by_place.setdefault(checkpoint.path.resolve(), checkpoint)
    lasts = [each for each in by_place.values() if _LAST.fullmatch(each.path.name)]
    steps = {each.name.step for each in by_place.values() if each not in lasts}
    copies = [each for each in lasts if each.name.step in steps and not each.problem]
    return [each for each in by_place.values() if each not in copies]


def describe_missing(source: str | Path) -> str:
    """Say that a path does not exist, which ones come closest, and what was probably meant."""
    path = Path(source)
    siblings = [entry.name for entry in path.parent.glob("*")] if _exists(path.parent) else []
    there = ", ".join(closest(path.name, siblings)) or "nothing there"
    message = f"there is no folder {str(source)!r}; the closest in {str(path.parent)!r}: {there}"
    return "; ".join(filter(None, [message, _fix(str(source))]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any disk
        return False


def _fix(source: str) -> str:
    if address := _ADDRESS.fullmatch(source):
        name = "@".join(filter(None, address.group("repo", "revision")))
        return f"for that address on the hub, name {name}"
    if source.startswith("~"):
        return "the shell puts the home folder in place of ~: leave the quotes out"
    if _GLOB.search(source):
        return "the shell expands a pattern: leave the quotes out (if there are none, nothing fits)"
    if "/" in source and not source.startswith("http"):
        return ""
    return "a repository on the hub is named owner/name, such as openai-community/gpt2"


def _inside(path: Path) -> list[LocalCheckpoint]:
    """Return the checkpoints right in a folder, or the folder itself if it is the only one."""
    inside = []
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        reader = recognise(entry)
        # A folder named after a step is a checkpoint even if its files are not recognised.
        if reader is not None or (entry.is_dir() and read_name(entry.name)):
            inside.append(_checkpoint(entry, reader))
    if (reader := recognise(path)) is None:
        return inside
    steps = [checkpoint for checkpoint in inside if read_name(checkpoint.path.name)]
    if any(not checkpoint.problem for checkpoint in steps):  # the final model lies beside them
        return steps
    return [_checkpoint(path, reader)]


def _checkpoint(path: Path, reader: CheckpointReader | None) -> LocalCheckpoint:
    own = path.resolve().name
    name = read_name(own)
    if reader is None:
        problem = f"'{path}' holds no weights that are known; looked for {looked_for()}"
        return LocalCheckpoint(name or CheckpointName(own), path, None, problem=problem)
    step, problem_found = None, reader.problem(path)
    if name is None:
        try:
            step = reader.step(path)
        except InputError as error:
            problem_found = str(error)
    name = name or CheckpointName(own, step=step or 0)
    return LocalCheckpoint(name, path, reader, reader.config(path), problem_found)


def _hint(path: Path) -> str:
    """Return where there are checkpoints, or what was looked for."""
    if path.is_file():
        return "name the folder that it lies in"
    deeper = (entry for depth in ("*/*", "*/*/*") for entry in sorted(path.glob(depth)))
    place = next((entry.parent for entry in deeper if recognise(entry) is not None), None)
    if place is not None:
        return f"there are some in {str(place)!r}"
    return f"looked, in it and in the folders in it, for {looked_for()}"
