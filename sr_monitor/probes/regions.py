"""Count the regions on each path, and tell what training does to them.

Two things may happen: outputs within one region become more alike (`within` falls), and regions
split into more (`count` grows). Whether they are still the same regions, `identity` tells: the rank
correlation of the pairs' maximum slopes between two steps, and the share of the points of slices
whose nearest corner stayed the same. Records of old runs give all but the length of the way.

    StableRegionCallback(probes=["regions"])
    record.parts["regions"]["count"]            # "pair"; see `sr_monitor.probes.steps`
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.session import Session
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Page, Part, Probe, Reader
from sr_monitor.probes.correlation import rank_correlation
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.regions_pictures import draw_hypotheses, draw_identity, draw_speeds
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.statistics import quartiles
from sr_monitor.probes.steps import Steps, find_steps
from sr_monitor.probes.trajectory import Trajectory

_PREFIX = "regions/"


@dataclass(frozen=True, kw_only=True)
class Regions(Probe):
    """How many regions a path crosses, and how alike outputs are within one."""

    name = "regions"
    rides = "paths"
    holds = ("count", "plateau", "within", "variation", "peaks")
    keys = (
        COUNT := Key.scalar(f"{_PREFIX}count", "The mean number of regions on a path."),
        PLATEAU := Key.scalar(
            f"{_PREFIX}plateau",
            "The mean share of a path that is half as steep as a line, or less.",
        ),
        WITHIN := Key.scalar(
            f"{_PREFIX}within",
            "How far the output moves within one region, relative to d(1), if a path has steps.",
        ),
        VARIATION := Key.scalar(
            f"{_PREFIX}variation",
            "How far the distance goes up and down in all, relative to d(1): the least length.",
        ),
        LENGTH := Key.scalar(
            f"{_PREFIX}length", "How long the output's way is, relative to d(1): 1 is straight."
        ),
        WAY_COUNT := Key.scalar(
            f"{_PREFIX}way_count",
            "The mean number of regions counted on that way, not on the distance to A's output.",
        ),
        SLOPES := Key.scalar(
            f"{_PREFIX}same_slopes",
            "The rank correlation of the pairs' maximum slopes with the measurement before.",
        ),
        CORNERS := Key.scalar(
            f"{_PREFIX}same_corner",
            "The share of points in slices whose nearest corner is that of the measurement before.",
        ),
        SPEEDS := Key.image(
            f"{_PREFIX}speeds", "How fast the output moves along every path, steps marked."
        ),
        HYPOTHESES := Key.image(
            f"{_PREFIX}hypotheses", "Regions on a path, and movement within one, over training."
        ),
        IDENTITY := Key.image(
            f"{_PREFIX}identity", "Which measurements agree about where regions are."
        ),
    )
    prominence: float = option(
        1.0, "How far a step stands out, in speeds of a straight line.", effect="record"
    )

    def reader(self, session: Session, num_contexts: int, num_places: int) -> Reader:
        """Follow the output from point to point."""
        return Trajectory(num_contexts, num_places)

    def settle(self, part: Float[Tensor, "pair step"], parts: Mapping[str, Part]) -> Part:
        """Add what the curves tell to the output's way, which is made relative to d(1)."""
        paths: Paths = parts["paths"]
        way = (part / paths.end_distance[:, None]).where(paths.kept[:, None], math.nan)
        counted = self._steps(paths, fill_gaps(paths.alphas, way)).count + 1
        found = {"way": way, "way_count": counted.float().where(paths.kept, math.nan)}
        return {**(self.derive(parts) or {}), **found}

    def derive(self, parts: Mapping[str, Part]) -> Part | None:
        """Find the steps in the curves of all pairs that count; NaN for the others."""
        paths: Paths | None = parts.get("paths")
        if paths is None:
            return None
        steps = self._steps(paths, fill_gaps(paths.alphas, paths.relative))
        values = {
            "count": steps.count + 1,
            "plateau": steps.plateau,
            "within": steps.within,
            "variation": steps.speed.mean(dim=1),
        }
        kept = {name: value.float().where(paths.kept, math.nan) for name, value in values.items()}
        return {**kept, "peaks": steps.peaks & paths.kept[:, None]}

    def _steps(self, paths: Paths, moved: Float[Tensor, "pair step"]) -> Steps:
        """Find the steps above the noise of a curve or a way without gaps."""
        noise = paths.noise_distance if paths.noise is None else paths.noise
        num_intervals = moved.shape[1] - 1
        # A difference of two distances, each off by the noise, as a speed.
        unsure = 2 * noise / paths.end_distance * num_intervals
        least = unsure.nan_to_num(0.0, posinf=0.0).clamp_min(self.prominence)
        return find_steps(moved.diff(dim=1).abs() * num_intervals, least)

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return mean numbers of regions, the mean share of plateaus, and medians of the rest."""
        of_way = {}
        if "way" in part:
            of_way[self.LENGTH] = quartiles(part["way"][:, -1])[1]
            of_way[self.WAY_COUNT] = float(part["way_count"].nanmean())
        return {
            self.COUNT: float(part["count"].nanmean()),
            self.PLATEAU: float(part["plateau"].nanmean()),
            self.WITHIN: quartiles(part["within"])[1],
            self.VARIATION: quartiles(part["variation"])[1],
            **of_way,
        }

    def changes(self, page: Page, before: Page) -> Mapping[Key, float]:
        """Return how far the regions are those of the measurement before."""
        found = {
            self.SLOPES: _same(page, before, same_slopes),
            self.CORNERS: _same(page, before, same_corner),
        }
        return {key: value for key, value in found.items() if math.isfinite(value)}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the speeds; and over several steps the two hypotheses, and who agrees with whom."""
        yield self.SPEEDS, pixels(draw_speeds(page.parts["paths"], page.part, page.title))
        pages = [*earlier, page]
        if earlier:
            titles = [each.title for each in pages]
            numbers = [self.scalars(each.part) for each in pages]
            count, within = ([each[key] for each in numbers] for key in (self.COUNT, self.WITHIN))
            yield self.HYPOTHESES, pixels(draw_hypotheses(titles, count, within))
            slopes, corners = (
                torch.tensor([[_same(one, other, how) for other in pages] for one in pages])
                for how in (same_slopes, same_corner)
            )
            if bool(slopes.isfinite().sum() > len(pages)):  # some besides each with itself
                yield self.IDENTITY, pixels(draw_identity(titles, slopes, corners))


