"""Checkpoints of tiny models as real frameworks leave them.

Each function trains or saves for real; all of them return the weights that a checkpoint must give.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests import training
from tests.lightning_runs import LitLM, train
from tests.saved import SIZES
from tests.saved import save_folder as save_folder
from tests.saved import tiny_model as tiny_model

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def prompts(num: int = 8) -> list[dict[str, Tensor]]:
    """Rows of a training set."""
    rows = torch.randint(SIZES["vocab_size"], (num, 6))
    return [{"input_ids": row, "labels": row} for row in rows]


class _Watch(transformers.TrainerCallback):
    """Copies the weights whenever they are saved."""

    def __init__(self) -> None:
        self.seen: dict[int, Weights] = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen[state.global_step] = weights_of(kwargs["model"])


def train_with_trainer(folder: Path) -> dict[int, Weights]:
    """Four steps of the Trainer, saved at 2 and 4, and the final model beside them."""
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "learning_rate": 0.05}
    options |= {"max_steps": 4, "save_steps": 2, "model": tiny_model(), "data": prompts()}
    run = training.train(folder, watch := _Watch(), **options)
    run.trainer.save_model()
    return watch.seen


class LitModel(LitLM):
    """A language model under the name `model`, with hyperparameters and a second module."""

    def __init__(self, rate: float = 0.05) -> None:
        super().__init__(tiny_model())
        self.save_hyperparameters()
        self.probe = nn.Linear(2, 2)
        self.seen: dict[int, Weights] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen[checkpoint["global_step"]] = weights_of(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train_with_lightning(folder: Path, **naming: Any) -> dict[int, Weights]:
    """Four steps of Lightning, saved at 2 and 4."""
    saver = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, **naming)
    data: Any = prompts()
    options: dict[str, Any] = {"module": LitModel, "enable_checkpointing": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = train(folder, [saver], data=lambda: DataLoader(data, batch_size=2), **options)
    seen: dict[int, Weights] = run.model.seen
    return seen


def save_shards(content: dict[str, Any], folder: Path) -> Path:
    """What `torch.distributed.checkpoint` writes."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save(content, checkpoint_id=folder)
    return folder
