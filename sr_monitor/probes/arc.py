"""Measure along arcs around the mean activation m, beside the straight paths.

    y(alpha) = m + (x(alpha) - m) ||a - m|| / ||x(alpha) - m||,    x = (1 - alpha) a + alpha b

A straight path comes closer to the mean on its way; an arc keeps A's distance from it, and ends in
B's direction. Even ||y - a|| does not grow evenly: its maximum slope is what a smooth model gives.

    StableRegionCallback(probes=["arc"])
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.options import option
from sr_monitor.probes import sharpness
from sr_monitor.probes.base import RGB, Page, Part, Probe, Run
from sr_monitor.probes.drawing import (
    BLUE,
    LEFT,
    SOFT,
    WIDTH,
    Figure,
    new_page,
    own_style,
    pixels,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.points import FirstPairs, counted, mean_activation
from sr_monitor.probes.statistics import median_curve, quartiles


@dataclass(frozen=True, kw_only=True)
class Arc(Probe):
    """Paths pushed back to A's distance from the mean activation."""

    name = "arc"
    holds = ("alphas", "distance", "own_slope", "miss", "straight_slope", "kept")
    keys = (
        MAX_SLOPE := Key.scalar("arc/max_slope", "The median maximum slope along the arcs."),
        RATIO := Key.scalar(
            "arc/slope_ratio", "The median of it over the maximum slope of the same straight path."
        ),
        OWN_SLOPE := Key.scalar(
            "arc/own_slope", "The median maximum slope of the arcs themselves: no regions."
        ),
        MISS := Key.scalar(
            "arc/miss", "How far an arc ends from B's activation, relative to A's distance from it."
        ),
        CURVES := Key.image("arc/curves", "The median curve along arcs and along straight paths."),
    )
    num_pairs: int = option(16, "Pairs of prompts, the first of those of the paths.", least=1)

    def measure(self, run: Run) -> Part:
        """Run the arcs of the first pairs at the alphas of the paths."""
        pairs, mean = FirstPairs.of(run, self.num_pairs), mean_activation(run)
        alphas = pairs.paths.alphas
        distance = pairs.a.new_empty(len(pairs.a), len(alphas))
        lengths = pairs.a.new_empty(len(pairs.a), len(alphas))
        miss = pairs.a.new_empty(len(pairs.a))

        def work(some: slice) -> None:
            points = arc(pairs.a[some], pairs.b[some], mean, alphas.to(mean))
            outputs = pairs.outputs(pairs.share.prompts[0][some], points)
            gap = (outputs - outputs[:, :1]).norm(dim=-1)
            distance[some] = gap.nan_to_num(nan=torch.inf).to(distance.device)
            lengths[some] = (points - points[:, :1]).norm(dim=-1)
            apart = (pairs.a[some] - pairs.b[some]).norm(dim=-1)
            miss[some] = (points[:, -1] - pairs.b[some]).norm(dim=-1) / apart
            run.progress(some.stop, len(pairs.a))

        pairs.each(len(alphas), work)
        gather, straight = pairs.share.gather, pairs.paths
        found = gather(distance)
        return {
            "alphas": alphas,
            "distance": found,
            "own_slope": _slope(alphas, gather(lengths)),
            "miss": gather(miss),
            "straight_slope": straight.max_slope[: len(found)].contiguous(),
            "kept": counted(found, straight) & straight.kept[: len(found)],
            "num_points": found.numel(),
        }

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return medians over the pairs that count, on the straight path too."""
        slope, kept = _slope(part["alphas"], part["distance"]), part["kept"]
        return {
            self.MAX_SLOPE: quartiles(slope, kept)[1],
            self.RATIO: quartiles(slope / part["straight_slope"], kept)[1],
            self.OWN_SLOPE: quartiles(part["own_slope"], kept)[1],
            self.MISS: quartiles(part["miss"], kept)[1],
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw both median curves of the same pairs."""
        if "paths" in page.parts:
            yield self.CURVES, pixels(draw_arcs(page.part, page.parts["paths"], page.title))


def arc(
    a: Float[Tensor, "pair d_model"],
    b: Float[Tensor, "pair d_model"],
    mean: Float[Tensor, " d_model"],
    alphas: Float[Tensor, " step"],
) -> Float[Tensor, "pair step d_model"]:
    """Return the points of the arcs; the first one is `a` to the bit."""
    # "step 1" times "pair 1 d_model"
    straight = (1 - alphas[:, None]) * a[:, None] + alphas[:, None] * b[:, None] - mean
    radius = (a - mean).norm(dim=-1)[:, None, None]
    points: Tensor = mean + straight * (radius / straight.norm(dim=-1, keepdim=True))
    points[:, 0] = a
    return points


@own_style()
def draw_arcs(part: Part, paths: Paths, title: str) -> Figure:
    """Draw the median curves of the same pairs along arcs and straight paths, with quartiles."""
    figure = new_page(5.0, 3.7)
    axes = place_axes(figure, LEFT, 0.88, WIDTH, 2.1)
    kept = part["kept"]
    curves = {
        "straight": (SOFT, sharpness.fill_gaps(paths.alphas, paths.relative[: len(kept)])),
        "arc": (BLUE, part["distance"] / part["distance"][:, -1:]),
    }
    for label, (color, relative) in curves.items():
        q25, median, q75 = median_curve(relative, kept)
        axes.fill_between(part["alphas"], q25, q75, color=color, alpha=0.2, linewidth=0)
        axes.plot(part["alphas"], median, color=color, linewidth=2, label=label)
    axes.set(xlabel="interpolation coefficient alpha", ylabel="relative output distance")
    axes.set(xlim=(0, 1), ylim=(0, 1.3))
    figure.legend(loc="lower center", ncols=2, frameon=False, fontsize=8)
    on_arcs, own, straight = (
        quartiles(slope, kept)[1]
        for slope in (
            *(_slope(part["alphas"], part["distance"]), part["own_slope"]),
            part["straight_slope"],
        )
    )
    note = f"maximum slope {on_arcs:.2f} on arcs (their own {own:.2f}), {straight:.2f} straight"
    write_headline(figure, title, note)
    return settled(figure)


def _slope(
    alphas: Float[Tensor, " step"], distance: Float[Tensor, "pair step"]
) -> Float[Tensor, " pair"]:
    return sharpness.max_slope(alphas, distance / distance[:, -1:])
