"""What one of many ranks runs, without the others: it is told something for what they found."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sr_monitor import measure_slices
from sr_monitor.model.ranks import RankGroup

_T = TypeVar("_T")


class OneOfMany(RankGroup):
    """A rank whose others are not there: it takes its own share, and exchanges nothing."""

    def in_teams(self, mates: Any) -> RankGroup:
        return self

    def sync_errors(self) -> None:
        pass

    def largest(self, ask: Callable[[], int]) -> int:
        return ask()

    def broadcast(self, value: _T) -> _T:
        return value

    def gather(self, mine: Tensor, count: int) -> Tensor:
        return mine.cpu()[torch.arange(count) % len(mine)]


def cost_of_slices(
    model: nn.Module, prompts: Tensor, size: int, resolution: int
) -> tuple[float, int]:
    """Return the CPU seconds of one rank, and how many points it runs, the self-check included."""
    rows: list[int] = []
    last = list(model.get_submodule("model.layers").children())[-1]
    hook = last.register_forward_hook(lambda _, __, made: rows.append(made.shape[:2].numel()))
    start = time.process_time()
    triples = prompts[:-2], prompts[1:-1], prompts[2:]
    measure_slices(model, *triples, resolution=resolution, ranks=OneOfMany(size - 1, size))
    hook.remove()
    return time.process_time() - start, sum(rows)
