"""Follow a training from outside: measure each new checkpoint once it is whole.

A checkpoint on a disk is whole when two looks at its files, `SECONDS` apart, see the same; one that
failed is tried again when its files change. A revision on the hub is whole from the start.

    report = follow(lambda: make_plan(["runs/gpt2"]), measure, until=10_000)
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import NothingYet
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.replay.report import Report

SECONDS = 30.0
"""Between two looks."""
_OLD = 120.0  # seconds without a change, after which one look is enough
_log = logging.getLogger("sr_monitor")

_Look: TypeAlias = tuple[object, ...]


def follow(
    plan: Callable[[], list[PlannedCheckpoint]],
    measure: Callable[[list[PlannedCheckpoint]], Report],
    until: int | None = None,
) -> Report:
    """Plan and measure again and again, until a step is reached or Ctrl-C is pressed in between."""
    report, arrivals = Report(), _Arrivals()
    is_first = True
    while True:
        planned = arrivals.whole(_listed(plan, is_first=is_first))
        if any(arrivals.is_new(each) for each in planned):
            found = measure(planned)
            arrivals.note(planned, found)
            report.add(found)
        if until is not None and any(each.name.step >= until for each in planned):
            return report
        if is_first:
            _log.info("following: a look every %.0f s; Ctrl-C ends it", SECONDS)
        is_first = False
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            return report


def _listed(
    plan: Callable[[], list[PlannedCheckpoint]], *, is_first: bool
) -> list[PlannedCheckpoint]:
    """Return what there is; nothing if there is none yet, or the hub does not answer this time."""
    try:
        return plan()
    except NothingYet:
        return []
    except InputError as error:
        if is_first:
            raise
        _log.warning("%s", error)
        return []


class _Arrivals:
    """Which checkpoints are whole, and which of them were not tried yet as they are now."""

    def __init__(self) -> None:
        self._seen: dict[str, _Look] = {}
        self._tried: dict[str, _Look] = {}

    def whole(self, planned: Sequence[PlannedCheckpoint]) -> list[PlannedCheckpoint]:
        """Look at each; return those that have not changed since the last look."""
        return [each for each in planned if self._is_whole(each)]

    def is_new(self, planned: PlannedCheckpoint) -> bool:
        """Return whether it was not tried yet, or has changed since it failed."""
        return self._tried.get(planned.label) != self._seen[planned.label]

    def note(self, planned: Sequence[PlannedCheckpoint], report: Report) -> None:
        """Remember what was tried; what the hub was gone for is tried again."""
        done = {*report.measured, *report.kept, *report.same, *report.failures}
        self._tried |= {e.label: self._seen[e.label] for e in planned if e.label in done}

    def _is_whole(self, planned: PlannedCheckpoint) -> bool:
        before = self._seen.get(planned.label)
        now, changed = _look(planned)
        self._seen[planned.label] = now
        return now == before or time.time() - changed > _OLD


def _look(planned: PlannedCheckpoint) -> tuple[_Look, float]:
    """Return what tells whether a checkpoint has changed, and when it did."""
    path = getattr(planned.source, "path", None)
    if not isinstance(path, Path):
        return (planned.source.commit,), 0.0
    found: list[tuple[str, int, int]] = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        try:
            if file.is_file():
                state = file.stat()
                found.append((str(file), state.st_size, state.st_mtime_ns))
        except OSError:  # it is gone again
            continue
    return tuple(found), max((changed / 1e9 for _, _, changed in found), default=time.time())
