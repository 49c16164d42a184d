"""Draw a slice cut into regions: by nearest corner, and by top token in each corner's context.

image = pixels(draw_map(part, slices, 0, "step 1000"))
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr_monitor.probes.drawing import (
    INK,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    printable,
    settled,
    write_text,
)
from sr_monitor.probes.segments import connected_regions
from sr_monitor.probes.slices_pictures import CORNERS, paint_slice

if TYPE_CHECKING:
    import sr_monitor.probes.slices

Slices: TypeAlias = "sr_monitor.probes.slices.Slices"

_SIDE, _MARGIN = 1.9, 0.15  # of a slice, and around it, in inches
_LEAST_AREA = 0.04  # of a region that is named
_NUM_COLORS = 20
_MOST_CHARACTERS = 12  # of a name


@own_style()
def draw_map(
    part: Any, slices: Slices, triple: int, title: str, *, name: Callable[[int], str] = str
) -> Figure:
    """Draw a slice in its colours with the boundaries between nearest corners, beside its tokens.

    In the three maps at the right, cells of one colour have one top token: the same colour is the
    same token in all three. Larger regions are named, by `name` of their token.
    """
    figure = new_page(4 * (_SIDE + _MARGIN) + _MARGIN, _SIDE + 0.75)
    first, *others = (
        place_axes(figure, _MARGIN + number * (_SIDE + _MARGIN), _MARGIN, _SIDE, _SIDE)
        for number in range(4)
    )
    paint_slice(first, slices, triple, mark_size=6.0)
    draw_boundaries(first, part["nearest"][triple], slices.coordinates)
    tokens = part["top_token"][triple]
    ranks = {token: rank for rank, token in enumerate(_by_area(tokens))}
    for axes, labels in zip(others, tokens, strict=True):
        _draw_tokens(axes, labels, slices.coordinates, ranks)
        _name_regions(axes, labels, slices.coordinates, name)
        axes.plot([0.0, 1.0, float(slices.foot[triple])], [0, 0, 1], "+", color=INK, markersize=5)
        axes.set(xlim=first.get_xlim(), ylim=first.get_ylim())
    headings = ["nearest corner", *(f"top token, {corner}'s context" for corner in CORNERS)]
    for number, (axes, heading) in enumerate(zip([first, *others], headings, strict=True)):
        axes.set(xticks=[], yticks=[])
        left = _MARGIN + number * (_SIDE + _MARGIN)
        write_text(figure, left, _MARGIN + _SIDE + 0.08, heading, 8.5, INK, _SIDE)
    write_text(figure, _MARGIN, _SIDE + 0.45, title, 11.0, INK, 3 * _SIDE)
    return settled(figure)


def draw_boundaries(
    axes: Axes, labels: Int[Tensor, "row column"], coordinates: Float[Tensor, " row"]
) -> None:
    """Draw a line between every two neighbouring cells of different labels, along their sides."""
    from matplotlib.collections import LineCollection

    places = coordinates.numpy()
    middles, half = (places[:-1] + places[1:]) / 2, (places[1] - places[0]) / 2
    upright = [
        [(middles[column], places[row] - half), (middles[column], places[row] + half)]
        for row, column in (labels[:, 1:] != labels[:, :-1]).nonzero().tolist()
    ]
    flat = [
        [(places[column] - half, middles[row]), (places[column] + half, middles[row])]
        for row, column in (labels[1:] != labels[:-1]).nonzero().tolist()
    ]
    axes.add_collection(LineCollection(upright + flat, colors=INK, linewidths=0.8))


def _by_area(tokens: Int[Tensor, "corner row column"]) -> list[int]:
    """Return all tokens of three maps, the most frequent first."""
    found, counts = torch.unique(tokens[tokens >= 0], return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return [int(token) for token in found[order]]


def _draw_tokens(
    axes: Axes,
    labels: Int[Tensor, "row column"],
    coordinates: Float[Tensor, " row"],
    ranks: dict[int, int],
) -> None:
    """Paint each cell in the colour of its token."""
    from matplotlib import colormaps

    palette = colormaps["tab20"](np.arange(_NUM_COLORS))[:, :3]
    palette = 1 - (1 - np.concatenate([palette[1::2], palette[::2]])) * 0.75  # the pale ones first
    image = np.ones((*labels.shape, 4))
    image[..., 3] = (labels >= 0).numpy()
    for token, rank in ranks.items():
        image[(labels == token).numpy(), :3] = palette[rank % _NUM_COLORS]
    low, high = coordinates[0].item(), coordinates[-1].item()
    half = (high - low) / (len(coordinates) - 1) / 2
    extent = (low - half, high + half, low - half, high + half)
    axes.imshow(image, origin="lower", extent=extent, interpolation="nearest")
    axes.patch.set(facecolor="#bfc2c6", hatch="////")
    axes.spines[:].set_visible(True)
    draw_boundaries(axes, labels, coordinates)


def _name_regions(
    axes: Axes,
    labels: Int[Tensor, "row column"],
    coordinates: Float[Tensor, " row"],
    name: Callable[[int], str],
) -> None:
    """Write the token of each larger region into its middle."""
    from matplotlib.patheffects import withStroke

    regions = connected_regions(labels[None])[0]
    numbers, sizes = torch.unique(regions, return_counts=True)
    large = (numbers >= 0) & (sizes >= _LEAST_AREA * regions.numel())
    for number in numbers[large].tolist():
        row, column = _deepest((regions == number).numpy())
        place = float(coordinates[column]), float(coordinates[row])
        word = printable(name(int(labels[row, column]))[:_MOST_CHARACTERS])
        text = axes.text(*place, word, size=7, ha="center", va="center")
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _deepest(region: Bool[np.ndarray, "row column"]) -> tuple[int, int]:
    """Return the row and column of a cell as far as any from the edge of its region."""
    left = region
    while left.any():
        region, around = left, np.pad(left, 1)
        beside = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
        left = left & np.logical_and.reduce(beside)
    rows, columns = region.nonzero()
    return int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
