"""Steps of a path: known where they are known, and equal to an obvious search elsewhere."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.probes.steps import find_steps

NUM = 50


def _speed(*places: int) -> Float[Tensor, "1 interval"]:
    """Of a curve that moves at these intervals only, by equal shares."""
    speed = torch.zeros(1, NUM)
    speed[0, list(places)] = NUM / len(places)
    return speed


def test_a_straight_line_is_one_region() -> None:
    steps = find_steps(torch.ones(1, NUM), 0.0)
    assert (int(steps.count), float(steps.plateau)) == (0, 0.0)
    assert steps.within.isnan().all()


@pytest.mark.parametrize("places", [(0,), (17,), (NUM - 1,), (3, 30), (0, 20, NUM - 1)])
def test_steps_are_found_wherever_they_are(places: tuple[int, ...]) -> None:
    steps = find_steps(_speed(*places), 1.0)
    assert steps.peaks[0].nonzero().flatten().tolist() == list(places)
    assert float(steps.plateau) == pytest.approx(1 - len(places) / NUM)
    assert float(steps.within) == 0.0


def test_three_smooth_steps_make_four_regions() -> None:
    alphas = torch.linspace(0, 1, 301)
    curve = torch.sigmoid((alphas[:, None] - torch.tensor([0.2, 0.5, 0.8])) * 60).mean(dim=1)
    steps = find_steps(curve.diff()[None] * 300, 1.0)
    assert int(steps.count) == 3
    # Outside of its half width a logistic step moves by 1 - 1 / sqrt(2).
    assert float(steps.within) == pytest.approx((1 - 0.5**0.5) / 4, rel=0.1)


def test_equal_neighbours_are_one_step() -> None:
    assert int(find_steps(_speed(10, 11, 12), 1.0).count) == 1


def test_what_is_not_finite_stands_still() -> None:
    speed = torch.stack([_speed(10)[0], torch.full((NUM,), torch.nan)])
    assert find_steps(speed, 1.0).count.tolist() == [1, 0]


def _obvious(speed: list[float], least: float) -> tuple[set[int], set[int]]:
    """Peaks by walking from each place to the next higher one on both sides."""
    padded, peaks, inside = [1.0, *speed, 1.0], set(), set()
    for place in range(1, len(padded) - 1):
        here, bases = padded[place], []
        for walk in (range(place - 1, -1, -1), range(place + 1, len(padded))):
            base = here
            for other in walk:
                if padded[other] > here:
                    break
                base = min(base, padded[other])
            bases.append(base)
        prominence = here - max(bases)
        if prominence <= least:
            continue
        peaks.add(place - 1)
        inside.add(place - 1)
        for walk in (range(place - 1, 0, -1), range(place + 1, len(padded) - 1)):
            for other in walk:
                if padded[other] <= here - prominence / 2:
                    break
                inside.add(other - 1)
    return peaks, inside


def test_random_speeds_have_the_steps_of_an_obvious_search() -> None:
    speeds = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) * 4
    steps = find_steps(speeds, 0.7)
    for speed, peaks, inside in zip(speeds, steps.peaks, steps.inside, strict=True):
        expected = _obvious(speed.tolist(), 0.7)
        found = (each.nonzero().flatten().tolist() for each in (peaks, inside))
        assert tuple(map(set, found)) == expected
    assert (steps.count > 3).any()
