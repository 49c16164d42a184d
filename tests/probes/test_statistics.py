"""Summaries against numpy and a slow loop, and the interval's coverage on a known distribution."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from sr_monitor.probes.statistics import bootstrap_interval, median_curve, row_medians, summarise

NAN = math.nan


def exponential(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed))


def row_means(samples: Tensor) -> Tensor:
    return samples.mean(dim=1)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 257])
def test_median_and_quartiles_are_numpys(count: int) -> None:
    values = exponential(count)
    summary = summarise(values)
    expected = np.percentile(values.double().numpy(), [25, 50, 75])
    assert [summary.q25, summary.median, summary.q75] == pytest.approx(expected.tolist(), rel=1e-12)
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


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (torch.empty(0), None),
        (torch.full((4,), NAN), None),
        (torch.ones(3), torch.zeros(3, dtype=torch.bool)),
    ],
)
def test_nothing_left_gives_nan_and_no_complaint(values: Tensor, kept: Tensor | None) -> None:
    summary = summarise(values, kept)
    assert (summary.count, summary.num_left_out) == (0, len(values))
    numbers = [summary.median, summary.q25, summary.q75, summary.low, summary.high]
    assert all(math.isnan(number) for number in numbers)


def test_the_interval_equals_a_slow_bootstrap() -> None:
    """The textbook loop, with another source of random numbers."""
    values, rng = exponential(101), random.Random(1)
    medians = [np.median(rng.choices(values.tolist(), k=101)) for _ in range(4000)]
    expected = np.percentile(medians, [2.5, 97.5]).tolist()
    assert bootstrap_interval(values, num_resamples=4000) == pytest.approx(expected, rel=0.03)
    assert bootstrap_interval(torch.full((9,), 3.0)) == (3.0, 3.0)


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem() -> None:
    values = exponential(2000)
    low, high = bootstrap_interval(values, row_means, num_resamples=4000)
    mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(2000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=half / 10)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    intervals = [bootstrap_interval(sample, num_resamples=300) for sample in exponential(400, 60)]
    covered = sum(low <= math.log(2) <= high for low, high in intervals) / len(intervals)
    assert 0.91 <= covered <= 0.98


@pytest.mark.parametrize(("count", "num_resamples"), [(300_000, 30), (5_000_000, 2)])
def test_the_memory_of_a_bootstrap_is_bounded(count: int, num_resamples: int) -> None:
    """32 MB of doubles at once, or a single resample."""
    num_rows: list[int] = []

    def recording_means(samples: Tensor) -> Tensor:
        num_rows.append(len(samples))
        assert samples.shape[1] == count
        return row_means(samples)

    found = bootstrap_interval(exponential(count), recording_means, num_resamples=num_resamples)
    assert found == pytest.approx((1.0, 1.0), abs=0.01)
    assert sum(num_rows) == num_resamples
    assert all(rows == 1 or rows * count <= 2**22 for rows in num_rows)


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    samples = torch.tensor([[4.0, 1.0, 3.0, 2.0], [0.0, 0.0, 1.0, 9.0]])
    assert row_medians(samples).tolist() == [2.5, 0.5]


def test_the_seed_decides_and_nobody_elses_random_numbers_are_touched() -> None:
    values = exponential(80)
    before = torch.get_rng_state()
    first, again, other = summarise(values), summarise(values), summarise(values, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.median == other.median


def test_the_median_curve_is_numpys_at_each_step() -> None:
    relative, kept = exponential(31, 11), torch.arange(31) % 3 > 0
    expected = np.percentile(relative[kept].numpy(), [25, 50, 75], axis=0)
    torch.testing.assert_close(
        torch.stack(median_curve(relative, kept)), torch.from_numpy(expected).float()
    )
    # A point that was not looked at is left out of its step alone.
    gaps = torch.tensor([[0.0, 1.0, 1.0], [0.0, NAN, 1.0], [0.0, 3.0, math.inf]])
    found = [curve.tolist() for curve in median_curve(gaps)]
    assert found == [[0.0, 1.5, 1.0], [0.0, 2.0, 1.0], [0.0, 2.5, 1.0]]


def test_the_median_curve_of_nothing_is_nan() -> None:
    nothing_kept = median_curve(torch.rand(3, 5), torch.zeros(3, dtype=torch.bool))
    no_pairs = median_curve(torch.empty(0, 5))
    for curve in (*nothing_kept, *no_pairs, *median_curve(torch.full((2, 5), NAN))):
        assert curve.shape == (5,)
        assert curve.isnan().all()
