"""The curve of one run: its records, and the TensorBoard run that shows them as they come.

A replay that is continued adds an event file, and has TensorBoard forget only the last step, which
it shows again. All is shown anew if records came out of order, or in another way (`.shown.json`).

    curve = Curve(Path("replays/gpt2/stable_regions"))
    curve.begin();  curve.add(record, prompts);  curve.finish()
"""

import json
from bisect import bisect_right, insort
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sr_monitor.display.album import Album
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import InputError
from sr_monitor.files import write_whole
from sr_monitor.probes.base import Probe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.prompts import Ways
from sr_monitor.results.record import Outline, Record
from sr_monitor.results.store import RecordStore

_SHOWN = ".shown.json"
_EVENTS = "events.out.tfevents.*"


class Curve:
    """A run's records, by checkpoint, and the TensorBoard run that shows them.

    Records stay on the disk: only their outlines are in memory.
    """

    def __init__(self, folder: Path, probes: Sequence[Probe] = ()) -> None:
        """Read the outlines of the existing records; unreadable ones are measured again."""
        self._folder, self._probes = folder, probes
        self._store = RecordStore.at(folder, probes=probes)
        self._writer: TensorBoardWriter | None = None
        self._album = Album([])
        self._shown, self._is_in_order = -1, True
        self._prompts: PromptSet | None = None  # of all records
        self._steps: list[int] = []
        self._labels: dict[int, str] = {}
        self.outlines: dict[str, Outline] = {}
        """What the records say about themselves, by checkpoint."""
        self.ways = Ways()
        """From which step on records were measured in each way."""
        for outline in self._store.outlines():
            self._note(outline)
        if (foreign := self.outlines.get("")) is not None:
            raise InputError(
                f"{str(folder)!r} holds a record at step {foreign.step} that no replay has made (a "
                "live run's?), and what shows it would be overwritten; name another --out"
            )

    def at(self, step: int) -> str | None:
        """Return the label of the checkpoint that was measured at this step."""
        return self._labels.get(step)

    def load(self, label: str) -> Record | None:
        """Return the record of a checkpoint."""
        outline = self.outlines.get(label)
        return None if outline is None else self._store.load(outline.step)

    def begin(self) -> None:
        """Show the existing records that are not shown yet, or all of them anew."""
        self.close()
        shown = self._shown_before()
        if shown != self._marker(shown["step"], is_done=shown["is_done"]):
            self._show_anew()
        elif shown["step"] >= 0:
            self._shown = shown["step"]
            for step in self._steps[bisect_right(self._steps, self._shown) :]:
                self._show_step(step)

    def add(self, record: Record, prompts: PromptSet) -> None:
        """Keep a record with its prompts, and show it."""
        record = record.with_derived(self._probes)
        own = _step_of_prompts(record)
        if not self.outlines or not self._store.prompts_path(own).exists():
            self._store.save_prompts(prompts, own)
        self._store.save(record)
        self._note(Outline.of(record))
        if record.step > self._shown:
            self._show(record)
        else:
            self._is_in_order = False
            (self._folder / _SHOWN).unlink(missing_ok=True)

    def finish(self) -> None:
        """Show records that came late in their place, and draw the last pictures."""
        if not self._is_in_order:
            self._show_anew()
        if self._steps and not self._shown_before()["is_done"]:
            self._show_step(self._steps[-1], last=True)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _note(self, outline: Outline) -> None:
        label = str(outline.metadata.get("source") or "")
        if outline.step not in self._labels:
            insort(self._steps, outline.step)
        self._labels[outline.step] = label
        self.outlines[label] = outline
        self.ways[outline.way] = min(outline.step, self.ways.get(outline.way, outline.step))

    def _show_anew(self) -> None:
        self.close()
        for old in self._folder.glob(_EVENTS):
            old.unlink()
        self._shown, self._is_in_order = -1, True
        for step in self._steps:
            self._show_step(step)

    def _show_step(self, step: int, *, last: bool = False) -> None:
        if (record := self._store.load(step)) is not None:
            self._show(record, last=last)

    def _show(self, record: Record, *, last: bool = False) -> None:
        if self._writer is None:
            self._open()
        prompts = self._prompts_of(record)
        if record.step > self._shown and (self._shown < 0 or _step_of_prompts(record) is not None):
            self._album.introduce(prompts, record.step)
        self._album.show(record, prompts=prompts, last=last)
        self._shown = record.step
        content = json.dumps(self._marker(self._shown, is_done=last))
        write_whole(self._folder / _SHOWN, content.encode())

    def _open(self) -> None:
        """Begin an event file: the first, or one that goes on from what was shown before."""
        if self._shown < 0:
            self._writer = TensorBoardWriter(self._folder)
            self._album = Album([self._writer])
            return
        # The step shown last is shown again, since it may have had the pictures of an end.
        self._writer = TensorBoardWriter(self._folder, purge_step=self._shown)
        self._album = Album([self._writer])
        before = self._steps[: bisect_right(self._steps, self._shown) - 1]
        for step in self._album.needed(before):
            if (record := self._store.load(step)) is not None:
                self._album.keep(record, prompts=self._prompts_of(record))
        again, self._shown = self._shown, before[-1] if before else -1
        self._show_step(again)

    def _prompts_of(self, record: Record) -> PromptSet:
        if (own := _step_of_prompts(record)) is not None:
            return PromptSet.load(self._store.prompts_path(own))
        if self._prompts is None:
            self._prompts = PromptSet.load(self._store.prompts_path())
        return self._prompts

    def _shown_before(self) -> dict[str, Any]:
        """Return the marker that an earlier process, or this one, left of what is shown."""
        nothing = {"step": -1, "is_done": False}
        if not any(self._folder.glob(_EVENTS)):
            return nothing
        try:
            found = {**nothing, **json.loads((self._folder / _SHOWN).read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError):
            return nothing
        return found if isinstance(found["step"], int) else nothing

    def _marker(self, step: int, *, is_done: bool) -> dict[str, Any]:
        """Return what tells whether all records up to a step were shown, as they are shown now."""
        number = bisect_right(self._steps, step)
        probes = [repr(probe) for probe in self._probes]
        return {"step": step, "records": number, "probes": probes, "is_done": is_done}


def _step_of_prompts(record: Record) -> int | None:
    """Return the step that a record has prompts of its own for, in a sweep; else None."""
    return record.step if record.is_of_sweep else None
