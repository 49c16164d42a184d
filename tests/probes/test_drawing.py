"""What is drawn: the pixels, the lines' data, the texts' places. Not merely that something is."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from safetensors.torch import load_file
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.probes.drawing import (
    draw_curves,
    draw_film,
    draw_slice,
    draw_slopes,
    join_frames,
    rasterise,
    save_figure,
)
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.sharpness import max_slope
from sr_monitor.probes.slices import Slices

NASTY = (
    " costs $5 or $\\frac{1}{",
    "two\nlines, a\ttab, a bell \x07 and an emoji \U0001f600 " * 8,
    "日本語 \ue000 ـُ \udc80 _{x}^2",
)


@dataclass(frozen=True)
class Curves:
    """As much of a `Paths` as a picture needs."""

    alphas: Tensor
    relative: Tensor
    kept: Tensor

    @property
    def max_slope(self) -> Tensor:
        return max_slope(self.alphas, self.relative)


@dataclass(frozen=True)
class Plane:
    """As much of a `Slices` as a picture needs."""

    coordinates: Tensor
    foot: Tensor
    rgb: Tensor
    distance: Tensor


def plane_of(coordinates: Tensor, foot: float, rgb: Tensor) -> Plane:
    return Plane(coordinates, torch.tensor([foot]), rgb, (1 - rgb).movedim(-1, 1).clone())


def logistic_curves(num_pairs: int = 40, num_steps: int = 51) -> Curves:
    generator = torch.Generator().manual_seed(0)
    alphas = torch.linspace(0, 1, num_steps)
    steepness = 5 + 30 * torch.rand(num_pairs, 1, generator=generator)
    curves = torch.sigmoid(steepness * (alphas - torch.rand(num_pairs, 1, generator=generator)))
    curves = (curves - curves[:, :1]) / (curves[:, -1:] - curves[:, :1])
    return Curves(alphas, curves, torch.arange(num_pairs) % 10 != 3)


def random_plane(
    foot: float = 0.4, resolution: int = 7, span: tuple[float, float] = (-0.25, 1.25), seed: int = 0
) -> Plane:
    """Every cell in a colour of its own, so that a wrong place cannot go unseen."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(1, resolution, resolution, 3, generator=generator)
    return plane_of(torch.linspace(*span, resolution), foot, rgb)


def pixel(figure: Figure, axes: Axes, x: float, y: float) -> list[int]:
    """The colour of the picture at a place in the axes' coordinates."""
    image = rasterise(figure)
    column, row = axes.transData.transform((x, y))
    colour: list[int] = image[image.shape[0] - 1 - int(row), int(column)].tolist()
    return colour


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
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text
    for (one, box), (other, another) in combinations(boxes, 2):
        apart = box.x1 <= another.x0 or another.x1 <= box.x0
        assert apart or box.y1 <= another.y0 or another.y1 <= box.y0, (one, other)


def line(axes: Axes, label: str) -> np.ndarray[Any, Any]:
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())


# Curves


def test_the_curve_drawn_is_the_median_of_the_kept_pairs() -> None:
    curves = logistic_curves()
    (axes,) = draw_curves(curves).axes
    expected = np.percentile(curves.relative[curves.kept].numpy(), 50, axis=0)
    np.testing.assert_allclose(line(axes, "median")[:, 0], curves.alphas.numpy())
    np.testing.assert_allclose(line(axes, "median")[:, 1], expected, rtol=1e-5)
    assert axes.get_xlabel() == "interpolation coefficient alpha"
    assert axes.get_ylabel() == "relative output distance"


def test_the_band_runs_from_quartile_to_quartile() -> None:
    curves = logistic_curves()
    (axes,) = draw_curves(curves).axes
    (band,) = [found for found in axes.collections if isinstance(found, PolyCollection)]
    corners = np.asarray(band.get_paths()[0].vertices)
    middle = corners[np.isclose(corners[:, 0], 0.5)][:, 1]
    expected = np.percentile(curves.relative[curves.kept, 25].numpy(), [25, 75])
    assert [middle.min(), middle.max()] == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_line_without_regions_is_straight_and_dotted() -> None:
    (axes,) = draw_curves(logistic_curves()).axes
    assert line(axes, "straight line: no regions").tolist() == [[0, 0], [1, 1]]
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted.get_label() == "straight line: no regions"


