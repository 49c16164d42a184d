"""Two ranks with a sharded model find together what one process finds."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sr_monitor import PromptSet
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.arc import Arc
from sr_monitor.probes.base import Part, Probe, pack
from sr_monitor.probes.contexts import Contexts
from sr_monitor.probes.contributions import Contributions
from sr_monitor.probes.divergence import Divergence
from sr_monitor.probes.geometry import Geometry
from sr_monitor.probes.map import Map
from sr_monitor.probes.meaning import Meaning
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.radius import Radius
from sr_monitor.probes.readout import Readout
from sr_monitor.probes.regions import Regions
from sr_monitor.probes.sinks import Sinks
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.probes.toward_mean import TowardMean
from tests import zoo
from tests.processes import in_processes

PROBES: tuple[Probe, ...] = (
    *(PathsProbe(num_pairs=5, num_steps=7), SlicesProbe(num_slices=3, slice_resolution=5)),
    *(Divergence(), Map(), Arc(num_pairs=3), Contexts(num_pairs=1)),
    *(TowardMean(num_pairs=3, resolution=3), Regions(), Geometry(), Contributions(num_prompts=3)),
    *(Sinks(num_prompts=3), Meaning(), Readout(target=range(5))),
    Radius(num_prompts=3, num_directions=2),
)


def _measured(model: Any, ranks: RankGroup) -> dict[str, Part]:
    prompts = PromptSet.from_token_ids(zoo.build("llama").prompts(7, 6))
    # Few tokens at once, so that paths and slices are cut amid a forward.
    options = SessionOptions(max_tokens=9)
    parts = measure_probes(model, prompts, PROBES, options, ranks=ranks)
    return {probe.name: pack(parts[probe.name]) for probe in PROBES[2:]}


def _sharded(_: int) -> dict[str, Part]:
    from torch.distributed.fsdp import fully_shard

    model: Any = zoo.build("llama").model
    for block in model.model.layers:
        fully_shard(block)
    return _measured(fully_shard(model), RankGroup.present())


def _as_it_is(_: int) -> dict[str, Part]:
    return _measured(zoo.build("llama").model, RankGroup.present())


@pytest.mark.slow
@pytest.mark.parametrize("work", [_sharded, _as_it_is])
def test_ranks_find_together_what_one_finds(work: Any) -> None:
    alone = _measured(zoo.build("llama").model, RankGroup())
    for found in in_processes(work):
        assert list(found) == list(alone)
        for name, part in alone.items():
            assert list(found[name]) == list(part)
            for field, value in part.items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(
                        found[name][field], value, rtol=1e-4, atol=1e-5, equal_nan=True
                    )
                else:
                    assert found[name][field] == value
