"""Draw regions: the speed along every path, the two hypotheses, and the agreement of measurements.

image = pixels(draw_speeds(paths, part, "step 500"))
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.probes.drawing import (
    BLUE,
    INK,
    LEFT,
    RED,
    SOFT,
    WIDTH,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    settled,
    write_headline,
    write_text,
)
from sr_monitor.probes.sharpness import fill_gaps

if TYPE_CHECKING:
    import sr_monitor.probes.paths

Paths: TypeAlias = "sr_monitor.probes.paths.Paths"

_MOST_NAMED = 16


@own_style()
def draw_speeds(paths: Paths, part: Mapping[str, Any], title: str) -> Figure:
    """Draw how fast the output moves along each path that counts, a row each; steps are dots.

    Rows are in the order of where the steepest rise is. White is a straight line's speed, blue
    slower, red faster.
    """
    from matplotlib.colors import TwoSlopeNorm

    figure = new_page(5.6, 4.0)
    axes = place_axes(figure, LEFT, 0.55, 3.9, 2.6)
    rows = paths.location.nan_to_num(2.0).argsort(stable=True)[: int(paths.kept.sum())]
    speed = fill_gaps(paths.alphas, paths.relative).diff(dim=1).abs() * (len(paths.alphas) - 1)
    shown = speed[rows].numpy()
    extent = (0.0, 1.0, len(rows) - 0.5, -0.5) if len(rows) else (0.0, 1.0, 0.5, -0.5)
    if len(rows):
        norm = TwoSlopeNorm(1.0, vmin=0.0, vmax=4.0)
        image = axes.imshow(
            shown, aspect="auto", extent=extent, cmap="RdBu_r", norm=norm, interpolation="nearest"
        )
        bar = figure.colorbar(image, cax=place_axes(figure, LEFT + 4.02, 0.55, 0.12, 2.6))
        bar.set_ticks([0, 0.5, 1, 2, 3, 4], labels=["0", "0.5", "1", "2", "3", "4+"])
        bar.set_label("speed (1: straight line)")
    row, interval = part["peaks"][rows].nonzero(as_tuple=True)
    where = ((paths.alphas[1:] + paths.alphas[:-1]) / 2)[interval]
    axes.plot(where.numpy(), row.numpy(), "o", markersize=2.2, color=INK, markeredgewidth=0)
    axes.set(xlim=(0, 1), ylim=extent[2:], yticks=[])
    axes.set(xlabel="interpolation coefficient alpha", ylabel="pairs, by their steepest rise")
    write_headline(figure, title, _in_words(part))
    return settled(figure)


@own_style()
def draw_hypotheses(
    titles: Sequence[str], count: Sequence[float], within: Sequence[float]
) -> Figure:
    """Draw both hypotheses over the measurements: more regions, and more alike within one."""
    figure = new_page(5.6, 3.55)
    axes = place_axes(figure, LEFT, 0.75, 3.95, 2.05)
    other = axes.twinx()
    places = range(len(titles))
    axes.plot(places, count, "o-", color=BLUE, markersize=3.5)
    other.plot(places, within, "s-", color=RED, markersize=3.5)
    axes.set_ylabel("regions on a path (mean)", color=BLUE)
    other.set_ylabel("movement within one (median, of d(1))", color=RED)
    axes.set_ylim(1, max(2.0, 1.05 * max((n for n in count if n == n), default=2.0)))
    other.set_ylim(0, 1.05 * max((n for n in within if n > 0), default=1.0))
    other.spines["right"].set_visible(True)
    _name(axes, titles, "x")
    note = "blue up: regions split; red down: outputs within one grow alike"
    write_headline(figure, "Split, or sharpen?", note)
    return settled(figure)


@own_style()
def draw_identity(
    titles: Sequence[str],
    slopes: Float[Tensor, "page page"],
    corners: Float[Tensor, "page page"],
) -> Figure:
    """Draw, for each two measurements, how far they agree about where regions are."""
    both = bool(corners.isfinite().any())
    figure = new_page(LEFT + 0.4 + (6.3 if both else 3.1), 3.7)
    places = [(slopes, "maximum slopes (rank correlation)"), (corners, "nearest corner (share)")]
    for number, (table, label) in enumerate(places[: 1 + both]):
        left = LEFT + 0.25 + 3.2 * number
        axes = place_axes(figure, left, 0.65, 2.35, 2.35)
        low = 0.0 if number == 0 else 1 / 3  # what chance gives
        image = axes.imshow(table.numpy(), vmin=low, vmax=1.0, cmap="viridis")
        figure.colorbar(image, cax=place_axes(figure, left + 2.42, 0.65, 0.1, 2.35))
        axes.set_title(label, fontsize=8.5)
        _name(axes, titles, "x")
        _name(axes, titles if number == 0 else [""] * len(titles), "y")
    write_text(figure, LEFT, 3.4, "Are they the same regions?", 11.0, INK, WIDTH)
    return settled(figure)


def _name(axes: Axes, titles: Sequence[str], axis: str) -> None:
    """Write the title of each measurement at an axis, of many only some."""
    every = -(-len(titles) // _MOST_NAMED)
    names = [title.removeprefix("step ") for title in titles]
    axes.set_xlabel("step", color=SOFT) if axis == "x" else None
    getattr(axes, f"set_{axis}ticks")(range(0, len(names), every), names[::every], fontsize=6.5)
    if axis == "x":
        axes.tick_params(axis="x", labelrotation=90)


def _in_words(part: Mapping[str, Any]) -> str:
    count = part["count"][part["count"].isfinite()]
    if not len(count):
        return "no pair counts"
    share = torch.stack([(count == n).double().mean() for n in (1, 2, 3)]).tolist()
    more = 1 - sum(share)
    one, two, three = (f"{each:.0%}" for each in share)
    return f"regions on a path: 1 on {one}, 2 on {two}, 3 on {three}, more on {more:.0%}"
