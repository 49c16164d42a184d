"""Two ranks find what one finds, with whole weights and with shards: probes of clean runs.

All in one pair of gloo processes.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Part, Probe
from sr_monitor.probes.contributions import Contributions
from sr_monitor.probes.geometry import Geometry
from sr_monitor.probes.meaning import Meaning
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.readout import Readout
from sr_monitor.probes.regions import Regions
from sr_monitor.probes.sinks import Sinks
from sr_monitor.prompts.prompt_set import PromptSet
from tests.processes import in_processes
from tests.zoo import build

NUM_PAIRS = 11


def embed(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[float(len(text)), float(text[0] == "1")] for text in texts])


def measure(model: nn.Module, ranks: RankGroup) -> dict[str, Part]:
    ids = build("llama").prompts(NUM_PAIRS + 1, 6)
    prompts = PromptSet(
        token_ids=ids,
        texts=tuple(map(str, range(NUM_PAIRS + 1))),
        labels=(*["similar", "dissimilar"] * 5, "similar"),
    )
    probes: list[Probe] = [
        *(PathsProbe(num_steps=9), Regions(), Geometry(), Contributions(), Sinks(num_prompts=3)),
        *(Readout(target=ids[:-1, -1].float()), Meaning(embed=embed)),
    ]
    return measure_probes(model, prompts, probes, SessionOptions(max_tokens=40), ranks=ranks)


def found(rank: int) -> dict[str, dict[str, Part]]:
    from torch.distributed.fsdp import fully_shard

    sharded: Any = build("llama").model
    for block in sharded.model.layers:
        fully_shard(block)
    models = {"whole": build("llama").model, "sharded": fully_shard(sharded)}
    return {name: measure(model, RankGroup.present()) for name, model in models.items()}


@pytest.mark.slow
def test_two_ranks_find_what_one_finds() -> None:
    alone = measure(build("llama").model, RankGroup())
    names = "paths regions geometry contributions sinks readout meaning"
    assert sorted(alone) == sorted(names.split())
    for of_rank in in_processes(found):
        for parts in of_rank.values():
            assert parts.keys() == alone.keys()
            for name, part in parts.items():
                for field, value in alone[name].items() if name != "paths" else ():
                    torch.testing.assert_close(
                        part[field], value, rtol=2e-4, atol=2e-5, equal_nan=True
                    )
