"""Analytic curves whose numbers are known, and a slow point-by-point oracle on random curves."""

import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_monitor.probes.sharpness import (
    boundary_width,
    fill_gaps,
    max_slope,
    slope_location,
)

NAN, INF = math.nan, math.inf
NUMBERS = (max_slope, slope_location, boundary_width)


def grid(num_steps: int) -> Tensor:
    return torch.linspace(0, 1, num_steps)


def numbers_of(curve: Tensor) -> list[float]:
    return [number(grid(len(curve)), curve[None]).item() for number in NUMBERS]


@pytest.mark.parametrize(("num_steps", "jump"), [(2, 1), (3, 2), (51, 20), (101, 100)])
def test_a_line_has_slope_one_and_a_step_s_minus_one_where_it_jumps(
    num_steps: int, jump: int
) -> None:
    slope, _, width = numbers_of(grid(num_steps))
    assert (slope, width) == pytest.approx((1, 0.5), abs=1e-5)
    last = num_steps - 1
    expected = last, (jump - 0.5) / last, 0.5 / last
    step = (torch.arange(num_steps) >= jump).float()
    assert numbers_of(step) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steepness", [4.0, 20.0, 60.0])
def test_a_logistic_curve_has_its_known_slope_and_width(steepness: float) -> None:
    """A boundary at alpha 1/2, scaled to run from exactly 0 to exactly 1."""
    curve = torch.sigmoid(steepness * (grid(10_000).double() - 0.5))
    curve = ((curve - curve[0]) / (curve[-1] - curve[0])).float()
    slope, location, width = numbers_of(curve)
    height = math.tanh(steepness / 4)  # what the curve covers between alpha 0 and 1, before scaling
    assert slope == pytest.approx(steepness / 4 / height, rel=2e-3)
    assert location == pytest.approx(0.5, abs=0.02)
    quarter = 0.5 - height / 4  # the logistic curve's own value where the scaled one is 1/4
    expected = 2 / steepness * math.log((1 - quarter) / quarter)
    assert width == pytest.approx(expected, abs=1e-5)


def test_of_equal_slopes_the_first_is_located_and_of_passages_the_first_complete_one() -> None:
    """After an approach that fails; a second passage is sharper."""
    assert numbers_of(torch.tensor([2.0, 1.75, 1.5, 1.25, 1.0]))[0] == -1.0
    assert numbers_of(torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0]))[1] == 0.375
    relative = torch.tensor([0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0])
    assert numbers_of(relative)[2] == pytest.approx(0.125)
    for unpassed in ([0.0, 0.2, 0.5, 0.7], [0.3, 0.5, 0.8, 1.0], [NAN] * 4):
        assert math.isnan(numbers_of(torch.tensor(unpassed))[2])


def seen_points(alphas: list[float], curve: list[float]) -> list[tuple[float, float]]:
    return [(a, r) for a, r in zip(alphas, curve, strict=True) if math.isfinite(r)]


def slow_slope(alphas: list[float], curve: list[float]) -> tuple[float, float]:
    best, where = NAN, NAN
    for i in range(len(curve) - 1):
        slope = (curve[i + 1] - curve[i]) * (len(curve) - 1)
        if math.isfinite(slope) and not slope <= best:
            best, where = slope, (alphas[i] + alphas[i + 1]) / 2
    return best, where


def slow_value(alphas: list[float], curve: list[float], at: float) -> float:
    points = seen_points(alphas, curve)
    for (a0, r0), (a1, r1) in pairwise(points):
        if a0 <= at <= a1:
            return r0 + (r1 - r0) * (at - a0) / (a1 - a0)
    return next((r for a, r in points if a == at), NAN)


def slow_width(alphas: list[float], curve: list[float]) -> float:
    low = NAN
    for (a0, r0), (a1, r1) in pairwise(seen_points(alphas, curve)):
        if r0 < 0.25 <= r1:
            low = a0 + (0.25 - r0) * (a1 - a0) / (r1 - r0)
        if r0 >= 0.75:
            return NAN
        if r1 >= 0.75:
            return a0 + (0.75 - r0) * (a1 - a0) / (r1 - r0) - low
    return NAN


def random_curves() -> Tensor:
    """Monotone and wild curves, complete and with ever more gaps, on a grid of 21 alphas."""
    rng = random.Random(7)
    curves = []
    for index in range(400):
        steps = [rng.gauss(0.4 if index % 2 else 1.0, 1.0) ** (1 + index % 3) for _ in range(20)]
        curve = [0.0]
        for step in steps:
            curve.append(curve[-1] + (abs(step) if index % 5 == 0 else step))
        curve = [value / (abs(curve[-1]) or 1.0) for value in curve]
        share = (index % 4) * 0.3
        lost = (NAN, INF, -INF)
        curves.append([rng.choice(lost) if rng.random() < share else value for value in curve])
    return torch.tensor(curves)


def test_every_number_equals_the_slow_oracle_on_random_curves() -> None:
    alphas, curves = grid(21), random_curves()
    fast = torch.stack([number(alphas, curves) for number in NUMBERS], dim=1)
    points, slow, filled = alphas.tolist(), [], []
    for curve in curves.tolist():
        filled.append([slow_value(points, curve, at) for at in points])
        slow.append([*slow_slope(points, curve), slow_width(points, curve)])
    near: dict[str, Any] = {"atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(fast, torch.tensor(slow), rtol=1e-3, **near)
    found, seen = fill_gaps(alphas, curves), curves.isfinite()
    torch.testing.assert_close(found, torch.tensor(filled), rtol=1e-4, **near)
    assert torch.equal(found[seen], curves[seen])  # bit for bit
    known = (~fast.isnan()).sum(dim=0)
    assert (known > 60).all()
    assert (known < 400).all()


def test_neither_the_order_nor_the_device_of_the_pairs_matters() -> None:
    """Meta tensors hold no data: reading a number or mixing in a CPU tensor is an error there."""
    alphas, curves = grid(21), random_curves()
    order = torch.randperm(len(curves), generator=torch.Generator().manual_seed(3))
    for number in NUMBERS:
        shuffled, straight = number(alphas, curves[order]), number(alphas, curves)[order]
        torch.testing.assert_close(shuffled, straight, rtol=0, atol=0, equal_nan=True)
        assert number(alphas.to("meta"), curves.to("meta")).device.type == "meta"
        assert number(alphas, curves[:0]).shape == (0,)
    filled = fill_gaps(alphas.to("meta"), curves.to("meta"))
    assert filled.device.type == "meta"
