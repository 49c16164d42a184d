"""Pictures of results, never of a model.

Each function takes a result object and returns a finished `matplotlib.figure.Figure` that belongs
to no window and to no `pyplot` state. A picture depends on its data alone: neither on the user's
matplotlib settings nor on a display. Every text is drawn as it is (a `$` is a `$`), fitted to its
place, and characters that no installed font has become a small box.

    figure = draw_curves(paths, title="step 1000")
    save_figure(figure, "curves.png")
"""

import functools
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.files import write_whole
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.statistics import median_curve, summarise

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_INK, _SOFT, _BAR, _FAINT, _BLUE = "#22252a", "#6b7178", "#9aa5b1", "#c9ced4", "#1f5a94"
_CORNERS = {"A": "#b0182b", "B": "#117a37", "C": "#2340b8"}  # red, green, blue, dark enough to read
_DPI = 160
_LEFT, _WIDTH = 0.72, 4.1  # of the axes of a diagram, in inches
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a prompt may hold any number of $
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.color": "#9a9ea3",
    "hatch.linewidth": 0.6,
}
_OTHER_SCRIPTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC"),
    *("Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS"),
)
_NUM_SINGLE_CURVES = 12
_SCALE_WIDTH = 1.2  # of the scale of steps beside a diagram, in inches
_FRAMES_IN_A_ROW = 8
# Of a film, in inches; all are whole pixels, so that a frame can be moved to another place in it.
_FRAME, _ACROSS, _UP, _MARGIN = 1.6, 1.725, 1.925, 0.1


@runtime_checkable
class PathsLike(Protocol):
    """What a picture needs of a `Paths`."""

    @property
    def alphas(self) -> Float[Tensor, " step"]: ...  # noqa: D102
    @property
    def relative(self) -> Float[Tensor, "pair step"]: ...  # noqa: D102
    @property
    def max_slope(self) -> Float[Tensor, " pair"]: ...  # noqa: D102
    @property
    def kept(self) -> Bool[Tensor, " pair"]: ...  # noqa: D102


@runtime_checkable
class SlicesLike(Protocol):
    """What a picture needs of a `Slices`."""

    @property
    def coordinates(self) -> Float[Tensor, " row"]: ...  # noqa: D102
    @property
    def distance(self) -> Float[Tensor, "triple corner row column"]: ...  # noqa: D102
    @property
    def foot(self) -> Float[Tensor, " triple"]: ...  # noqa: D102
    @property
    def rgb(self) -> Float[Tensor, "triple row column 3"]: ...  # noqa: D102


@contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's defaults and the style of this file, whatever the user has set."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE | {"font.family": _fonts()}]):
        yield


@_own_style()
def draw_curves(
    paths: PathsLike,
    *,
    title: str = "From one prompt to another",
    earlier: Sequence[tuple[str, PathsLike]] | None = None,
) -> "matplotlib.figure.Figure":
    """The median curve with its quartile band, and a line without regions.

    Behind them are some single curves or, if `earlier` measurements are given with their titles
    (the first of them first), the median curves of these, the paler the earlier. A scale says
    which is which; it is there for an empty `earlier` too, so that all pictures are of one size.
    """
    figure = _page(5.0 if earlier is None else 5.0 + _SCALE_WIDTH, 3.7)
    axes = _place(figure, _LEFT, 0.88, _WIDTH, 2.1)
    if earlier is None:
        color, behind = _BLUE, _draw_single_curves(axes, paths)
    else:
        pale, color = _shades(len(earlier))
        behind = _draw_earlier_curves(axes, [paths for _, paths in earlier], pale)
        _write_scale(figure, [*(title for title, _ in earlier), title], [*pale, color])
    straight = "straight line: no regions"
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=":", zorder=2, label=straight)
    q75 = _draw_band(axes, paths, color)
    axes.set(xlabel="interpolation coefficient alpha", ylabel="relative output distance")
    axes.set(xlim=(0, 1), ylim=(0, _top(behind, q75)))
    figure.legend(
        *_reversed_legend(axes), loc="lower center", ncols=4, frameon=False, fontsize=8,
        handlelength=1.6, columnspacing=1.6, bbox_to_anchor=(2.5 / figure.get_figwidth(), 0.02),
    )  # fmt: skip
    _headline(figure, title, _slopes_in_words(paths))
    return _settled(figure)


