"""What the command line shows: progress, tables, and complaints of one line.

Results go to stdout; progress, warnings and complaints to stderr. Progress is drawn only on a
terminal.

    with progress_bars() as bar:
        measure_paths(model, prompts_a, prompts_b, progress=bar("paths"))
    print_facts("gpt2", {"median": "1.41", "seconds": "3.2"})
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars that vanish at the end; what is yielded gives the bar by a name, new or old."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def start(name: str) -> Callable[[int, int], None]:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=None)
            return lambda done, total: progress.update(tasks[name], completed=done, total=total)

        yield start


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """A table of two columns: what, and how much."""
    table = _table(title)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, escape(value))
    _print(table)


def print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of numbers under a header."""
    table = _table(title, show_header=True)
    for name in header:
        table.add_column(name, justify="right", header_style="dim", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    _print(table)


def complain(kind: str, message: str) -> None:
    """One line on stderr, however many the message has."""
    sys.stderr.write(f"sr-monitor: {kind}: {' '.join(message.split())}\n")


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Shows warnings as complaints, without the line of code that gave them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        complain("warning", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _table(title: str, *, show_header: bool = False) -> Table:
    return Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        show_header=show_header,
        box=None,
        pad_edge=False,
        padding=(0, 3, 0, 0),
    )


def _print(table: Table) -> None:
    Console(highlight=False).print(table)
