"""What the command line shows: tables, progress, and one-line complaints.

Results go to stdout; progress, warnings and complaints to stderr. Names come from strangers' files,
so control characters in them are shown as backslash sequences.

    with progress() as bar:
        measure_paths(model, prompts_a, prompts_b, progress=bar("paths"))
    print_table([("median", "1.41"), ("seconds", "3.2")], "<<", title="gpt2")
"""

import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_Bar: TypeAlias = Callable[[str], Callable[[int, int], None]]
_ALL = "checkpoints"
_BYTES = "download"
_DAY = 24 * 3600.0


def visible(text: str) -> str:
    """Replace what is not printable by backslash sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(num_bytes: int) -> str:
    """Return a number of bytes in words, such as "5.12 GB"."""
    return decimal(num_bytes, precision=2)


def pasteable(command: str, *words: str | Path) -> str:
    """Return a quoted command line; give the path of a command that is beside this one only."""
    beside = Path(sys.argv[0]).with_name(command)
    found = str(beside) if not shutil.which(command) and beside.is_file() else command
    return shlex.join([found, *map(str, words)])


def say(*lines: str) -> None:
    """Print lines to stdout, or nothing once its reader is gone, as after `| head -1`."""
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
    """Point stdout at nothing, so that Python's last flush cannot end in a traceback."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(kind: str, message: str) -> None:
    """Print the message to stderr, as one line."""
    with suppress(AttributeError, OSError, ValueError):  # there may be no stderr
        sys.stderr.write(f"sr-monitor: {kind}: {visible(' '.join(message.split()))}\n")


def print_table(rows: Sequence[Sequence[str]], align: str, *, title: str = "") -> None:
    """Print rows of cells, nothing cut off; `align` has "<" or ">" for each column."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if title:
        say(title)
    for row in rows:
        cells = zip(row, align, widths, strict=True)
        say("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings as complaints, without their line of code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        complain("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError, ValueError):  # nobody may read it any more
                line = visible(" ".join(record.getMessage().split()))
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    log, handler = logging.getLogger("sr_monitor"), Lines()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if console.is_terminal else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def progress(console: Console | None = None) -> Iterator[_Bar]:
    """Draw bars on a terminal until the end of the block; what is yielded starts one by its name.

    All checkpoints and the download have a line each; everything else takes turns on a third. Where
    there is no terminal, each checkpoint that is done is a line; failures are in both cases.
    """
    console = console or Console(stderr=True)
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=_DAY,  # a checkpoint may take longer than the usual half minute
    )
    # NOTE: rich before 14 ends also a display that shows nothing with an empty line.
    with _logging_to(console), display if console.is_terminal else nullcontext():
        lines = {
            name: display.add_task("", total=None, amount="", visible=False)
            for name in (_ALL, "", _BYTES)
        }

        def start(name: str) -> Callable[[int, int], None]:
            line, is_download = lines.get(name, lines[""]), name == _BYTES
            display.reset(line, description=name, amount="", visible=not is_download)
            show = size if is_download else str

            def update(done: int, total: int) -> None:
                amount = f"{show(done)}/{show(total)}"
                is_shown = not is_download or done < total
                display.update(line, completed=done, total=total, amount=amount, visible=is_shown)

            return update

        yield start
