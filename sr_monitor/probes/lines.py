"""Run coarse paths of few pairs, for probes with points of their own.

points = points_between(a, b, alphas_of(21))
each_chunk(share, 21, work=lambda pairs: ..., progress=run.progress)
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.memory import in_chunks
from sr_monitor.model.session import Share
from sr_monitor.probes.base import Progress


def alphas_of(num_steps: int) -> Float[Tensor, " step"]:
    """Return evenly spaced interpolation coefficients, 0 and 1 included."""
    return torch.linspace(0, 1, num_steps, dtype=torch.float64).float()


def points_between(
    a: Float[Tensor, "pair d_model"],
    b: Float[Tensor, "pair d_model"],
    alphas: Float[Tensor, " step"],
) -> Float[Tensor, "pair step d_model"]:
    """Return the points x(alpha) = (1 - alpha) a + alpha b of each pair."""
    # "step 1" times "pair 1 d_model".
    weights = alphas.to(a.device)[:, None]
    return (1 - weights) * a[:, None] + weights * b[:, None]


def each_chunk(
    share: Share, num_steps: int, work: Callable[[slice], None], progress: Progress
) -> None:
    """Do some work for all of this rank's pairs, as many at a time as memory takes."""
    count, num_tokens = share.prompts[0].shape

    def measure(pairs: slice) -> None:
        work(pairs)
        progress(pairs.stop, count)

    # A pair's points are made at once; a point takes about an eighth of a token's memory.
    each = num_tokens + num_steps // 8
    in_chunks(count, tokens_each=each, budget=share.session.engine.budget, work=measure)


def rounding_of(
    outputs: Float[Tensor, "pair d_output"], precision: torch.dtype
) -> Float[Tensor, " pair"]:
    """Return how far rounding alone may move outputs of this length."""
    length: Tensor = outputs.float().norm(dim=-1)
    return 16 * torch.finfo(precision).eps * length