def test_a_few_single_curves_are_drawn_all_of_kept_pairs() -> None:
    curves = logistic_curves(num_pairs=26)
    (axes,) = draw_curves(curves).axes
    single = [np.asarray(found.get_ydata()) for found in axes.lines if found.get_linewidth() < 1]
    kept = [curve.tolist() for curve in curves.relative[curves.kept]]
    assert len(single) == 12
    assert all(curve.tolist() in kept for curve in single)


def test_the_median_is_seen_in_blue_on_white() -> None:
    alphas = torch.linspace(0, 1, 3)
    figure = draw_curves(Curves(alphas, alphas[None] ** 3, torch.tensor([True])))
    (axes,) = figure.axes
    red, _, blue = pixel(figure, axes, 0.5, 0.125)
    assert blue > red + 80
    assert pixel(figure, axes, 0.2, 0.9) == [255, 255, 255]


def test_the_note_tells_slope_quartiles_and_what_was_left_out() -> None:
    curves = logistic_curves()
    slopes = curves.max_slope[curves.kept].numpy()
    q25, median, q75 = np.percentile(slopes, [25, 50, 75])
    note = f"maximum slope {median:.2f} (quartiles {q25:.2f} to {q75:.2f}), 36 pairs, 4 left out"
    assert note in words(draw_curves(curves, title="step 1000"))
    assert "step 1000" in words(draw_curves(curves, title="step 1000"))
    assert note in words(draw_slopes(curves))
    one = Curves(curves.alphas, curves.relative[:1], torch.tensor([True]))
    assert any(text.endswith(", 1 pair") for text in words(draw_curves(one)))


def test_points_not_looked_at_are_bridged() -> None:
    alphas = torch.linspace(0, 1, 5)
    relative = torch.tensor([[0.0, math.nan, 0.5, math.nan, 1.0]])
    (axes,) = draw_curves(Curves(alphas, relative, torch.tensor([True]))).axes
    np.testing.assert_allclose(line(axes, "median")[:, 1], alphas.numpy())


def test_a_wild_curve_does_not_flatten_the_others() -> None:
    curves = logistic_curves()
    relative = curves.relative.clone()
    relative[0, 20] = 1000
    (axes,) = draw_curves(Curves(curves.alphas, relative, curves.kept)).axes
    assert 1 < axes.get_ylim()[1] < 2


def test_without_a_kept_pair_there_is_a_picture_that_says_so() -> None:
    curves = logistic_curves()
    nothing = Curves(curves.alphas, curves.relative, torch.zeros(40, dtype=torch.bool))
    for draw in (draw_curves, draw_slopes):
        assert "0 pairs, 40 left out" in words(draw(nothing))
        assert_tidy(draw(nothing))
        low, high = draw(nothing).axes[0].get_ylim()
        assert low == 0
        assert high >= 1


# Curves of earlier steps


def straight_to(bend: float) -> Curves:
    """One curve that rises steeply after `bend`."""
    alphas = torch.linspace(0, 1, 11)
    return Curves(alphas, alphas[None] ** bend, torch.tensor([True]))


def test_earlier_medians_lie_behind_in_their_own_colours() -> None:
    earlier = [
        ("step 0", straight_to(1)),
        ("step 1", logistic_curves()),
        ("step 2", logistic_curves()),
    ]
    (axes,) = draw_curves(straight_to(3), title="step 4", earlier=earlier).axes
    median = line(axes, "median")
    (current,) = [line for line in axes.lines if line.get_label() == "median"]
    behind = [line for line in axes.lines if line.get_linewidth() == 1.1]
    np.testing.assert_allclose(median[:, 1], np.linspace(0, 1, 11) ** 3, atol=1e-6)
    assert len(behind) == 3
    for (_, curves), drawn in zip(earlier, behind, strict=True):
        expected = np.percentile(curves.relative[curves.kept].numpy(), 50, axis=0)
        np.testing.assert_allclose(np.asarray(drawn.get_ydata()), expected, rtol=1e-5, atol=1e-6)
    assert all(drawn.get_zorder() < current.get_zorder() for drawn in behind)
    assert all(drawn.get_linewidth() < current.get_linewidth() for drawn in behind)


