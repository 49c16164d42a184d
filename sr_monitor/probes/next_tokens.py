"""Make next-token logits of points, never of all at once.

next_tokens = NextTokens(session.stream)
for piece in next_tokens.pieces(len(chunk.contexts)):
    tops = top_tokens(next_tokens.logits(chunk.outputs[piece]))
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.model.stream import Stream

# Logits at once: a quarter of a gigabyte in float32.
_MOST_LOGITS = 2**26


class NextTokens:
    """What the model predicts of final vectors."""

    def __init__(self, stream: Stream) -> None:
        """Raise `MissingPartError` where the outputs give no logits."""
        stream.check_unembeds()
        self._stream = stream
        self._at_once = max(1, _MOST_LOGITS // (stream.anatomy.vocabulary or 2**17))

    def pieces(self, count: int) -> list[Int[Tensor, " row"]]:
        """Cut the numbers of rows into as many as are looked at together."""
        numbers = torch.arange(count)
        return [numbers[n : n + self._at_once] for n in range(0, len(numbers), self._at_once)]

    def logits(self, outputs: Float[Tensor, "row d_output"]) -> Float[Tensor, "row token"]:
        """Return the logits in float32."""
        return self._stream.unembed(outputs).float()


def top_tokens(logits: Float[Tensor, "row token"]) -> Int[Tensor, " row"]:
    """Return the most likely token of each row, the first of equal ones, on the CPU."""
    if logits.device.type == "cpu":  # five times as fast
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1).cpu()
