"""Two ranks that share sharded weights find with these probes what one process finds."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from sr_monitor import PromptSet
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import pack
from sr_monitor.probes.causes import Causes
from sr_monitor.probes.depth import Depth
from sr_monitor.probes.layers import Layers
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.polytopes import Polytopes
from tests import zoo
from tests.processes import in_processes

PROBES = Depth(), Layers(num_layers=3), Polytopes(), Causes(num_steps=5)


def _measured(model: Any, ranks: RankGroup) -> dict[str, dict[str, Any]]:
    prompts = PromptSet.from_token_ids(zoo.build("llama").prompts(6, 6))
    probes = [PathsProbe(num_steps=7), *PROBES]
    parts = measure_probes(model, prompts, probes, SessionOptions(), ranks=ranks)
    return {probe.name: pack(parts[probe.name]) for probe in PROBES}


def _on_rank(rank: int) -> dict[str, dict[str, Any]]:
    model: Any = zoo.build("llama").model
    for block in model.model.layers:
        fully_shard(block)
    return _measured(fully_shard(model), RankGroup(rank, 2))


@pytest.mark.slow
def test_two_ranks_find_what_one_finds() -> None:
    alone = _measured(zoo.build("llama").model, RankGroup(0, 1))
    for found in in_processes(_on_rank):
        for name, part in alone.items():
            for field, value in part.items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(
                        found[name][field], value, rtol=1e-3, atol=1e-4, equal_nan=True
                    )
                else:
                    assert found[name][field] == value
