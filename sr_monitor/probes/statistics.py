"""Numbers over many curves: medians and quartiles, and how sure a median is.

Quantiles interpolate linearly between the two nearest values (as `numpy.percentile` does). The
interval of a median is the percentile bootstrap: draw the n values n times with replacement, take
the median, repeat; the interval holds the middle 95% of these medians. Values that are not finite
or not kept are counted, never averaged in. All randomness comes from an own generator.

    summary = summarise(paths.max_slope, paths.kept)
    print(f"{summary.median:.2f} [{summary.low:.2f}, {summary.high:.2f}], {summary.count} pairs")
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CONFIDENCE = 0.95
_ELEMENTS_AT_ONCE = 2**22  # bounds the memory of a bootstrap; `torch.quantile` refuses over 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A sample of values in six numbers; all NaN if no value is left."""

    median: float
    """Half of the values lie below."""
    q25: float
    """25th percentile."""
    q75: float
    """75th percentile."""
    low: float
    """Lower end of the median's 95% bootstrap interval; NaN for fewer than two values."""
    high: float
    """Upper end of the median's 95% bootstrap interval; NaN for fewer than two values."""
    count: int
    """Number of values summarised."""
    num_left_out: int
    """Number of values given that were not: not kept, NaN or infinite."""


def summarise(
    values: Float[Tensor, " pair"],
    kept: Bool[Tensor, " pair"] | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """Median, quartiles and the median's bootstrap interval of the kept, finite values."""
    sample = _usable(values, kept)
    q25, median, q75 = _quantiles(sample, 0.25, 0.5, 0.75)
    low, high = bootstrap_interval(sample, num_resamples=num_resamples, seed=seed)
    count = sample.numel()
    return Summary(
        median=median,
        q25=q25,
        q75=q75,
        low=low,
        high=high,
        count=count,
        num_left_out=values.numel() - count,
    )


def row_medians(samples: Float[Tensor, "row value"]) -> Float[Tensor, " row"]:
    """Median of each row; of the two middle values of an even number, the mean."""
    return samples.quantile(0.5, dim=1)


def bootstrap_interval(
    values: Float[Tensor, " value"],
    statistic: Callable[[Tensor], Tensor] = row_medians,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of a statistic of the finite values.

    `statistic` maps resamples "row value" to one number for each row. One value says nothing
    about its own spread, so fewer than two finite values give (NaN, NaN).
    """
    sample = _usable(values, None)
    if sample.numel() < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, _ELEMENTS_AT_ONCE // sample.numel())
    results = []
    for done in range(0, num_resamples, at_once):
        shape = (min(at_once, num_resamples - done), sample.numel())
        results.append(statistic(sample[torch.randint(sample.numel(), shape, generator=generator)]))
    low, high = _quantiles(torch.cat(results), (1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2)
    return low, high


def median_curve(
    relative: Float[Tensor, "pair step"], kept: Bool[Tensor, " pair"] | None = None
) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"], Float[Tensor, " step"]]:
    """25th percentile, median and 75th percentile of the kept curves at each step.

    A point that is not finite is left out of its step alone, so pass sparsely sampled curves
    through `fill_gaps` first. NaN at a step without any value.
    """
    curves = relative if kept is None else relative[kept]
    curves = curves.masked_fill(~curves.isfinite(), torch.nan)
    if not len(curves):  # a quantile of nothing is an error to torch; here it is NaN
        curves = relative.new_full((1, relative.shape[1]), torch.nan)
    q25, median, q75 = curves.nanquantile(curves.new_tensor([0.25, 0.5, 0.75]), dim=0)
    return q25, median, q75


def _usable(
    values: Float[Tensor, " value"], kept: Bool[Tensor, " value"] | None
) -> Float[Tensor, " usable"]:
    """The finite, kept values, in double precision on the CPU."""
    usable = values.isfinite() if kept is None else values.isfinite() & kept
    return values[usable].detach().cpu().double()


def _quantiles(sample: Float[Tensor, " value"], *levels: float) -> list[float]:
    """Quantiles of a sample, NaN if it is empty."""
    if not sample.numel():
        return [math.nan] * len(levels)
    return sample.quantile(sample.new_tensor(levels)).tolist()
