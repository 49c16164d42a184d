"""How many tokens a training has seen, for frameworks that do not count them.

count = TokenCount()
count.add([batch], num_ranks=2)
count.total
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sr_monitor.prompts.token_ids import count_tokens


class TokenCount:
    """Counts on the device of the batches, so that no batch has to wait for the sum."""

    def __init__(self, start: int | None = 0) -> None:
        """Begin with the tokens seen before; None if nobody knows."""
        self._seen: Int[Tensor, ""] | None = None if start is None else torch.tensor(start)

    @property
    def total(self) -> int | None:
        """All tokens; None once a batch could not be counted."""
        return None if self._seen is None else int(self._seen)

    def add(self, parts: Sequence[Any], *, num_ranks: int = 1) -> None:
        """Count the ids in the parts of a batch; other ranks have batches of the same size."""
        if self._seen is None:
            return
        try:
            counts = [count for part in parts if (count := count_tokens(part)) is not None]
            more = sum(counts[1:], counts[0]) * num_ranks
            self._seen = self._seen.to(more.device, non_blocking=True) + more
        except Exception:  # a batch may be anything, and this is about one number
            self._seen = None
