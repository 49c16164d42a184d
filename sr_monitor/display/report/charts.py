"""Which numbers share a chart, and which charts a group: of any probe, known here or not.

A name that ends in median, q25 or q75 is a line with a band; names that differ in one number, such
as depth/1 and depth/2, are lines of one chart.

groups = make_groups(courses)
"""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sr_monitor.display.report.course import Course
from sr_monitor.probes.base import Probe
from sr_monitor.probes.keys import PREFIX, RUN_KEYS, Key
from sr_monitor.probes.paths import PathsProbe

_BAND = re.compile(r"/(median|q25|q75)$")
_NUMBER = re.compile(r"/\d+(?=/|$)")
_MAIN = PathsProbe.MAX_SLOPE_MEDIAN.name.removesuffix("/median")
_DIAGNOSTIC = {PathsProbe.NOISE_FLOOR.name, PathsProbe.PAIRS_LEFT_OUT.name}


def make_groups(courses: Sequence[Course]) -> list[dict[str, Any]]:
    """Return the groups of charts, one for each probe, the run's own numbers last.

    The maximum slope is not among them: it is the page's first figure.
    """
    owners: dict[str, Probe] = {}
    for course in courses:
        owners |= course.probes
    names = [name for name in _names(courses) if not name.startswith(f"{_MAIN}/")]
    last = [name for name in names if name not in owners or name in _DIAGNOSTIC]
    by_probe: dict[Probe, list[str]] = {}
    for name in names:
        if name not in last:
            by_probe.setdefault(owners[name], []).append(name)
    groups = [
        _group(probe.name, inspect.getdoc(type(probe)) or "", own, probe.keys)
        for probe, own in by_probe.items()
    ]
    about = "How far the numbers can be trusted, and what they cost."
    keys = (*PathsProbe.keys, *RUN_KEYS)
    return [*groups, _group("diagnostics", about, last, keys)] if last else groups


def _names(courses: Iterable[Course]) -> list[str]:
    """Return the numbers that are finite somewhere."""
    found: dict[str, None] = {}
    for course in courses:
        for scalars in course.scalars:
            found |= dict.fromkeys(name for name, value in scalars.items() if value == value)
    return list(found)


def _group(title: str, about: str, names: Sequence[str], keys: Sequence[Key]) -> dict[str, Any]:
    charts: dict[str, list[str]] = {}
    for name in names:
        charts.setdefault(_NUMBER.sub("/<k>", _BAND.sub("", name)), []).append(name)
    meanings = {_BAND.sub("", key.name): key.meaning for key in reversed(keys)}
    return {
        "title": title,
        "about": about.split("\n")[0],
        "charts": [
            {
                "title": _label(stem),
                "meaning": meanings.get(stem, ""),
                "lines": [_line(stem, of) for of in _lines(members)],
            }
            for stem, members in charts.items()
        ],
    }


def _lines(names: Iterable[str]) -> list[list[str]]:
    """Return the names of each line: one, or those of a line with its band."""
    lines: dict[str, list[str]] = {}
    for name in names:
        lines.setdefault(_BAND.sub("", name), []).append(name)
    return list(lines.values())


def _line(stem: str, names: list[str]) -> dict[str, str]:
    """Say which number is the line and which its edges; its label is the number in its name."""
    of = {found[1] if (found := _BAND.search(name)) else "median": name for name in names}
    of.setdefault("median", names[0])
    numbers = _NUMBER.findall(names[0]) if "<k>" in stem else []
    return {**of, "label": " ".join(number.strip("/") for number in numbers)}


def _label(name: str) -> str:
    return name.removeprefix(PREFIX).replace("_", " ").replace("/<k>", "").replace("/", " · ")
