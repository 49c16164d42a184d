"""Find the runs in folders, and read their records one at a time.

    for run in find_runs(["runs/demo", "replays/sizes"]):
        for record in run.records():
            print(run.name, record.step)

A run is a folder of records, wherever it lies below: live runs, replays, and the curves in one.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from sr_monitor.errors import InputError
from sr_monitor.probes.base import Probe
from sr_monitor.probes.keys import NAME
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import NewerError, Record, list_records, step_of
from sr_monitor.results.store import RecordStore

Folders: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Run:
    """The records of one run, read when they are asked for; a damaged one is left out and told."""

    def __init__(self, name: str, folder: Path, probes: Sequence[Probe] = ()) -> None:
        """Read nothing yet. `probes` explain their parts, besides the built-in ones."""
        self.name, self.folder, self._probes = name, folder, tuple(probes)
        self.damaged: dict[str, str] = {}
        """Why a file was left out, by its name, once it was to be read."""
        self._prompts: dict[int | None, PromptSet | None] = {}

    @property
    def logged_as(self) -> str:
        """What its logged names begin with: its folder, and for a set of prompts that around it."""
        parent = self.folder.parent.name
        return f"{parent}/{self.folder.name}" if parent.startswith(NAME) else self.folder.name

    @property
    def steps(self) -> list[int]:
        """The steps of the records that are there, whether they can be read or not."""
        return [step_of(path) for path in list_records(self.folder)]

    def records(self, *, newest_first: bool = False) -> Iterator[Record]:
        """Yield every record that can be read, by step.

        Raises:
            NewerError: One is of a newer version, which an upgrade can read.
        """
        paths = list_records(self.folder)
        for path in reversed(paths) if newest_first else paths:
            try:
                yield Record.load(path, self._probes).with_derived(self._probes)
            except NewerError:
                raise
            except InputError as error:
                self.damaged[path.name] = str(error)

    def prompts(self, record: Record) -> PromptSet | None:
        """Return the prompts of a record; None if they are not there, or damaged."""
        own = record.step if record.is_of_sweep else None  # each model has its own tokenizer
        if own not in self._prompts:
            store = RecordStore.at(self.folder)
            try:
                self._prompts[own] = store.load_prompts(own)
            except InputError as error:
                self.damaged[store.prompts_path(own).name] = str(error)
                self._prompts[own] = None
        return self._prompts[own]


def find_runs(folders: Folders, probes: Sequence[Probe] = (), *, call: str = "") -> list[Run]:
    """Return the runs in these folders and below; `call` begins the message where there are none.

    A run is named by the end of its path, as short as tells it from the others.
    """
    given = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    found: dict[Path, None] = {}  # in the order given
    for folder in map(Path, given):
        if not (there := list(_below(folder))):
            what = "holds no records" if folder.is_dir() else "is no folder"
            raise InputError(
                f"{call}{os.fspath(folder)!r} {what}; name the log folder of a run or the --out of "
                "a replay, with step-*.safetensors in it"
            )
        found |= dict.fromkeys(there)
    if not found:
        raise InputError(f"{call}no folder is given; name the log folder of a run")
    return [Run(name, folder, probes) for folder, name in _names(list(found)).items()]


def _below(folder: Path) -> Iterator[Path]:
    """Yield the folders of records, not those that are hidden or hold what was superseded."""
    for place, inner, _ in os.walk(folder.resolve()):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "superseded")))
        # NOTE: `list_records` prefers the folder of records inside, which comes next.
        if NAME not in inner and list_records(place):
            yield Path(place)


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Name each folder by the shortest end of its path that no other one has."""
    parts = {folder: [part for part in folder.parts if part != NAME] for folder in folders}
    names: dict[Path, str] = {}
    for length in range(1, max(map(len, parts.values())) + 1):
        ends = {folder: "/".join(each[-length:]) for folder, each in parts.items()}
        count = Counter(ends.values())
        for folder, end in ends.items():
            if count[end] == 1:
                names.setdefault(folder, end)
    return {folder: names.get(folder, str(folder)) for folder in folders}
