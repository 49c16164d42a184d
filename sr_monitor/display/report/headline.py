"""Say in one sentence what a run shows, and by which criterion.

Regions have *emerged* at the first measured step from which on the median maximum slope stays above

    (first median + last median) / 2,

asked only where the medians' 95% intervals are apart and it rises past 1.5 (1: a straight line).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from sr_monitor.probes.statistics import quartiles, summarise

SHARP = 1.5
"""From this median maximum slope on, half as steep again as a straight line, there are regions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """The maximum slopes at one step of a run, or of one model of a sweep."""

    step: int
    slopes: Float[Tensor, " kept"]
    """Those of the pairs that count; there is one."""
    num_left_out: int = 0
    is_size: bool = False
    """Whether `step` is a number of parameters."""

    @cached_property
    def quartiles(self) -> tuple[float, float, float]:
        """The 25th percentile, the median and the 75th percentile."""
        return quartiles(self.slopes)

    @property
    def median(self) -> float:
        """The median."""
        return self.quartiles[1]

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the median; computed when it is asked for, as it takes a while."""
        summary = summarise(self.slopes)
        return summary.low, summary.high

    @property
    def place(self) -> str:
        """Where on the curve it is, in words."""
        return f"{self.step:,} parameters" if self.is_size else f"step {self.step:,}"


def emergence(points: Sequence[Point]) -> tuple[Point, Point] | None:
    """Return the last point before regions emerged, and the first since; None if they did not."""
    if len(points) < 2 or points[0].is_size:
        return None
    first, last = points[0], points[-1]
    if not (_is_above(last, first) and first.median < SHARP <= last.median):
        return None
    halfway = (first.median + last.median) / 2
    before = max(index for index, point in enumerate(points) if not point.median > halfway)
    return points[before], points[before + 1]


def headline(points: Sequence[Point]) -> str:
    """Return what the median maximum slope did, in one sentence."""
    if not points:
        return "No pair of prompts tells anything: every one was left out."
    first, last = points[0], points[-1]
    if len(points) == 1:
        return f"Median maximum slope is {last.median:.2f} ({last.place})."
    change = f"from {_at(first)} to {_at(last)}"
    if not (_is_above(last, first) or _is_above(first, last)):
        return f"Median maximum slope did not clearly change: {change}."
    verb = "rose" if last.median > first.median else "fell"
    found = emergence(points)
    emerged = f"; regions emerged around {found[1].place}" if found else ""
    return f"Median maximum slope {verb} {change}{emerged}."


def criterion(points: Sequence[Point]) -> str:
    """Return how the sentence was found, and what else a reader should know."""
    if not points:
        return "A pair counts if its output moves by more than the noise, to a finite end."
    first, last = points[0], points[-1]
    straight = "1 is a straight line from one prompt's output to the other's: no regions."
    if len(points) == 1:
        return straight
    top = max(points, key=lambda point: point.median)
    highest = f" It was highest at {top.place}: {top.median:.2f}." if _is_above(top, last) else ""
    if (found := emergence(points)) is not None:
        halfway = (first.median + last.median) / 2
        return (
            f"Emerged: from that measurement on, the median stays above {halfway:.2f}, halfway "
            f"from its first to its last value; at {found[0].place}, the measurement before, it "
            f"was {found[0].median:.2f}. {straight}{highest}"
        )
    reason = ""
    if not first.is_size:
        reason = " No step is named at which regions emerged: " + _why_none(first, last)
    return f"{straight}{reason}{highest}"


def _why_none(first: Point, last: Point) -> str:
    if first.median >= SHARP:
        return f"they were there at the first measurement (a median of {SHARP} or more)."
    if last.median < SHARP:
        return f"the last median is below {SHARP}."
    return "the 95% intervals of the first and the last median overlap."


def _is_above(one: Point, other: Point) -> bool:
    """Whether the interval of one median lies above that of the other."""
    return one.interval[0] > other.interval[1]


def _at(point: Point) -> str:
    return f"{point.median:.2f} ({point.place})"
