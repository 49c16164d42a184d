"""Find the first length at which something passes a threshold, for many directions at once.

    radius = first_crossing(kl_at, reach, threshold=0.1)      # Inf: not up to `reach`

Lengths double up to `reach` until one passes. The interval before it is bisected to within 3% of
the length, and a straight line drawn across the rest. What passes and comes back between two
lengths that are tried is not seen.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

# A length is one of these many doublings of the shortest, reach / 128, then halved so often.
_NUM_DOUBLINGS = 7
_NUM_HALVINGS = 5
NUM_ROUNDS = _NUM_DOUBLINGS + 1 + _NUM_HALVINGS
"""How often `first_crossing` asks for values."""

Measure = Callable[[Float[Tensor, "*shape"]], Float[Tensor, "*shape"]]
"""Returns the values at these lengths, one for each direction."""


def first_crossing(
    value_at: Measure, reach: Float[Tensor, "*shape"], *, threshold: float
) -> Float[Tensor, "*shape"]:
    """Return the length at which each value, 0 at length 0, first passes the threshold; else Inf.

    A value that is not a number has passed. Every round asks for all directions, so that each rank
    runs as many forwards as the others.
    """
    low, high = torch.zeros_like(reach), torch.full_like(reach, torch.inf)
    below, above = torch.zeros_like(reach), torch.full_like(reach, torch.inf)  # the values there

    def look(length: Tensor, wanted: Tensor) -> None:
        """Take `length` as the new end of those intervals that are `wanted`."""
        nonlocal low, high, below, above
        value = value_at(length)
        passed = ~(value <= threshold)
        is_high, is_low = wanted & passed, wanted & ~passed
        high, above = torch.where(is_high, length, high), torch.where(is_high, value, above)
        low, below = torch.where(is_low, length, low), torch.where(is_low, value, below)

    for doublings in range(_NUM_DOUBLINGS, -1, -1):
        look(reach / 2**doublings, high.isinf())
    found = high.isfinite()
    for _ in range(_NUM_HALVINGS):
        look(torch.where(found, (low + high) / 2, reach), found)
    share = (threshold - below) / (above - below)
    return torch.where(found, low + (high - low) * share.nan_to_num(0.5), torch.inf)
