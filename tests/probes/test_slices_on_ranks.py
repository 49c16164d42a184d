"""Slices are cut into bands where there are few of them for the ranks: nothing is lost, or dearer.

The ranks are run one after the other in one process; the last one is told what the others found.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sr_monitor import measure_slices
from sr_monitor.probes.slices import Slices
from tests.benchmarks.ranks import OneOfMany
from tests.zoo import build


class Told(OneOfMany):
    """A rank that is told what others gathered before it, in turn."""

    def __init__(self, rank: int, size: int, found: list[list[Tensor]]) -> None:
        super().__init__(rank, size)
        self.found, self.calls = found, 0

    def gather(self, mine: Tensor, count: int) -> Tensor:
        if self.calls == len(self.found):
            self.found.append([])
        pieces = self.found[self.calls]
        pieces.append(mine.cpu())
        self.calls += 1
        return super().gather(torch.cat(pieces), count)  # before the last rank, too few


def measure(ranks: range, num_triples: int, resolution: int) -> tuple[Slices, int]:
    """What the last of so many ranks returns, and how many tokens it ran."""
    specimen, found, tokens = build("linear"), list[list[Tensor]](), list[int]()
    model: Any = specimen.model
    model.embedding.register_forward_pre_hook(lambda _, ids: tokens.append(ids[0].numel()))
    prompts = specimen.prompts(num_triples + 2, 5)
    triples = prompts[:-2], prompts[1:-1], prompts[2:]

    def on(rank: int) -> Slices:
        tokens.clear()
        told = Told(rank, ranks.stop, found)
        return measure_slices(model, *triples, resolution=resolution, engine="plain", ranks=told)

    return [on(rank) for rank in ranks][-1], sum(tokens)


@pytest.mark.parametrize(("size", "num_triples"), [(2, 1), (3, 2), (7, 2), (20, 1)])
def test_bands_of_maps_make_up_the_slices(size: int, num_triples: int) -> None:
    alone, _ = measure(range(1), num_triples, 6)
    together, _ = measure(range(size), num_triples, 6)
    torch.testing.assert_close(together.distance, alone.distance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.foot, alone.foot)
    assert together.num_points == alone.num_points


def test_four_slices_cost_all_ranks_together_no_more_on_sixty_four_than_on_four() -> None:
    costs = {size: size * measure(range(size - 1, size), 4, 21)[1] for size in (4, 64)}
    assert costs[64] < 1.15 * costs[4]
