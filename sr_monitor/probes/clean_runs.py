"""Final vectors F of clean prompts: read where paths run them anyway, or by a run of their own.

vectors = Finals(num_contexts).part(gather)       # "pair d_output": those of the A prompts
finals_a, finals_b = run_clean(share, share.activations()).final.chunk(2)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.memory import in_chunks
from sr_monitor.model.outputs import Outputs
from sr_monitor.model.session import Share
from sr_monitor.probes.base import Gather


class Finals:
    """Reads the final vector of each of this rank's A prompts."""

    def __init__(self, num_contexts: int) -> None:
        """Have seen nothing."""
        self._count = num_contexts
        self._vectors = torch.empty(0, 0)

    def read(self, chunk: Chunk) -> None:
        """Keep what is at alpha = 0, where every pair is looked at first."""
        start = chunk.places == 0
        found = chunk.outputs[start.to(chunk.outputs.device)].float().cpu()
        if not self._vectors.numel():
            self._vectors = found.new_full((self._count, found.shape[1]), torch.nan)
        self._vectors[chunk.contexts[start]] = found

    def part(self, gather: Gather) -> Float[Tensor, "pair d_output"]:
        """Return all vectors."""
        return gather(self._vectors)


def run_clean(share: Share, activations: Sequence[Float[Tensor, "item d_model"]]) -> Outputs:
    """Run this rank's prompts from their activations on, equal ones once; return F and the taps."""
    prompts, points = torch.cat(share.prompts), torch.cat(list(activations))
    where = torch.arange(len(prompts))
    if not share.session.in_step:
        prompts, where = torch.unique(prompts, dim=0, return_inverse=True)
        # Any of the equal ones: their activations are equal, too.
        points = points.new_empty(len(prompts), points.shape[1]).index_copy(0, where, points)
    engine, pieces = share.session.engine, dict[int, Outputs]()

    def run(chunk: slice) -> None:
        # "item d_model" to "item 1 d_model": one point in each context.
        context = engine.open(prompts[chunk])
        pieces[chunk.start] = engine.run(context, points[chunk][:, None], lambda _: None)

    in_chunks(len(prompts), tokens_each=prompts.shape[1], budget=engine.budget, work=run)
    return Outputs.cat(list(pieces.values()))[where]