@pytest.mark.parametrize("count", [1, 2, 15])
def test_the_earlier_the_paler_and_the_last_is_the_darkest(count: int) -> None:
    earlier = [(f"step {index}", straight_to(index + 1)) for index in range(count)]
    (axes,) = draw_curves(straight_to(20), title="now", earlier=earlier).axes
    behind = [line for line in axes.lines if line.get_linewidth() == 1.1]
    (current,) = [line for line in axes.lines if line.get_label() == "median"]
    weights = np.array([0.2126, 0.7152, 0.0722])
    light = [float(weights @ np.array(to_rgb(drawn.get_color()))) for drawn in [*behind, current]]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == count + 1
    assert light[-1] < 0.1


def test_the_scale_names_every_curve_the_last_on_top_in_its_colour() -> None:
    earlier = [("step 0", straight_to(1)), ("step 500", straight_to(2))]
    figure = draw_curves(straight_to(3), title="step 1000", earlier=earlier)
    (axes,) = figure.axes
    right = axes.get_window_extent().x1
    scale = [text for text in texts(figure) if text.get_window_extent().x0 > right]
    assert [text.get_text() for text in scale] == ["step 1000", "step 500", "step 0"]
    heights = [text.get_window_extent().y0 for text in scale]
    assert heights == sorted(heights, reverse=True)
    drawn = [line for line in axes.lines if line.get_linestyle() == "-"]
    swatches = [swatch for swatch in figure.artists if isinstance(swatch, Line2D)]
    for text, swatch in zip(scale, swatches, strict=True):
        (x, *_), (y, *_) = np.asarray(swatch.get_xydata()).T
        box = text.get_window_extent().transformed(figure.transFigure.inverted())
        assert x < box.x0
        assert box.y0 < y < box.y1
    assert [swatch.get_color() for swatch in swatches] == [line.get_color() for line in drawn[::-1]]


def test_pictures_with_a_scale_are_of_one_size_and_their_axes_at_one_place() -> None:
    many = [(f"step {10**index}", straight_to(index + 1)) for index in range(15)]
    pictures = [draw_curves(straight_to(3), title=NASTY[1], earlier=many[:n]) for n in (0, 1, 15)]
    for picture in pictures:
        assert_tidy(picture)
    assert len({rasterise(picture).shape for picture in pictures}) == 1
    assert len({picture.axes[0].get_window_extent().bounds for picture in pictures}) == 1


def test_there_are_no_single_curves_among_earlier_ones() -> None:
    (axes,) = draw_curves(logistic_curves(), earlier=[]).axes
    assert len(axes.lines) == 2


def test_earlier_curves_without_a_kept_pair_are_passed_over() -> None:
    curves = logistic_curves()
    nothing = Curves(curves.alphas, curves.relative * math.nan, torch.zeros(40, dtype=torch.bool))
    some = [("step 0", nothing), ("step 1", curves)]
    for paths, earlier in ((nothing, some), (curves, some), (nothing, [])):
        figure = draw_curves(paths, title="step 2", earlier=earlier)
        assert_tidy(figure)
        assert figure.axes[0].get_ylim()[1] >= 1
    assert "0 pairs, 40 left out" in words(draw_curves(nothing, earlier=some))


# Slopes


def test_the_histogram_counts_every_kept_pair_once() -> None:
    curves = logistic_curves()
    (axes,) = draw_slopes(curves).axes
    band, *patches = axes.patches
    bars = [patch for patch in patches if isinstance(patch, Rectangle)]
    slopes = curves.max_slope[curves.kept].numpy()
    for bar in bars:
        left, right = bar.get_x(), bar.get_x() + bar.get_width()
        assert bar.get_height() == ((slopes >= left) & (slopes < right)).sum()
    assert sum(bar.get_height() for bar in bars) == 36
    expected = np.percentile(slopes, [25, 75]).tolist()
    sides = band.get_patch_transform().transform(band.get_path().vertices)[:, 0]
    assert [sides.min(), sides.max()] == pytest.approx(expected, rel=1e-5)


# Slices


