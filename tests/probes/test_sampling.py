"""`look_adaptively` against looking everywhere, on families of synthetic curves."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.probes.sampling import Look, look_adaptively, look_everywhere
from tests.model.helpers import largest

Curves = Float[Tensor, "pair step"]

SIZES = (23, 26, 51, 101, 501)
MOST_LOOKS = 48
END_DISTANCE = 7.3
"""d(1) of the synthetic curves: any number but 1, which would hide a missing division."""


@dataclass(frozen=True)
class Looks:
    """What a strategy did to some curves."""

    counts: Int[Tensor, "pair step"]  # how often each was looked at
    calls: list[tuple[list[int], list[list[int]]]]  # pairs and steps, in order
    found: Float[Tensor, " pair"]  # the steepest slope between looked-at neighbours
    truth: Float[Tensor, " pair"]  # the steepest slope of the whole grid


def _look_at(curves: Curves, strategy: Callable[[Look, int, int], None] = look_adaptively) -> Looks:
    counts = torch.zeros_like(curves, dtype=torch.long)
    calls: list[tuple[list[int], list[list[int]]]] = []

    def look(pairs: Tensor, steps: Tensor) -> Tensor:
        calls.append((pairs.tolist(), steps.tolist()))
        where = (pairs[:, None].expand_as(steps), steps)
        counts.index_put_(where, torch.ones_like(steps), accumulate=True)
        return curves[where]

    strategy(look, *curves.shape)
    slopes = (curves / curves[:, -1:]).diff(dim=1) * (curves.shape[1] - 1)
    looked = (counts[:, 1:] > 0) & (counts[:, :-1] > 0)
    return Looks(counts, calls, found=slopes.where(looked, -math.inf).amax(1), truth=slopes.amax(1))


def _uniform(count: int, low: float, high: float) -> Float[Tensor, "pair 1"]:
    return low + (high - low) * torch.rand(count, 1, dtype=torch.float64)


def _alphas(num_steps: int) -> Float[Tensor, " step"]:
    return torch.linspace(0, 1, num_steps, dtype=torch.float64)


def _logistic(count: int, num_steps: int, narrow: float, wide: float) -> Curves:
    centred = _alphas(num_steps) - _uniform(count, 0.05, 0.95)
    return torch.sigmoid(centred / _uniform(count, math.log(narrow), math.log(wide)).exp())


def _random_field(count: int, num_steps: int, length: float) -> Curves:
    """A smooth random function: a sum of cosines of random phase."""
    frequencies = torch.randn(count, 32, 1, dtype=torch.float64) / length
    phases = 2 * math.pi * torch.rand(count, 32, 1, dtype=torch.float64)
    return torch.cos(frequencies * _alphas(num_steps) + phases).sum(1) / 4


def _overshoot(count: int, num_steps: int) -> Curves:
    bump = (_alphas(num_steps) - _uniform(count, 0.2, 0.8)) / 0.1
    return _logistic(count, num_steps, 0.02, 0.1) + 0.3 * torch.exp(-bump.square())


def _bent_line(count: int, num_steps: int) -> Curves:
    alphas = _alphas(num_steps)
    field = _random_field(count, num_steps, 0.3) * alphas * (1 - alphas)
    return _logistic(count, num_steps, 0.03, 0.3) + _uniform(count, 0, 1) * alphas + 0.1 * field


def _double_step(count: int, num_steps: int) -> Curves:
    low, high = (_logistic(count, num_steps, 0.02, 0.1) for _ in range(2))
    return low + _uniform(count, 0.3, 1) * high


SMOOTH: dict[str, Callable[[int, int], Curves]] = {
    "sharp": lambda count, num_steps: _logistic(count, num_steps, 0.01, 0.03),
    "logistic": lambda count, num_steps: _logistic(count, num_steps, 0.01, 0.3),
    "flat": lambda count, num_steps: _logistic(count, num_steps, 0.1, 0.5),
    "overshoot": _overshoot,
    "bent line": _bent_line,
    "random field": lambda count, num_steps: torch.nn.functional.softplus(
        2 * _random_field(count, num_steps, 0.15)
    ).cumsum(1),
}
ALL: dict[str, Callable[[int, int], Curves]] = {
    **SMOOTH,
    "double step": _double_step,
    "needle": lambda count, num_steps: _logistic(count, num_steps, 1e-3, 1e-2),
    "step": lambda count, num_steps: (_alphas(num_steps) > _uniform(count, 0, 1)).double(),
    "line": lambda count, num_steps: _alphas(num_steps).expand(count, -1),
    "noise": lambda count, num_steps: torch.rand(count, num_steps, dtype=torch.float64) + 0.1,
}


@cache
def _curves(family: str, num_steps: int, count: int = 50) -> Curves:
    """Distances as a measurement hands them over: float32, 0 at alpha 0, any scale."""
    torch.manual_seed(0)
    curves = ALL[family](count, num_steps)
    return ((curves - curves[:, :1]).abs() * END_DISTANCE).float()


def _broken_curves(num_steps: int) -> Curves:
    """Curves without an answer: no movement at all, NaN and infinities in every place."""
    line, middle = END_DISTANCE * torch.linspace(0, 1, num_steps), num_steps // 2
    broken = [torch.zeros(num_steps), line.index_fill(0, torch.tensor([num_steps - 1]), 0.0)]
    places = ([middle], [middle + 1], [num_steps - 1], range(middle, num_steps), range(num_steps))
    for value in (math.nan, math.inf):
        broken += [line.index_fill(0, torch.tensor([*place]), value) for place in places]
    return torch.stack(broken)


@pytest.mark.parametrize("num_steps", SIZES)
@pytest.mark.parametrize("family", ALL)
def test_the_steepest_slope_is_found_in_few_looks(family: str, num_steps: int) -> None:
    """On smooth curves the whole grid's; on others none that is not there, and none less steep
    than a gap is from end to end: somewhere in it the curve is as steep as that.
    """
    curves = _curves(family, num_steps)
    looks, rounding = _look_at(curves), 1e-6 * num_steps
    assert looks.counts.max() == 1
    assert looks.counts.sum(1).max() <= MOST_LOOKS
    assert looks.found.isfinite().all()
    assert (looks.found <= looks.truth).all()
    for pair, curve in enumerate(curves / curves[:, -1:]):
        seen = looks.counts[pair].nonzero().flatten()
        chords = curve[seen].diff() / seen.diff() * (num_steps - 1)
        assert chords.max() <= looks.found[pair] * (1 + rounding)
    if family in SMOOTH:
        exact = looks.truth - looks.found <= rounding * looks.truth
        assert exact.double().mean() >= 0.98
        assert num_steps != 101 or looks.counts.double().mean() <= 1 / 3


@pytest.mark.parametrize("num_steps", [23, 26, 51, 501])
def test_curves_without_an_answer_are_given_up_and_change_nothing_for_others(
    num_steps: int,
) -> None:
    good, broken = _curves("logistic", num_steps, count=8), _broken_curves(num_steps)
    for curve in broken:
        looks = _look_at(curve.expand(2, -1))
        assert looks.counts.max() == 1
        assert looks.counts.sum(1).max() <= MOST_LOOKS
    together = _look_at(torch.cat([broken, good]))
    assert torch.equal(together.counts[-8:], _look_at(good).counts)


@pytest.mark.parametrize("num_steps", [24, 101])
@pytest.mark.parametrize("family", ["bent line", "double step", "noise"])
def test_where_a_curve_is_looked_at_does_not_depend_on_its_company(
    family: str, num_steps: int
) -> None:
    curves = _curves(family, num_steps, count=12)
    alone = torch.cat([_look_at(curve[None]).counts for curve in curves])
    assert torch.equal(alone, _look_at(curves).counts)


@pytest.mark.parametrize("num_steps", [2, 3, 11, 21, 22, *SIZES])
def test_the_first_look_is_at_all_pairs_from_step_zero_to_the_last(num_steps: int) -> None:
    """Of a short path, it is the only one, and at every step."""
    for strategy in (look_everywhere, look_adaptively):
        looks = _look_at(_curves("noise", num_steps, count=5), strategy)
        pairs, steps = looks.calls[0]
        assert pairs == list(range(5))
        assert all(row[0] == 0 and row[-1] == num_steps - 1 for row in steps)
        if strategy == look_everywhere or num_steps <= 22:
            assert (looks.counts == 1).all()
            assert len(looks.calls) == 1


def test_what_it_reckons_grows_with_the_steps_and_not_with_their_square() -> None:
    curves = _curves("logistic", 1001, count=2)
    assert largest(lambda: _look_at(curves)) <= 2 * MOST_LOOKS * (1001 + 1)


def test_a_straight_line_takes_no_more_looks_than_a_curve() -> None:
    """An untrained model's curves: their rounding is nothing to look into."""
    lines = _curves("line", 101)[:20] * torch.linspace(1, 2, 20)[:, None]
    assert _look_at(lines).counts.sum(1).double().mean() <= 30
