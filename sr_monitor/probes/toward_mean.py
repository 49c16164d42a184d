"""Measure a plane through A, B and the mean activation m, in A's context.

    x(u, v) = a + u (b - a) + v (m - f),    f = a + t (b - a)

f is the foot of m on the line AB. A lies at (0, 0), B at (1, 0), the mean at (t, 1). The
row v = 0 is the path; others are parallel to it, nearer to the mean or farther away.

    StableRegionCallback(probes=["toward_mean"])
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
    INK,
    Axes,
    Figure,
    new_page,
    own_style,
    pixels,
    place_axes,
    settled,
    write_text,
)
from sr_monitor.probes.keys import Key
from sr_monitor.probes.points import FirstPairs, counted, mean_activation
from sr_monitor.probes.statistics import quartiles

_MOST_DRAWN, _SIDE, _LEFT = 4, 1.75, 0.75  # maps, their side and place in inches


@dataclass(frozen=True, kw_only=True)
class TowardMean(Probe):
    """The boundary between A and B, followed toward the mean activation."""

    name = "toward_mean"
    holds = ("across", "up", "distance", "mean_distance", "foot", "kept")
    keys = (
        MEAN_DISTANCE := Key.scalar(
            "toward_mean/mean_distance",
            "How far the output at the mean activation is from A's, relative to that at B's.",
        ),
        SLOPE_RATIO := Key.scalar(
            "toward_mean/slope_ratio",
            "The steepest rise at the mean's height over that on the path itself.",
        ),
        JUMP_TO_FOOT := Key.scalar(
            "toward_mean/jump_to_foot",
            "How far the boundary lies from the point of the path nearest the mean, in alpha.",
        ),
        MAPS := Key.image("toward_mean/maps", "Distances in the planes through A, B and the mean."),
    )
    num_pairs: int = option(4, "Pairs of prompts, the first of those of the paths.", least=1)
    resolution: int = option(21, "Points along a side of a map.", least=3)

    def measure(self, run: Run) -> Part:
        """Run the planes of the first pairs, and the mean itself, in A's context."""
        pairs, mean = FirstPairs.of(run, self.num_pairs), mean_activation(run)
        across = torch.linspace(0, 1, self.resolution, dtype=torch.float32)
        # An odd number of rows, so that v = 0 is one of them.
        up = torch.linspace(-1, 1, self.resolution // 2 * 2 + 1, dtype=torch.float32)
        feet = foot(pairs.a, pairs.b, mean)
        distance = pairs.a.new_empty(len(pairs.a), len(up), len(across))
        of_mean = pairs.a.new_empty(len(pairs.a))

        def work(some: slice) -> None:
            a, b = pairs.a[some], pairs.b[some]
            points = plane(a, b, mean, feet[some], across.to(a), up.to(a))
            extra = a[:, None], mean.expand_as(a)[:, None]
            outputs = pairs.outputs(
                pairs.share.prompts[0][some], torch.cat([*extra, points.flatten(1, 2)], dim=1)
            )
            gap = (outputs[:, 1:] - outputs[:, :1]).norm(dim=-1).nan_to_num(nan=torch.inf)
            of_mean[some] = gap[:, 0].to(distance.device)
            # "pair point" to "pair row column"
            distance[some] = gap[:, 1:].view(-1, len(up), len(across)).to(distance.device)
            run.progress(some.stop, len(pairs.a))

        pairs.each(len(up) * len(across), work)
        found, gather = pairs.share.gather(distance), pairs.share.gather
        # The path from A to B is the middle row; "pair row column" to "pair point", its end last.
        path = found[:, len(up) // 2]
        everything = torch.cat([found.flatten(1), path], dim=1)
        return {
            "across": across,
            "up": up,
            "distance": found,
            "mean_distance": gather(of_mean),
            "foot": gather(feet),
            "kept": counted(everything, pairs.paths),
            "num_points": found.numel() + 2 * len(found),
        }

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return medians over the pairs that count."""
        kept, path = part["kept"], part["distance"][:, len(part["up"]) // 2]
        slopes = [
            sharpness.max_slope(part["across"], row / path[:, -1:])
            for row in (part["distance"][:, -1], path)
        ]
        return {
            self.MEAN_DISTANCE: quartiles(part["mean_distance"] / path[:, -1], kept)[1],
            self.SLOPE_RATIO: quartiles(slopes[0] / slopes[1], kept)[1],
            self.JUMP_TO_FOOT: quartiles((_jump(part) - part["foot"]).abs(), kept)[1],
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the first maps."""
        yield self.MAPS, pixels(draw_maps(page.part, page.title))


def foot(
    a: Float[Tensor, "pair d_model"],
    b: Float[Tensor, "pair d_model"],
    mean: Float[Tensor, " d_model"],
) -> Float[Tensor, " pair"]:
    """Return t, where the line through A and B comes nearest to the mean; 0 where A is B."""
    along = b - a
    return ((mean - a) * along).sum(-1) / (along * along).sum(-1).clamp_min(1e-30)


def plane(
    a: Float[Tensor, "pair d_model"],
    b: Float[Tensor, "pair d_model"],
    mean: Float[Tensor, " d_model"],
    feet: Float[Tensor, " pair"],
    across: Float[Tensor, " column"],
    up: Float[Tensor, " row"],
) -> Float[Tensor, "pair row column d_model"]:
    """Return the points of each pair's plane."""
    along = b - a
    toward = mean - (a + feet[:, None] * along)
    # "pair 1 1 d_model", and "column 1" and "row 1 1" times that.
    start, along, toward = (each[:, None, None] for each in (a, along, toward))
    return start + across[:, None] * along + up[:, None, None] * toward


@own_style()
def draw_maps(part: Part, title: str) -> Figure:
    """Draw the distance from A's output, relative to that at B, in the planes of the first pairs.

    A and B are rings, the mean a square, its foot on the path a dot, the boundary a diamond.
    """
    number = min(_MOST_DRAWN, len(part["foot"]))
    figure = new_page(number * (_SIDE + 0.2) + _LEFT + 0.1, 1.5 * _SIDE + 0.95)
    jumps, path = _jump(part), part["distance"][:, len(part["up"]) // 2]
    for pair in range(number):
        axes = place_axes(figure, _LEFT + pair * (_SIDE + 0.2), 0.45, _SIDE, 1.5 * _SIDE)
        relative = part["distance"][pair] / path[pair, -1]
        _draw_map(axes, part, relative, float(part["foot"][pair]), float(jumps[pair]))
        axes.set_xlabel("from A to B")
        axes.set(ylabel="toward the mean") if pair == 0 else axes.set_yticks([])
    ratio = quartiles(part["mean_distance"] / path[:, -1], part["kept"])[1]
    note = f"{title}: the mean's output is {ratio:.2f} as far from A's as B's is"
    write_text(figure, _LEFT, 1.5 * _SIDE + 0.62, note, 10.0, INK, number * (_SIDE + 0.2))
    return settled(figure)


def _draw_map(
    axes: Axes, part: Part, relative: Float[Tensor, "row column"], foot: float, jump: float
) -> None:
    across, up = part["across"], part["up"]
    margin, high = float(across[1]) / 2, float(up[1] - up[0]) / 2
    extent = (-margin, 1 + margin, -1 - high, 1 + high)
    image = relative.masked_fill(~relative.isfinite(), torch.nan).numpy()
    axes.imshow(
        image, origin="lower", extent=extent, aspect="auto", cmap="viridis", vmin=0, vmax=1.2
    )
    axes.patch.set(facecolor="#bfc2c6", hatch="////")
    for marker, x, y in (("o", 0, 0), ("o", 1, 0), ("s", foot, 1), (".", foot, 0), ("D", jump, 0)):
        if extent[0] <= x <= extent[1]:
            axes.plot(x, y, marker, color="white", markeredgecolor=INK, markersize=6, clip_on=False)
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _jump(part: Part) -> Float[Tensor, " pair"]:
    """Return where on the path from A to B the distance rises most."""
    path = part["distance"][:, len(part["up"]) // 2]
    return sharpness.slope_location(part["across"], path / path[:, -1:])
