"""Draw paths: the median curve with its quartile band, and the histogram of slopes.

image = pixels(draw_curves(paths, title="step 1000"))
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float

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
    write_text,
)
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.statistics import median_curve, summarise

if TYPE_CHECKING:
    import sr_monitor.probes.paths

Paths: TypeAlias = "sr_monitor.probes.paths.Paths"

_BAR, _FAINT = "#9aa5b1", "#c9ced4"
_NUM_SINGLE_CURVES = 12
_SCALE_WIDTH = 1.2  # of the list of steps beside a diagram, in inches


@own_style()
def draw_curves(
    paths: Paths,
    *,
    title: str = "From one prompt to another",
    earlier: Sequence[tuple[str, Paths]] | None = None,
) -> Figure:
    """Draw the median curve with its quartile band, and a straight line: no regions.

    Median curves of `earlier` measurements lie behind, the paler the earlier, and a scale at the
    right names each by its title. None draws a few single curves instead; an empty sequence leaves
    room for the scale, so that the pictures of a run are of one size.
    """
    figure = new_page(5.0 if earlier is None else 5.0 + _SCALE_WIDTH, 3.7)
    axes = place_axes(figure, LEFT, 0.88, WIDTH, 2.1)
    if earlier is None:
        color, behind = BLUE, _draw_single_curves(axes, paths)
    else:
        pale, color = _shades(len(earlier))
        behind = _draw_earlier_curves(axes, [paths for _, paths in earlier], pale)
        _write_scale(figure, [*(title for title, _ in earlier), title], [*pale, color])
    straight = "straight line: no regions"
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":", zorder=2, label=straight)
    q75 = _draw_band(axes, paths, color)
    axes.set(xlabel="interpolation coefficient alpha", ylabel="relative output distance")
    axes.set(xlim=(0, 1), ylim=(0, _top(behind, q75)))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="lower center", ncols=4, frameon=False, fontsize=8,
        handlelength=1.6, columnspacing=1.6, bbox_to_anchor=(2.5 / figure.get_figwidth(), 0.02),
    )  # fmt: skip
    write_headline(figure, title, _slopes_in_words(paths), _doubts_in_words(paths))
    return settled(figure)


@own_style()
def draw_slopes(paths: Paths, *, title: str = "How sharp the boundaries are") -> Figure:
    """Draw the histogram of the kept pairs' maximum slopes, with its median and quartiles."""
    from matplotlib.ticker import MaxNLocator

    figure = new_page(5.0, 3.35)
    axes = place_axes(figure, LEFT, 0.53, WIDTH, 2.1)
    summary = summarise(paths.max_slope, paths.kept)
    slopes = paths.max_slope[paths.kept & paths.max_slope.isfinite()].numpy()
    limits = min(0.0, slopes.min(initial=0)), max(2.0, 1.04 * slopes.max(initial=0))
    num_bins = min(60, max(20, 2 * math.isqrt(summary.count)))
    axes.axvspan(summary.q25, summary.q75, color=BLUE, alpha=0.2, linewidth=0)
    counts, edges = np.histogram(slopes, num_bins, limits)
    left, widths = edges[:-1], np.diff(edges)
    axes.bar(left, counts, widths, align="edge", color=_BAR, edgecolor="white", linewidth=0.6)
    axes.axvline(1, color=SOFT, linewidth=1, linestyle=":")
    axes.axvline(summary.median, color=BLUE, linewidth=2)
    axes.set(xlabel="maximum slope (1: straight line, no regions)", ylabel="pairs")
    axes.set(xlim=limits, ylim=(0, max(1.0, 1.05 * counts.max())))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    write_headline(figure, title, _slopes_in_words(paths), _doubts_in_words(paths))
    return settled(figure)


