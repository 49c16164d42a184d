"""DDP and FSDP over NCCL, one process: measured in float32, and trained as if nobody had looked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from sr_monitor import measure_paths
from sr_monitor.probes.paths import Paths
from tests.gpu.checks.helpers import DEVICE, TOLERANCE, gap, on_device, prompts
from tests.model.helpers import trained

pytestmark = pytest.mark.usefixtures("_deterministic", "_one_process")

KINDS = ("ddp", "fsdp1", "fsdp1 bfloat16", "fsdp2", "fsdp2 bfloat16")


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    torch.cuda.set_device(DEVICE)
    dist.init_process_group("nccl", init_method=store, rank=0, world_size=1, device_id=DEVICE)
    yield
    dist.destroy_process_group()


def _wrapped(kind: str) -> nn.Module:
    model: Any = on_device("olmo2").model
    layers, half = list(model.model.layers), torch.bfloat16 if "bfloat16" in kind else None
    if kind == "ddp":
        return DistributedDataParallel(model, device_ids=[0])
    if kind.startswith("fsdp1"):
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({type(layers[0])}),
            mixed_precision=MixedPrecision(half, buffer_dtype=half),
            device_id=DEVICE,
            use_orig_params=True,
        )
    mesh = init_device_mesh("cuda", (1,))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(half))
    return model  # type: ignore[no-any-return]


def _train(kind: str, *, measured: bool) -> tuple[list[float], list[Paths]]:
    torch.manual_seed(0)
    model, ids = _wrapped(kind), torch.arange(24, device=DEVICE).view(3, 8)

    def measure(model: Any) -> Paths:
        return measure_paths(model, *prompts(3), num_steps=11)

    return trained(model, ids, measure if measured else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_model_is_measured_as_the_model_itself(kind: str) -> None:
    losses, found = _train(kind, measured=True)
    assert losses == _train(kind, measured=False)[0]
    assert len(set(losses)) > 1
    exact = measure_paths(on_device("olmo2").model, *prompts(3), num_steps=11, precision="run")
    assert gap(found[0], exact) <= TOLERANCE
    assert all(paths.arithmetic == "float32" for paths in found)
    assert found[-1].noise_floor < 10 * TOLERANCE
