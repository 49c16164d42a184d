"""Find the steps of a path: stretches where the output moves far faster than along a straight line.

The speed of an interval is its share of the whole movement, times (S - 1): 1 on a straight line,
S - 1 where one interval holds all. A step is a peak of the speed that stands out, its prominence
above the valleys at its sides; outside of the path the speed counts as 1. A step is as wide as its
peak at half of its prominence.

    steps = find_steps(speed, least=1.0)
    num_regions = steps.count + 1
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

_FLAT = 0.5  # a plateau is slower than half of a straight line


@dataclass(frozen=True)
class Steps:
    """The steps of each path."""

    speed: Float[Tensor, "pair interval"]
    peaks: Bool[Tensor, "pair interval"]
    """Whether an interval is the fastest of a step."""
    inside: Bool[Tensor, "pair interval"]
    """Whether it is part of a step."""

    @property
    def count(self) -> Int[Tensor, " pair"]:
        """How many steps a path has: one less than regions."""
        return self.peaks.sum(dim=1)

    @property
    def plateau(self) -> Float[Tensor, " pair"]:
        """The share of the path on which the output moves less than half as fast as on a line."""
        return (self.speed < _FLAT).to(self.speed).mean(dim=1)

    @property
    def within(self) -> Float[Tensor, " pair"]:
        """The movement between the steps, shared out over the regions; NaN without a step."""
        between = self.speed.masked_fill(self.inside, 0.0).mean(dim=1)
        return (between / (self.count + 1)).where(self.count > 0, torch.nan)


def find_steps(
    speed: Float[Tensor, "pair interval"], least: float | Float[Tensor, " pair"]
) -> Steps:
    """Find the peaks whose prominence is above `least`; speeds that are not finite count as 0."""
    speed = speed.where(speed.isfinite(), 0.0)
    least = torch.as_tensor(least, dtype=speed.dtype).expand(len(speed))
    padded = functional.pad(speed, (1, 1), value=1.0)
    peaks, inside = torch.zeros_like(padded, dtype=torch.bool), torch.zeros_like(padded).bool()
    for place in range(1, padded.shape[1] - 1):
        here = padded[:, place, None]
        # Outwards from the interval: of equal neighbours only the first is a peak.
        left, right = padded[:, :place].flip(1), padded[:, place + 1 :]
        valleys = torch.cat([_lowest(left, left >= here), _lowest(right, right > here)], dim=1)
        prominence = here - torch.minimum(valleys, here).amax(dim=1, keepdim=True)
        is_peak = prominence > least[:, None]
        peaks[:, place] = is_peak[:, 0]
        inside[:, place] |= is_peak[:, 0]
        half = here - prominence / 2
        inside[:, :place] |= is_peak & _unbroken(left > half).flip(1)
        inside[:, place + 1 :] |= is_peak & _unbroken(right > half)
    return Steps(speed, peaks[:, 1:-1], inside[:, 1:-1])


def _lowest(
    outwards: Float[Tensor, "pair place"], higher: Bool[Tensor, "pair place"]
) -> Float[Tensor, "pair 1"]:
    """Return the lowest speed before the first that is higher, infinity if that comes at once."""
    beyond = higher.cumsum(dim=1) > 0
    return outwards.masked_fill(beyond, torch.inf).amin(dim=1, keepdim=True)


def _unbroken(fast: Bool[Tensor, "pair place"]) -> Bool[Tensor, "pair place"]:
    """Return the stretch of fast places at the beginning."""
    return fast.cumprod(dim=1) > 0
