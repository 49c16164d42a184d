"""Reading pictures in tests: the pixels, the texts and their places."""

from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from sr_monitor.probes.drawing import rasterise

NASTY = (
    " costs $5 or $\\frac{1}{",
    "two\nlines, a\ttab, a bell \x07 and an emoji \U0001f600 " * 8,
    "日本語 \ue000 ـُ \udc80 _{x}^2",
)


def pixel(figure: Figure, axes: Axes, x: float, y: float) -> list[int]:
    """The colour of the picture at a place in the axes' coordinates."""
    image = rasterise(figure)
    column, row = axes.transData.transform((x, y))
    colour: list[int] = image[image.shape[0] - 1 - int(row), int(column)].tolist()
    return colour


def is_grey(colour: list[int]) -> bool:
    return max(colour) - min(colour) < 12 and 140 < colour[0] < 210


def texts(figure: Figure) -> list[Text]:
    """Every text that is drawn; matplotlib keeps labels of ticks that lie beyond an axis too."""
    figure.draw_without_rendering()
    beyond = []
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        beyond += [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    unseen = [label for tick in beyond for label in (tick.label1, tick.label2)]
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    shown = [text for text in found if text.get_visible() and text.get_text().strip()]
    return [text for text in shown if not any(text is label for label in unseen)]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def assert_tidy(figure: Figure) -> None:
    """Every text lies on the page, and no two on each other."""
    page = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    for text, box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    for (one, box), (other, another) in combinations(boxes, 2):
        apart = box.x1 <= another.x0 or another.x1 <= box.x0
        assert apart or box.y1 <= another.y0 or another.y1 <= box.y0, (one, other)
