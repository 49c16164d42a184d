"""What a replay shows on a terminal: how far it is, what it does, and what is being downloaded.

Nothing is drawn where there is no terminal.

    with replay_bars() as bar:
        replay(["runs/gpt2"], "replays/gpt2", bar=bar)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sr_monitor.watch.measurement import Bar

_WHOLE = "checkpoints"
_BYTES = "download"
_DAY = 24 * 3600.0


@contextmanager
def replay_bars(console: Console | None = None) -> Iterator[Bar]:
    """One bar over checkpoints, one for what is going on, one for bytes; they vanish at the end."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=_DAY,  # a checkpoint may take longer than the usual half minute
    ) as progress:
        yield _Lines(progress).start


class _Lines:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}

    def start(self, name: str) -> "_Line":
        """A line by its name; those of one checkpoint's doings take turns on one line."""
        place = name if name in (_WHOLE, _BYTES) else "now"
        if place != _WHOLE and place in self._tasks:
            self._progress.remove_task(self._tasks.pop(place))
        if place not in self._tasks:
            self._tasks[place] = self._progress.add_task(
                name, total=None, amount="", visible=place != _BYTES
            )
        return _Line(self._progress, self._tasks[place], is_bytes=name == _BYTES)


class _Line:
    def __init__(self, progress: Progress, task: TaskID, *, is_bytes: bool) -> None:
        self._progress, self._task, self._is_bytes = progress, task, is_bytes

    def __call__(self, done: int, total: int) -> None:
        """Draws the line anew; a download that is over is not shown."""
        amount = f"{done / 1e9:.2f}/{total / 1e9:.2f} GB" if self._is_bytes else f"{done}/{total}"
        visible = not self._is_bytes or done < total
        if self._task in self._progress.task_ids:
            self._progress.update(
                self._task, completed=done, total=total, amount=amount, visible=visible
            )
