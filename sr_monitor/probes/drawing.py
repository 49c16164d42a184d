"""Draw what the pictures of all probes share: the page, its style, its texts, and its pixels.

A figure depends on its data alone: neither on the user's matplotlib settings nor on a display.
Every text is drawn literally and cut to its place. Places are in inches.

    @own_style()
    def draw_depth(depth):
        figure = new_page(5.0, 3.7)
        axes = place_axes(figure, LEFT, 0.88, WIDTH, 2.1)
        ...
        return settled(figure)

    image = pixels(draw_depth(depth))
"""

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

Axes: TypeAlias = "matplotlib.axes.Axes"
Figure: TypeAlias = "matplotlib.figure.Figure"

INK, SOFT, BLUE, RED = "#22252a", "#6b7178", "#1f5a94", "#b0182b"
DPI = 160
LEFT, WIDTH = 0.72, 4.1
"""Where the axes of a diagram begin, and how wide they are."""
_LONGEST_TEXT = 160
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a prompt may hold any number of $
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "hatch.color": "#9a9ea3",
    "hatch.linewidth": 0.6,
}
_OTHER_SCRIPTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC"),
    *("Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS"),
)


@contextmanager
def own_style() -> Iterator[None]:
    """Draw in matplotlib's defaults and the style of this file, whatever the user has set."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE | {"font.family": _fonts()}]):
        yield


def new_page(width: float, height: float) -> Figure:
    """Return an empty white page, its size in inches."""
    from matplotlib import figure as figures
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figures.Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def place_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a fixed place, so that the pictures of all steps line up."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes(
        (left / page_width, bottom / page_height, width / page_width, height / page_height)
    )


def write_text(
    figure: Figure,
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
    """Write one line of text at a place, cut to `width`.

    Keep the end of a prompt: its last token is the one whose activation was replaced.
    """
    page = figure.get_size_inches()
    text = printable(text[-_LONGEST_TEXT:] if keep_end else text[:_LONGEST_TEXT]).strip()
    label = figure.text(left / page[0], bottom / page[1], text, size=size, color=color, **style)
    while text and label.get_window_extent().width > width * figure.dpi:
        text = text[1:] if keep_end else text[:-1]
        label.set_text(f"…{text}" if keep_end else f"{text}…")


def write_headline(figure: Figure, title: str, note: str, small: str = "") -> None:
    """Write a title, a note and a small one at the upper left, in line with the axes."""
    height = figure.get_size_inches()[1]
    write_text(figure, LEFT, height - 0.3, title, 11.0, INK, WIDTH)
    write_text(figure, LEFT, height - 0.51, note, 8.5, SOFT, WIDTH)
    write_text(figure, LEFT, height - 0.67, small, 7.0, SOFT, WIDTH)


def count_along(axis: Any) -> None:
    """Put ticks at whole numbers only, as those of blocks."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def settled(figure: Figure) -> Figure:
    """Lay the figure out now: matplotlib makes ticks lazily, in the style then in force."""
    figure.draw_without_rendering()
    return figure


@own_style()
def rasterise(figure: Figure) -> UInt8[np.ndarray, "row column 3"]:
    """Return the picture as an array of colours, the top row first, as image writers take it."""
    width, height = figure.canvas.get_width_height()
    figure.savefig(content := io.BytesIO(), format="rgba")
    # bytes -> (row, column, red green blue alpha) -> (row, column, red green blue)
    return np.frombuffer(content.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def pixels(figure: Figure) -> UInt8[np.ndarray, "row column 3"]:
    """Rasterise a figure that nobody needs afterwards, and take it apart."""
    image = rasterise(figure)
    # Its parts refer to each other: memory that only the garbage collector would free, which
    # training loops often switch off.
    for part in figure.findobj():
        vars(part).clear()
    return image


@functools.cache
def _fonts() -> tuple[str, ...]:
    """Return matplotlib's own font, and those installed here for scripts that it lacks."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed))


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = (findfont(FontProperties(family=name)) for name in _fonts())
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def printable(text: str) -> str:
    """Put a text on one line, a box for each character that matplotlib would warn about."""
    spaced = ("↵" if char == "\n" else " " if char.isspace() else char for char in text)
    return "".join(c if c.isprintable() and ord(c) in _glyphs() else "□" for c in spaced)