def test_every_cell_has_its_colour_at_its_coordinates() -> None:
    plane = random_plane()
    figure = draw_slice(plane, 0)
    (axes,) = figure.axes
    image = rasterise(figure)
    for i, y in enumerate(plane.coordinates.tolist()):
        for j, x in enumerate(plane.coordinates.tolist()):
            # a quarter of a cell beside its middle, where no mark is
            column, row = axes.transData.transform((x + 0.06, y + 0.06)).astype(int)
            expected = (plane.rgb[0, i, j] * 255).tolist()
            assert image[image.shape[0] - 1 - row, column].tolist() == pytest.approx(
                expected, abs=1.01
            )


def test_row_zero_is_at_the_bottom_and_column_zero_at_the_left() -> None:
    rgb = torch.zeros(1, 5, 5, 3)
    rgb[0, 0, 0] = torch.tensor([1.0, 1.0, 0.0])
    rgb[0, 4, 0] = torch.tensor([0.0, 1.0, 1.0])
    figure = draw_slice(plane_of(torch.linspace(-0.25, 1.25, 5), 0.5, rgb), 0)
    image, box = rasterise(figure), figure.axes[0].get_window_extent()
    height = image.shape[0]
    assert image[height - int(box.y0) - 9, int(box.x0) + 8].tolist() == [255, 255, 0]
    assert image[height - int(box.y1) + 8, int(box.x0) + 8].tolist() == [0, 255, 255]
    assert box.width == pytest.approx(box.height)


def test_the_marked_points_are_those_where_each_map_is_zero() -> None:
    """Distances that vanish at A, B and C alone: their rings enclose pure red, green and blue."""
    coordinates = torch.linspace(-0.25, 1.25, 31)
    up, right = torch.meshgrid(coordinates, coordinates, indexing="ij")
    corners = [(0.0, 0.0), (1.0, 0.0), (0.35, 1.0)]
    maps = torch.stack([((right - x) ** 2 + (up - y) ** 2).sqrt() for x, y in corners])
    rgb = (maps < 1e-3).float().movedim(0, -1)[None]
    figure = draw_slice(plane_of(coordinates, 0.35, rgb), 0)
    for channel, corner in enumerate(corners):
        expected = [0, 0, 0]
        expected[channel] = 255
        assert pixel(figure, figure.axes[0], *corner) == expected
    film = draw_film([("", plane_of(coordinates, 0.35, rgb))], 0)
    assert pixel(film, film.axes[0], 0.0, 0.0) == [255, 0, 0]


@pytest.mark.parametrize("colour", [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]])
def test_marks_and_letters_can_be_read_on_any_colour(colour: list[float]) -> None:
    plane = random_plane()
    plane.rgb[:] = torch.tensor(colour)
    figure = draw_slice(plane, 0)
    image = rasterise(figure).astype(int).sum(axis=-1)
    for text in [text for text in figure.axes[0].texts if text.get_text() in "ABC"]:
        box = text.get_window_extent()
        height = image.shape[0]
        inked = image[height - int(box.y1) : height - int(box.y0), int(box.x0) : int(box.x1)]
        assert inked.max() > 740
        assert inked.min() < 160


@pytest.mark.parametrize("span", [(-0.25, 1.25), (0.0, 1.0), (-5.0, 5.0), (0.25, 0.75)])
@pytest.mark.parametrize("foot", [-40.0, -0.3, 0.0, 0.5, 1.0, 1.24, 7.0])
def test_letters_stay_in_the_picture_and_apart(span: tuple[float, float], foot: float) -> None:
    for figure in (
        draw_slice(random_plane(foot, span=span), 0),
        draw_film([("step 1", random_plane(foot, span=span))], 0),
    ):
        assert_tidy(figure)
        frame = figure.axes[0].get_window_extent()
        letters = [text for text in texts(figure) if text.get_text() in ("A", "B", "C")]
        marks = figure.axes[0].lines
        places = np.concatenate([np.asarray(mark.get_xydata()) for mark in marks])
        radius = marks[0].get_markersize() / 2 / 72 * figure.dpi
        around = radius * np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)])
        rings = figure.axes[0].transData.transform(places)[:, None] + around
        assert [letter.get_text() for letter in letters] == ["A", "B", "C"]
        for letter in letters:
            box = letter.get_window_extent()
            assert frame.x0 < box.x0
            assert box.x1 < frame.x1
            assert frame.y0 < box.y0
            assert box.y1 < frame.y1
            assert not any(box.contains(x, y) for x, y in rings.reshape(-1, 2).tolist())


