"""Compute how sharp the boundary between two prompts is.

A *curve* is r(alpha) = d(alpha) / d(1) on a grid of S evenly spaced alphas, 0 and 1 included. A
point that is not finite counts as not looked at. Slopes are those between neighbours of the grid,

    slope_i = (r_(i+1) - r_i) (S - 1),    so 1 for a straight line, and S - 1 for a step;

levels are crossed by the straight lines through the points that were looked at.

    slope, where = max_slope(alphas, relative), slope_location(alphas, relative)
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LOW, _HIGH = 0.25, 0.75  # the levels between which the width of a boundary is taken


def max_slope(
    alphas: Float[Tensor, " step"], relative: Float[Tensor, "pair step"]
) -> Float[Tensor, " pair"]:
    """Return the largest increase between neighbouring alphas, times (S - 1).

    Signed: a curve that only falls has a negative one. NaN where no two neighbours were looked at.
    """
    steepest = _slopes(alphas, relative).amax(dim=1)
    return steepest.masked_fill(steepest.isneginf(), torch.nan)


def slope_location(
    alphas: Float[Tensor, " step"], relative: Float[Tensor, "pair step"]
) -> Float[Tensor, " pair"]:
    """Return alpha in the middle of the steepest interval, the first of several equal ones.

    NaN where no two neighbours were looked at.
    """
    steepest, interval = _slopes(alphas, relative).max(dim=1)
    middles = (alphas[:-1] + alphas[1:]) / 2
    return middles[interval].masked_fill(steepest.isneginf(), torch.nan)


def boundary_width(
    alphas: Float[Tensor, " step"], relative: Float[Tensor, "pair step"]
) -> Float[Tensor, " pair"]:
    """Return the alpha from 0.25 to 0.75: a straight line has width 0.5, a step nearly 0.

    A curve may cross a level several times. Its first complete passage is measured: from the last
    crossing of 0.25 before the curve first reaches 0.75 up to there. NaN where there is none: the
    curve never reaches 0.75, or is above 0.25 as far as it was looked at before.
    """
    filled = fill_gaps(alphas, relative)
    position = torch.arange(filled.shape[1], device=filled.device)
    reached = filled >= _HIGH
    end = torch.where(reached, position, filled.shape[1]).amin(dim=1)
    below = (filled < _LOW) & (position < end[:, None])
    start = torch.where(below, position, -1).amax(dim=1)
    width = _crossing(alphas, filled, end - 1, _HIGH) - _crossing(alphas, filled, start, _LOW)
    return width.masked_fill((start < 0) | ~reached.any(dim=1), torch.nan)


def fill_gaps(
    alphas: Float[Tensor, " step"], relative: Float[Tensor, "pair step"]
) -> Float[Tensor, "pair step"]:
    """Interpolate linearly where a curve was not looked at, for drawing and median curves.

    Points that were looked at come back bit for bit. Nothing is extrapolated: before the first
    and after the last of them the result is NaN.
    """
    seen = relative.isfinite()
    left, right = gap_ends(seen)
    known = relative.masked_fill(~seen, torch.nan)  # also the ends, so nothing is extrapolated
    weight = (alphas - alphas[left]) / (alphas[right] - alphas[left])
    drawn = torch.lerp(known.gather(1, left), known.gather(1, right), weight)
    return torch.where(seen, relative, drawn)


def gap_ends(
    seen: Bool[Tensor, "pair step"],
) -> tuple[Int[Tensor, "pair step"], Int[Tensor, "pair step"]]:
    """Return for each step the nearest ones up to it and from it on that were looked at.

    The first and the last step stand in where there is none.
    """
    last = seen.shape[1] - 1
    position = torch.arange(last + 1, device=seen.device)
    left = torch.where(seen, position, 0).cummax(dim=1).values
    right = torch.where(seen, position, last).flip(1).cummin(dim=1).values.flip(1)
    return left, right


def _slopes(
    alphas: Float[Tensor, " step"], relative: Float[Tensor, "pair step"]
) -> Float[Tensor, "pair interval"]:
    """Return the slope of each interval, minus infinity where an end was not looked at."""
    slopes = relative.diff(dim=1) * (alphas.numel() - 1)
    return slopes.masked_fill(~slopes.isfinite(), -torch.inf)


def _crossing(
    alphas: Float[Tensor, " step"],
    curves: Float[Tensor, "pair step"],
    interval: Int[Tensor, " pair"],
    level: float,
) -> Float[Tensor, " pair"]:
    """Return the alpha at which the line over one interval of each curve is at `level`."""
    start = interval.clamp(0, alphas.numel() - 2)[:, None]
    low, high = curves.gather(1, start), curves.gather(1, start + 1)
    begin, end = alphas[start], alphas[start + 1]
    return (begin + (level - low) / (high - low) * (end - begin)).squeeze(1)
