"""Draw what only a report draws: numbers by step, of several runs in one diagram.

figure = draw_slope_by_step([Course.of(run) for run in runs])
"""

import math
from collections.abc import Sequence
from typing import Any

from sr_monitor.display.report.course import Course
from sr_monitor.probes.base import RGB
from sr_monitor.probes.drawing import (
    DPI,
    INK,
    LEFT,
    SOFT,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    settled,
    write_text,
)
from sr_monitor.probes.paths import PathsProbe

_COLORS = (
    *("#0b62a4", "#c1480a", "#00785a", "#a8457f"),
    *("#8a6a00", "#3b8fc4", "#50565d", "#6b4bb0"),
)
_ACROSS, _UP = 3.4, 2.5  # inches of a small chart


@own_style()
def draw_slope_by_step(courses: Sequence[Course]) -> Figure:
    """Draw the median maximum slope of each run with its quartile band."""
    figure = new_page(6.4, 3.9)
    axes = place_axes(figure, LEFT, 0.88, 5.3, 2.7)
    stem = PathsProbe.MAX_SLOPE_MEDIAN.name.removesuffix("/median")
    names = {edge: f"{stem}/{edge}" for edge in ("median", "q25", "q75")}
    for number, course in enumerate(courses):
        _draw_line(axes, course, names, _COLORS[number % len(_COLORS)], course.run.name)
    axes.axhline(1, color=SOFT, linewidth=1, linestyle=":", label="straight line: no regions")
    is_sweep = all(course.is_sweep for course in courses)
    axes.set(xlabel="parameters" if is_sweep else "step", ylabel="maximum slope")
    if is_sweep:
        axes.set_xscale("log")
    figure.legend(loc="lower center", ncols=3, frameon=False, fontsize=8)
    return settled(figure)


@own_style()
def draw_numbers(courses: Sequence[Course], group: dict[str, Any]) -> Figure:
    """Draw the charts of one group, three in a row."""
    charts, across = group["charts"], min(3, len(group["charts"]))
    rows = -(-len(charts) // across)
    figure = new_page(_ACROSS * across, _UP * rows)
    for place, chart in enumerate(charts):
        row, column = divmod(place, across)
        bottom = _UP * (rows - 1 - row)
        axes = place_axes(figure, _ACROSS * column + 0.75, bottom + 0.5, _ACROSS - 1.0, _UP - 0.95)
        for number, course in enumerate(courses):
            for names in chart["lines"]:
                _draw_line(axes, course, names, _COLORS[number % len(_COLORS)])
        axes.set(xlabel="parameters" if courses[0].is_sweep else "step")
        title = _ACROSS * column + 0.75, bottom + _UP - 0.24
        write_text(figure, *title, chart["title"], 9.0, INK, _ACROSS - 1.0)
    return settled(figure)


def _draw_line(
    axes: Axes, course: Course, names: dict[str, str], color: str, label: str | None = None
) -> None:
    """Draw one number by step, and the band around it if there is one."""
    # Where a measurement lacks the number, NaN leaves a gap.
    lines = {
        edge: [math.nan if value is None else value for value in course.numbers[name]]
        for edge, name in names.items()
        if name in course.numbers
    }
    if "median" in lines:
        marker = "o" if len(course.steps) <= 30 else None
        axes.plot(course.steps, lines["median"], color=color, marker=marker, ms=3, label=label)
    if {"q25", "q75"} <= lines.keys():
        axes.fill_between(
            course.steps, lines["q25"], lines["q75"], color=color, alpha=0.15, linewidth=0
        )


@own_style()
def frame_pixels(rgb: RGB) -> Figure:
    """Return a figure that holds a picture as it is, pixel for pixel at its own size."""
    height, width, _ = rgb.shape
    figure = new_page(width / DPI, height / DPI)
    axes = place_axes(figure, 0.0, 0.0, width / DPI, height / DPI)
    axes.imshow(rgb, interpolation="none")
    axes.set_axis_off()
    return settled(figure)
