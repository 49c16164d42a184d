"""Choose directions in which an activation is pushed; the same ones at every step of a training.

They are random and isotropic ("random"), lead toward the activations of other prompts
("activations") or of the same prompt with another last token ("swaps"), or are random mixtures of
activations, which have their covariance ("mixtures").

around = look_around(run, num_prompts=16, num_directions=4)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr_monitor.model.session import Share
from sr_monitor.probes.base import Run

KINDS = ("random", "activations", "swaps", "mixtures")
_MOST_OTHERS = 256
# Shorter differences, relative to the activation, are rounding.
_SHORTEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class Around:
    """This rank's activations, and the directions from each; 0 where there was none to choose."""

    share: Share
    starts: Float[Tensor, "prompt d_model"]
    directions: Float[Tensor, "prompt kind direction d_model"]
    scale: float
    """The median distance from an activation to those of other prompts."""


def look_around(run: Run, num_prompts: int, num_directions: int) -> Around:
    """Read the activations of the first prompts, and choose directions from each."""
    session, generator = run.session, torch.Generator().manual_seed(0)
    prompts = run.prompts.pairs(min(num_prompts, run.prompts.num_pairs))[0]
    others = run.prompts.token_ids[:_MOST_OTHERS]
    everywhere = session.share(others)
    (read,) = everywhere.activations()
    there = everywhere.gather(read)  # "other d_model", on the CPU and on every rank
    # "prompt other": whether they differ; "prompt token": whether the last token does.
    lasts = torch.unique(others[:, -1])
    chosen = _choose((prompts[:, None] != others).any(dim=-1), num_directions, generator)
    swapped = _choose(prompts[:, -1:] != lasts, num_directions, generator)
    weights = _draw(len(prompts), num_directions, len(others), generator=generator)
    noise = _draw(len(prompts), num_directions, there.shape[1], generator=generator)
    share = session.share(prompts, *_swaps(prompts, lasts[swapped]))
    starts, *swaps = share.activations()
    mine, here = session.ranks.share(len(prompts)), starts[:, None]
    toward = there[chosen[mine]].to(starts) - here
    kinds = [
        noise[mine].to(starts),
        toward,
        torch.stack(swaps, dim=1) - here,
        (weights[mine] @ (there - there.mean(dim=0))).to(starts),
    ]
    shortest = _SHORTEST * here.norm(dim=-1, keepdim=True)
    directions = torch.stack([unit(each, shortest) for each in kinds], dim=1)
    distances = share.gather(toward.norm(dim=-1))
    return Around(
        share=share,
        starts=starts,
        directions=directions,
        scale=typical(distances, share.gather(starts)),
    )


def unit(
    vectors: Float[Tensor, "*shape width"], shortest: Float[Tensor, "*#shape 1"] | float = 0.0
) -> Float[Tensor, "*shape width"]:
    """Return the vectors at length 1; 0 where they are not longer than `shortest`."""
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > shortest, vectors / length, 0.0)


def typical(distances: Float[Tensor, "..."], vectors: Float[Tensor, "vector width"]) -> float:
    """Return the median distance; where there is none, how long the vectors are, or 1."""
    for lengths in (distances, vectors.norm(dim=-1)):
        if len(there := lengths[lengths.isfinite() & (lengths > 0)]):
            return float(there.median())
    return 1.0


def _choose(
    allowed: Bool[Tensor, "prompt item"], num: int, generator: torch.Generator
) -> Int[Tensor, "prompt num"]:
    """Choose items for each prompt, allowed ones first; again from the start if there are few."""
    order = torch.rand(allowed.shape, dtype=torch.float32, generator=generator)
    order = order.masked_fill(~allowed, -1).argsort(dim=1, descending=True)
    num_allowed = allowed.sum(dim=1, keepdim=True).clamp_min(1)
    return order.gather(1, torch.arange(num) % num_allowed)


def _draw(*shape: int, generator: torch.Generator) -> Float[Tensor, "..."]:
    return torch.randn(shape, dtype=torch.float32, generator=generator)


def _swaps(
    prompts: Int[Tensor, "prompt token"], lasts: Int[Tensor, "prompt direction"]
) -> list[Int[Tensor, "prompt token"]]:
    """Return the prompts with other last tokens, one copy for each direction."""
    return [torch.cat([prompts[:, :-1], last[:, None]], dim=1) for last in lasts.unbind(dim=1)]
