"""Choose the alphas of a path to look at: all of them, or those where the steepest rise can be.

`look_adaptively` models each curve as a Gaussian process around the straight line,

    r(alpha) ~ alpha + GP(0, s^2 k),    k the Matern-5/2 kernel,

and looks on as long as an interval could be steeper (mean + 3 deviations) than the steepest seen.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr_monitor.probes.sharpness import gap_ends

Sampling = Literal["grid", "adaptive"]

Look = Callable[[Int[Tensor, " some"], Int[Tensor, "some point"]], Float[Tensor, "some point"]]
"""look(pairs, steps) gives d at those steps of those pairs.

The first look is at all pairs, and starts with step 0.
"""

# Tuned on 208 pairs of a pretrained model, 101 alphas; docs/2-measuring.md has the table.
_NUM_SPREAD = 11
_NUM_CLOSE = 4
_MOST_ROUNDS = 10
_LENGTH = 0.4
_DEVIATIONS = 3.0
# Rounding in float32 may add this much to a difference of neighbours.
_ROUNDING = 5e-7
# Curves are float32 at best: smaller differences are rounding.
_RELATIVE_NOISE = 1e-9


def look_everywhere(look: Look, num_pairs: int, num_steps: int) -> None:
    """Look at every alpha of every pair."""
    look(torch.arange(num_pairs), torch.arange(num_steps).expand(num_pairs, -1))


def look_adaptively(look: Look, num_pairs: int, num_steps: int) -> None:
    """Look where the steepest rise of each curve can be, until it cannot be elsewhere."""
    if num_steps <= 2 * _NUM_SPREAD:
        look_everywhere(look, num_pairs, num_steps)
        return
    pairs = torch.arange(num_pairs)
    spread = torch.linspace(0, num_steps - 1, _NUM_SPREAD, dtype=torch.float32).round().long()
    steps = spread.expand(num_pairs, -1)
    curves = torch.full((num_pairs, num_steps), torch.nan, dtype=torch.float64)
    looked = torch.zeros(num_pairs, num_steps, dtype=torch.bool)
    for _ in range(_MOST_ROUNDS):
        curves[pairs[:, None], steps] = look(pairs, steps).double().cpu()
        looked[pairs[:, None], steps] = True
        relative = curves[pairs] / curves[pairs, -1:]
        # A pair that is not finite somewhere is left out of all results: stop looking at it.
        finite = (relative.isfinite() | ~looked[pairs]).all(dim=1)
        pairs, relative = pairs[finite], relative[finite]
        if len(pairs) == 0:
            return
        unsettled, far = _where_next(relative)
        pairs, far = pairs[unsettled], far[unsettled]
        if len(pairs) == 0:
            return
        number = min(_NUM_CLOSE, int((~looked[pairs]).sum(dim=1).min()))
        steps = far.argsort(dim=1, stable=True)[:, :number]


def _where_next(
    relative: Float[Tensor, "pair step"],
) -> tuple[Bool[Tensor, " pair"], Float[Tensor, "pair step"]]:
    """Return which curves may have a steeper interval, and each step's distance from it.

    Somewhere in a gap a curve is at least as steep as from end to end of it, so a gap steeper than
    every interval seen holds a steeper one: cut it evenly. Otherwise, look closely at an interval
    that could be steeper.
    """
    slopes = relative.diff(dim=1) * (relative.shape[1] - 1)
    enough = slopes.nan_to_num(-math.inf).amax(dim=1) + _ROUNDING * (relative.shape[1] - 1)
    possible, interval = _possible_slope(relative).max(dim=1)
    left, right = gap_ends(~relative.isnan())
    left, right = left[:, :-1], right[:, 1:]  # of each interval
    rise = relative.gather(1, right) - relative.gather(1, left)
    chords = (rise / (right - left) * (relative.shape[1] - 1)).where(right - left > 1, -math.inf)
    chord, gap = chords.max(dim=1)
    certain = (chord > enough) & enough.isfinite()
    far = torch.where(
        certain[:, None],
        _from_cuts(left.gather(1, gap[:, None]), right.gather(1, gap[:, None]), relative.shape[1]),
        (torch.arange(relative.shape[1]) - interval[:, None] - 0.5).abs(),
    )
    return (possible > enough) | certain, far.where(relative.isnan(), math.inf)


def _from_cuts(
    left: Int[Tensor, "pair 1"], right: Int[Tensor, "pair 1"], num_steps: int
) -> Float[Tensor, "pair step"]:
    """Return how far each step is from the nearest of the points that cut a gap evenly."""
    even = torch.linspace(0, 1, _NUM_CLOSE + 2, dtype=torch.float32)[1:-1]
    cuts = left + (right - left) * even
    cuts = cuts.round().clamp(left + 1, right - 1)
    # "step 1" minus "pair 1 cut", to "pair step cut".
    return (torch.arange(num_steps)[:, None] - cuts[:, None]).abs().amin(dim=-1)


def _possible_slope(relative: Float[Tensor, "pair step"]) -> Float[Tensor, "pair interval"]:
    """Return the highest slope each interval may have; -Inf where both of its ends are known."""
    num_intervals = relative.shape[1] - 1
    looked = relative.isfinite()
    # The steps looked at, filled up to as many for every pair: "pair known", and which are real.
    most = int(looked.sum(dim=1).max())
    where = (~looked).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    seen = looked.gather(1, where)
    alphas = torch.linspace(0, 1, num_intervals + 1, dtype=torch.float64)
    rest = torch.where(seen, relative.gather(1, where) - alphas[where], 0.0)
    points = alphas[where]
    # Points that only fill up a row: a row of the identity, and no weight in any interval.
    # "pair known known", and below "pair known interval".
    both = seen[:, :, None] & seen[:, None, :]
    known = torch.where(both, _matern(points[:, :, None] - points[:, None]), 0.0)
    known = known + torch.diag_embed(torch.where(seen, _RELATIVE_NOISE, 1.0))
    across = torch.where(seen[..., None], _matern(points[..., None] - alphas).diff(dim=-1), 0.0)
    solved = torch.linalg.solve(known, torch.cat([across, rest[..., None]], dim=-1))
    weights, fit = solved[..., :-1], solved[..., -1]
    mean = 1 / num_intervals + (across * fit[..., None]).sum(dim=1)
    scale = (rest * fit).sum(dim=1) / seen.sum(dim=1)
    prior = 2 * (1 - _matern(alphas[1] - alphas[0]))
    variance = scale[:, None] * (prior - (across * weights).sum(dim=1))
    possible: Tensor = (mean + _DEVIATIONS * variance.clamp_min(0).sqrt()) * num_intervals
    settled = looked[:, 1:] & looked[:, :-1]
    return possible.nan_to_num(-math.inf).masked_fill(settled, -math.inf)


def _matern(difference: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    scaled = math.sqrt(5) * difference.abs() / _LENGTH
    kernel: Tensor = (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)
    return kernel
