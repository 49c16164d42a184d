"""Draw divergences along paths: median curves, along the path and around each pair's boundary.

image = pixels(draw_divergence(part, paths, "step 1000"))
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr_monitor.probes.drawing import (
    BLUE,
    INK,
    LEFT,
    SOFT,
    WIDTH,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.statistics import median_curve

if TYPE_CHECKING:
    import sr_monitor.probes.paths

Paths: TypeAlias = "sr_monitor.probes.paths.Paths"

_LOOKS: dict[str, dict[str, Any]] = {
    "distance": {"color": INK, "linestyle": ":", "linewidth": 1.6},
    "KL": {"color": "#c2571a"},
    "JS": {"color": BLUE},
    "logit difference": {"color": "#117a37"},
    "another top token (share)": {"color": "#b0182b", "linewidth": 1, "linestyle": "--"},
}
_AROUND = 0.3  # how far left and right of the boundary


@own_style()
def draw_divergence(part: Any, paths: Paths, title: str) -> Figure:
    """Draw how each quantity goes from A (0) to B (1), medians over the pairs that count.

    At the right each pair is moved so that its distance rises most at 0. The band holds the middle
    half of JS.
    """
    figure = new_page(2 * (WIDTH + LEFT) + 0.2, 3.7)
    curves = _curves(part, paths)
    kept = part["kept"]
    steepest = paths.relative.diff(dim=1).nan_to_num(nan=-torch.inf).argmax(dim=1)
    aligned = {name: _aligned(curve, steepest) for name, curve in curves.items()}
    alphas = paths.alphas
    offsets = torch.cat([alphas[1:-1].flip(0).neg(), alphas]) - alphas[1] / 2
    left = place_axes(figure, LEFT, 0.88, WIDTH, 2.1)
    right = place_axes(figure, 2 * LEFT + WIDTH, 0.88, WIDTH, 2.1)
    _draw(left, alphas, curves, kept)
    _draw(right, offsets, aligned, kept)
    left.set(xlabel="interpolation coefficient alpha", ylabel="from A (0) to B (1)", xlim=(0, 1))
    right.set(xlabel="alpha, counted from each pair's steepest rise", xlim=(-_AROUND, _AROUND))
    right.axvline(0, color=SOFT, linewidth=0.7, zorder=1)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=6, frameon=False, fontsize=8,
        handlelength=1.8, columnspacing=1.6,
    )  # fmt: skip
    flips = part["flips_at_slope"][kept].float().mean().item()
    note = f"top token flips at the steepest rise: {flips:.0%} of {int(kept.sum())} pairs"
    write_headline(figure, title, note if kept.any() else "no pair counts")
    return settled(figure)


def _curves(part: Any, paths: Paths) -> dict[str, Float[Tensor, "pair step"]]:
    """Return each quantity as it goes from 0 at A to 1 at B, gaps of adaptive sampling filled."""
    logits, top = part["logit_difference"], part["top_token"]
    other = (top != top[:, :1]).float().masked_fill(top < 0, torch.nan)
    found = {
        "distance": paths.relative,
        "KL": part["kl"] / part["kl"][:, -1:],
        "JS": part["js"] / part["js"][:, -1:],
        "logit difference": (logits[:, :1] - logits) / (logits[:, :1] - logits[:, -1:]),
        "another top token (share)": other,
    }
    return {name: fill_gaps(paths.alphas, curve) for name, curve in found.items()}


def _aligned(
    curves: Float[Tensor, "pair step"], steepest: Int[Tensor, " pair"]
) -> Float[Tensor, "pair offset"]:
    """Move each curve so that the middle of its steepest interval is in the middle; else NaN."""
    num_steps = curves.shape[1]
    # "offset" plus "pair 1": every step that a path may have there.
    steps = torch.arange(2 - num_steps, num_steps) + steepest[:, None]
    moved = curves.gather(1, steps.clamp(0, num_steps - 1))
    return moved.masked_fill((steps < 0) | (steps >= num_steps), torch.nan)


def _draw(
    axes: Axes,
    across: Float[Tensor, " x"],
    curves: dict[str, Float[Tensor, "pair x"]],
    kept: Bool[Tensor, " pair"],
) -> None:
    for name, curve in curves.items():
        q25, median, q75 = median_curve(curve, kept)
        if name.endswith("(share)"):
            median = curve[kept].nanmean(dim=0)
        axes.plot(across, median, label=name, **{"linewidth": 1.8, **_LOOKS[name]})
        if name == "JS":
            axes.fill_between(across, q25, q75, color=BLUE, alpha=0.15, linewidth=0, zorder=1)
    axes.set(ylim=(-0.04, 1.15))
