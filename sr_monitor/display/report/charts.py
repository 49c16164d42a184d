"""Which numbers share a chart, and which charts a group: of any probe, known here or not.

A name that ends in median is a line; its band are q25 and q75, or else low and high. Names that
differ in one number, such as depth/1 and depth/2, are lines of one chart.

groups = make_groups(courses)
"""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sr_monitor.display.report.course import Course
from sr_monitor.probes.base import Probe
from sr_monitor.probes.keys import RUN_KEYS, Key, short
from sr_monitor.probes.paths import PathsProbe

_BAND = re.compile(r"/(median|value|q25|q75|(?:median_)?(?:low|high))$")
_NUMBER = re.compile(r"/\d+(?=/|$)")
_MAIN = PathsProbe.MAX_SLOPE_MEDIAN.name.removesuffix("/median")
_PATHS = "Where boundaries are, how wide they are, and how far output and activation move in all."


def make_groups(courses: Sequence[Course]) -> list[dict[str, Any]]:
    """Return the groups of charts, one for each probe, the run's own numbers last.

    The maximum slope is not among them: it is the page's first figure.
    """
    probes: dict[str, Probe] = {}
    for course in courses:
        probes |= course.probes
    owners = {key.name: probe for probe in probes.values() for key in probe.keys}
    names = [name for name in _names(courses) if not name.startswith(f"{_MAIN}/")]
    of = {name: owners.get(name, owners.get(_NUMBER.sub("/<k>", name))) for name in names}
    last = [name for name in names if of[name] is None or short(name).startswith("diagnostics/")]
    groups = [
        _group(probe.name, _about(probe), own, probe.keys)
        for probe in probes.values()
        if (own := [name for name in names if of[name] is probe and name not in last])
    ]
    about = "How far the numbers can be trusted, and what they cost."
    keys = (*PathsProbe.keys, *RUN_KEYS)
    return [*groups, _group("diagnostics", about, last, keys)] if last else groups


def _about(probe: Probe) -> str:
    return _PATHS if isinstance(probe, PathsProbe) else inspect.getdoc(type(probe)) or ""


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
                "title": _label(stem).removeprefix(f"{title} · "),
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
    low, high = (of.get(f"median_{end}", of.get(end)) for end in ("low", "high"))
    band = {"q25": of.get("q25", low), "q75": of.get("q75", high)}
    numbers = _NUMBER.findall(names[0]) if "<k>" in stem else []
    return {
        "median": of.get("median", of.get("value", names[0])),
        **{edge: name for edge, name in band.items() if name is not None},
        "label": " ".join(number.strip("/") for number in numbers),
    }


def _label(name: str) -> str:
    return short(name).replace("_", " ").replace("/<k>", "").replace("/", " · ")
