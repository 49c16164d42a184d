"""Bound the memory of a measurement by a token budget, halved whenever memory runs out.

The budget starts at what is fast on the device and fits into a quarter of its free memory; results
do not depend on it.

    budget = TokenBudget.for_device(device, bytes_per_token=stream.bytes_per_token)
    in_chunks(num_prompts, tokens_each=10, budget=budget, work=lambda chunk: ...)
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sr_monitor.errors import NothingFitsError, first_line, is_out_of_memory

# Measured: larger forwards are no faster; on a CPU they are slower, as they leave its caches.
_FAST_TOKENS = {"cpu": 1024}
_FAST_TOKENS_ELSEWHERE = 16384
_SHARE_OF_FREE_MEMORY = 0.25


@dataclass
class TokenBudget:
    """How many tokens one forward may take."""

    tokens: int
    fixed: bool = False
    """Whether running out of memory is final: ranks that run in step cannot try again alone."""

    @classmethod
    def for_device(
        cls, device: torch.device, *, bytes_per_token: int, most: int | None = None
    ) -> "TokenBudget":
        """Return what is fast on `device` and fits into its free memory; `most` overrules both."""
        tokens = most or _FAST_TOKENS.get(device.type, _FAST_TOKENS_ELSEWHERE)
        if most is None and device.type == "cuda":  # a CPU has enough for its small budget
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            tokens = min(tokens, int(_SHARE_OF_FREE_MEMORY * free / bytes_per_token))
        return cls(max(1, tokens))

    def items(self, tokens_each: int) -> int:
        """Return how many items of `tokens_each` tokens fit into one forward; at least one."""
        return max(1, self.tokens // tokens_each)


def in_chunks(
    count: int, *, tokens_each: int, budget: TokenBudget, work: Callable[[slice], None]
) -> None:
    """Run `work` on consecutive slices of `count` items, smaller ones after memory ran out."""
    start = 0
    while start < count:
        chunk = slice(start, min(start + budget.items(tokens_each), count))
        try:
            work(chunk)
            start = chunk.stop
            continue
        except RuntimeError as error:
            if budget.fixed or not is_out_of_memory(error):
                raise
            if budget.tokens == 1:
                raise NothingFitsError(first_line(error)) from error
        # Only here, outside of `except`, is the traceback gone, and with it all that work held.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget.tokens //= 2
