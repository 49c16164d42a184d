"""Draw plateau radii: their distribution by kind of direction, and the exponent of each kind.

image = pixels(draw_radii(record.parts["radius"], title="step 1000"))
"""

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from sr_monitor.probes.directions import KINDS
from sr_monitor.probes.drawing import (
    BLUE,
    INK,
    SOFT,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.statistics import summarise

if TYPE_CHECKING:
    import sr_monitor.probes.radius

Radii: TypeAlias = "sr_monitor.probes.radius.Radii"

_ROWS = (*KINDS, "output")
_LEFT, _BOTTOM, _HEIGHT = 0.95, 0.62, 2.3
_MOST = 5.0  # the largest exponent that is drawn in its place


@own_style()
def draw_radii(radii: Radii, *, title: str = "How far activations can be pushed") -> Figure:
    """Draw the radii of each kind of direction, with median and quartiles, and its exponent.

    The last row is the radius of the final vector itself, a diamond its closed form.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_page(6.2, 3.7)
    left = place_axes(figure, _LEFT, _BOTTOM, 3.1, _HEIGHT)
    right = place_axes(figure, _LEFT + 3.4, _BOTTOM, 1.6, _HEIGHT)
    for row, kind in enumerate(_ROWS):
        _draw_radii_of(left, radii, kind, row)
        if kind in KINDS:
            _draw_exponent(right, radii, kind, row)
    left.axvline(1, color=SOFT, linewidth=1, linestyle=":")
    left.set(xscale="log", xlabel="radius, relative to the distance between vectors")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_locator(NullLocator())
    left.set_yticks(range(len(_ROWS)), [*KINDS, "final vector"])
    right.axvline(2, color=SOFT, linewidth=1, linestyle=":")
    right.set(xlabel="exponent p (2: a ball)", xlim=(1, _MOST), yticks=[])
    for axes in (left, right):
        axes.set_ylim(len(_ROWS) - 0.4, -0.6)
    share = float(np.nanmean(radii.radius.isinf().numpy()))
    note = f"pushed until the prediction has changed by {radii.threshold:g} nats (KL)"
    beyond = f"{share:.0%} of the directions never get there within {radii.reach:g}"
    write_headline(figure, title, note, beyond)
    return settled(figure)


def _draw_radii_of(axes: Axes, radii: Radii, kind: str, row: int) -> None:
    values = radii.relative(kind)
    of = summarise(values)
    values = values[values.isfinite()]
    # Spread by rank, not at random: the picture depends on the data alone.
    places = row + 0.5 * (np.modf(np.arange(len(values)) * 0.618)[0] - 0.5)
    axes.plot(values.numpy(), places, ".", color=BLUE, alpha=0.35, markersize=3, linewidth=0)
    axes.plot([of.q25, of.q75], [row, row], color=INK, linewidth=1.4)
    axes.plot([of.median], [row], "|", color=INK, markersize=13, markeredgewidth=2)
    if kind == "output":
        closed = summarise(radii.closed_form.flatten() / radii.output_scale).median
        axes.plot([closed], [row + 0.33], "D", color=SOFT, markersize=4)


def _draw_exponent(axes: Axes, radii: Radii, kind: str, row: int) -> None:
    of = radii.exponent(kind)
    if math.isnan(of.median):
        return
    axes.plot([max(1.0, of.low), min(_MOST, of.high)], [row, row], color=INK, linewidth=1.4)
    axes.plot([min(_MOST, of.median)], [row], "o", color=BLUE, markersize=6)
    axes.text(min(_MOST, of.median), row - 0.18, f"{of.median:.2f}", ha="center", va="bottom")
