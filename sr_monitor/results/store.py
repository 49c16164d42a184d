"""The folder of a run's records: which of them a run goes on with, and which it leaves behind.

A run that starts at step s goes on with the records of steps up to s that were measured in the
same way; one that starts at step 0 or 1, without a saved state, is new and goes on with none.
Records that it leaves behind (later ones, of a branch that was given up when the run was resumed;
others' prompts) are moved into the folder `superseded`, so that one folder holds one curve and
nothing is lost.

    store = RecordStore("runs/1", "stable_regions")
    earlier = store.open(step=1000, described=...)
    store.save(record)
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sr_monitor.errors import InputError, warn
from sr_monitor.files import write_whole
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, list_records, record_path

_SUPERSEDED = "superseded"


class RecordStore:
    """The records of one run; without a log folder, none are kept."""

    def __init__(
        self, log_dir: str | os.PathLike[str] | None, name: str, run: object = None
    ) -> None:
        """Takes the folder `name` in `log_dir`, or name-2, ... if another one of ours has it.

        One of an earlier `run`, of a training that was interrupted say, gives it up.
        """
        self.name = name
        self._run = run
        self.folder: Path | None = None
        self.came_from: str | None = None
        self._prompts: PromptSet | None = None
        if log_dir is not None:
            number = 1
            while self._is_taken(folder := Path(log_dir).resolve() / self.name):
                number += 1
                self.name = f"{name}-{number}"
            self.folder = folder
            _in_use[folder] = self

    def open(self, step: int, described: Mapping[str, Any]) -> Iterator[Record]:
        """The records to go on with, by step; the others are moved out of the way.

        A run that goes on, but in another way, is told what parts it from its earlier records.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._bring_along()
        is_resumed = step > 1 or self.came_from is not None
        changed: dict[str, None] = {}  # in the order found
        for path in list_records(self.folder):
            record = _readable(path) if is_resumed else None
            if record is None or record.step > step:
                self._supersede(path)
            elif different := list(_differences(record.metadata, described)):
                changed.update(dict.fromkeys(different))
                self._supersede(path)
            else:
                yield record
        if changed:
            warn(
                f"the run that is resumed was measured in another way: {'; '.join(changed)}. A new "
                f"curve begins here; its records are in {str(self.folder / _SUPERSEDED)!r}",
                stacklevel=2,
            )

    def save(self, record: Record) -> None:
        """One more record."""
        if self.folder is not None:
            record.save(self.folder / record_path("", record.step).name)
            if self._prompts is not None and not self._prompts_path.exists():
                self._prompts.save(self._prompts_path)  # the folder was taken away

    def save_prompts(self, prompts: PromptSet) -> None:
        """The prompts, beside the records."""
        if self.folder is not None:
            path = self._prompts_path
            prompts.save(new := path.with_name(".prompts.json"))
            if path.exists() and path.read_bytes() != new.read_bytes():
                self._supersede(path)
            new.replace(path)
            self._prompts = prompts

    def close(self) -> None:
        """Others may use the folder now."""
        if self.folder is not None and _in_use.get(self.folder) is self:
            del _in_use[self.folder]

    def _is_taken(self, folder: Path) -> bool:
        """Whether somebody who may still write is there: without a run one may at any time."""
        other = _in_use.get(folder)
        return other is not None and (
            self._run is None or other._run is None or other._run is self._run
        )

    @property
    def _prompts_path(self) -> Path:
        assert self.folder is not None
        return self.folder / "prompts.json"

    def _bring_along(self) -> None:
        """Copies the records of a run that is resumed in another folder."""
        came_from = None if self.came_from is None else Path(self.came_from)
        if came_from is None or came_from == self.folder or not came_from.is_dir():
            return
        assert self.folder is not None
        for path in list_records(came_from):
            target = self.folder / path.name
            if not target.exists():
                write_whole(target, path.read_bytes())

    def _supersede(self, path: Path) -> None:
        """Moves a file out of the way, beside what was moved before, never over it."""
        aside, number = path.parent / _SUPERSEDED, 1
        while (aside / path.name).exists():
            number += 1
            aside = path.parent / f"{_SUPERSEDED}-{number}"
        aside.mkdir(exist_ok=True)
        path.replace(aside / path.name)


# Weak, so that the folder of a run that ended in an error is free again without `close`.
_in_use: WeakValueDictionary[Path, RecordStore] = WeakValueDictionary()


def _readable(path: Path) -> Record | None:
    try:
        return Record.load(path)
    except InputError:
        return None


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is not equal, in words; of sets of options, as far as both versions had them."""
    for name, value in wanted.items():
        there = found.get(name)
        if isinstance(there, dict) and isinstance(value, dict):
            both = there.keys() & value.keys()
            yield from _differences(
                there, {option: value[option] for option in value if option in both}
            )
        elif there != value:
            yield f"{name} was {there!r} and is {value!r}"
