"""The folder of a replay: which curves are in it, and how they were measured.

`replay.json` holds the options, the prompts' fingerprints and the folder of each curve.

    folder = Folder(out, options, {"": "/runs/gpt2"})
    with folder.open():
        folder.save(planned, record, prompts)
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sr_monitor.display.writers.base import WriterError
from sr_monitor.errors import InputError, explained
from sr_monitor.files import write_whole
from sr_monitor.probes.base import Probe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.curves import Curve
from sr_monitor.replay.plan import SIZES, PlannedCheckpoint
from sr_monitor.replay.prompts import RECORDS, Ways
from sr_monitor.results.record import Outline, Record

_SCHEMA = 1
_FILE = "replay.json"
_UNFINISHED = ".*.????????.tmp"  # what `write_whole` leaves when it is killed


class Folder:
    """The curves in a folder, which is open to one process at a time."""

    def __init__(
        self,
        path: Path,
        options: Mapping[str, Any],
        curves: Mapping[str, str],
        probes: Sequence[Probe] = (),
        sets: Sequence[str] = ("",),
    ) -> None:
        """Refuse what contradicts the folder's contents; change nothing yet.

        All its records share the `options`. `curves` proposes a folder inside for each curve, as
        {folder: curve}; a curve that was begun keeps its own. `probes` explain what is measured.
        `sets` are the names of the sets of prompts, each a curve of its own there.
        """
        self.path, self._probes, self._sets = path, probes, sets
        with self._explained():
            there, known = self._read()
            if not any(any(self._folder_of(run).rglob("step-*")) for run in known):
                # Nothing was measured, perhaps because of a mistake in the first call.
                there, known = {}, known | {run: curves[run] for run in known.keys() & curves}
            self._run_of = self._placed(known, curves)
        self._runs = known | {run: curve for curve, run in self._run_of.items()}
        self._options = self._joined(there, json.loads(json.dumps(dict(options), default=str)))
        self._stack = ExitStack()
        self.curves: dict[tuple[str, str], Curve] = {}
        """By the folder of the run and the set of prompts."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder and read its records; report errors of the disk in one line."""
        with self._explained(), ExitStack() as self._stack:
            self.path.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(FileLock(self.path / ".lock", timeout=0))
            for run, name in product(self._runs, self._sets):
                self._open(run, name)
            yield

    def find(self, planned: PlannedCheckpoint, name: str = "") -> Outline | None:
        """Return what the record of a checkpoint says; None if its revision has moved since."""
        curve = self._curve_with(planned, name)
        return None if curve is None else curve.outlines[planned.label]

    def load(self, planned: PlannedCheckpoint, name: str = "") -> Record | None:
        """Return the record that `find` finds, whole."""
        curve = self._curve_with(planned, name)
        return None if curve is None else curve.load(planned.label)

    def ways(self, planned: PlannedCheckpoint, name: str = "") -> Ways:
        """Return the ways on its curve so far."""
        return self._curve_of(planned, name).ways

    def begin(self, todo: Iterable[PlannedCheckpoint]) -> None:
        """Show what was measured before; refuse a checkpoint whose step is taken by another."""
        for planned, name in product(todo, self._sets):
            other = self._curve_of(planned, name).at(planned.name.step)
            if other not in (None, planned.label) and planned.curve != SIZES:
                step = planned.name.step
                raise self._refused(f"holds {other} at step {step}, where {planned.label} belongs")
        for folder in (self.path, *map(self._folder_of, self._runs)):
            for unfinished in (*folder.glob(_UNFINISHED), *folder.glob(f"*/{_UNFINISHED}")):
                unfinished.unlink()
        self._write()
        for curve in self.curves.values():
            curve.begin()

    def save(self, planned: PlannedCheckpoint, record: Record, prompts: PromptSet) -> None:
        """Add a record to its curve; a second model of the same size begins one beside it."""
        curve = self._curve_of(planned, record.set_name)
        if curve.at(record.step) not in (None, planned.label):
            run = re.sub(r"[^\w.=-]+", "--", planned.label).strip("-")
            self._runs[run] = f"{SIZES}, {planned.label}"
            self._write()
            curve = self._open(run, record.set_name)
        curve.add(record, prompts)

    def finish(self) -> None:
        """Draw the last pictures."""
        for curve in self.curves.values():
            curve.finish()

    def _open(self, run: str, name: str) -> Curve:
        if (run, name) not in self.curves:
            curve = Curve(self._folder_of(run) / name, self._probes)
            self.curves[run, name] = curve
            self._stack.callback(curve.close)
        return self.curves[run, name]

    def _curve_with(self, planned: PlannedCheckpoint, name: str) -> Curve | None:
        # In a sweep, a second model of the same size has a curve of its own.
        runs = self._runs if planned.curve == SIZES else (self._run_of[planned.curve],)
        for curve in (self._open(run, name) for run in runs):
            if (outline := curve.outlines.get(planned.label)) is not None:
                return curve if outline.metadata.get("commit") == planned.source.commit else None
        return None

    def _curve_of(self, planned: PlannedCheckpoint, name: str) -> Curve:
        return self._open(self._run_of[planned.curve], name)

    def _folder_of(self, run: str) -> Path:
        return self.path / run / RECORDS

    def _refused(self, reason: str) -> InputError:
        """Return the error for this folder; a reason may end in another fix, and "or"."""
        fix = "" if reason.endswith(" or") else ";"
        return InputError(f"--out {str(self.path)!r} {reason}{fix} name another folder")

    def _read(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the options of earlier replays, and the curve in each folder."""
        path = self.path / _FILE
        if not path.is_file():
            return {}, {}
        what = f"--out {str(self.path)!r} holds a {_FILE} that is damaged"
        with explained(what, "delete it and what was measured, or name another folder"):
            there = json.loads(path.read_text(encoding="utf-8"))
            options, runs = dict(there["options"]), dict(there["runs"])
            schema = int(there["schema"])
            outside = [run for run in runs if not self._is_inside(run)]
        if schema > _SCHEMA:
            raise self._refused(
                f"has schema {schema}, and this sr-monitor reads up to {_SCHEMA}; run: "
                "pip install --upgrade sr-monitor, or"
            )
        if outside:
            raise self._refused(
                f"holds a {_FILE} that names a folder outside of it, {outside[0]!r}"
            )
        return options, runs

    def _is_inside(self, run: str) -> bool:
        """Whether the folder of a run is in this one, links followed: files there are replaced."""
        return self._folder_of(run).resolve().is_relative_to(self.path.resolve())

    def _joined(self, there: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """Join the options with those of earlier replays, perhaps of other trainings."""
        different = [
            f"{name} is {there[name]!r} there and {now[name]!r} now"
            for name in now
            if name in there and there[name] != now[name]
        ]
        if different:
            told = "; ".join(different)
            raise self._refused(f"holds a replay with other options: {told}; pass the same, or")
        return there | now

    def _placed(self, known: Mapping[str, str], curves: Mapping[str, str]) -> dict[str, str]:
        """Map each curve to its folder; existing curves keep theirs."""
        begun = {curve: run for run, curve in known.items()}
        placed = {
            curve: run if known.get(run) == curve else begun.get(curve, run)
            for run, curve in curves.items()
        }
        for curve, run in placed.items():
            folder = self._folder_of(run)
            if known.get(run, curve) != curve:
                raise self._refused(
                    f"holds a replay of other checkpoints: in {str(folder)!r} are those of "
                    f"{known[run]} and not of {curve}"
                )
            if run not in known and folder.is_dir() and any(folder.iterdir()):
                raise self._refused(
                    f"would be overwritten: what is in {str(folder)!r} was not written by a replay "
                    "(a live run's measurements?)"
                )
        return placed

    def _write(self) -> None:
        content = {"schema": _SCHEMA, "options": self._options, "runs": self._runs}
        write_whole(self.path / _FILE, json.dumps(content, indent=1).encode())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise self._refused("is being written to by another replay; wait for it, or") from error
        except (OSError, WriterError) as error:
            reason = " ".join(str(error).split())
            raise self._refused(
                f"cannot be written to ({reason}); make room there and run the same again, or"
            ) from error
