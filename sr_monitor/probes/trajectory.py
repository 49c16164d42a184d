"""Follow the output along each path: how far it has gone from point to point, summed up.

    way(alpha_k) = sum over i < k of || F(x_(i+1)) - F(x_i) ||

The distance to A's output does not show movement at one distance from A; this does.

    way = trajectory.part(gather)              # "pair step"; NaN where adaptive did not look
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.probes.base import Gather


class Trajectory:
    """Reads the way of each of this rank's pairs."""

    def __init__(self, num_contexts: int, num_places: int) -> None:
        """Have seen nothing."""
        self._num_places = num_places
        self._way = torch.full((num_contexts, num_places), torch.nan)
        # Outputs by context and place, kept until the last place is there. Adaptive sampling comes
        # back to a pair, and never looks everywhere: its outputs are kept to the end.
        self._outputs: dict[int, dict[int, Float[Tensor, " d_output"]]] = {}

    def read(self, chunk: Chunk) -> None:
        """Keep the outputs of pairs that are not through."""
        outputs = chunk.outputs.float().cpu()
        numbers = zip(chunk.contexts.tolist(), chunk.places.tolist(), strict=True)
        for (context, place), output in zip(numbers, outputs, strict=True):
            points = self._outputs.setdefault(context, {})
            points[place] = output
            if len(points) == self._num_places:
                self._finish(context)

    def part(self, gather: Gather) -> Float[Tensor, "pair step"]:
        """Return the way up to each point."""
        for context in [*self._outputs]:
            self._finish(context)
        return gather(self._way)

    def _finish(self, context: int) -> None:
        """Sum up the way over the points of a pair, and drop them."""
        points = self._outputs.pop(context)
        places = sorted(points)
        moved = torch.stack([points[place] for place in places]).diff(dim=0).norm(dim=1)
        self._way[context, places] = torch.cat([moved.new_zeros(1), moved.cumsum(dim=0)])
