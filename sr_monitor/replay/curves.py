"""The curve of one run: its records, and the TensorBoard run that shows them as they come.

A replay that was stopped and continued still shows one curve: the event file is written anew from
the records at the start, and at the end if records did not come in the order of their steps.

    curve = Curve(Path("replays/gpt2/stable_regions"))
    curve.begin();  curve.add(record, prompts);  curve.finish()
"""

from collections.abc import Sequence
from pathlib import Path

from sr_monitor.display.album import Album
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import InputError
from sr_monitor.probes.base import Probe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.results.store import RecordStore


class Curve:
    """A run's records, by checkpoint, and the TensorBoard run that shows them."""

    def __init__(self, folder: Path, probes: Sequence[Probe] = ()) -> None:
        """Read the existing records; unreadable ones are measured again."""
        self._folder, self._probes = folder, probes
        self._store = RecordStore.at(folder, probes=probes)
        self._writer: TensorBoardWriter | None = None
        self._album = Album([])
        self._shown, self._is_in_order = -1, True
        self.records: dict[str, Record] = {
            str(record.metadata.get("source") or ""): record for record in self._store.records()
        }
        if (foreign := self.records.get("")) is not None:
            raise InputError(
                f"{str(folder)!r} holds a record at step {foreign.step} that no replay has made (a "
                "live run's?), and what shows it would be overwritten; name another --out"
            )

    def at(self, step: int) -> str | None:
        """Return the label of the checkpoint that was measured at this step."""
        found = (label for label, record in self.records.items() if record.step == step)
        return next(found, None)

    def begin(self) -> None:
        """Show the existing records, in order, in a new event file."""
        self.close()
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._shown, self._is_in_order = -1, True
        for record in self._ordered():
            self._show(record)

    def add(self, record: Record, prompts: PromptSet) -> None:
        """Keep a record with its prompts, and show it."""
        record = record.with_derived(self._probes)
        own = _step_of_prompts(record)
        if not self.records or not self._store.prompts_path(own).exists():
            self._store.save_prompts(prompts, own)
        self._store.save(record)
        self.records[str(record.metadata["source"])] = record
        if record.step > self._shown:
            self._show(record)
        else:
            self._is_in_order = False

    def finish(self) -> None:
        """Show records that came late in their place, and draw the last pictures."""
        if not self._is_in_order:
            self.begin()
        if self.records:
            self._show(self._ordered()[-1], last=True)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _ordered(self) -> list[Record]:
        return sorted(self.records.values(), key=lambda record: record.step)

    def _show(self, record: Record, *, last: bool = False) -> None:
        if self._writer is None:
            self._writer = TensorBoardWriter(self._folder)
            self._album = Album([self._writer])
        own = _step_of_prompts(record)
        prompts = PromptSet.load(self._store.prompts_path(own))
        if record.step > self._shown and (self._shown < 0 or own is not None):
            self._album.introduce(prompts, record.step)
        self._album.show(record, prompts=prompts, last=last)
        self._shown = record.step


def _step_of_prompts(record: Record) -> int | None:
    """Return the step that a record has prompts of its own for, in a sweep; else None."""
    return record.step if record.is_of_sweep else None
