"""Which alphas of a path are looked at: all of them, or those where the steepest rise can be.

`look_adaptively` finds the maximum slope at the resolution of the whole grid from about a fifth
of its points. It looks at 11 spread alphas, then reads every curve as a Gaussian process around
the straight line,

    r(alpha) ~ alpha + GP(0, s^2 k),    k the Matern-5/2 kernel,

which gives each interval's slope a mean and a deviation. While some interval that was not looked
at could be steeper than the steepest one seen (mean + 3 deviations), the curve is looked at
around the likeliest of them.

    STRATEGIES["adaptive"](look, num_pairs, num_steps)
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Sampling = Literal["grid", "adaptive"]

Look = Callable[[Int[Tensor, " some"], Int[Tensor, "some point"]], Float[Tensor, "some point"]]
"""look(pairs, steps) gives d at those steps of those pairs.

The first look is at all pairs, and starts with step 0.
"""

# Tuned on 208 pairs of a pretrained model, 101 alphas; docs/measuring.md has the table.
_NUM_SPREAD = 11
_NUM_CLOSE = 4
_MOST_ROUNDS = 10
_LENGTH = 0.4
_DEVIATIONS = 3.0
# The curves come in float32 at best: anything the process would learn below this is rounding.
_RELATIVE_NOISE = 1e-9


def look_everywhere(look: Look, num_pairs: int, num_steps: int) -> None:
    """Looks at every alpha of every pair."""
    look(torch.arange(num_pairs), torch.arange(num_steps).expand(num_pairs, -1))


def look_adaptively(look: Look, num_pairs: int, num_steps: int) -> None:
    """Looks where the steepest rise of each curve can be, until it cannot be elsewhere."""
    if num_steps <= 2 * _NUM_SPREAD:
        look_everywhere(look, num_pairs, num_steps)
        return
    pairs = torch.arange(num_pairs)
    spread = torch.linspace(0, num_steps - 1, _NUM_SPREAD).round().long()
    steps = spread.expand(num_pairs, -1)
    curves = torch.full((num_pairs, num_steps), torch.nan, dtype=torch.float64)
    for _ in range(_MOST_ROUNDS):
        curves[pairs[:, None], steps] = look(pairs, steps).double().cpu()
        relative = curves[pairs] / curves[pairs, -1:]
        possible = _possible_slope(relative)
        open_ended = possible.amax(dim=1) > _steepest_seen(relative)
        pairs = pairs[open_ended]
        if len(pairs) == 0:
            return
        steps = _around(possible[open_ended].argmax(dim=1), relative[open_ended])


def _steepest_seen(relative: Float[Tensor, "pair step"]) -> Float[Tensor, " pair"]:
    slopes = relative.diff(dim=1) * (relative.shape[1] - 1)
    return slopes.nan_to_num(-math.inf).amax(dim=1)


def _around(
    interval: Int[Tensor, " pair"], relative: Float[Tensor, "pair step"]
) -> Int[Tensor, "pair point"]:
    """The steps not looked at that are nearest to the middle of an interval."""
    steps = torch.arange(relative.shape[1])
    far = (steps - interval[:, None] - 0.5).abs()
    far = torch.where(relative.isnan(), far, math.inf)
    return far.argsort(dim=1, stable=True)[:, :_NUM_CLOSE]


def _possible_slope(relative: Float[Tensor, "pair step"]) -> Float[Tensor, "pair interval"]:
    """The highest slope each interval may have; -Inf where both of its ends were looked at.

    A pair that is not finite has none: there is nothing to look for.
    """
    num_intervals = relative.shape[1] - 1
    looked = relative.isfinite()
    where, seen = _looked_at(looked)
    alphas = torch.linspace(0, 1, num_intervals + 1, dtype=torch.float64)
    rest = torch.where(seen, relative.gather(1, where) - alphas[where], 0.0)
    kernel = _matern(alphas[:, None] - alphas)
    # Points that only fill up a row know nothing: an identity row, and no part in any interval.
    both = seen[:, :, None] & seen[:, None, :]
    known = torch.where(both, kernel[where[:, :, None], where[:, None, :]], 0.0)
    known = known + torch.diag_embed(torch.where(seen, _RELATIVE_NOISE, 1.0))
    across = torch.where(seen[..., None], kernel.diff(dim=1)[where], 0.0)
    solved = torch.linalg.solve(known, torch.cat([across, rest[..., None]], dim=-1))
    weights, fit = solved[..., :-1], solved[..., -1]
    mean = 1 / num_intervals + (across * fit[..., None]).sum(dim=1)
    scale = (rest * fit).sum(dim=1) / seen.sum(dim=1)
    prior = 2 * (kernel[0, 0] - kernel[0, 1])
    variance = scale[:, None] * (prior - (across * weights).sum(dim=1))
    possible: Tensor = (mean + _DEVIATIONS * variance.clamp_min(0).sqrt()) * num_intervals
    settled = looked[:, 1:] & looked[:, :-1]
    return possible.nan_to_num(-math.inf).masked_fill(settled, -math.inf)


def _looked_at(
    looked: Bool[Tensor, "pair step"],
) -> tuple[Int[Tensor, "pair known"], Bool[Tensor, "pair known"]]:
    """The steps looked at, filled up to the same number for every pair, and which are real."""
    most = int(looked.sum(dim=1).max())
    where = (~looked).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return where, looked.gather(1, where)


def _matern(difference: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    scaled = math.sqrt(5) * difference.abs() / _LENGTH
    kernel: Tensor = (1 + scaled + scaled.square() / 3) * torch.exp(-scaled)
    return kernel


STRATEGIES: dict[Sampling, Callable[[Look, int, int], None]] = {
    "grid": look_everywhere,
    "adaptive": look_adaptively,
}