def test_a_point_outside_is_an_arrowhead_at_the_edge() -> None:
    (axes,) = draw_slice(random_plane(foot=3.0), 0).axes
    ring, _, arrowhead = axes.lines
    assert ring.get_marker() == "o"
    marker: Any = arrowhead.get_marker()
    assert marker == (3, 0, -90)  # an upward triangle, turned to the right
    (x,), (y,) = np.asarray(arrowhead.get_xdata()), np.asarray(arrowhead.get_ydata())
    assert 1.2 < x < axes.get_xlim()[1]
    assert y == 1.0


def test_without_a_foot_c_is_not_marked() -> None:
    figure = draw_slice(random_plane(foot=math.nan), 0)
    assert [word for word in words(figure) if word in ("A", "B", "C")] == ["A", "B"]


def test_what_is_not_finite_is_grey_and_the_rest_is_as_before() -> None:
    plane, clean = random_plane(), random_plane()
    plane.distance[0, 1, 3, 3] = math.nan
    plane.distance[0, :, 3, 4] = math.inf
    plane.distance[0, 2, 3, 5] = math.inf
    plane.rgb[0, 3, 5] = math.nan
    before = plane.rgb.clone()
    figure = draw_slice(plane, 0)
    axes = figure.axes[0]
    middles = plane.coordinates.tolist()
    for column in (3, 4, 5):
        red, green, blue = pixel(figure, axes, middles[column] + 0.06, middles[3] + 0.06)
        assert max(red, green, blue) - min(red, green, blue) < 12
        assert 140 < red < 210
    beside = middles[2] + 0.06, middles[3] + 0.06
    same = draw_slice(clean, 0)
    assert pixel(figure, axes, *beside) == pixel(same, same.axes[0], *beside)
    torch.testing.assert_close(plane.rgb, before, rtol=0, atol=0, equal_nan=True)


def test_all_nan_is_all_grey() -> None:
    plane = random_plane()
    plane.distance[:] = math.nan
    figure = draw_slice(plane, 0, prompts=["a", "b", "c"])
    red, green, blue = pixel(figure, figure.axes[0], 0.5, 0.5)
    assert 140 < red < 210
    assert max(red, green, blue) - min(red, green, blue) < 12


# Texts


def test_prompts_stand_below_in_the_colours_of_their_corners() -> None:
    figure = draw_slice(random_plane(), 0, prompts=["first", "second", "third"])
    frame = figure.axes[0].get_window_extent()
    for channel, prompt in enumerate(("first", "second", "third")):
        (text,) = [text for text in texts(figure) if text.get_text() == prompt]
        colour = to_rgb(text.get_color())
        assert max(range(3), key=lambda index: colour[index]) == channel
        assert text.get_window_extent().y1 < frame.y0
    assert_tidy(figure)


def test_a_long_prompt_keeps_its_end_and_a_long_title_its_start() -> None:
    long = " ".join(str(number) for number in range(1000))
    figure = draw_slice(random_plane(), 0, prompts=[long, long, "short"])
    shown = [word for word in words(figure) if "…" in word]
    assert len(shown) == 2
    assert all(word.startswith("…") and word.endswith("997 998 999") for word in shown)
    assert any(
        word.startswith("0 1 2") for word in words(draw_curves(logistic_curves(), title=long))
    )
    assert_tidy(figure)


def test_nasty_texts_are_drawn_as_they_are_and_nothing_overlaps() -> None:
    curves, plane = logistic_curves(), random_plane()
    pictures = [
        draw_slice(plane, 0, prompts=NASTY),
        draw_film([(text, plane) for text in NASTY], 0),
        *[draw(curves, title=text) for text in NASTY for draw in (draw_curves, draw_slopes)],
    ]
    for figure in pictures:
        assert_tidy(figure)
        assert not any(text.get_parse_math() for text in texts(figure))
    shown = words(pictures[0])
    assert NASTY[0].strip() in shown
    assert any("two↵lines, a tab" in text or "bell □" in text for text in shown)
    assert any("□" in text and text.endswith("_{x}^2") for text in shown)


