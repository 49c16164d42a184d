"""Measure how far the next-token distribution moves from A's own along each path.

    KL(alpha) = sum over tokens of p_A (log p_A - log p(alpha)),    p = softmax of the logits,

in nats, where p_A is A's own distribution and p(alpha) the one at alpha. The points are those that
paths run anyway; the extra cost is the map to the vocabulary for each of them.

    StableRegionCallback(probes=["divergence"])
    record.parts["divergence"]["kl"]              # "pair step"; NaN where adaptive did not look
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.session import Session
from sr_monitor.model.stream import Stream
from sr_monitor.probes.base import Gather, Part, Probe
from sr_monitor.probes.keys import Key
from sr_monitor.probes.statistics import quartiles

# Logits at once: a quarter of a gigabyte in float32.
_MOST_LOGITS = 2**26

END = Key.scalar("divergence/end", "How far B's activation moves A's next-token distribution: KL.")
MAX_SLOPE = Key.scalar(
    "divergence/max_slope", "How steeply that divergence rises at most, relative to its end."
)


@dataclass(frozen=True, kw_only=True)
class Divergence(Probe):
    """Kullback-Leibler divergence to A's next-token distribution along each path."""

    name = "divergence"
    rides = "paths"
    keys = (END, MAX_SLOPE)

    def reader(self, session: Session, num_contexts: int, num_places: int) -> "_Reader":
        """Read the distribution at every point of the paths."""
        return _Reader(session.stream, num_contexts, num_places)

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return medians over the pairs: the divergence at alpha = 1, and its steepest rise."""
        kl = part["kl"]
        slope = (kl / kl[:, -1:]).diff(dim=1).nan_to_num(-torch.inf).amax(dim=1)
        return {
            END: quartiles(kl[:, -1])[1],
            MAX_SLOPE: quartiles(slope * (kl.shape[1] - 1))[1],
        }


class _Reader:
    """The divergence at each point of this rank's pairs."""

    def __init__(self, stream: Stream, num_contexts: int, num_places: int) -> None:
        self._stream = stream
        self._at_once = max(1, _MOST_LOGITS // (stream.anatomy.vocabulary or 2**17))
        self._kl = torch.full((num_contexts, num_places), torch.nan)

    def read(self, chunk: Chunk) -> None:
        for piece in torch.split(torch.arange(len(chunk.contexts)), self._at_once):
            contexts = chunk.contexts[piece]
            _, owner = torch.unique(contexts, return_inverse=True)
            # Points of one context come together: its clean output is taken from the first.
            first = owner.diff(prepend=owner.new_tensor([-1])).nonzero().flatten()
            own = self._log_softmax(chunk.clean[piece[first]])[owner]  # "point token"
            here = self._log_softmax(chunk.outputs[piece])
            # Tokens to which A gives no probability add nothing.
            terms = torch.where(own.isneginf(), 0.0, own.exp() * (own - here))
            self._kl[contexts, chunk.places[piece]] = terms.sum(dim=-1).cpu()

    def part(self, gather: Gather) -> Part:
        return {"kl": gather(self._kl)}

    def _log_softmax(self, outputs: Float[Tensor, "row d_output"]) -> Float[Tensor, "row token"]:
        return self._stream.unembed(outputs).float().log_softmax(dim=-1)
