"""Summaries against numpy and a slow loop, and the interval's coverage on a known distribution."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from sr_monitor.probes.statistics import median_curve, quartiles, summarise
from tests.model.helpers import largest

NAN = math.nan


def exponential(*shape: int) -> Tensor:
    return torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 2, 5, 6, 257])
def test_median_and_quartiles_are_numpys(count: int) -> None:
    values = exponential(count)
    summary = summarise(values)
    expected = np.percentile(values.double().numpy(), [25, 50, 75])
    assert [summary.q25, summary.median, summary.q75] == pytest.approx(expected.tolist(), rel=1e-12)
    assert quartiles(values) == (summary.q25, summary.median, summary.q75)
    assert (summary.count, summary.num_left_out) == (count, 0)
    assert math.isnan(summary.low) == math.isnan(summary.high) == (count == 1)


def test_what_is_left_out_is_counted_and_never_averaged_in() -> None:
    values = torch.tensor([1.0, NAN, 2.0, math.inf, 3.0, 1e9, -math.inf])
    kept = torch.tensor([True, True, True, True, True, False, False])
    summary, alone = summarise(values, kept), summarise(torch.tensor([1.0, 2.0, 3.0]))
    assert (summary.count, summary.num_left_out) == (3, 4)
    for name in ("median", "q25", "q75", "low", "high"):
        assert getattr(summary, name) == getattr(alone, name)
    assert summary.median == 2.0


@pytest.mark.parametrize("values", [torch.empty(0), torch.full((4,), NAN), torch.ones(3)])
def test_nothing_left_gives_nan_and_no_complaint(values: Tensor) -> None:
    nothing = torch.zeros(len(values), dtype=torch.bool)
    summary = summarise(values, nothing if values.isfinite().any() else None)
    assert (summary.count, summary.num_left_out) == (0, len(values))
    numbers = [summary.median, summary.q25, summary.q75, summary.low, summary.high]
    assert all(math.isnan(number) for number in numbers)
    for curve in median_curve(values[:, None].expand(-1, 5), nothing):
        assert curve.shape == (5,)
        assert curve.isnan().all()


def test_the_interval_equals_a_slow_bootstrap() -> None:
    """The textbook loop, with another source of random numbers."""
    values, rng = exponential(101), random.Random(1)
    medians = [np.median(rng.choices(values.tolist(), k=101)) for _ in range(4000)]
    expected = np.percentile(medians, [2.5, 97.5]).tolist()
    before = torch.get_rng_state()
    summary = summarise(values)
    assert [summary.low, summary.high] == pytest.approx(expected, rel=0.05)
    assert summarise(values) == summary
    assert torch.equal(torch.get_rng_state(), before)


def test_the_memory_of_a_bootstrap_is_bounded() -> None:
    """32 MB of doubles at once, or a single resample."""
    assert largest(lambda: summarise(exponential(5_000))) <= 2**22


def test_the_median_curve_is_numpys_at_each_step() -> None:
    relative, kept = exponential(31, 11), torch.arange(31) % 3 > 0
    expected = np.percentile(relative[kept].numpy(), [25, 50, 75], axis=0)
    torch.testing.assert_close(
        torch.stack(median_curve(relative, kept)), torch.from_numpy(expected).float()
    )
    # A point that was not looked at is left out of its step alone.
    gaps = torch.tensor([[0.0, 1.0, 1.0], [0.0, NAN, 1.0], [0.0, 3.0, math.inf]])
    found = [curve.tolist() for curve in median_curve(gaps, torch.ones(3, dtype=torch.bool))]
    assert found == [[0.0, 1.5, 1.0], [0.0, 2.0, 1.0], [0.0, 2.5, 1.0]]
