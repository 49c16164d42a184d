"""Bound the memory of a measurement by a token budget, halved whenever memory runs out.

A forward over n tokens needs memory in proportion to n, so the budget counts tokens. It starts at
what is fast on the device and fits into a quarter of its free memory. Running out of memory halves
it, and the chunk is run again in smaller ones, down to one token. Results do not depend on it.

    budget = TokenBudget.for_device(device, bytes_per_token=stream.bytes_per_token)
    in_chunks(num_prompts, tokens_each=10, budget=budget, work=lambda chunk: ...)
"""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sr_monitor.errors import is_out_of_memory, whole

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
    def for_device(cls, device: torch.device, *, bytes_per_token: int) -> "TokenBudget":
        """Return what is fast on `device` and fits into a quarter of its free memory."""
        tokens = _FAST_TOKENS.get(device.type, _FAST_TOKENS_ELSEWHERE)
        fitting = _SHARE_OF_FREE_MEMORY * _free_bytes(device) / bytes_per_token
        return cls(max(1, int(min(tokens, fitting))))

    @classmethod
    def of(cls, max_tokens: int) -> "TokenBudget":
        """Return the budget that a user asked for."""
        return cls(whole("max_tokens", max_tokens, least=1))

    def items(self, tokens_each: int) -> int:
        """Return how many items of `tokens_each` tokens fit into one forward; at least one."""
        return max(1, self.tokens // tokens_each)

    def halve(self) -> None:
        """Allow half as many tokens from now on."""
        self.tokens = max(1, self.tokens // 2)


def _free_bytes(device: torch.device) -> float:
    """Return the memory to be had on a device; a CPU has enough for its small budget."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def in_chunks(
    count: int, *, tokens_each: int, budget: TokenBudget, work: Callable[[slice], None]
) -> None:
    """Run `work` on consecutive slices of `count` items, smaller ones after memory ran out."""
    start = 0
    while start < count:
        chunk = slice(start, min(start + budget.items(tokens_each), count))
        if _fits(work, chunk, give_up=budget.fixed or budget.tokens == 1):
            start = chunk.stop
        else:
            budget.halve()


def _fits(work: Callable[[slice], None], chunk: slice, *, give_up: bool) -> bool:
    """Run `work` on one slice; return False if memory ran out and there is more to try."""
    try:
        work(chunk)
    except RuntimeError as error:
        if give_up or not is_out_of_memory(error):
            raise
    else:
        return True
    # Only here, outside of `except`, is the traceback gone, and with it all that work held.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