@pytest.mark.parametrize("draw", [draw_curves, draw_slopes])
def test_texts_do_not_overlap_for_extreme_numbers(draw: Callable[[Curves], Figure]) -> None:
    alphas = torch.linspace(0, 1, 10_001)
    step = (alphas > 0.5).float().expand(20, -1)
    flat = torch.linspace(0, 1, 10_001).expand(20, -1)
    falling = 2 - flat
    for relative in (step, flat, falling):
        assert_tidy(draw(Curves(alphas, relative, torch.ones(20, dtype=torch.bool))))
    many = torch.linspace(0, 1, 2).expand(12_000, -1)
    assert_tidy(draw(Curves(alphas[[0, -1]], many, torch.ones(12_000, dtype=torch.bool))))


# Film


def test_a_film_runs_left_to_right_each_frame_under_its_title() -> None:
    planes = [random_plane(seed=seed) for seed in range(3)]
    figure = draw_film([(f"step {index}", plane) for index, plane in enumerate(planes)], 0)
    assert_tidy(figure)
    lefts = [axes.get_window_extent().x0 for axes in figure.axes]
    assert lefts == sorted(lefts)
    for index, (axes, plane) in enumerate(zip(figure.axes, planes, strict=True)):
        expected = (plane.rgb[0, 3, 3] * 255).tolist()
        assert pixel(figure, axes, 0.5, 0.5) == pytest.approx(expected, abs=1.01)
        (title,) = [text for text in texts(figure) if text.get_text() == f"step {index}"]
        frame, box = axes.get_window_extent(), title.get_window_extent()
        assert box.y0 > frame.y1
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1


def test_a_long_film_goes_on_in_the_next_row() -> None:
    figure = draw_film([(f"step {index}", random_plane()) for index in range(19)], 0)
    assert_tidy(figure)
    rows = sorted({round(axes.get_window_extent().y0) for axes in figure.axes}, reverse=True)
    assert len(rows) == 3
    in_order = [rows.index(round(axes.get_window_extent().y0)) for axes in figure.axes]
    assert in_order == [0] * 7 + [1] * 7 + [2] * 5


@pytest.mark.parametrize("count", [1, 3, 8, 9, 16])
def test_joined_frames_are_the_film(count: int) -> None:
    """Drawn one by one and joined, or drawn at once: the same pixels."""
    titles = [NASTY[index % 3] if index % 4 == 3 else f"step {3**index}" for index in range(count)]
    feet = (0.4, -3.0, math.nan, 1.2)
    entries = [(titles[i], random_plane(feet[i % 4], seed=i)) for i in range(count)]
    frames = [rasterise(draw_film([entry], 0)) for entry in entries]
    np.testing.assert_array_equal(join_frames(frames), rasterise(draw_film(entries, 0)))


# The measurements' own results, with the authors' numbers for a real model


def golden(name: str) -> Tensor:
    return load_file(Path(__file__).parents[1] / "golden" / "smollm2_authors.safetensors")[name]


def test_paths_are_drawn() -> None:
    distance = golden("path_distance")
    distance[3, 20] = math.inf
    paths = Paths(
        alphas=torch.linspace(0, 1, 51),
        distance=distance,
        input_distance=torch.ones(16),
        noise_distance=1e-4,
        noise_floor=1e-6,
        num_points=16 * 51,
        engine="plain",
    )
    relative = (distance / distance[:, -1:])[torch.arange(16) != 3].numpy()
    slope = np.median(np.diff(relative).max(axis=1) * 50)
    (axes,) = draw_curves(paths).axes
    np.testing.assert_allclose(line(axes, "median")[:, 1], np.median(relative, axis=0), rtol=1e-5)
    for draw in (draw_curves, draw_slopes):
        (note,) = [text for text in words(draw(paths)) if "quartiles " in text]
        assert note.startswith(f"maximum slope {slope:.2f} (quartiles ")
        assert note.endswith(", 15 pairs, 1 left out")
        assert_tidy(draw(paths))