def _draw_single_curves(axes: Axes, paths: Paths) -> list[Float[np.ndarray, " step"]]:
    every = max(1, int(paths.kept.sum()) // _NUM_SINGLE_CURVES)
    curves = fill_gaps(paths.alphas, paths.relative)
    single = list(curves[paths.kept][::every][:_NUM_SINGLE_CURVES].numpy())
    for index, curve in enumerate(single):
        label = "single pairs" if index == 0 else None
        axes.plot(paths.alphas.numpy(), curve, color=_FAINT, linewidth=0.6, zorder=1, label=label)
    return single


def _draw_earlier_curves(
    axes: Axes, earlier: Sequence[Paths], colors: Sequence[Any]
) -> list[Float[np.ndarray, " _"]]:
    medians = [_median_band(paths)[1] for paths in earlier]
    for paths, median, color in zip(earlier, medians, colors, strict=True):
        axes.plot(paths.alphas.numpy(), median, color=color, linewidth=1.1, zorder=2.5)
    return medians


def _draw_band(axes: Axes, paths: Paths, color: Any) -> Float[np.ndarray, " step"]:
    """Draw the median curve on its quartile band, and return the band's upper edge."""
    alphas, (q25, median, q75) = paths.alphas.numpy(), _median_band(paths)
    axes.fill_between(
        alphas, q25, q75, color=color, alpha=0.2, linewidth=0, zorder=3, label="quartiles"
    )
    axes.plot(alphas, median, color=color, linewidth=2, zorder=4, label="median")
    return q75


def _median_band(paths: Paths) -> tuple[Float[np.ndarray, " step"], ...]:
    """Return the 25th percentile, the median and the 75th percentile of the kept curves."""
    curves = median_curve(fill_gaps(paths.alphas, paths.relative), paths.kept)
    return tuple(curve.numpy() for curve in curves)


def _shades(num_earlier: int) -> tuple[list[Any], Any]:
    """Return evenly spaced colours for the earlier curves, from pale on, and the last one's."""
    from matplotlib import colormaps

    shades = colormaps["viridis_r"]
    return [shades(place) for place in np.linspace(0.08, 0.8, num_earlier)], shades(1.0)


def _write_scale(figure: Figure, titles: Sequence[str], colors: Sequence[Any]) -> None:
    """Write a line and a title for each curve at the right of the axes, the last at the top."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    left, top = LEFT + WIDTH + 0.14, height - 0.8
    pitch = min(0.17, 2.0 / max(1, len(titles) - 1))
    for place, (title, color) in enumerate(zip(reversed(titles), reversed(colors), strict=True)):
        y = top - pitch * place
        ends = [(left + x) / width for x in (0, 0.16)]
        swatch = Line2D(ends, [y / height] * 2, color=color, linewidth=1.1 if place else 2)
        figure.add_artist(swatch)
        weight = "normal" if place else "bold"
        write_text(figure, left + 0.22, y - 0.035, title, 7.5, INK, 0.92, weight=weight)


def _slopes_in_words(paths: Paths) -> str:
    """Say the median maximum slope, its quartiles, and how many pairs count."""
    of = summarise(paths.max_slope, paths.kept)
    left_out = f", {of.num_left_out} left out" if of.num_left_out else ""
    pairs = f"{of.count} pair{'' if of.count == 1 else 's'}{left_out}"
    if not of.count:
        return pairs
    return f"maximum slope {of.median:.2f} (quartiles {of.q25:.2f} to {of.q75:.2f}), {pairs}"


def _doubts_in_words(paths: Paths) -> str:
    """Say how sure the median is: its interval, the arithmetic, and the noise."""
    of = summarise(paths.max_slope, paths.kept)
    sure = [f"95% interval of the median {of.low:.2f} to {of.high:.2f}"] if of.count > 1 else []
    made = [f"{paths.precision}, noise {paths.noise_floor:.0e}"] if paths.precision else []
    return "; ".join(sure + made)


def _top(behind: Sequence[Float[np.ndarray, " _"]], q75: Float[np.ndarray, " step"]) -> float:
    """Return the upper limit of the axis: above the band, and the curves behind up to 1.5."""
    tame = min(1.5, max((np.nanmax(curve, initial=1.0) for curve in behind), default=1.0))
    return 1.04 * float(max(tame, np.nanmax(q75, initial=1.0)))
