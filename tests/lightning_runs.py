"""Tiny trainings with a real `lightning.Trainer`, and everything about them that can be compared.

plain = train(tmp_path / "plain")
watched = train(tmp_path / "watched", [small()])
assert watched.differences(plain) == []
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sr_monitor_lightning import StableRegionCallback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sr_monitor import Record
from tests import training
from tests.training import Run, facts_of, failing_at, seed_everything
from tests.zoo import build

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
    found: list[dict[str, Tensor]] = training.rows(num, LENGTH, seed=7)
    return found


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


def train(
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    *,
    module: Callable[[], Any] = LitLM,
    data: Callable[[], Any] = loader,
    validation: Callable[[], Any] | None = None,
    resume: Path | None = None,
    save_steps: int | None = None,
    fail_at: int | None = None,
    **options: Any,
) -> Run:
    """Trains from fixed random states, for four steps; everything is kept in `folder`."""
    seed_everything()
    callbacks = list(callbacks)
    if save_steps:
        saver: dict[str, Any] = {
            "every_n_train_steps": save_steps,
            "save_top_k": -1,
            "filename": "{step}",
        }
        callbacks.append(ModelCheckpoint(folder / "saved", **saver))
    quiet: dict[str, Any] = {
        "default_root_dir": folder,
        "max_steps": 4,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": bool(save_steps),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    trainer, lit = L.Trainer(callbacks=callbacks, **quiet | options), module()
    validate = None if validation is None else validation()
    with failing_at(getattr(lit, "model", lit), fail_at):
        trainer.fit(lit, data(), validate, ckpt_path=None if resume is None else str(resume))
    return Run(
        folder=Path(trainer.log_dir or folder),  # on every rank: it is broadcast
        model=lit,
        facts=facts_of(lit, trainer.optimizers[0], lit.losses),
        trainer=trainer,
    )


def records_in(folder: Path, name: str = "stable_regions") -> list[Record]:
    """The records of a run, by step."""
    return list(training.records(folder, name).values())