def test_slices_are_drawn() -> None:
    distance = golden("slice_distance")
    distance[1, 2, 10, 4] = math.inf
    slices = Slices(
        coordinates=torch.linspace(-0.25, 1.25, 21),
        distance=distance,
        foot=golden("slice_foot"),
        num_points=3 * 3 * 21**2,
        engine="plain",
    )
    figure = draw_slice(slices, 1, prompts=["a", "b", "c"])
    assert_tidy(figure)
    corners = [(0.0, 0.0), (1.0, 0.0), (float(slices.foot[1]), 1.0)]
    for channel, (corner, mark) in enumerate(zip(corners, figure.axes[0].lines, strict=True)):
        assert np.asarray(mark.get_xydata()).tolist() == [list(corner)]
        colour = pixel(figure, figure.axes[0], *corner)
        assert colour[channel] == max(colour) > 230
    x, y = float(slices.coordinates[4]), float(slices.coordinates[10])
    red, green, blue = pixel(figure, figure.axes[0], x, y)
    assert max(red, green, blue) - min(red, green, blue) < 12
    assert red > 140


# Bad input


def test_a_triple_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"draw_slice\(triple=1\): there are 1 triples; .* 0 to 0"):
        draw_slice(random_plane(), 1)
    with pytest.raises(InputError, match=r"draw_film\(triple=-1\)"):
        draw_film([("step 0", random_plane())], -1)


def test_a_film_of_nothing_and_two_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="pass at least one"):
        draw_film([], 0)
    with pytest.raises(InputError, match="pass at least one"):
        join_frames([])
    with pytest.raises(InputError, match="3 prompts, got 2; pass those of A, B and C"):
        draw_slice(random_plane(), 0, prompts=["a", "b"])


# Files and surroundings


def test_the_file_holds_the_picture(tmp_path: Path) -> None:
    figure = draw_slice(random_plane(), 0)
    save_figure(figure, tmp_path / "slice.png")
    loaded = imread(tmp_path / "slice.png")[..., :3] * 255
    assert (tmp_path / "slice.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(loaded.round().astype(np.uint8), rasterise(figure))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    class Broken(Text):
        def draw(self, *_: Any, **__: Any) -> None:
            raise OSError("the disk is full")

    path = tmp_path / "curves.png"
    figure = draw_curves(logistic_curves())
    save_figure(figure, path)
    before = path.read_bytes()
    figure.add_artist(Broken())
    with pytest.raises(OSError, match="disk is full"):
        save_figure(figure, str(path))
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_figure(draw_curves(logistic_curves()), tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curves.png", "folder"]


def test_the_users_settings_neither_change_the_picture_nor_are_changed() -> None:
    curves, plane = logistic_curves(), random_plane()
    expected = [rasterise(draw_curves(curves)), rasterise(draw_slice(plane, 0))]
    strange: Any = {
        "figure.facecolor": "black",
        "text.usetex": True,
        "font.size": 30,
        "savefig.dpi": 20,
        "savefig.bbox": "tight",
        "image.origin": "upper",
        "axes.grid": True,
        "xtick.major.size": 20,
    }
    with matplotlib.rc_context(strange):
        settings = dict(matplotlib.rcParams)
        found = [rasterise(draw_curves(curves)), rasterise(draw_slice(plane, 0))]
        (tick, *_), *_ = [axes.xaxis.get_major_ticks() for axes in draw_curves(curves).axes]
        assert tick.label1.get_fontsize() == 8.5
        assert dict(matplotlib.rcParams) == settings
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_neither_import_nor_drawing_loads_more_than_needed() -> None:
    program = """
import sys, torch
import sr_monitor.probes.drawing as figures
assert "matplotlib" not in sys.modules
from dataclasses import make_dataclass
Curves = make_dataclass("Curves", ["alphas", "relative", "max_slope", "kept"])
alphas = torch.linspace(0, 1, 5)
curves = Curves(alphas, alphas[None], torch.ones(1), torch.ones(1, dtype=torch.bool))
Plane = make_dataclass("Plane", ["coordinates", "distance", "foot", "rgb"])
plane = Plane(alphas, torch.ones(1, 3, 5, 5), torch.ones(1), torch.ones(1, 5, 5, 3))
pictures = [figures.draw_curves(curves), figures.draw_slopes(curves)]
pictures += [figures.draw_slice(plane, 0), figures.draw_film([("", plane)], 0)]
for picture in pictures:
    figures.rasterise(picture)
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)
