"""Draw slices: one with its three prompts, and a film of one over many steps.

figure = draw_slice(slices, 0, prompts=prompts.texts_of_triple(0))
film = join_frames([pixels(draw_frame(slices, 0, title)) for title, slices in by_step])
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8

from sr_monitor.probes.drawing import (
    DPI,
    INK,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    settled,
    write_text,
)

if TYPE_CHECKING:
    import sr_monitor.probes.slices

Slices: TypeAlias = "sr_monitor.probes.slices.Slices"

CORNERS = {"A": "#b0182b", "B": "#117a37", "C": "#2340b8"}
"""Red, green and blue, dark enough to read."""
_CARD = 1.8  # how many times as wide as high the card is in which a dashboard shows a film
# Of a film, in inches; each a whole number of pixels, so that a frame fits anywhere in it.
_FRAME, _ACROSS, _UP, _MARGIN = 1.6, 1.725, 1.925, 0.1


@own_style()
def draw_slice(slices: Slices, triple: int, *, prompts: Sequence[str] | None = None) -> Figure:
    """Draw one slice in colour, A, B and C marked, their prompts below.

    Red, green and blue tell how close the output is to that of A, B and C; hatched grey is not
    finite. An arrowhead at the edge points to a point outside of the picture.
    """
    from matplotlib.ticker import MaxNLocator

    below = 0.0 if prompts is None else 0.62
    figure = new_page(3.7, 3.55 + below)
    axes = place_axes(figure, 0.55, 0.5 + below, 2.9, 2.9)
    paint_slice(axes, slices, triple, mark_size=7.0)
    axes.set(xlabel="from A towards B", ylabel="from the line AB towards C")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    for name, prompt in zip(CORNERS, prompts or (), strict=prompts is not None):
        height = 0.47 - 0.17 * "ABC".index(name)
        write_text(figure, 0.2, height, name, 8.0, CORNERS[name], 0.2, weight="bold")
        write_text(figure, 0.4, height, prompt, 8.0, CORNERS[name], 3.05, keep_end=True)
    return settled(figure)


@own_style()
def draw_frame(slices: Slices, triple: int, title: str) -> Figure:
    """Draw one frame of a film: a slice under its title."""
    figure = new_page(_FRAME + 2 * _MARGIN, _UP + _MARGIN)
    axes = place_axes(figure, _MARGIN, _MARGIN, _FRAME, _FRAME)
    paint_slice(axes, slices, triple, mark_size=5.0)
    axes.set(xticks=[], yticks=[])
    above = _MARGIN + _FRAME + 0.08
    write_text(figure, _MARGIN + _FRAME / 2, above, title, 8.5, INK, _FRAME, ha="center")
    return settled(figure)


def join_frames(
    frames: Sequence[UInt8[np.ndarray, "row column 3"]],
) -> UInt8[np.ndarray, "film_row film_column 3"]:
    """Join the pixels of frames to a film that runs left to right, in rows that fill a card."""
    num_columns = _columns(len(frames))
    num_rows = math.ceil(len(frames) / num_columns)
    across, up, margin = (round(inches * DPI) for inches in (_ACROSS, _UP, _MARGIN))
    height, width, _ = frames[0].shape
    shape = height + up * (num_rows - 1), width + across * (num_columns - 1), 3
    film = np.full(shape, 255, np.uint8)
    rim = margin // 2  # the line around a slice is drawn on its edge
    for index, frame in enumerate(frames):
        row, column = divmod(index, num_columns)
        inner = frame[rim : rim + up, rim : width - rim]
        top, left = up * row + rim, across * column + rim
        film[top : top + up, left : left + inner.shape[1]] = inner
    return film


def _columns(count: int) -> int:
    """Return how many frames a row has: near the shape of a card, few places left empty."""

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        shape = abs(math.log(columns * _ACROSS / (rows * _UP) / _CARD))
        return shape + (columns * rows - count) / count

    return min(range(1, count + 1), key=misfit)


def paint_slice(axes: Axes, slices: Slices, triple: int, *, mark_size: float) -> None:
    """Paint the colours of a slice, origin at the lower left, and mark its three points."""
    # (corner, row, column) -> (row, column, 1), beside rgb of (row, column, 3)
    finite = slices.distance[triple].isfinite().all(dim=0)[..., None]
    image = torch.cat([slices.rgb[triple], finite], dim=-1).numpy()  # transparent where not finite
    low, high = slices.coordinates[0].item(), slices.coordinates[-1].item()
    half = (high - low) / (len(slices.coordinates) - 1) / 2  # a colour is that of its cell's middle
    edges = (low - half, high + half)
    axes.imshow(image.clip(0, 1), origin="lower", extent=(*edges, *edges), interpolation="nearest")
    axes.patch.set(facecolor="#bfc2c6", hatch="////")
    axes.spines[:].set_visible(True)
    points = np.array([(0.0, 0.0), (1.0, 0.0), (slices.foot[triple].item(), 1.0)])
    _mark(axes, points, edges, mark_size)


def _mark(
    axes: Axes, points: Float[np.ndarray, "corner 2"], edges: tuple[float, float], size: float
) -> None:
    """Draw a ring around each point, or an arrowhead at the edge for one outside, and its letter.

    All is white on black, so that it can be read on any colour. Letters lie on the far side of the
    other points, however close these are, but inwards where they would leave the picture.
    """
    from matplotlib.patheffects import withStroke

    unit = (edges[1] - edges[0]) / (axes.get_window_extent().width / DPI * 72)  # of one pt
    inside = ((points >= edges[0]) & (points <= edges[1])).all(axis=1, keepdims=True)
    room = edges[0] + 0.9 * size * unit, edges[1] - 0.9 * size * unit
    shown = np.where(inside, points, points.clip(*room))
    away = 1.8 * size * unit * np.array([(-0.7, -0.7), (0.7, -0.7), (0.0, 1.0)])
    leaves = (shown + away < room[0]) | (shown + away > room[1])
    letters = shown + np.where(leaves, -away, away)
    for name, place, beyond, letter in zip(CORNERS, shown, points - shown, letters, strict=True):
        if np.isfinite(place).all():
            arrowhead = (3, 0, math.degrees(math.atan2(*beyond[::-1])) - 90)
            axes.plot(
                *place,
                marker=arrowhead if beyond.any() else "o",
                markersize=size,
                markerfacecolor="none",  # the colour at the point itself stays visible
                markeredgecolor="white",
                markeredgewidth=size / 6,
                path_effects=[withStroke(linewidth=size / 2.6, foreground=INK)],
                clip_on=False,
            )
            text = axes.text(letter[0], letter[1], name, size=1.4 * size, ha="center", va="center")
            halo = withStroke(linewidth=size / 3, foreground=INK)
            text.set(color="white", weight="bold", path_effects=[halo])
