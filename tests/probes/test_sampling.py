"""`look_adaptively` against looking everywhere, on families of synthetic curves.

A run of the strategy is replayed on known curves by `_look_at`, which counts every look; the truth
is the slope of the whole grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sr_monitor.probes.sampling import Look, look_adaptively, look_everywhere

Curves = Float[Tensor, "pair step"]

SIZES = (23, 26, 51, 101, 501)
MOST_LOOKS = 48
END_DISTANCE = 7.3
"""d(1) of the synthetic curves: any number but 1, which would hide a missing division."""


@dataclass(frozen=True)
class Looks:
    """What a strategy did to some curves."""

    counts: Int[Tensor, "pair step"]
    """How often each step of each pair was looked at."""
    calls: list[tuple[list[int], list[list[int]]]]
    """The pairs and steps of each call, in order."""
    found: Float[Tensor, " pair"]
    """The steepest slope between looked-at neighbours."""
    truth: Float[Tensor, " pair"]
    """The steepest slope of the whole grid."""


def _look_at(curves: Curves, strategy: Callable[[Look, int, int], None]) -> Looks:
    counts = torch.zeros_like(curves, dtype=torch.long)
    calls: list[tuple[list[int], list[list[int]]]] = []

    def look(pairs: Tensor, steps: Tensor) -> Tensor:
        calls.append((pairs.tolist(), steps.tolist()))
        for pair, row in zip(*calls[-1], strict=True):
            for step in row:
                counts[pair, step] += 1
        return curves[pairs[:, None], steps]

    strategy(look, *curves.shape)
    slopes = (curves / curves[:, -1:]).diff(dim=1) * (curves.shape[1] - 1)
    looked = (counts[:, 1:] > 0) & (counts[:, :-1] > 0)
    return Looks(counts, calls, found=slopes.where(looked, -math.inf).amax(1), truth=slopes.amax(1))


def _rounding(num_steps: int) -> float:
    """How far two equal slopes of float32 curves may lie apart."""
    return 1e-6 * num_steps


# Families of curves ----------------------------------------------------------------------------


def _uniform(count: int, low: float, high: float) -> Float[Tensor, "pair 1"]:
    return low + (high - low) * torch.rand(count, 1, dtype=torch.float64)


def _spread(count: int, low: float, high: float) -> Float[Tensor, "pair 1"]:
    return torch.exp(_uniform(count, math.log(low), math.log(high)))


def _alphas(num_steps: int) -> Float[Tensor, " step"]:
    return torch.linspace(0, 1, num_steps, dtype=torch.float64)


def _logistic(count: int, num_steps: int, narrow: float, wide: float) -> Curves:
    return torch.sigmoid(
        (_alphas(num_steps) - _uniform(count, 0.05, 0.95)) / _spread(count, narrow, wide)
    )


def _random_field(count: int, num_steps: int, length: float) -> Curves:
    """A smooth random function: a sum of cosines of random phase."""
    frequencies = torch.randn(count, 32, 1, dtype=torch.float64) / length
    phases = 2 * math.pi * torch.rand(count, 32, 1, dtype=torch.float64)
    return torch.cos(frequencies * _alphas(num_steps) + phases).sum(1) / 4


def _softplus_field(count: int, num_steps: int) -> Curves:
    return torch.nn.functional.softplus(2 * _random_field(count, num_steps, 0.15)).cumsum(1)


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


def _step(count: int, num_steps: int) -> Curves:
    return (_alphas(num_steps) > _uniform(count, 0, 1)).double()


def _line(count: int, num_steps: int) -> Curves:
    return _alphas(num_steps).expand(count, -1)


def _noise(count: int, num_steps: int) -> Curves:
    return torch.rand(count, num_steps, dtype=torch.float64) + 0.1


SMOOTH: dict[str, Callable[[int, int], Curves]] = {
    "sharp": lambda count, num_steps: _logistic(count, num_steps, 0.01, 0.03),
    "logistic": lambda count, num_steps: _logistic(count, num_steps, 0.01, 0.3),
    "flat": lambda count, num_steps: _logistic(count, num_steps, 0.1, 0.5),
    "overshoot": _overshoot,
    "bent line": _bent_line,
    "random field": _softplus_field,
}
ROUGH: dict[str, Callable[[int, int], Curves]] = {
    "double step": _double_step,
    "needle": lambda count, num_steps: _logistic(count, num_steps, 1e-3, 1e-2),
    "step": _step,
    "line": _line,
    "noise": _noise,
}
ALL = {**SMOOTH, **ROUGH}


@cache
def _curves(family: str, num_steps: int, count: int = 50) -> Curves:
    """Distances as a measurement hands them over: float32, 0 at alpha 0, any scale."""
    torch.manual_seed(0)
    curves = ALL[family](count, num_steps)
    return ((curves - curves[:, :1]).abs() * END_DISTANCE).float()


@cache
def _looks(family: str, num_steps: int) -> Looks:
    return _look_at(_curves(family, num_steps), look_adaptively)


def _broken_curves(num_steps: int) -> dict[str, Curves]:
    """Curves without an answer: no movement at all, NaN and infinities in every place."""
    line = END_DISTANCE * torch.linspace(0, 1, num_steps)
    inside = num_steps // 2
    broken: dict[str, Curves] = {"no movement": torch.zeros(num_steps)}
    for word, value in {"nan": math.nan, "inf": math.inf}.items():
        broken[f"{word} everywhere"] = torch.full((num_steps,), value)
        for place, steps in {
            "inside": [inside],
            "off the first look": [inside + 1],
            "at the end": [num_steps - 1],
            "from the middle on": list(range(inside, num_steps)),
        }.items():
            broken[f"{word} {place}"] = line.index_fill(0, torch.tensor(steps), value)
    broken["back to the start"] = line.index_fill(0, torch.tensor([num_steps - 1]), 0.0)
    return {name: curve.expand(2, -1).clone() for name, curve in broken.items()}


BROKEN = tuple(_broken_curves(23))


# What every run keeps to -----------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", SIZES)
@pytest.mark.parametrize("family", ALL)
def test_no_step_is_looked_at_twice_and_few_are_looked_at(family: str, num_steps: int) -> None:
    looks = _looks(family, num_steps)
    assert looks.counts.max() == 1
    assert looks.counts.sum(1).max() <= MOST_LOOKS


@pytest.mark.parametrize("num_steps", [23, 26, 51, 501])
@pytest.mark.parametrize("name", BROKEN)
def test_curves_without_an_answer_are_given_up_after_few_looks(name: str, num_steps: int) -> None:
    looks = _look_at(_broken_curves(num_steps)[name], look_adaptively)
    assert looks.counts.max() == 1
    assert looks.counts.sum(1).max() <= MOST_LOOKS


@pytest.mark.parametrize("num_steps", [23, 51, 101])
def test_curves_without_an_answer_change_nothing_for_the_others(num_steps: int) -> None:
    good = _curves("logistic", num_steps, count=8)
    broken = _broken_curves(num_steps)
    alone = _look_at(good, look_adaptively)
    together = _look_at(torch.cat([*broken.values(), good]), look_adaptively)
    assert torch.equal(together.counts[-8:], alone.counts)


@pytest.mark.parametrize("num_steps", [24, 101])
@pytest.mark.parametrize("family", ["bent line", "double step", "noise"])
def test_where_a_curve_is_looked_at_does_not_depend_on_its_company(
    family: str, num_steps: int
) -> None:
    curves = _curves(family, num_steps, count=12)
    together = _look_at(curves, look_adaptively)
    for pair, curve in enumerate(curves):
        alone = _look_at(curve[None], look_adaptively)
        assert torch.equal(alone.counts[0], together.counts[pair])


@pytest.mark.parametrize("num_steps", [2, 3, 22, *SIZES])
def test_the_first_look_is_at_all_pairs_from_step_zero_to_the_last(num_steps: int) -> None:
    for strategy in (look_everywhere, look_adaptively):
        pairs, steps = _look_at(_curves("logistic", num_steps, count=5), strategy).calls[0]
        assert pairs == list(range(5))
        assert all(row[0] == 0 and row[-1] == num_steps - 1 for row in steps)


@pytest.mark.parametrize("num_steps", [2, 3, 11, 21, 22])
def test_short_paths_are_looked_at_everywhere(num_steps: int) -> None:
    looks = _look_at(_curves("noise", num_steps), look_adaptively)
    assert (looks.counts == 1).all()
    assert len(looks.calls) == 1


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the number of elements of the largest tensor that anything puts out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.numel())
        return output


def test_what_it_reckons_grows_with_the_steps_and_not_with_their_square() -> None:
    curves = _curves("logistic", 1001, count=2)
    with _Largest() as largest:
        _look_at(curves, look_adaptively)
    assert largest.elements <= 2 * MOST_LOOKS * (1001 + 1)


# What it finds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", SIZES)
@pytest.mark.parametrize("family", ALL)
def test_a_slope_is_found_and_never_a_steeper_one_than_there_is(
    family: str, num_steps: int
) -> None:
    looks = _looks(family, num_steps)
    assert looks.found.isfinite().all()
    assert (looks.found <= looks.truth).all()


@pytest.mark.parametrize("num_steps", SIZES)
@pytest.mark.parametrize("family", SMOOTH)
def test_the_slope_of_smooth_curves_is_the_whole_grid_s(family: str, num_steps: int) -> None:
    looks = _looks(family, num_steps)
    exact = looks.truth - looks.found <= _rounding(num_steps) * looks.truth
    assert exact.double().mean() >= 0.98


@pytest.mark.parametrize("num_steps", SIZES)
@pytest.mark.parametrize("family", ALL)
def test_no_gap_rises_more_steeply_than_the_slope_found(family: str, num_steps: int) -> None:
    """Somewhere in a gap a curve is as steep as from end to end: a lower bound, known for free."""
    curves = _curves(family, num_steps)
    looks = _look_at(curves, look_adaptively)
    for pair, curve in enumerate(curves / curves[:, -1:]):
        seen = looks.counts[pair].nonzero().flatten()
        chords = curve[seen].diff() / seen.diff() * (num_steps - 1)
        assert chords.max() <= looks.found[pair] * (1 + _rounding(num_steps))


def test_it_takes_a_third_of_the_points_or_fewer() -> None:
    for family in SMOOTH:
        assert _looks(family, 101).counts.double().mean() <= 1 / 3


@pytest.mark.parametrize("num_steps", [51, 101])
def test_a_straight_line_takes_no_more_looks_than_a_curve(num_steps: int) -> None:
    """An untrained model's curves: their rounding is nothing to look into."""
    lines = _curves("line", num_steps)[:20] * torch.linspace(1, 2, 20)[:, None]
    assert _look_at(lines, look_adaptively).counts.sum(1).double().mean() <= 30
