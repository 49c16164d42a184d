"""Both adapters on two by two ranks: tensor parallelism inside FSDP2, as each framework sets it up.

All of it runs in one set of gloo processes; what they leave is looked at here.
"""

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

from tests import lightning_runs
from tests.integrations.test_ranks import train_sharded
from tests.lightning_runs import BATCH, LENGTH, LitLM, small, tiny
from tests.processes import in_processes
from tests.training import assert_curve_of, records, watch
from tests.zoo import build

_COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ROWS = ("o_proj", "down_proj")


class Parallel(LitLM):
    """As Lightning's documentation has it."""

    def __init__(self) -> None:
        super().__init__(tiny("llama"))

    def configure_model(self) -> None:
        mesh: Any = self.device_mesh
        for block in self.model.model.layers:
            plan: dict[str, Any] = {}
            for name, _ in block.named_modules():
                plan |= {name: ColwiseParallel()} if name.endswith(_COLUMNS) else {}
                plan |= {name: RowwiseParallel()} if name.endswith(_ROWS) else {}
            parallelize_module(block, mesh["tensor_parallel"], plan)
            fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])


def train_with_lightning(folder: Path) -> list[str]:
    def run(folder: Path, *callbacks: Any) -> Any:
        return lightning_runs.train(
            folder,
            callbacks,
            module=Parallel,
            devices=4,
            max_steps=2,
            strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2),
        )

    plain = run(folder / "plain")
    differences: list[str] = run(folder, small(num_slices=1)).differences(plain)
    return differences


def train_with_transformers(folder: Path, saved: Path) -> list[list[float]]:
    def load() -> nn.Module:
        config = DistributedConfig(tp_size=2, fsdp_size=2)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(saved, distributed_config=config)
        return model

    unwatched = train_sharded(load(), folder)
    return [unwatched, train_sharded(load(), folder, watch(every=1, num_slices=1))]


def train_in_parallel(rank: int, folder: Path) -> tuple[list[str], list[list[float]]]:
    # What `torchrun` sets, so that the frameworks take these processes for their own.
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="4", LOCAL_WORLD_SIZE="4",
        GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    warnings.simplefilter("ignore")
    losses = train_with_transformers(folder / "trainer", folder / "saved")
    return train_with_lightning(folder / "lightning"), losses


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.13", reason="older DTensors refuse these layouts")
def test_two_by_two_ranks_share_a_measurement_and_do_not_notice(tmp_path: Path) -> None:
    model: Any = build("llama").model
    model.save_pretrained(tmp_path / "saved")
    told = in_processes(partial(train_in_parallel, folder=tmp_path), size=4, timeout=300)
    for differences, (unwatched, watched) in told:
        assert differences == []
        assert watched == unwatched
        assert len(set(watched)) > 1
    found = records(tmp_path / "lightning")
    # Two groups have a batch of their own, and each of the four ranks is counted.
    assert {step: record.tokens for step, record in found.items()} == {0: 0, 2: 4 * BATCH * LENGTH}
    assert found[0].metadata["processes"] == 4
    assert_curve_of(tiny("llama"), tmp_path / "lightning")
    assert list(records(tmp_path / "trainer")) == [0, 1, 2, 3]
    assert_curve_of(model, tmp_path / "trainer")
    assert torch.isfinite(found[2].paths.distance).all()