@_own_style()
def draw_slopes(
    paths: PathsLike, *, title: str = "How sharp the boundaries are"
) -> "matplotlib.figure.Figure":
    """The histogram of the kept pairs' maximum slopes, with its median and quartiles."""
    from matplotlib.ticker import MaxNLocator

    figure = _page(5.0, 3.35)
    axes = _place(figure, _LEFT, 0.53, _WIDTH, 2.1)
    summary = summarise(paths.max_slope, paths.kept)
    slopes = paths.max_slope[paths.kept & paths.max_slope.isfinite()].numpy()
    limits = min(0.0, slopes.min(initial=0)), max(2.0, 1.04 * slopes.max(initial=0))
    num_bins = min(60, max(20, 2 * math.isqrt(summary.count)))
    axes.axvspan(summary.q25, summary.q75, color=_BLUE, alpha=0.2, linewidth=0)
    counts, edges = np.histogram(slopes, num_bins, limits)
    left, widths = edges[:-1], np.diff(edges)
    axes.bar(left, counts, widths, align="edge", color=_BAR, edgecolor="white", linewidth=0.6)
    axes.axvline(1, color=_SOFT, linewidth=1, linestyle=":")
    axes.axvline(summary.median, color=_BLUE, linewidth=2)
    axes.set(xlabel="maximum slope (1: straight line, no regions)", ylabel="pairs")
    axes.set(xlim=limits, ylim=(0, max(1.0, 1.05 * counts.max())))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    _headline(figure, title, _slopes_in_words(paths))
    return _settled(figure)


@_own_style()
def draw_slice(
    slices: SlicesLike, triple: int, *, prompts: Sequence[str] | None = None
) -> "matplotlib.figure.Figure":
    """One slice in colour, A, B and C marked, their prompts below.

    Red, green and blue tell how close the output is to that of A, B and C. Grey, hatched: not
    finite. A point outside of the picture is marked by an arrowhead at its edge.
    """
    _check_triple("draw_slice", slices, triple)
    if prompts is not None and len(prompts) != 3:
        raise InputError(
            f"draw_slice(prompts=...): a slice has 3 prompts, got {len(prompts)}; "
            "pass those of A, B and C"
        )
    from matplotlib.ticker import MaxNLocator

    below = 0.0 if prompts is None else 0.62
    figure = _page(3.7, 3.55 + below)
    axes = _place(figure, 0.55, 0.5 + below, 2.9, 2.9)
    _paint(axes, slices, triple, mark_size=7.0)
    axes.set(xlabel="from A towards B", ylabel="from the line AB towards C")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    for line, (name, prompt) in enumerate(zip(_CORNERS, prompts or (), strict=False)):
        height = 0.47 - 0.17 * line
        _write(figure, 0.2, height, name, 8.0, _CORNERS[name], 0.2, weight="bold")
        _write(figure, 0.4, height, prompt, 8.0, _CORNERS[name], 3.05, keep_end=True)
    return _settled(figure)


@_own_style()
def draw_film(
    slices_by_step: Sequence[tuple[str, SlicesLike]], triple: int
) -> "matplotlib.figure.Figure":
    """One triple's slice at several steps, left to right, each under its title."""
    if not slices_by_step:
        raise InputError("draw_film(slices_by_step=[]): there is no slice; pass at least one")
    for _, slices in slices_by_step:
        _check_triple("draw_film", slices, triple)
    (width, height), corners = _film_layout(len(slices_by_step))
    figure = _page(width, height)
    for (title, slices), (left, top) in zip(slices_by_step, corners, strict=True):
        bottom = height - top - _UP
        axes = _place(figure, left, bottom, _FRAME, _FRAME)
        _paint(axes, slices, triple, mark_size=5.0)
        axes.set(xticks=[], yticks=[])
        middle, above = left + _FRAME / 2, bottom + _FRAME + 0.08
        _write(figure, middle, above, title, 8.5, _INK, _FRAME, ha="center")
    return _settled(figure)


