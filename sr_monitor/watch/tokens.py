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
        """Begin with the tokens that were seen before; None if nobody knows."""
        self._seen: Int[Tensor, ""] | None = None if start is None else torch.tensor(start)

    @property
    def total(self) -> int | None:
        """All tokens; None once a batch could not be counted."""
        return None if self._seen is None else int(self._seen)

    def add(self, parts: Sequence[Any], *, num_ranks: int = 1) -> None:
        """Count the ids in the parts of a batch; other ranks have batches of the same size."""
        if self._seen is not None:
            more = _count(parts)
            seen = None if more is None else self._seen.to(more.device, non_blocking=True)
            self._seen = None if more is None or seen is None else seen + more * num_ranks


def _count(parts: Sequence[Any]) -> Int[Tensor, ""] | None:
    """Return how many ids the parts hold; None where none holds any."""
    try:
        counts = [count_tokens(part) for part in parts]
        known = [count for count in counts if count is not None]
        return sum(known, torch.tensor(0)) if known else None
    except Exception:  # a batch may be anything, and this is about one number
        return None
