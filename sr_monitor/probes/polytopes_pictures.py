"""Draw where gates change their sign: in which blocks, and where on the path.

image = pixels(draw_polytopes(crossings, paths, "step 500", "1,200 sign changes on a path"))
"""

from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.probes.drawing import (
    BLUE,
    LEFT,
    SOFT,
    Figure,
    count_along,
    new_page,
    own_style,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.statistics import median_curve

if TYPE_CHECKING:
    import sr_monitor.probes.paths
    import sr_monitor.probes.polytopes

Crossings: TypeAlias = "sr_monitor.probes.polytopes.Crossings"
Paths: TypeAlias = "sr_monitor.probes.paths.Paths"

_AROUND = 0.4  # how far left and right of the steepest rise


@own_style()
def draw_polytopes(found: Crossings, paths: Paths, title: str, note: str) -> Figure:
    """Draw sign changes by block, and their density around each path's steepest rise."""
    figure = new_page(LEFT + 6.4, 3.7)
    by_block = place_axes(figure, LEFT, 0.65, 2.6, 2.3)
    median = found.by_block.nanmedian(dim=0).values.nan_to_num(0)
    by_block.bar(found.blocks.numpy(), median.numpy(), 0.8, color=BLUE)
    count_along(by_block.xaxis)
    by_block.set(xlabel="block", ylabel="sign changes on a path (median)")
    around = place_axes(figure, LEFT + 3.4, 0.65, 2.6, 2.3)
    density = found.crossings / found.crossings.mean(dim=1, keepdim=True)
    moved = _moved(density, paths)
    q25, middle, q75 = median_curve(moved, paths.kept)
    offsets = torch.linspace(-1, 1, moved.shape[1]).numpy()
    around.axhline(1, color=SOFT, linewidth=1, linestyle=":")
    around.axvline(0, color=SOFT, linewidth=0.7)
    around.fill_between(offsets, q25, q75, color=BLUE, alpha=0.2, linewidth=0)
    around.plot(offsets, middle, color=BLUE, linewidth=1.8)
    around.set(xlabel="alpha, counted from the steepest rise", xlim=(-_AROUND, _AROUND))
    around.set(ylabel="density of sign changes, of its mean")
    around.set_ylim(bottom=0)
    write_headline(figure, title, note)
    return settled(figure)


def _moved(density: Float[Tensor, "pair interval"], paths: Paths) -> Float[Tensor, "pair offset"]:
    """Move each path so that its steepest interval is in the middle; NaN beyond its ends."""
    count = density.shape[1]
    steepest = (paths.location * count - 0.5).nan_to_num(0).round().long()
    # "offset" against "pair 1"
    place = torch.arange(1 - count, count) + steepest[:, None]
    inside = (place >= 0) & (place < count)
    return density.gather(1, place.clamp(0, count - 1)).where(inside, torch.nan)
