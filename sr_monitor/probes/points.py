"""Run points of a probe's own: a few paths' prompts, their activations, and any points between.

pairs = FirstPairs.of(run, num_pairs=16)
outputs = pairs.outputs(pairs.share.prompts[0], points)      # "pair point d_output"
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.memory import in_chunks
from sr_monitor.model.session import Share
from sr_monitor.probes.base import Run
from sr_monitor.probes.paths import Paths


@dataclass(frozen=True)
class FirstPairs:
    """This rank's share of the first pairs of the paths, and where their paths begin and end."""

    share: Share
    a: Float[Tensor, "pair d_model"]
    b: Float[Tensor, "pair d_model"]
    paths: Paths
    """What the straight paths gave, of all pairs."""

    @classmethod
    def of(cls, run: Run, num_pairs: int) -> "FirstPairs":
        """Take the first `num_pairs` of the pairs whose paths were measured, or all of them."""
        paths: Paths = run.parts["paths"]
        share = run.session.share(*run.prompts.pairs(min(num_pairs, len(paths.distance))))
        a, b = share.activations()
        return cls(share, a, b, paths)

    def each(self, num_points: int, work: Callable[[slice], None]) -> None:
        """Run `work` on some pairs at a time, whose `num_points` points are made at once."""
        count, num_tokens = self.share.prompts[0].shape
        # A point takes about an eighth of a token's memory.
        budget = self.share.session.engine.budget
        in_chunks(count, tokens_each=num_tokens + num_points // 8, budget=budget, work=work)

    def outputs(
        self, prompts: Int[Tensor, "context token"], points: Float[Tensor, "context point d_model"]
    ) -> Float[Tensor, "context point d_output"]:
        """Return F of points, each in its prompt's context."""
        engine, found = self.share.session.engine, list[Tensor]()

        def see(chunk: Chunk) -> None:
            found.append(chunk.outputs.float())

        # Points come context by context, place by place.
        engine.run(engine.open(prompts), points, see)
        return torch.cat(found).view(*points.shape[:2], -1)


def mean_activation(run: Run) -> Float[Tensor, " d_model"]:
    """Return the mean of all prompts' activations at the layer, the same on every rank."""
    share = run.session.share(run.prompts.token_ids)
    (own,) = share.activations()
    return share.gather(own).double().mean(dim=0).to(own)


def counted(distance: Float[Tensor, "pair point"], paths: Paths) -> Bool[Tensor, " pair"]:
    """Return which of the first pairs count: all is finite, the last distance above the noise."""
    noise = torch.as_tensor(paths.noise_distance if paths.noise is None else paths.noise)
    above = distance[:, -1] > noise.expand(len(paths.distance))[: len(distance)]
    return distance.isfinite().all(dim=1) & above
