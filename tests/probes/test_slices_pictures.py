"""Slices and films as they are drawn: each cell's colour, the marks, the frames."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from sr_monitor.probes.drawing import rasterise
from sr_monitor.probes.slices import Slices
from sr_monitor.probes.slices_pictures import draw_frame, draw_slice, join_frames
from tests.made import make_slices
from tests.pictures import NASTY, assert_tidy, is_grey, pixel, texts, words


def random_plane(
    foot: float = 0.4, span: tuple[float, float] = (-0.25, 1.25), seed: int = 0
) -> Slices:
    """Every cell in a colour of its own, so that a wrong place cannot go unseen."""
    plane = make_slices(seed, resolution=7)
    return replace(plane, coordinates=torch.linspace(*span, 7), foot=torch.tensor([foot]))


def test_every_cell_has_its_colour_at_its_coordinates() -> None:
    """Row zero at the bottom, column zero at the left."""
    plane = random_plane()
    figure = draw_slice(plane, 0)
    (axes,) = figure.axes
    image = rasterise(figure)[::-1]
    for i, y in enumerate(plane.coordinates.tolist()):
        for j, x in enumerate(plane.coordinates.tolist()):
            # a quarter of a cell beside its middle, where no mark is
            column, row = axes.transData.transform((x + 0.06, y + 0.06)).astype(int)
            expected = (plane.rgb[0, i, j] * 255).tolist()
            assert image[row, column].tolist() == pytest.approx(expected, abs=1.01)
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height)


def test_what_is_not_finite_is_grey_and_the_rest_is_as_before() -> None:
    plane, clean = random_plane(), random_plane()
    plane.distance[0, 1, 3, 3] = math.nan
    plane.distance[0, :, 3, 4] = math.inf
    plane.distance[0, 2, 3, 5] = math.inf
    figure, same = draw_slice(plane, 0), draw_slice(clean, 0)
    row = plane.coordinates[3].item() + 0.06
    left, *lost = [(x + 0.06, row) for x in plane.coordinates[2:6].tolist()]
    assert all(is_grey(pixel(figure, figure.axes[0], *place)) for place in lost)
    assert pixel(figure, figure.axes[0], *left) == pixel(same, same.axes[0], *left)
    plane.distance[:] = math.nan
    figure = draw_slice(plane, 0)
    assert is_grey(pixel(figure, figure.axes[0], 0.5, 0.5))


def test_the_marked_points_are_those_where_each_map_is_zero() -> None:
    """Distances that vanish at A, B and C alone: their rings enclose pure red, green and blue."""
    coordinates = torch.linspace(-0.25, 1.25, 31)
    up, right = torch.meshgrid(coordinates, coordinates, indexing="ij")
    corners = [(0.0, 0.0), (1.0, 0.0), (0.35, 1.0)]
    maps = torch.stack([((right - x) ** 2 + (up - y) ** 2).sqrt() for x, y in corners])
    plane = replace(
        random_plane(0.35), coordinates=coordinates, distance=(maps > 1e-3).float()[None]
    )
    figure = draw_slice(plane, 0)
    for channel, corner in enumerate(corners):
        expected = [0, 0, 0]
        expected[channel] = 255
        assert pixel(figure, figure.axes[0], *corner) == expected


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_marks_and_letters_can_be_read_on_any_colour(grey: float) -> None:
    plane = random_plane()
    plane.distance[:] = 1 - grey
    plane.distance[..., 0, 0] = 1
    figure = draw_slice(plane, 0)
    image = rasterise(figure)[::-1].astype(int).sum(axis=-1)
    for text in [text for text in figure.axes[0].texts if text.get_text() in "ABC"]:
        box = text.get_window_extent()
        inked = image[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
        assert inked.max() > 740
        assert inked.min() < 160


@pytest.mark.parametrize("span", [(-0.25, 1.25), (0.0, 1.0), (-5.0, 5.0)])
@pytest.mark.parametrize("foot", [-40.0, 0.0, 0.5, 1.24])
def test_letters_stay_in_the_picture_and_apart(span: tuple[float, float], foot: float) -> None:
    plane = random_plane(foot, span=span)
    for figure in (draw_slice(plane, 0), draw_frame(plane, 0, "step 1")):
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
            assert frame.x0 < box.x0 < box.x1 < frame.x1
            assert frame.y0 < box.y0 < box.y1 < frame.y1
            assert not any(box.contains(x, y) for x, y in rings.reshape(-1, 2).tolist())


def test_a_point_outside_is_an_arrowhead_at_the_edge_and_one_nowhere_is_not_marked() -> None:
    (axes,) = draw_slice(random_plane(foot=3.0), 0).axes
    ring, _, arrowhead = axes.lines
    assert ring.get_marker() == "o"
    assert arrowhead.get_marker() == (3, 0, -90)  # an upward triangle, turned to the right
    ((x, y),) = np.asarray(arrowhead.get_xydata()).tolist()
    assert 1.2 < x < axes.get_xlim()[1]
    assert y == 1.0
    shown = words(draw_slice(random_plane(foot=math.nan), 0))
    assert [word for word in shown if word in ("A", "B", "C")] == ["A", "B"]


def test_prompts_stand_below_in_the_colours_of_their_corners() -> None:
    """As they are; a long one keeps its end."""
    long = " ".join(map(str, range(1000)))
    for prompts, shown in (
        (("first", long, "third"), ("first", "997 998 999", "third")),
        (NASTY, (NASTY[0].strip(), "a bell □", "_{x}^2")),
    ):
        figure = draw_slice(random_plane(), 0, prompts=prompts)
        assert_tidy(figure)
        frame = figure.axes[0].get_window_extent()
        for channel, end in enumerate(shown):
            (text,) = [text for text in texts(figure) if end in text.get_text()]
            colour = to_rgb(text.get_color())
            assert max(range(3), key=lambda index: colour[index]) == channel
            assert text.get_window_extent().y1 < frame.y0
            assert not text.get_parse_math()


@pytest.mark.parametrize(("count", "rows"), [(1, [1]), (3, [3]), (8, [4, 4]), (9, [5, 4])])
def test_a_film_runs_left_to_right_and_goes_on_in_the_next_row(count: int, rows: list[int]) -> None:
    """Each frame lies whole under its title; what lies beside frames is white."""
    titles = [NASTY[index % 3] if index % 4 == 3 else f"step {3**index}" for index in range(count)]
    planes = [random_plane((0.4, -3.0, math.nan, 1.2)[i % 4], seed=i) for i in range(count)]
    figures = [draw_frame(plane, 0, title) for plane, title in zip(planes, titles, strict=True)]
    frames = [rasterise(figure) for figure in figures]
    film = join_frames(frames).copy()
    height, width, _ = frames[0].shape
    corners = [(row, column) for row, number in enumerate(rows) for column in range(number)]
    up, across = 308, 276
    assert film.shape == (height + up * (len(rows) - 1), width + across * (max(rows) - 1), 3)
    for (row, column), frame, figure in zip(corners, frames, figures, strict=True):
        place = film[up * row :, across * column :][8 : height - 8, 8 : width - 8]
        np.testing.assert_array_equal(place, frame[8:-8, 8:-8])
        assert (frame[-8:] == 255).all()
        place[:] = 255
        assert_tidy(figure)
        box, extent = figure.axes[0].get_window_extent(), figure.texts[0].get_window_extent()
        assert extent.y0 > box.y1
        assert box.x0 <= extent.x0 < extent.x1 <= box.x1
    assert (film == 255).all()
