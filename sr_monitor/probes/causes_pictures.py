"""Draw who makes the jump of a path, and who flattens its plateau.

image = pixels(draw_causes(held, "step 500"))
"""

from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.probes.drawing import (
    BLUE,
    INK,
    LEFT,
    SOFT,
    Axes,
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
    import sr_monitor.probes.causes

Held: TypeAlias = "sr_monitor.probes.causes.Held"

_COLORS = BLUE, "#b0182b"
_LABELS = "attention", "feed-forward"

# Named here, since an annotation in a function makes a class at each call: cyclic garbage.
_Curves: TypeAlias = Float[Tensor, "pair step"]


@own_style()
def draw_causes(held: Held, title: str) -> Figure:
    """Draw paths with nothing and with all of a kind held, and each sublayer's part by block."""
    figure = new_page(LEFT + 9.2, 3.7)
    curves = place_axes(figure, LEFT, 0.75, 2.4, 2.2)
    _draw_curves(curves, held)
    jump = place_axes(figure, LEFT + 3.1, 0.75, 2.4, 2.2)
    _draw_bars(jump, held, held.share, "share of the jump it makes")
    plateau = place_axes(figure, LEFT + 6.2, 0.75, 2.4, 2.2)
    _draw_bars(plateau, held, held.flattening, "how much it flattens the plateau")
    handles, labels = curves.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8,
        handlelength=1.8, columnspacing=1.6,
    )  # fmt: skip
    write_headline(figure, title, "each held at its value for A, medians over the pairs")
    return settled(figure)


def _draw_curves(axes: Axes, held: Held) -> None:
    end = held.whole[:, -1:]
    kept = end[:, 0].isfinite()
    alphas = held.alphas.numpy()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":", label="straight line")

    def draw(distance: _Curves, color: str, label: str) -> None:
        median = median_curve(distance / end, kept)[1]
        axes.plot(alphas, median.numpy(), color=color, linewidth=1.8, label=label)

    draw(held.whole, INK, "whole model")
    for curve, color, label in zip(held.all.unbind(dim=1), _COLORS, _LABELS, strict=True):
        draw(curve, color, f"all {label}{'s' if label == _LABELS[1] else ''} held")
    axes.set(xlabel="alpha", ylabel="distance, of the whole path's d(1)", xlim=(0, 1))


def _draw_bars(axes: Axes, held: Held, values: Float[Tensor, "2 block"], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for kind, color in enumerate(_COLORS):
        places = held.blocks + (0.2 if kind else -0.2)
        axes.bar(places.numpy(), torch.nan_to_num(values[kind]).numpy(), 0.4, color=color)
    axes.axhline(0, color=SOFT, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    count_along(axes.xaxis)
    axes.set(xlabel="block", ylabel=label)
