"""Keep the records of a run in a folder, and decide which of them a resumed run continues.

    <log_dir>/stable_regions/step-000000500.safetensors     the record of a step
    <log_dir>/stable_regions/prompts.json                   the prompts that are measured
    <log_dir>/stable_regions/superseded/                    what a later run moved out of the way

A run that starts at step s continues the records up to s that were measured in the same way; one
that starts at step 0 or 1, without a saved state, none. The others are superseded: moved aside and
kept, so that one folder holds one curve.

    store = RecordStore("runs/1", "stable_regions")
    earlier = list(store.open(step=1000, described=...))
    store.save(record)
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sr_monitor.errors import InputError, warn
from sr_monitor.files import write_whole
from sr_monitor.probes.base import Probe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import NewerError, Outline, Record, list_records, record_path

_SUPERSEDED = "superseded"


class RecordStore:
    """The records of one run; without a log folder, none are kept."""

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None,
        name: str,
        run: object = None,
        *,
        probes: Sequence[Probe] = (),
    ) -> None:
        """Claim the folder `name` in `log_dir`, or `name`-2, ... if another store has it.

        `run` stands for the training: a store of another one, which may have been interrupted,
        loses its claim. `probes` explain their parts, besides the built-in ones.
        """
        self.name = name
        self.folder: Path | None = None
        self.came_from: str | None = None  # where a resumed run kept its records before
        self._run = run
        self._probes = tuple(probes)
        self._prompts: PromptSet | None = None
        if log_dir is not None:
            self._claim(Path(log_dir).resolve())

    @classmethod
    def at(cls, folder: Path, *, probes: Sequence[Probe] = ()) -> "RecordStore":
        """Return the store of exactly this folder, without claiming it."""
        store = cls(None, folder.name, probes=probes)
        store.folder = folder
        return store

    def of_set(self, name: str) -> "RecordStore":
        """Return the store of one of several sets of prompts: a folder of its own in this one."""
        store = RecordStore(None, f"{self.name}/{name}", probes=self._probes)
        store.folder = self.folder and self.folder / name
        return store

    def open(self, step: int, described: Mapping[str, Any]) -> Iterator[Outline]:
        """Yield outlines of the records that a run from `step` on continues; move others aside.

        `described` is metadata that its records must share: how it is measured. What differs in a
        resumed run is said in a warning.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._bring_along()
        is_resumed = step > 1 or self.came_from is not None
        changed: dict[str, None] = {}  # in the order found
        for path in list_records(self.folder):
            outline = _outline(path) if is_resumed else None
            if outline is None or outline.step > step:
                self._supersede(path)
            elif different := list(_differences(outline.metadata, described)):
                changed.update(dict.fromkeys(different))
                self._supersede(path)
            else:
                yield outline
        if changed:
            warn(
                f"the run that is resumed was measured in another way: {'; '.join(changed)}. A new "
                f"curve begins here; its records are in {str(self.folder / _SUPERSEDED)!r}",
                stacklevel=2,
            )

    def close(self) -> None:
        """Give the folder up for others to claim."""
        if self.folder is not None and _claimed.get(self.folder) is self:
            del _claimed[self.folder]

    def records(self) -> Iterator[Record]:
        """Yield every record that can be read, by step.

        Raises:
            NewerError: One is of a newer version, so it must not be replaced.
        """
        for path in [] if self.folder is None else list_records(self.folder):
            if (record := self._load(path, or_newer=False)) is not None:
                yield record

    def outlines(self) -> Iterator[Outline]:
        """Yield the outline of every record that can be read, by step; no tensor is.

        Raises:
            NewerError: One is of a newer version, so it must not be replaced.
        """
        for path in [] if self.folder is None else list_records(self.folder):
            if (outline := _outline(path, or_newer=False)) is not None:
                yield outline

    def load(self, step: int) -> Record | None:
        """Return the record of a step, with the parts that can be derived, if it can be read."""
        return None if self.folder is None else self._load(self._path(step))

    def save(self, record: Record) -> None:
        """Keep one more record."""
        if self.folder is not None:
            record.save(self._path(record.step))
            if self._prompts is not None and not self.prompts_path().exists():
                self._prompts.save(self.prompts_path())  # somebody took the folder away

    def save_prompts(self, prompts: PromptSet, step: int | None = None) -> None:
        """Keep the prompts of all records, or those of one step; move others there aside."""
        if self.folder is not None:
            path = self.prompts_path(step)
            prompts.save(new := path.with_name(f".{path.name}"))
            if path.exists() and path.read_bytes() != new.read_bytes():
                self._supersede(path)
            new.replace(path)
            self._prompts = prompts if step is None else self._prompts

    def load_prompts(self, step: int | None = None) -> PromptSet | None:
        """Return the prompts of all records, or those of one step, if they are there."""
        is_there = self.folder is not None and self.prompts_path(step).is_file()
        return PromptSet.load(self.prompts_path(step)) if is_there else None

    def prompts_path(self, step: int | None = None) -> Path:
        """Return where the prompts of all records lie, or those of one step."""
        assert self.folder is not None
        return self.folder / ("prompts.json" if step is None else f"prompts-{step:09d}.json")

    def _path(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / record_path("", step).name

    def _claim(self, log_dir: Path) -> None:
        name, number = self.name, 1
        while self._is_taken(log_dir / self.name):
            number += 1
            self.name = f"{name}-{number}"
        self.folder = log_dir / self.name
        _claimed[self.folder] = self

    def _is_taken(self, folder: Path) -> bool:
        other = _claimed.get(folder)
        return other is not None and (
            self._run is None or other._run is None or other._run is self._run
        )

    def _load(self, path: Path, *, or_newer: bool = True) -> Record | None:
        """Read a record, with the parts that can be derived; None if it cannot be read."""
        try:
            return Record.load(path, self._probes).with_derived(self._probes)
        except InputError as error:
            if isinstance(error, NewerError) and not or_newer:
                raise
            return None

    def _bring_along(self) -> None:
        """Copy the records of a run that is resumed in another folder."""
        assert self.folder is not None
        for path in list_records(self.came_from) if self.came_from else ():
            target = self.folder / path.name
            if not target.exists():  # as in the same folder
                write_whole(target, path.read_bytes())

    def _supersede(self, path: Path) -> None:
        """Move a file aside, beside what was moved before, never over it."""
        aside, number = path.parent / _SUPERSEDED, 1
        while (aside / path.name).exists():
            number += 1
            aside = path.parent / f"{_SUPERSEDED}-{number}"
        aside.mkdir(exist_ok=True)
        path.replace(aside / path.name)


# Weak, so that the folder of a run that ended in an error is free again without `close`.
_claimed: WeakValueDictionary[Path, RecordStore] = WeakValueDictionary()


def _outline(path: Path, *, or_newer: bool = True) -> Outline | None:
    """Read what the header of a record says; None if it cannot be read."""
    try:
        return Outline.load(path)
    except InputError as error:
        if isinstance(error, NewerError) and not or_newer:
            raise
        return None


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Say what differs; compare only those options that both versions had."""
    for name, value in wanted.items():
        there = found.get(name)
        if isinstance(there, dict) and isinstance(value, dict):
            both = there.keys() & value.keys()
            yield from _differences(there, {key: value[key] for key in value if key in both})
        elif there != value:
            yield f"{name} was {there!r} and is {value!r}"