def join_frames(
    frames: Sequence[UInt8[np.ndarray, "row column 3"]],
) -> UInt8[np.ndarray, "film_row film_column 3"]:
    """The film of frames that were drawn one by one, each a rasterised film of one slice.

    It is the picture that `draw_film` gives of all their slices, and much sooner there.
    """
    if not frames:
        raise InputError("join_frames(frames=[]): there is no frame; pass at least one")
    (width, height), corners = _film_layout(len(frames))
    film = np.full((_pixels(height), _pixels(width), 3), 255, np.uint8)
    rim = _pixels(_MARGIN) // 2  # the line around a slice is drawn on its edge
    height, width = _pixels(_UP), _pixels(_FRAME) + 2 * rim
    for frame, (left, top) in zip(frames, corners, strict=True):
        row, column = _pixels(top) + rim, _pixels(left) - rim
        film[row : row + height, column : column + width] = frame[rim:, rim:][:height, :width]
    return film


@_own_style()
def save_figure(figure: "matplotlib.figure.Figure", path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    figure.savefig(content := io.BytesIO(), format="png")
    write_whole(Path(path), content.getvalue())


@_own_style()
def rasterise(figure: "matplotlib.figure.Figure") -> UInt8[np.ndarray, "row column 3"]:
    """The picture as an array of colours, the top row first, as image writers take it."""
    width, height = figure.canvas.get_width_height()
    figure.savefig(pixels := io.BytesIO(), format="rgba")
    return np.frombuffer(pixels.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def _draw_single_curves(
    axes: "matplotlib.axes.Axes", paths: PathsLike
) -> list[Float[np.ndarray, " step"]]:
    """Some of the kept pairs' curves, in grey."""
    every = max(1, int(paths.kept.sum()) // _NUM_SINGLE_CURVES)
    curves = fill_gaps(paths.alphas, paths.relative)
    single = list(curves[paths.kept][::every][:_NUM_SINGLE_CURVES].numpy())
    for index, curve in enumerate(single):
        label = "single pairs" if index == 0 else None
        axes.plot(paths.alphas.numpy(), curve, color=_FAINT, linewidth=0.6, zorder=1, label=label)
    return single


def _draw_earlier_curves(
    axes: "matplotlib.axes.Axes", earlier: Sequence[PathsLike], colors: Sequence[Any]
) -> list[Float[np.ndarray, " _"]]:
    """The median curve of each, the last of them on top."""
    medians = [_median_band(paths)[1] for paths in earlier]
    for paths, median, color in zip(earlier, medians, colors, strict=True):
        axes.plot(paths.alphas.numpy(), median, color=color, linewidth=1.1, zorder=2.5)
    return medians


def _draw_band(
    axes: "matplotlib.axes.Axes", paths: PathsLike, color: Any
) -> Float[np.ndarray, " step"]:
    """The median curve on its quartile band; the upper edge of the band."""
    alphas, (q25, median, q75) = paths.alphas.numpy(), _median_band(paths)
    axes.fill_between(
        alphas, q25, q75, color=color, alpha=0.2, linewidth=0, zorder=3, label="quartiles"
    )
    axes.plot(alphas, median, color=color, linewidth=2, zorder=4, label="median")
    return q75


def _median_band(paths: PathsLike) -> tuple[Float[np.ndarray, " step"], ...]:
    """The 25th percentile, the median and the 75th percentile of the kept pairs' curves."""
    curves = median_curve(fill_gaps(paths.alphas, paths.relative), paths.kept)
    return tuple(curve.numpy() for curve in curves)


def _shades(num_earlier: int) -> tuple[list[Any], Any]:
    """Colours of earlier curves, from pale on, as evenly apart to the eye as can be; the last's."""
    from matplotlib import colormaps

    shades = colormaps["viridis_r"]
    return [shades(place) for place in np.linspace(0.08, 0.8, num_earlier)], shades(1.0)


def _write_scale(
    figure: "matplotlib.figure.Figure", titles: Sequence[str], colors: Sequence[Any]
) -> None:
    """A line and its title for each curve at the right of the axes, the last at the top."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    left, top = _LEFT + _WIDTH + 0.14, height - 0.8
    pitch = min(0.17, 2.0 / max(1, len(titles) - 1))
    for place, (title, color) in enumerate(zip(reversed(titles), reversed(colors), strict=True)):
        y = (top - pitch * place) / height
        ends = [(left + x) / width for x in (0, 0.16)]
        line = Line2D(ends, [y, y], color=color, linewidth=1.1 if place else 2)
        figure.add_artist(line)
        weight = "normal" if place else "bold"
        _write(
            figure, left + 0.22, top - pitch * place - 0.035, title, 7.5, _INK, 0.92, weight=weight
        )


def _film_layout(count: int) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """Width and height of a film, and the left and top of each frame in it."""
    num_rows = math.ceil(count / _FRAMES_IN_A_ROW)
    num_columns = math.ceil(count / num_rows)
    width = 2 * _MARGIN + _ACROSS * (num_columns - 1) + _FRAME
    places = [divmod(index, num_columns) for index in range(count)]
    corners = [(_MARGIN + _ACROSS * column, _UP * row) for row, column in places]
    return (width, _UP * num_rows + _MARGIN), corners


def _pixels(inches: float) -> int:
    return round(inches * _DPI)


def _page(width: float, height: float) -> "matplotlib.figure.Figure":
    """An empty white page, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _settled(figure: "matplotlib.figure.Figure") -> "matplotlib.figure.Figure":
    """The figure, laid out once: matplotlib makes ticks late, in the style of that moment."""
    figure.draw_without_rendering()
    return figure


def _place(
    figure: "matplotlib.figure.Figure", left: float, bottom: float, width: float, height: float
) -> "matplotlib.axes.Axes":
    """Axes at a fixed place, in inches, so that the pictures of all steps lie on each other."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes(
        (left / page_width, bottom / page_height, width / page_width, height / page_height)
    )


def _write(
    figure: "matplotlib.figure.Figure",
    left: float,
    bottom: float,
    text: str,
    size: float,
    color: str,
    width: float,
    *,
    keep_end: bool = False,
    **style: Any,
) -> None:
    """One line of text at a place in inches, cut to `width`.

    Of a prompt the end is kept: its last token is the one whose activation was replaced.
    """
    page_width, page_height = figure.get_size_inches()
    text = _printable(text[-160:] if keep_end else text[:160]).strip()
    label = figure.text(
        left / page_width, bottom / page_height, text, size=size, color=color, **style
    )
    while text and label.get_window_extent().width > width * figure.dpi:
        text = text[1:] if keep_end else text[:-1]
        label.set_text(f"…{text}" if keep_end else f"{text}…")


def _headline(figure: "matplotlib.figure.Figure", title: str, note: str) -> None:
    """Title and note at the upper left, in line with the axes."""
    height = figure.get_size_inches()[1]
    _write(figure, _LEFT, height - 0.3, title, 11.0, _INK, _WIDTH)
    _write(figure, _LEFT, height - 0.52, note, 8.5, _SOFT, _WIDTH)


def _slopes_in_words(paths: PathsLike) -> str:
    """The median maximum slope, its quartiles, and how many pairs they are of."""
    of = summarise(paths.max_slope, paths.kept)
    left_out = f", {of.num_left_out} left out" if of.num_left_out else ""
    pairs = f"{of.count} pair{'' if of.count == 1 else 's'}{left_out}"
    if not of.count:
        return pairs
    return f"maximum slope {of.median:.2f} (quartiles {of.q25:.2f} to {of.q75:.2f}), {pairs}"


def _top(behind: Sequence[Float[np.ndarray, " _"]], q75: Float[np.ndarray, " step"]) -> float:
    """Upper end of the axis: all of the band, and curves behind as long as they are not wild."""
    wild = min(1.5, max((np.nanmax(curve, initial=1.0) for curve in behind), default=1.0))
    return 1.04 * float(max(wild, np.nanmax(q75, initial=1.0)))


def _reversed_legend(axes: "matplotlib.axes.Axes") -> tuple[list[Any], list[Any]]:
    """Handles and labels of the legend, what lies on top first."""
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]


def _check_triple(call: str, slices: SlicesLike, triple: int) -> None:
    """Refuse a triple that was not measured."""
    count = len(slices.foot)
    if not 0 <= triple < count:
        raise InputError(
            f"{call}(triple={triple}): there are {count} triples; pass one of 0 to {count - 1}"
        )


def _paint(
    axes: "matplotlib.axes.Axes", slices: SlicesLike, triple: int, *, mark_size: float
) -> None:
    """The colours of a slice, origin at the lower left, and its three points."""
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
    axes: "matplotlib.axes.Axes",
    points: Float[np.ndarray, "corner 2"],
    edges: tuple[float, float],
    size: float,
) -> None:
    """A ring around each point, an arrowhead at the edge for one outside, and its letter.

    All is white on black, so that it can be read on any colour. Letters lie on the far side of the
    other points, however close these are, but inwards where they would leave the picture.
    """
    unit = (edges[1] - edges[0]) / (axes.get_window_extent().width / _DPI * 72)  # of one pt
    inside = ((points >= edges[0]) & (points <= edges[1])).all(axis=1, keepdims=True)
    room = edges[0] + 0.9 * size * unit, edges[1] - 0.9 * size * unit
    shown = np.where(inside, points, points.clip(*room))
    away = 1.8 * size * unit * np.array([(-0.7, -0.7), (0.7, -0.7), (0.0, 1.0)])
    leaves = (shown + away < room[0]) | (shown + away > room[1])
    letters = shown + np.where(leaves, -away, away)
    for name, place, beyond, letter in zip(_CORNERS, shown, points - shown, letters, strict=True):
        if np.isfinite(place).all():
            arrowhead = (3, 0, math.degrees(math.atan2(*beyond[::-1])) - 90)
            _draw_mark(axes, place, arrowhead if beyond.any() else "o", size)
            _draw_letter(axes, letter, name, 1.4 * size)


def _draw_mark(
    axes: "matplotlib.axes.Axes",
    place: Float[np.ndarray, " 2"],
    marker: str | tuple[int, int, float],
    size: float,
) -> None:
    """A hollow mark with a halo: the colour at the point itself stays visible."""
    from matplotlib.patheffects import withStroke

    axes.plot(
        *place,
        marker=marker,
        markersize=size,
        markerfacecolor="none",
        markeredgecolor="white",
        markeredgewidth=size / 6,
        path_effects=[withStroke(linewidth=size / 2.6, foreground=_INK)],
        clip_on=False,
    )


def _draw_letter(
    axes: "matplotlib.axes.Axes", place: Float[np.ndarray, " 2"], name: str, size: float
) -> None:
    """A letter with a halo, centred at its place."""
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=size / 4.2, foreground=_INK)
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "weight": "bold"}
    axes.text(place[0], place[1], name, size=size, path_effects=[halo], **style)


@functools.cache
def _fonts() -> tuple[str, ...]:
    """Matplotlib's own font, and what is installed here for the scripts that it does not have."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed))


@functools.cache
def _glyphs() -> frozenset[int]:
    """The code points that `_fonts` can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = (findfont(FontProperties(family=name)) for name in _fonts())
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def _printable(text: str) -> str:
    """The text on one line, a box for each character that cannot be drawn (matplotlib warns)."""
    spaced = ("↵" if char == "\n" else " " if char.isspace() else char for char in text)
    return "".join(c if c.isprintable() and ord(c) in _glyphs() else "□" for c in spaced)
