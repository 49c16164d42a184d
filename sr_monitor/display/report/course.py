"""What a report says of a run without a picture: its numbers by step, its headline, its facts.

course = Course.of(run)
course.points[-1].median, course.numbers["stable_regions_paths/width"]
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sr_monitor.display.album import changes, make_pages
from sr_monitor.display.report.headline import Point
from sr_monitor.probes.base import Page, Probe
from sr_monitor.probes.keys import FAILURES, SECONDS, SHARE_OF_TIME
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.results.runs import Run


@dataclass(kw_only=True)
class Course:
    """One run, measurement by measurement; a list has an entry for each of them."""

    run: Run
    steps: list[int] = field(default_factory=list)
    tokens: list[int | None] = field(default_factory=list)
    parameters: list[int | None] = field(default_factory=list)
    scalars: list[dict[str, float]] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    """The maximum slopes of those measurements in which a pair counts."""
    probes: dict[str, Probe] = field(default_factory=dict)
    """The probes that explain its records, by name."""
    unexplained: set[str] = field(default_factory=set)
    """Parts of probes that are not known here."""
    is_sweep: bool = False
    last: Record | None = None
    _before: dict[str, Page] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> "Course":
        """Read the whole run."""
        course = cls(run=run)
        for record in run.records():
            course.add(record)
        return course

    def add(self, record: Record) -> None:
        """Take up the next record."""
        self.steps.append(record.step)
        self.tokens.append(record.tokens)
        self.is_sweep = record.is_of_sweep
        size = record.step if record.is_of_sweep else record.metadata.get("parameters")
        self.parameters.append(size if isinstance(size, int) else None)
        pages = make_pages(record, self.run.prompts(record))
        self.scalars.append({**record.scalars, **changes(record, pages, self._before)})
        self._before = pages
        self.probes |= {probe.name: probe for probe, _ in record.known()}
        self.unexplained |= record.parts.keys() - self.probes.keys()
        if "paths" in record.parts:
            slopes = record.paths.max_slope[record.paths.kept]
            slopes = slopes[slopes.isfinite()]
            left_out = len(record.paths.kept) - len(slopes)
            point = Point(
                step=record.step,
                slopes=slopes,
                num_left_out=left_out,
                is_size=record.is_of_sweep,
            )
            self.points += [point] if len(slopes) else []
        self.last = record

    @property
    def numbers(self) -> dict[str, list[float | None]]:
        """Every logged number by name, None where a measurement lacks it or it is not finite."""
        names = dict.fromkeys(name for scalars in self.scalars for name in scalars)
        return {name: [_finite(scalars.get(name)) for scalars in self.scalars] for name in names}

    def facts(self) -> dict[str, str]:
        """Return what the run is and how it was measured, by the words for it."""
        if self.last is None:
            return {}
        about = self.last.metadata
        return {
            **_of_model(about, None if self.is_sweep else self.parameters[-1]),
            **_of_prompts(self.last, self.run.prompts(self.last)),
            **_of_measuring(self.last),
            **self._of_course(),
            **_of_files(self.run, self.unexplained),
        }

    def _of_course(self) -> dict[str, str]:
        unit = "parameters" if self.is_sweep else "steps"
        facts = {"measurements": f"{len(self.steps)}, {unit} {_range(self.steps, '{:,}')}"}
        if tokens := [count for count in self.tokens if count]:
            facts["tokens"] = f"{max(tokens):,}"
        seconds = self._all(SECONDS.name)
        if seconds:
            facts["seconds"] = f"{median(seconds):.1f} each (median), {sum(seconds):,.0f} in all"
        if shares := self._all(SHARE_OF_TIME.name):
            facts["share of time"] = f"{shares[-1]:.1%} of the run's wall time"
        if floors := self._all(PathsProbe.NOISE_FLOOR.name):
            facts["noise floor"] = f"{max(floors):.1e} of d(1) at most"
        if left_out := self._all(PathsProbe.PAIRS_LEFT_OUT.name):
            facts["pairs left out"] = _range(left_out, "{:.0f}")
        failures = self._all(FAILURES.name)
        return facts | ({"failures": f"{failures[-1]:.0f}"} if any(failures) else {})

    def _all(self, name: str) -> list[float]:
        """Return a number wherever it was logged."""
        values = (scalars.get(name, math.nan) for scalars in self.scalars)
        return [value for value in values if math.isfinite(value)]


def _of_model(about: Mapping[str, Any], parameters: int | None) -> dict[str, str]:
    facts = {"model": str(about.get("model", "unknown"))}
    if parameters is not None:
        facts["parameters"] = f"{parameters:,}"
    if "dtype" in about:
        facts["weights"] = f"{about['dtype']} on {about.get('device', 'an unknown device')}"
    return facts


def _of_prompts(record: Record, prompts: PromptSet | None) -> dict[str, str]:
    if prompts is None:
        return {"prompts": "their file is not there or damaged"}
    num = len(record.paths.distance) if "paths" in record.parts else prompts.num_pairs
    return {
        "prompts": f"{num} pairs of {prompts.num_tokens} tokens, {prompts.source}",
        "fingerprint": prompts.fingerprint,
    }


def _of_measuring(record: Record) -> dict[str, str]:
    """Say where the model was cut, how closely it was looked at, and in what arithmetic."""
    config, facts = record.metadata.get("config", {}), {}
    if "layer" in config:
        facts["layer"] = f"after block {config['layer']}, read at {config.get('output')}"
    if "paths" in record.parts:
        paths = record.paths
        facts["paths"] = f"{len(paths.alphas)} alphas, {config.get('sampling', 'grid')}"
        facts["arithmetic"] = paths.precision or "not recorded"
        facts["way"] = paths.engine
    if record.slices is not None:
        num, side = len(record.slices.foot), len(record.slices.coordinates)
        facts["slices"] = f"{num} of {side} x {side} points"
    return facts


def _of_files(run: Run, unexplained: Iterable[str]) -> dict[str, str]:
    facts = {}
    if run.damaged:
        facts["left out"] = f"{', '.join(run.damaged)}: damaged"
    if names := ", ".join(sorted(unexplained)):
        facts["not shown"] = f"parts of probes that are not known here: {names}"
    return facts


def _range(values: list[int] | list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
