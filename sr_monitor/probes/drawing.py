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

    _let_markers_go()
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
    """Draw the figure now: matplotlib makes ticks lazily, in the style then in force."""
    figure.canvas.draw()
    return figure


@own_style()
def rasterise(figure: Figure) -> UInt8[np.ndarray, "row column 3"]:
    """Return the picture as an array of colours, the top row first, as image writers take it."""
    canvas: Any = figure.canvas
    if figure.stale:
        canvas.draw()
    # (row, column, red green blue alpha) -> (row, column, red green blue)
    return np.array(canvas.buffer_rgba())[..., :3]


def pixels(figure: Figure) -> UInt8[np.ndarray, "row column 3"]:
    """Rasterise a figure that nobody needs afterwards, and take it apart."""
    image = np.ascontiguousarray(rasterise(figure))  # not as a view, which keeps more
    _take_apart(figure)
    return image


def _take_apart(figure: Any) -> None:
    """Clear the parts of a figure, which refer to each other.

    Only the garbage collector would free them, which training loops often switch off.
    """
    for part in figure.findobj():
        bar = getattr(part, "_colorbar", None)
        for shaded in (part, bar.mappable) if bar else (part,):
            if hasattr(shaded, "colorizer"):
                vars(shaded.norm.callbacks).clear()
                vars(shaded.colorizer.callbacks).clear()
        getattr(part, "containers", []).clear()
        vars(bar or part).clear()
        vars(part).clear()


class _Unbound:
    """An attribute for a method of its own object, kept unbound: bound, the object holds itself."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        function = vars(instance)[self.name]
        return function and function.__get__(instance)

    def __set__(self, instance: Any, method: Any) -> None:
        vars(instance)[self.name] = getattr(method, "__func__", method)


@functools.cache
def _let_markers_go() -> None:
    """Let markers be freed without the garbage collector; each tick makes several.

    Nothing else changes for other code that draws in this process.
    """
    from matplotlib.markers import MarkerStyle

    MarkerStyle._marker_function = function = _Unbound()  # type: ignore[attr-defined]
    function.__set_name__(MarkerStyle, "_marker_function")


@functools.cache
def load_drawing() -> None:
    """Import matplotlib, find its fonts and draw a page, so that no training step waits for it."""
    import matplotlib.patheffects  # noqa: F401  (around the letters in a slice)
    from PIL import Image

    with own_style():
        figure = new_page(1.0, 1.0)
        place_axes(figure, 0.2, 0.2, 0.6, 0.6)
        write_text(figure, 0.0, 0.0, "1", 8.5, INK, 1.0)
        pixels(settled(figure))
    Image.preinit()  # the formats, which it imports when the first picture is encoded


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
