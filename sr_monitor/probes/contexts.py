"""Measure each path in both contexts, A's and B's, and how far their outputs disagree.

d_A(alpha) = ||F_A(x(alpha)) - F_A(a)||    d_B(alpha) = ||F_B(x(alpha)) - F_B(b)||
gap(alpha) = ||F_A(x(alpha)) - F_B(x(alpha))|| / ||F_A(a) - F_B(b)||

StableRegionCallback(probes=["contexts"])
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
from sr_monitor.probes.points import FirstPairs, counted
from sr_monitor.probes.statistics import median_curve, quartiles

_GREEN = "#117a37"


@dataclass(frozen=True, kw_only=True)
class Contexts(Probe):
    """The same path in the contexts of both prompts."""

    name = "contexts"
    holds = ("alphas", "distance", "gap", "kept")
    keys = (
        GAP := Key.scalar(
            "contexts/gap",
            "How far the outputs of one activation in A's and in B's context lie apart, relative "
            "to the two prompts' own outputs.",
        ),
        SHIFT := Key.scalar(
            "contexts/shift", "How far apart the boundaries lie in the two contexts, in alpha."
        ),
        MAX_SLOPE_OF_B := Key.scalar(
            "contexts/max_slope_of_b", "The median maximum slope in B's context, from B to A."
        ),
        CURVES := Key.image(
            "contexts/curves", "The distance in both contexts, their gap, and both boundaries."
        ),
    )
    num_pairs: int = option(16, "Pairs of prompts, the first of those of the paths.", least=1)

    def measure(self, run: Run) -> Part:
        """Run the points of the first pairs' paths in both contexts."""
        pairs = FirstPairs.of(run, self.num_pairs)
        alphas = pairs.paths.alphas
        # Both distances, and the gap: "pair 3 step"; by what the gap is divided: "pair".
        curves = pairs.a.new_empty(len(pairs.a), 3, len(alphas))
        apart = pairs.a.new_empty(len(pairs.a))

        def work(some: slice) -> None:
            a, b = pairs.a[some, None], pairs.b[some, None]
            along = alphas.to(a)[:, None]
            points = (1 - along) * a + along * b  # "pair step d_model"
            of_a, of_b = (pairs.outputs(prompts[some], points) for prompts in pairs.share.prompts)
            differences = of_a - of_a[:, :1], of_b - of_b[:, -1:], of_a - of_b
            found = torch.stack([each.norm(dim=-1) for each in differences], dim=1)
            curves[some] = found.nan_to_num(nan=torch.inf).to(curves.device)
            apart[some] = (of_a[:, 0] - of_b[:, -1]).norm(dim=-1).to(apart.device)
            run.progress(some.stop, len(pairs.a))

        pairs.each(2 * len(alphas), work)
        found, ends = pairs.share.gather(curves), pairs.share.gather(apart)
        return {
            "alphas": alphas,
            "distance": found[:, :2].contiguous(),
            "gap": found[:, 2] / ends[:, None],
            "kept": counted(found[:, 0], pairs.paths)
            & counted(found[:, 1].flip(1), pairs.paths)
            & found[:, 2].isfinite().all(dim=1),
            "num_points": 2 * found[:, 0].numel(),
        }

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return medians over the pairs that count in both contexts."""
        kept = part["kept"]
        of_a, of_b = _boundaries(part)
        slope_of_b = sharpness.max_slope(part["alphas"], _relative(part)[1].flip(1))
        return {
            self.GAP: quartiles(part["gap"].mean(dim=1), kept)[1],
            self.SHIFT: quartiles((of_a - of_b).abs(), kept)[1],
            self.MAX_SLOPE_OF_B: quartiles(slope_of_b, kept)[1],
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the median curves, and each pair's boundary in both contexts."""
        yield self.CURVES, pixels(draw_contexts(page.part, page.title))


@own_style()
def draw_contexts(part: Part, title: str) -> Figure:
    """Draw both distances and the gap along the path, medians with quartiles; beside it, where.

    At the right, each dot is a pair: its boundary in A's context against that in B's.
    """
    figure = new_page(LEFT + WIDTH + 2.9, 3.7)
    axes = place_axes(figure, LEFT, 0.88, WIDTH, 2.1)
    kept = part["kept"]
    in_a, in_b = _relative(part)
    curves = {
        "in A's context, from A": (BLUE, in_a),
        "in B's context, from B": (_GREEN, in_b),
        "between the contexts": (SOFT, part["gap"]),
    }
    for label, (color, values) in curves.items():
        q25, median, q75 = median_curve(values, kept)
        axes.fill_between(part["alphas"], q25, q75, color=color, alpha=0.2, linewidth=0)
        axes.plot(part["alphas"], median, color=color, linewidth=2, label=label)
    axes.set(xlabel="interpolation coefficient alpha", ylabel="relative distance", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    figure.legend(loc="lower left", ncols=3, frameon=False, fontsize=8, bbox_to_anchor=(0.05, 0.02))
    of_a, of_b = (each[kept].numpy() for each in _boundaries(part))
    beside = place_axes(figure, LEFT + WIDTH + 0.65, 0.88, 2.1, 2.1)
    beside.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
    beside.plot(of_a, of_b, "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
    beside.set(xlabel="boundary in A's context", ylabel="in B's context", xlim=(0, 1), ylim=(0, 1))
    gap = quartiles(part["gap"].mean(dim=1), kept)[1]
    write_headline(figure, title, f"gap {gap:.2f} of the two outputs' distance, {kept.sum()} pairs")
    return settled(figure)


def _relative(part: Part) -> tuple[Float[Tensor, "pair step"], Float[Tensor, "pair step"]]:
    """Return both distances relative to their far end: alpha 1 in A's context, 0 in B's."""
    in_a, in_b = part["distance"].unbind(dim=1)
    return in_a / in_a[:, -1:], in_b / in_b[:, :1]


def _boundaries(part: Part) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Return the alpha of the steepest rise from A in A's context, and from B in B's."""
    in_a, in_b = _relative(part)
    of_a, of_b = (sharpness.slope_location(part["alphas"], curve) for curve in (in_a, in_b.flip(1)))
    return of_a, 1 - of_b
