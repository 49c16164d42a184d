"""Tiny trainings with a real `lightning.Trainer`, and everything about them that can be compared.

plain = train(tmp_path / "plain")
watched = train(tmp_path / "watched", callbacks=[small()])
assert_equal_trainings(plain, watched)
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from sr_monitor_lightning import StableRegionCallback
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader

from sr_monitor import Record
from sr_monitor.results.record import list_records
from tests.zoo import VOCAB, build

SMALL: dict[str, Any] = {"num_pairs": 6, "num_steps": 9, "num_slices": 1, "slice_resolution": 5}
LENGTH = 24
BATCH = 4


def small(**options: Any) -> StableRegionCallback:
    """A callback that takes hardly any time, as it draws nothing; errors are raised."""
    quiet: dict[str, Any] = {"every": 2, "on_error": "raise", "writer": []}
    return StableRegionCallback(**quiet | SMALL | options)


def shown(**options: Any) -> StableRegionCallback:
    """One that shows what it measures where it would by default."""
    return small(**{"num_slices": 0, "writer": None} | options)


def rows(num: int = 48) -> list[dict[str, Tensor]]:
    """Rows of a training set, always the same."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(VOCAB, (num, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def loader(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    """A loader that shuffles by the global random state."""
    dataset = rows() if dataset is None else dataset
    return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **options})


def tiny(name: str = "gpt2") -> Any:
    """A model with dropout, in training mode; the same weights for the same name."""
    return build(name).model.train()


class LitLM(L.LightningModule):
    """The usual Lightning module around a Hugging Face model."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model: Any = tiny() if model is None else model
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def loss(self, batch: Any) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that has ended, and what it left behind."""

    module: Any
    trainer: L.Trainer
    folder: Path
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    losses: list[float]
    modes: dict[str, bool]
    hooks: dict[str, int]
    random: tuple[Any, ...]

    @property
    def checkpoint(self) -> str:
        """The last checkpoint that was saved."""
        path = max(self.folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        return str(path)

    @property
    def records(self) -> list[Record]:
        """What was measured, by step."""
        return records_in(self.folder)


def trainer_in(folder: Path, **options: Any) -> L.Trainer:
    """A quiet trainer that keeps everything in `folder`; no logger unless one is given."""
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "max_steps": 4,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**settings | options)


def train(
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    *,
    module: Callable[[], Any] = LitLM,
    data: Callable[[], Any] = loader,
    validation: Callable[[], Any] | None = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> Training:
    """Trains from fixed random states, and harvests."""
    seed_everything()
    trainer, lit = trainer_in(folder, callbacks=list(callbacks), **options), module()
    trainer.fit(lit, data(), None if validation is None else validation(), ckpt_path=ckpt_path)
    return harvest(folder, trainer, lit)


def seed_everything() -> None:
    """The global random states, as at the begin of every training here."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002


def harvest(folder: Path, trainer: L.Trainer, lit: Any) -> Training:
    """Copies what is to be compared."""
    return Training(
        module=lit,
        trainer=trainer,
        folder=Path(trainer.log_dir or folder),  # on every process: it is broadcast
        weights={name: _whole(value).clone() for name, value in lit.state_dict().items()},
        optimizer=trainer.optimizers[0].state_dict(),
        losses=lit.losses,
        modes={name: part.training for name, part in lit.named_modules()},
        hooks={name: _num_hooks(part) for name, part in lit.named_modules()},
        random=(torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
    )


def _num_hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def _whole(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def records_in(folder: Path, name: str = "stable_regions") -> list[Record]:
    """The records of a run, by step."""
    return [Record.load(path) for path in list_records(folder / name)]


def assert_equal_trainings(one: Training, other: Training) -> None:
    """Bit for bit: losses, weights, optimizer, random states, modes, hooks."""
    assert one.losses == other.losses
    assert len(one.losses) > 1
    assert len(set(one.losses)) > 1, "nothing was trained"
    torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one.optimizer, other.optimizer, rtol=0, atol=0)
    assert one.modes == other.modes
    assert one.hooks == other.hooks
    assert torch.equal(one.random[0], other.random[0])
    if "beartype" not in sys.modules:  # its checks, on in most tests, draw from this state
        assert one.random[1] == other.random[1]
    assert all(np.array_equal(a, b) for a, b in zip(one.random[2], other.random[2], strict=True))


# Two processes ----------------------------------------------------------------------------------


class FullyShardedStrategy(DDPStrategy):
    """FSDP1 around the whole `LightningModule`, as `FSDPStrategy` does, which refuses a CPU."""

    inside: tuple[str, ...] = ("GPT2Block",)

    def _setup_model(self, model: nn.Module) -> Any:
        kinds = {type(part) for part in model.modules() if type(part).__name__ in self.inside}
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy(kinds),
            device_id=torch.device("cpu"),
            use_orig_params=True,
        )


class NestedStrategy(FullyShardedStrategy):
    """The model inside is a unit of its own too, as a policy by size would have it."""

    inside = ("GPT2Block", "GPT2LMHeadModel")


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


WAYS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "ddp": (DDPStrategy, LitLM),
    "fsdp1": (FullyShardedStrategy, LitLM),
    "fsdp1_nested": (NestedStrategy, LitLM),
    "fsdp2_inner": (ModelParallelStrategy, InnerRoot),
    "fsdp2_outer": (ModelParallelStrategy, OuterRoot),
}
