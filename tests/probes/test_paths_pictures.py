"""Curves and slopes as they are drawn: the lines' data, the texts, the pixels."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from sr_monitor.probes.drawing import rasterise
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.paths_pictures import draw_curves, draw_slopes
from tests.made import make_paths
from tests.pictures import NASTY, assert_tidy, texts, words

DRAWERS = pytest.mark.parametrize("draw", [draw_curves, draw_slopes])


def paths_of(relative: Tensor, left_out: tuple[int, ...] = ()) -> Paths:
    """Paths with these curves; those left out are drowned by their noise."""
    count, num_steps = relative.shape
    noise = torch.zeros(count)
    noise[list(left_out)] = math.inf
    made = make_paths(num_pairs=count, num_steps=num_steps)
    return replace(made, distance=relative, noise=noise)


def logistic_curves(num_pairs: int = 40, num_steps: int = 51) -> Paths:
    """Curves of many slopes, every tenth left out."""
    generator = torch.Generator().manual_seed(0)
    alphas = torch.linspace(0, 1, num_steps)
    steepness = 5 + 30 * torch.rand(num_pairs, 1, generator=generator)
    curves = torch.sigmoid(steepness * (alphas - torch.rand(num_pairs, 1, generator=generator)))
    curves = (curves - curves[:, :1]) / (curves[:, -1:] - curves[:, :1])
    return paths_of(curves, left_out=tuple(range(3, num_pairs, 10)))


def bent(power: float) -> Paths:
    """One curve, the steeper at its end the higher the power."""
    return paths_of(torch.linspace(0, 1, 11)[None] ** power)


NOTHING = paths_of(torch.full((40, 51), math.nan))


def percentiles_of(paths: Paths, *percents: float) -> Any:
    """By percent, then by step."""
    return np.percentile(paths.relative[paths.kept].numpy(), percents, axis=0)


def line(axes: Axes, label: str) -> Line2D:
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


def assert_points(drawn: Line2D, heights: Any) -> None:
    points = np.asarray(drawn.get_xydata())
    expected = np.stack([np.linspace(0, 1, len(heights)), heights], axis=1)
    np.testing.assert_allclose(points, expected, rtol=1e-5, atol=1e-6)


def test_the_median_of_the_kept_pairs_is_drawn_on_its_quartile_band_before_single_curves() -> None:
    paths = logistic_curves()
    (axes,) = draw_curves(paths).axes
    q25, median, q75 = percentiles_of(paths, 25, 50, 75)
    assert_points(line(axes, "median"), median)
    (band,) = [found for found in axes.collections if isinstance(found, PolyCollection)]
    corners = np.asarray(band.get_paths()[0].vertices)
    middle = corners[np.isclose(corners[:, 0], 0.5)][:, 1]
    assert [middle.min(), middle.max()] == pytest.approx([q25[25], q75[25]], rel=1e-5)
    straight = line(axes, "straight line: no regions")
    assert_points(straight, [0, 1])
    assert [each for each in axes.lines if each.get_linestyle() == ":"] == [straight]
    single = [np.asarray(found.get_ydata()) for found in axes.lines if found.get_linewidth() < 1]
    kept = [curve.tolist() for curve in paths.relative[paths.kept]]
    assert len(single) == 12
    assert all(curve.tolist() in kept for curve in single)


def interval_of(paths: Paths) -> tuple[float, float]:
    """The middle 95% of the medians of resamples."""
    slopes = paths.max_slope[paths.kept]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(slopes), (1000, len(slopes)), generator=generator)
    medians = [float(np.median(row)) for row in slopes[chosen].double().numpy()]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def test_the_note_tells_slope_quartiles_and_what_was_left_out() -> None:
    paths = logistic_curves()
    q25, median, q75 = np.percentile(paths.max_slope[paths.kept].numpy(), [25, 50, 75])
    note = f"maximum slope {median:.2f} (quartiles {q25:.2f} to {q75:.2f}), 36 pairs, 4 left out"
    assert {note, "step 1000"} <= set(words(draw_curves(paths, title="step 1000")))
    for weights, told in (("float32", "float32"), ("bfloat16", "float32 on bfloat16 weights")):
        of = replace(paths, arithmetic="float32", weights=weights, noise_floor=1.4e-6)
        low, high = (f"{bound:.2f}" for bound in interval_of(paths))
        sure = f"95% interval of the median {low} to {high}"
        assert f"{sure}; {told}, noise 1e-06" in words(draw_curves(of))
    assert note in words(draw_slopes(paths))
    assert any(text.endswith(", 1 pair") for text in words(draw_curves(bent(1))))


def test_gaps_are_bridged_and_a_wild_curve_does_not_flatten_the_others() -> None:
    (axes,) = draw_curves(paths_of(torch.tensor([[0.0, math.nan, 0.5, math.nan, 1.0]]))).axes
    assert_points(line(axes, "median"), np.linspace(0, 1, 5))
    paths = logistic_curves()
    paths.distance[0, 20] = 1000
    assert 1 < draw_curves(paths).axes[0].get_ylim()[1] < 2


@DRAWERS
def test_without_a_kept_pair_there_is_a_picture_that_says_so(draw: Callable[..., Figure]) -> None:
    figure = draw(NOTHING)
    assert "0 pairs, 40 left out" in words(figure)
    assert_tidy(figure)
    low, high = figure.axes[0].get_ylim()
    assert low == 0
    assert high >= 1


@pytest.mark.parametrize("count", [2, 15])
def test_earlier_medians_lie_behind_the_earlier_the_paler_each_with_its_title(count: int) -> None:
    """Pictures are of one size, and their axes at one place, however many there are."""
    of_steps = [bent(1), logistic_curves(), *(bent(power) for power in range(3, count)), NOTHING]
    earlier = [(f"step {index}", paths) for index, paths in enumerate(of_steps)]
    figure = draw_curves(bent(20), title=NASTY[1], earlier=earlier)
    assert_tidy(figure)
    (axes,) = figure.axes
    current = line(axes, "median")
    behind = [found for found in axes.lines if found.get_linewidth() == 1.1]
    assert len(behind) == len(earlier)
    for paths, drawn in zip([*of_steps[:-1], bent(20)], [*behind[:-1], current], strict=True):
        assert_points(drawn, percentiles_of(paths, 50)[0])
    assert all(drawn.get_zorder() < current.get_zorder() for drawn in behind)
    colours = [each.get_color() for each in (*behind, current)]
    light = [float(np.array([0.2126, 0.7152, 0.0722]) @ to_rgb(colour)) for colour in colours]
    assert light == sorted(set(light), reverse=True)
    assert light[-1] < 0.1
    # The scale at the right, the last on top.
    right = axes.get_window_extent().x1
    scale = [text for text in texts(figure) if text.get_window_extent().x0 > right]
    assert [text.get_text() for text in scale[1:]] == [title for title, _ in earlier[::-1]]
    swatches = [swatch for swatch in figure.artists if isinstance(swatch, Line2D)]
    assert [swatch.get_color() for swatch in swatches] == colours[::-1]
    for text, swatch in zip(scale, swatches, strict=True):
        (x, *_), (y, *_) = figure.transFigure.transform(np.asarray(swatch.get_xydata())).T
        box = text.get_window_extent()
        assert (x < box.x0, box.y0 < y < box.y1) == (True, True)
    first = draw_curves(bent(20), earlier=[])
    assert rasterise(first).shape == rasterise(figure).shape
    assert first.axes[0].get_window_extent().bounds == axes.get_window_extent().bounds


def test_the_histogram_counts_every_kept_pair_once() -> None:
    paths = logistic_curves()
    (axes,) = draw_slopes(paths).axes
    band, *patches = axes.patches
    bars = [patch for patch in patches if isinstance(patch, Rectangle)]
    slopes = paths.max_slope[paths.kept].numpy()
    for bar in bars:
        left, right = bar.get_x(), bar.get_x() + bar.get_width()
        assert bar.get_height() == ((slopes >= left) & (slopes < right)).sum()
    assert sum(bar.get_height() for bar in bars) == 36
    expected = np.percentile(slopes, [25, 75]).tolist()
    sides = band.get_patch_transform().transform(band.get_path().vertices)[:, 0]
    assert [sides.min(), sides.max()] == pytest.approx(expected, rel=1e-5)


@DRAWERS
def test_texts_are_tidy_whatever_they_say(draw: Callable[..., Figure]) -> None:
    long = " ".join(map(str, range(1000)))
    figures = [draw(bent(2), title=title) for title in (*NASTY, long)]
    for figure in figures:
        assert_tidy(figure)
        assert not any(text.get_parse_math() for text in texts(figure))
    assert any(word.startswith("0 1 2") and word.endswith("…") for word in words(figures[-1]))
    line = torch.linspace(0, 1, 10_001)
    for curve in ((line > 0.5).float(), 2 - line):
        assert_tidy(draw(paths_of(curve.expand(2, -1))))
