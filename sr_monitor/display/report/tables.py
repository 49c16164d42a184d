"""The numbers of runs as CSV: every digit of the records, an empty cell for what is not finite.

    numbers.csv    run, step, tokens, parameters, and a column for each logged number
    curves.csv     run, step, alpha, and the quartiles of the curves there
    pairs.csv      run, step, pair, and what was found of it

write_tables([Course.of(run) for run in runs], Path("numbers"))
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sr_monitor.display.report.course import Course
from sr_monitor.files import write_whole
from sr_monitor.probes.keys import TOKENS, short
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.statistics import median_curve
from sr_monitor.results.record import Record

_Rows: TypeAlias = Callable[[Record], Iterable[Sequence[Any]]]
_OF_A_PAIR = ("kept", "max_slope", "location", "width", "end_distance", "input_distance")


def write_tables(courses: Sequence[Course], folder: Path) -> list[Path]:
    """Write the tables, and return their files."""
    tables = {
        "numbers.csv": _numbers(courses),
        "curves.csv": _of_paths(courses, ("alpha", "q25", "median", "q75"), _curves),
        "pairs.csv": _of_paths(courses, ("pair", *_OF_A_PAIR), _pairs),
    }
    for name, rows in tables.items():
        write_whole(folder / name, _format(rows))
    return [folder / name for name in tables]


def _numbers(courses: Sequence[Course]) -> Iterator[Sequence[Any]]:
    logged = dict.fromkeys(name for each in courses for name in each.numbers)
    names = [name for name in logged if name != TOKENS.name]  # which has a column of its own
    yield ["run", "step", "tokens", "parameters", *(short(name) for name in names)]
    for course in courses:
        about = zip(course.steps, course.tokens, course.parameters, course.scalars, strict=True)
        for step, tokens, parameters, scalars in about:
            values = [scalars.get(name) for name in names]
            yield [course.run.name, step, tokens, parameters, *values]


def _of_paths(
    courses: Sequence[Course], names: Sequence[str], rows: _Rows
) -> Iterator[Sequence[Any]]:
    """Yield the rows that a function makes of each record that holds paths."""
    yield ["run", "step", *names]
    for course in courses:
        for record in course.run.records():
            if "paths" in record.parts:
                yield from ([course.run.name, record.step, *row] for row in rows(record))


def _curves(record: Record) -> Iterator[Sequence[float]]:
    paths = record.paths
    quartiles = median_curve(fill_gaps(paths.alphas, paths.relative), paths.kept)
    columns = (paths.alphas, *quartiles)
    return zip(*(column.tolist() for column in columns), strict=True)


def _pairs(record: Record) -> Iterator[Sequence[Any]]:
    columns = [getattr(record.paths, name).tolist() for name in _OF_A_PAIR]
    columns[0] = [int(kept) for kept in columns[0]]
    return zip(range(len(columns[0])), *columns, strict=True)


def _format(rows: Iterable[Sequence[Any]]) -> bytes:
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    for row in rows:
        writer.writerow("" if _is_nothing(value) else value for value in row)
    return text.getvalue().encode()


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
