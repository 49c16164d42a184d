"""Compare two samples, and say how sure that is: rank correlation, and the effect of a label.

    rank_correlation(x, y)   Spearman's rho: the correlation of the ranks, ties sharing their mean
    effect_size(x, y)        Cliff's delta: P(x > y) - P(x < y), from -1 to 1

Intervals are percentile bootstraps: the middle 95% over resamples of the pairs, or of each group.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

_NUM_RESAMPLES = 1000
_ENDS = 0.025, 0.975
_AT_ONCE = 2**22  # bounds the memory of a bootstrap

# Named here, since an annotation in a function makes a class at each call: cyclic garbage.
_Chosen: TypeAlias = Int[Tensor, "sample value"]
_PerSample: TypeAlias = Float[Tensor, " sample"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; NaN where there is too little to tell it from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Say both."""
        return f"{self.value:+.2f} (95% interval {self.low:+.2f} to {self.high:+.2f})"


def rank_correlation(
    x: Float[Tensor, " pair"], y: Float[Tensor, " pair"], *, resamples: int = _NUM_RESAMPLES
) -> Estimate:
    """Return Spearman's correlation over the pairs where both are finite.

    NaN for fewer than three pairs, and where either is the same for all. Without `resamples` there
    is no interval.
    """
    both = torch.stack([x, y]).double()
    both = both[:, both.isfinite().all(dim=0)]
    if both.shape[1] < 3:
        return Estimate(math.nan, math.nan, math.nan)

    def correlate(chosen: _Chosen) -> _PerSample:
        rank_x, rank_y = (_centred_ranks(values[chosen]) for values in both)
        norms = rank_x.norm(dim=1) * rank_y.norm(dim=1)
        correlation: Tensor = (rank_x * rank_y).sum(dim=1) / norms
        return correlation.where(norms > 0, math.nan)

    return _bootstrapped(correlate, [both.shape[1]], resamples)


def effect_size(x: Float[Tensor, " one"], y: Float[Tensor, " other"]) -> Estimate:
    """Return Cliff's delta of the finite values: how surely one of `x` is above one of `y`.

    NaN where a group has fewer than two values.
    """
    x, y = (values[values.isfinite()].double() for values in (x, y))
    if min(len(x), len(y)) < 2:
        return Estimate(math.nan, math.nan, math.nan)

    def compare(chosen: _Chosen) -> _PerSample:
        ours, theirs = x[chosen[:, : len(x)]], y[chosen[:, len(x) :]].sort(dim=1).values
        below = torch.searchsorted(theirs, ours)
        not_above = torch.searchsorted(theirs, ours, right=True)
        return (below + not_above - len(y)).double().mean(dim=1) / len(y)

    return _bootstrapped(compare, [len(x), len(y)], _NUM_RESAMPLES)


def _centred_ranks(values: Float[Tensor, "sample pair"]) -> Float[Tensor, "sample pair"]:
    """Return the rank of each value in its sample, minus their mean; equal ones share theirs."""
    ordered = values.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto - values.shape[1]).double() / 2


def _bootstrapped(
    statistic: Callable[[Int[Tensor, "sample value"]], Float[Tensor, " sample"]],
    sizes: list[int],
    resamples: int,
) -> Estimate:
    """Return a statistic of groups of these sizes, and its interval over resamples of each."""
    whole = torch.cat([torch.arange(size) for size in sizes])
    value = float(statistic(whole[None]))
    generator = torch.Generator().manual_seed(0)
    at_once = max(1, _AT_ONCE // len(whole))
    found = [torch.full((1,), math.nan, dtype=torch.double)]
    for done in range(0, resamples, at_once):
        count = min(at_once, resamples - done)
        drawn = [torch.randint(size, (count, size), generator=generator) for size in sizes]
        found.append(statistic(torch.cat(drawn, dim=1)))
    spread = torch.cat(found)
    low, high = spread.nanquantile(spread.new_tensor(_ENDS)).tolist()
    return Estimate(value, low, high)
