"""Summarise many curves: medians, quartiles, and how sure a median is.

Quantiles interpolate linearly between the two nearest values, as `numpy.percentile` does. The
interval of a median is the percentile bootstrap: the middle 95% of the medians of resamples.

    summary = summarise(paths.max_slope, paths.kept)
    print(f"{summary.median:.2f} [{summary.low:.2f}, {summary.high:.2f}], {summary.count} pairs")
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 1000
_ELEMENTS_AT_ONCE = 2**22  # bounds the memory of a bootstrap; `torch.quantile` refuses over 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A sample of values; numbers are NaN if no value is left.

    `low` and `high` are the ends of the median's 95% bootstrap interval, NaN for fewer than two
    values. `num_left_out` values were not kept, NaN or infinite.
    """

    median: float
    q25: float
    q75: float
    low: float
    high: float
    count: int
    num_left_out: int


def summarise(values: Float[Tensor, " pair"], kept: Bool[Tensor, " pair"] | None = None) -> Summary:
    """Return median, quartiles and the median's interval of the kept, finite values."""
    sample = _usable(values, kept)
    q25, median, q75 = _quantiles(sample, 0.25, 0.5, 0.75)
    low, high = _median_interval(sample)
    count = len(sample)
    left_out = len(values) - count
    return Summary(
        median=median, q25=q25, q75=q75, low=low, high=high, count=count, num_left_out=left_out
    )


def quartiles(
    values: Float[Tensor, " pair"], kept: Bool[Tensor, " pair"] | None = None
) -> tuple[float, float, float]:
    """Return the 25th percentile, median and 75th percentile of the kept, finite values."""
    q25, median, q75 = _quantiles(_usable(values, kept), 0.25, 0.5, 0.75)
    return q25, median, q75


def median_curve(
    relative: Float[Tensor, "pair step"], kept: Bool[Tensor, " pair"]
) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"], Float[Tensor, " step"]]:
    """Return the 25th percentile, median and 75th percentile of the kept curves at each step.

    A point that is not finite is left out of its step alone, so pass sparsely sampled curves
    through `fill_gaps` first. NaN at a step without any value.
    """
    curves = relative[kept]
    curves = curves.masked_fill(~curves.isfinite(), torch.nan)
    if not len(curves):  # a quantile of nothing is an error to torch; here it is NaN
        curves = relative.new_full((1, relative.shape[1]), torch.nan)
    q25, median, q75 = curves.nanquantile(curves.new_tensor([0.25, 0.5, 0.75]), dim=0)
    return q25, median, q75


def _median_interval(sample: Float[Tensor, " value"]) -> tuple[float, float]:
    """Bootstrap the 95% interval of the median, with a random generator of its own."""
    if (count := len(sample)) < 2:  # one value says nothing about its own spread
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(0)
    at_once = max(1, _ELEMENTS_AT_ONCE // count)
    medians = []
    for done in range(0, _NUM_RESAMPLES, at_once):
        shape = min(at_once, _NUM_RESAMPLES - done), count  # "resample value"
        chosen = torch.randint(count, shape, generator=generator)
        medians.append(sample[chosen].quantile(0.5, dim=1))
    low, high = _quantiles(torch.cat(medians), (1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2)
    return low, high


def _usable(
    values: Float[Tensor, " value"], kept: Bool[Tensor, " value"] | None
) -> Float[Tensor, " usable"]:
    """Return the finite, kept values, in double precision on the CPU."""
    usable = values.isfinite() if kept is None else values.isfinite() & kept
    return values[usable].detach().cpu().double()


def _quantiles(sample: Float[Tensor, " value"], *levels: float) -> list[float]:
    if not sample.numel():
        return [math.nan] * len(levels)
    return sample.quantile(sample.new_tensor(levels)).tolist()
