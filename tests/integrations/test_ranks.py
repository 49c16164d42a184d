"""Both adapters on two ranks, which share each measurement and do not notice.

A test starts one pair of gloo processes for all its trainings, and looks at what they leave.
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from tests import lightning_runs
from tests.lightning_runs import BATCH, LENGTH, LitLM, shown, small
from tests.processes import in_processes
from tests.training import (
    Stream,
    arguments,
    assert_curve_of,
    event_files,
    logged,
    prompts_in,
    records,
    rows,
    train,
    watch,
)
from tests.zoo import build

# The Trainer --------------------------------------------------------------------------------------


def train_with_the_trainer(rank: int, folder: Path) -> None:
    options: dict[str, Any] = {"max_steps": 3, "ddp_backend": "gloo"}
    plain = train(folder / "plain", **options)
    callback = watch(every=3, num_slices=1, writer=None)
    watched = train(folder / "watched", callback, report_to="tensorboard", **options)
    assert len(plain.facts["random"]) == 3  # Python's own generator is among what is compared
    assert watched.differences(plain) == []
    options["accelerator_config"] = {"dispatch_batches": False}
    plain = train(folder / "plain", data=Stream(rows()), **options)
    stream = train(folder / "stream", watch(every=3), data=Stream(rows()), **options)
    assert stream.differences(plain) == []
    if rank == 0:
        torch.save(watched.model.state_dict(), folder / "watched.pt")
        torch.save(stream.model.state_dict(), folder / "stream.pt")


def train_shards(folder: Path) -> None:
    for shard in (fsdp1, fsdp2):
        name = folder / shard.__name__
        unwatched = train_sharded(shard(build("llama").model), name)
        losses = train_sharded(shard(build("llama").model), name, watch(every=1))
        assert losses == unwatched, shard


_HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


def fsdp1(model: Any, *units: str) -> nn.Module:
    kinds = {type(part) for part in model.modules() if type(part).__name__ in units}
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy(kinds or {type(model.model.layers[0])}),
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )


def fsdp2(model: Any) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=_HALF)
    sharded: nn.Module = fully_shard(model, reshard_after_forward=True, mp_policy=_HALF)
    return sharded


def train_sharded(model: nn.Module, folder: Path, *callbacks: Any) -> list[float]:
    """Three steps with the Trainer's events in their order; on a CPU it does not shard itself."""
    state = transformers.TrainerState(max_steps=3, is_world_process_zero=dist.get_rank() == 0)
    told = (arguments(folder), state, transformers.TrainerControl())
    objects: Any = {"model": model, "processing_class": None, "train_dataloader": None}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses: list[float] = []
    for callback in callbacks:
        callback.on_train_begin(*told, **objects)
        callback.on_epoch_begin(*told, **objects)
    for row in rows(3, length=48, seed=dist.get_rank()):
        loss = model(**{name: ids[None] for name, ids in row.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        for callback in callbacks:
            callback.on_step_end(*told, **objects)
        losses.append(loss.item())
    for callback in callbacks:
        callback.on_train_end(*told, **objects)
    return losses


# Lightning ----------------------------------------------------------------------------------------


class FullyShardedStrategy(DDPStrategy):
    """FSDP1 around the whole `LightningModule`, as `FSDPStrategy` does, which refuses a CPU."""

    units: tuple[str, ...] = ("GPT2Block",)

    def _setup_model(self, model: nn.Module) -> Any:
        return fsdp1(model, *self.units)


class NestedStrategy(FullyShardedStrategy):
    """The model inside is a unit of its own too, as a policy by size would have it."""

    units = ("GPT2Block", "GPT2LMHeadModel")


class InnerRoot(LitLM):
    """FSDP2 as the documentation has it: the model inside is the root."""

    def configure_model(self) -> None:
        for block in self.model.transformer.h:
            fully_shard(block)
        fully_shard(self.model)


class OuterRoot(LitLM):
    """FSDP2 with the `LightningModule` itself as the root."""

    def configure_model(self) -> None:
        for block in self.model.transformer.h:
            fully_shard(block)
        fully_shard(self)

    def forward(self, batch: Any) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def loss(self, batch: Any) -> Tensor:
        loss: Tensor = self(batch)
        return loss


# By itself it takes two ranks for tensor parallel, and gives both the same batches.
_fsdp2 = partial(ModelParallelStrategy, data_parallel_size=2, tensor_parallel_size=1)
WAYS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "ddp": (DDPStrategy, LitLM),
    "fsdp1": (FullyShardedStrategy, LitLM),
    "fsdp1_nested": (NestedStrategy, LitLM),
    "fsdp2_inner": (_fsdp2, InnerRoot),
    "fsdp2_outer": (_fsdp2, OuterRoot),
}
SHARDED = [way for way in WAYS if way != "ddp"]


def train_with_lightning(folder: Path, *ways: str) -> None:
    for way in ways:
        strategy, module = WAYS[way]
        options: dict[str, Any] = {"module": module, "devices": 2, "max_steps": 2}
        plain = lightning_runs.train(folder / way / "plain", strategy=strategy(), **options)
        callback = shown() if way == "ddp" else small(num_slices=0)
        if way == "fsdp1_nested":  # passed before it is wrapped, and called through the wrapper
            options["module"] = partial(LitLM, model := lightning_runs.tiny())
            callback = small(num_slices=0, model=model)
        watched = lightning_runs.train(folder / way, [callback], strategy=strategy(), **options)
        assert watched.differences(plain) == [], way


def fail_on_one_rank(rank: int, folder: Path) -> list[str]:
    """A rank that cannot find the model, or not measure, does not leave the other waiting."""

    def lost(lit: Any) -> nn.Module:
        assert rank == 0, "lost here"
        model: nn.Module = lit.model
        return model

    def failing(lit: Any) -> nn.Module:
        if rank == 1:
            lit.model.transformer.ln_f.register_forward_pre_hook(_fail_without_gradients)
        model: nn.Module = lit.model
        return model

    found = []
    for name, model in (("lost", lost), ("failing", failing)):
        callback = small(model=model, on_error="warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            done = lightning_runs.train(folder / name, [callback], strategy="ddp", devices=2)
        assert len(done.losses) == 4
        assert list(records(done.folder)) == []
        found += [str(one.message) for one in told if "sr-monitor" in str(one.message)]
    return found


def _fail_without_gradients(*_: Any) -> None:
    if not torch.is_grad_enabled():
        raise RuntimeError("broken on one process")


# Both ---------------------------------------------------------------------------------------------


def as_launched(rank: int) -> None:
    """Set what `torchrun` sets, so that the frameworks take these processes for their own."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    warnings.simplefilter("ignore")  # the tests with one process look at warnings


def train_replicas(rank: int, folder: Path) -> list[str]:
    as_launched(rank)
    train_with_the_trainer(rank, folder / "trainer")
    train_with_lightning(folder, "ddp")
    return fail_on_one_rank(rank, folder)


def train_sharded_models(rank: int, folder: Path) -> None:
    as_launched(rank)
    train_shards(folder / "trainer")
    train_with_lightning(folder, *SHARDED)


def assert_shared_by_two(folder: Path) -> None:
    found = records(folder)
    expected = {0: 0, 2: 4 * BATCH * LENGTH}
    assert {step: record.tokens for step, record in found.items()} == expected
    assert found[0].metadata["processes"] == 2
    assert_curve_of(lightning_runs.tiny(), folder)


def test_two_ranks_share_a_measurement_and_do_not_notice(tmp_path: Path) -> None:
    told = in_processes(partial(train_replicas, folder=tmp_path), timeout=300)
    assert_shared_by_two(tmp_path / "ddp")
    assert len(event_files(tmp_path / "ddp")) == 1  # written once, by the first rank
    assert told[1] == []  # one of two warns
    lost, failed, off = told[0]
    assert "rank 1 of 2: AssertionError: lost here" in lost
    assert "rank 1 of 2: RuntimeError: broken on one process" in failed
    assert "3 times in a row" in off

    folder = tmp_path / "trainer"
    for name in ("watched", "stream"):
        found = records(folder / name)
        assert list(found) == [0, 3]
        assert found[0].metadata["processes"] == 2
        model = build("gpt2").model
        assert_curve_of(model, folder / name)
        model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        assert_curve_of(model, folder / name, 3)
    assert logged(folder) == [0, 3]
    # One rank alone chooses the same prompts from the same data, and finds the same.
    train(folder / "alone", watch(num_slices=1), max_steps=1)
    alone, shared = (prompts_in(folder / name).to_json() for name in ("alone", "watched"))
    assert alone == shared
    one, two = (records(folder / name)[0].slices for name in ("alone", "watched"))
    assert one is not None
    assert two is not None
    torch.testing.assert_close(one.distance, two.distance, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_so_do_two_ranks_that_hold_half_a_model_each(tmp_path: Path) -> None:
    in_processes(partial(train_sharded_models, folder=tmp_path), timeout=300)
    for way in SHARDED:
        assert_shared_by_two(tmp_path / way)
    for shard in (fsdp1, fsdp2):
        folder = tmp_path / "trainer" / shard.__name__
        assert list(records(folder)) == [0, 1, 2, 3]
        assert_curve_of(build("llama").model, folder)