_How: TypeAlias = Callable[[Mapping[str, Part], Mapping[str, Part]], float]


def _same(page: Page, other: Page, how: _How) -> float:
    """Compare two measurements of the same prompts; NaN where the pairs are others."""
    alike = page.prompts.fingerprint == other.prompts.fingerprint
    return how(page.parts, other.parts) if alike else math.nan


def same_slopes(parts: Mapping[str, Part], others: Mapping[str, Part]) -> float:
    """Return the rank correlation of two measurements' maximum slopes, over pairs kept in both."""
    slopes, others_slopes = parts["paths"].max_slope, others["paths"].max_slope
    if slopes.shape != others_slopes.shape:
        return math.nan
    return rank_correlation(slopes, others_slopes, resamples=0).value


def same_corner(parts: Mapping[str, Part], others: Mapping[str, Part]) -> float:
    """Return the share of points, finite in both, whose output is nearest to the same corner's."""
    maps = [each["slices"].distance for each in (parts, others) if "slices" in each]
    if len(maps) < 2 or maps[0].shape != maps[1].shape:
        return math.nan
    nearest = [distance.argmin(dim=1) for distance in maps]
    finite = torch.stack(maps).isfinite().all(dim=2).all(dim=0)  # both, and all three corners
    return float((nearest[0] == nearest[1])[finite].double().mean())
