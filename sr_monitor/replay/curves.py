"""The curve of one run: its records, and the TensorBoard run that shows them as they come.

What was written by an earlier process is written anew from the records, so that there is one curve
however often a replay was stopped. Records that did not come in the order of their steps are
written once more at the end, in order.

    curve = Curve(Path("replays/gpt2/stable_regions"))
    curve.begin();  curve.add(record, prompts);  curve.finish()
"""

from contextlib import suppress
from importlib import import_module
from pathlib import Path

from sr_monitor.display.album import Album
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, list_records, record_path

_SHARED = "prompts.json"


def check_tensorboard() -> None:
    """Refuses to begin where there is nothing to show it with."""
    try:
        import_module("tensorboard")
    except ImportError as error:
        raise InputError(
            "replay: TensorBoard is not installed; run: pip install 'sr-monitor[tensorboard]'"
        ) from error


class Curve:
    """Records by what they were measured of, and how they are shown."""

    def __init__(self, folder: Path) -> None:
        """Reads the records that are there; one that cannot be read is measured again.

        Args:
            folder: The folder of the records, `OUT/RUN/stable_regions`.

        Raises:
            InputError: One is there that no replay has made.
        """
        self.folder = folder
        self.records: dict[str, Record] = {}
        self._writer: TensorBoardWriter | None = None
        self._album: Album | None = None
        self._shown = -1
        self._is_in_order = True
        for path in list_records(folder):
            with suppress(InputError):
                record = Record.load(path)
                self.records[str(record.metadata.get("source") or "")] = record
        if (foreign := self.records.get("")) is not None:
            raise InputError(
                f"{str(folder)!r} holds a record at step {foreign.step} that no replay has made (a "
                "live run's?), and what shows it would be overwritten; name another --out"
            )

    def at(self, step: int) -> str | None:
        """What was measured at this step."""
        found = (label for label, record in self.records.items() if record.step == step)
        return next(found, None)

    def begin(self) -> None:
        """Shows what is there."""
        if self.records:
            self._show_anew()

    def add(self, record: Record, prompts: PromptSet) -> None:
        """Keeps a record with its prompts, and shows it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.records or not self._prompts_path(record).exists():
            prompts.save(self._prompts_path(record))
        record.save(self.folder / record_path("", record.step).name)
        self.records[str(record.metadata["source"])] = record
        if record.step > self._shown:
            self._show(record)
        else:
            self._is_in_order = False

    def finish(self) -> None:
        """Shows all in order, with pictures of the last."""
        if not self._is_in_order:
            self._show_anew()
        if self.records:
            self._show(self._ordered()[-1], last=True)

    def close(self) -> None:
        """Lets the file go."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._album = None

    def prompts_of(self, record: Record) -> PromptSet:
        """The prompts that it was measured with."""
        return PromptSet.load(self._prompts_path(record))

    def _prompts_path(self, record: Record) -> Path:
        """Beside the record; those of models with tokenizers of their own, one file for each."""
        if record.metadata.get("x_axis") == "parameters":
            return self.folder / f"prompts-{record.step:09d}.json"
        return self.folder / _SHARED

    def _ordered(self) -> list[Record]:
        return sorted(self.records.values(), key=lambda record: record.step)

    def _show_anew(self) -> None:
        """Into a new file, in place of those that there are."""
        self.close()
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._shown, self._is_in_order = -1, True
        for record in self._ordered():
            self._show(record)

    def _show(self, record: Record, *, last: bool = False) -> None:
        if self._album is None:
            self._writer = TensorBoardWriter(self.folder)
            self._album = Album([self._writer])
        prompts = self.prompts_of(record)
        has_own = self._prompts_path(record).name != _SHARED
        if record.step > self._shown and (self._shown < 0 or has_own):
            self._album.introduce(prompts, record.step)
        self._album.show(record, prompts=prompts, last=last)
        self._shown = record.step
