"""Draw what is found at every block or layer: over training, and along the path.

image = pixels(draw_along(depths.blocks, alphas, depths.curves, "step 500", "after block"))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.probes.drawing import (
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

_MOST_NAMED = 12
_SHADES = "viridis"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A number at each block, or layer, of several measurements."""

    numbers: Int[Tensor, " block"]
    titles: Sequence[str]
    """Of the measurements, the current one last."""
    values: Float[Tensor, "page block"]
    value: str
    """What the values are, in words."""
    place: str
    """What the numbers are, such as "read after block"."""
    straight: float | None = 1.0
    """The value that a straight line has."""


@own_style()
def draw_profile(profile: Profile, title: str, note: str = "") -> Figure:
    """Draw a number by block, earlier measurements behind; and a heat map over several of them."""
    several = len(profile.titles) > 1
    figure = new_page(LEFT + (6.6 if several else 3.6), 3.7)
    axes = place_axes(figure, LEFT, 0.75, 2.6, 2.2)
    shades = _shades(len(profile.titles))
    for row, shade in zip(profile.values, shades, strict=True):
        is_last = shade is shades[-1]
        axes.plot(
            row.numpy(),
            profile.numbers.numpy(),
            "o-" if is_last else "-",
            color=shade,
            linewidth=1.8 if is_last else 0.9,
            markersize=2.6,
        )
    if profile.straight is not None:
        axes.axvline(profile.straight, color=SOFT, linewidth=1, linestyle=":")
    axes.set(xlabel=profile.value, ylabel=profile.place)
    _name_blocks(axes, profile.numbers)
    if several:
        _draw_heat(figure, profile)
    write_headline(figure, title, note)
    return settled(figure)


@own_style()
def draw_along(
    numbers: Int[Tensor, " block"],
    alphas: Float[Tensor, " step"],
    curves: Float[Tensor, "block step"],
    title: str,
    place: str,
) -> Figure:
    """Draw a curve along the path for each block or layer, dark for the last."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = new_page(5.6, 3.7)
    axes = place_axes(figure, LEFT, 0.65, 3.9, 2.4)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
    for curve, shade in zip(curves.numpy(), _shades(len(curves)), strict=True):
        axes.plot(alphas.numpy(), curve, color=shade, linewidth=1.2)
    top = float(curves.nan_to_num(0, 0, 0).max()) if curves.numel() else 1.0
    axes.set(xlabel="interpolation coefficient alpha", ylabel="relative distance (median)")
    axes.set(xlim=(0, 1), ylim=(0, 1.04 * min(1.5, max(1.0, top))))
    ends = Normalize(float(numbers[0]), float(numbers[-1]))
    bar = figure.colorbar(
        ScalarMappable(ends, f"{_SHADES}_r"), cax=place_axes(figure, LEFT + 4.02, 0.65, 0.12, 2.4)
    )
    bar.set_label(place)
    count_along(bar.ax.yaxis)
    write_headline(figure, title, "dotted: a straight line, no regions")
    return settled(figure)


def _draw_heat(figure: Figure, profile: Profile) -> None:
    axes = place_axes(figure, LEFT + 3.1, 0.75, 2.6, 2.2)
    values = profile.values.T.numpy()  # "block page"
    count = len(profile.numbers)
    extent = (-0.5, len(profile.titles) - 0.5, -0.5, count - 0.5)
    image = axes.imshow(
        values, aspect="auto", origin="lower", extent=extent, cmap=_SHADES, interpolation="nearest"
    )
    figure.colorbar(image, cax=place_axes(figure, LEFT + 5.8, 0.75, 0.12, 2.2))
    every = -(-len(profile.titles) // _MOST_NAMED)
    names = [title.removeprefix("step ") for title in profile.titles]
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=6.5, rotation=90)
    axes.set_xlabel("step", color=SOFT)
    places = np.unique(np.linspace(0, count - 1, min(count, 7)).round().astype(int))
    axes.set_yticks(places, profile.numbers[places].tolist())


def _name_blocks(axes: Axes, numbers: Int[Tensor, " block"]) -> None:
    count_along(axes.yaxis)
    low, high = int(numbers.min()), int(numbers.max())
    axes.set_ylim(low - 0.5, high + 0.5)
    axes.tick_params(colors=INK)


def _shades(count: int) -> list[Any]:
    """Return a colour for each, from pale to dark."""
    from matplotlib import colormaps

    places = torch.linspace(1.0, 0.05, count).flip(0)  # one alone is dark
    return [colormaps[f"{_SHADES}_r"](place) for place in places.tolist()]
