"""Rank correlation and effect size: equal to their definitions, with intervals that hold them."""

import math

import pytest
import torch

from sr_monitor.probes.correlation import effect_size, rank_correlation

GENERATOR = torch.Generator().manual_seed(0)


def _ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def test_rank_correlation_is_that_of_the_ranks_ties_included() -> None:
    x = torch.randint(6, (30,), generator=GENERATOR).float()
    y = x + 2 * torch.randn(30, generator=GENERATOR).round()
    ranks = torch.tensor([_ranks(x.tolist()), _ranks(y.tolist())], dtype=torch.float64)
    expected = float(torch.corrcoef(ranks)[0, 1])
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


def test_effect_size_counts_which_is_above() -> None:
    x = torch.randint(8, (15,), generator=GENERATOR).float() + 1
    y = torch.randint(8, (20,), generator=GENERATOR).float()
    signs = [math.copysign(1, a - b) if a != b else 0 for a in x.tolist() for b in y.tolist()]
    found = effect_size(x, y)
    assert found.value == pytest.approx(sum(signs) / len(signs))
    assert found.low < found.value < found.high


def test_any_growing_function_of_the_other_is_a_perfect_agreement() -> None:
    x = torch.randn(12, generator=GENERATOR)
    found = rank_correlation(x, x.exp())
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert rank_correlation(x, -x).value == pytest.approx(-1.0)
    assert effect_size(x + 100, x).value == 1.0


def test_the_interval_holds_the_truth_19_times_of_20() -> None:
    """Of independent samples: 0, for both."""
    covered = [0, 0]
    for _ in range(20):
        x, y = torch.randn(2, 40, generator=GENERATOR)
        for number, found in enumerate((rank_correlation(x, y), effect_size(x, y))):
            covered[number] += found.low <= 0 <= found.high
    assert all(count >= 16 for count in covered)


def test_too_little_tells_nothing() -> None:
    x = torch.tensor([1.0, 2.0, torch.nan])
    assert math.isnan(rank_correlation(x, x).value)
    assert math.isnan(rank_correlation(torch.ones(9), torch.arange(9.0)).value)
    assert math.isnan(effect_size(x, x[:1]).value)
