"""What the command line shows: tables, progress, and complaints of one line.

Results go to stdout; progress, warnings and complaints to stderr. Names come from strangers' files:
control characters and escapes in them are shown as backslash sequences.

    with progress() as bar:
        measure_paths(model, prompts_a, prompts_b, progress=bar("paths"))
    print_table([("median", "1.41"), ("seconds", "3.2")], "<<", title="gpt2")
"""

import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_ALL = "checkpoints"
_BYTES = "download"
_DAY = 24 * 3600.0
_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1}


def visible(text: str) -> str:
    """Return `text` with everything that is not printable as a backslash sequence."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(num_bytes: int) -> str:
    """Return a number of bytes in the unit that suits it, such as "5.12 GB"."""
    unit = next((unit for unit, scale in _UNITS.items() if num_bytes >= scale), "B")
    return f"{num_bytes / _UNITS[unit]:.4g} {unit}"


def pasteable(command: str, *words: str | Path) -> str:
    """Return a command line; a command beside this one that is not on the PATH gets its path."""
    beside = Path(sys.argv[0]).with_name(command)
    found = str(beside) if not shutil.which(command) and beside.is_file() else command
    return shlex.join([found, *map(str, words)])


def say(*lines: str) -> None:
    """Print lines to stdout; say nothing once nobody reads on, as after `| head -1`."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(f"{visible(line)}\n" for line in lines)
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """Let stdout lead nowhere: Python would try to flush it at its end, with a traceback."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(kind: str, message: str) -> None:
    """Print one line to stderr, however many the message has."""
    with suppress(AttributeError, OSError, ValueError):  # there may be no stderr
        sys.stderr.write(f"sr-monitor: {kind}: {visible(' '.join(message.split()))}\n")


def print_table(rows: Sequence[Sequence[str]], align: str, *, title: str = "") -> None:
    """Print rows of cells; `align` has "<" or ">" for each column.

    Nothing is cut off to fit the terminal: names are there to be copied.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if title:
        say(title)
    for row in rows:
        cells = zip(row, align, widths, strict=True)
        say("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings as complaints, without the line of code that gave them."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        complain("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def progress(
    console: Console | None = None,
) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Draw bars on a terminal, for all checkpoints, a download, and what else is going on.

    What is yielded starts a bar by its name. All bars vanish at the end.
    """
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
    ) as display:
        places = (_ALL, "", _BYTES)
        lines = {
            each: display.add_task("", total=None, amount="", visible=False) for each in places
        }

        def start(name: str) -> Callable[[int, int], None]:
            place = name if name in lines else ""  # what else goes on takes turns on one line
            line, show = lines[place], size if place == _BYTES else str
            display.reset(line, description=name, amount="", visible=place != _BYTES)

            def update(done: int, total: int) -> None:
                amount = f"{show(done)}/{show(total)}"
                is_shown = place != _BYTES or done < total  # a download that is over is not
                display.update(line, completed=done, total=total, amount=amount, visible=is_shown)

            return update

        yield start
