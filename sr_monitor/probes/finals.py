"""Collect the final vectors F of the clean contexts of paths: those of the A prompts, run anyway.

vectors = finals.part(gather)              # "pair d_output", on the CPU, in float32
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.engine import Chunk
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
