"""Checkpoints of tiny models as real frameworks leave them.

Each function trains or saves for real; all of them return the weights that a checkpoint must give.
"""

import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

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
    watch = _Watch()
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    rows: Any = prompts()
    trainer = transformers.Trainer(
        model=tiny_model(), args=args, train_dataset=rows, callbacks=[watch]
    )
    log: Any = transformers.utils.logging
    log.disable_progress_bar()
    trainer.train()
    trainer.save_model()
    log.enable_progress_bar()
    return watch.seen


class LitModel(lightning.LightningModule):
    """A language model under the name `model`, with hyperparameters and a second module."""

    def __init__(self, rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = tiny_model()
        self.probe = nn.Linear(2, 2)
        self.seen: dict[int, Weights] = {}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen[checkpoint["global_step"]] = weights_of(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def train_with_lightning(folder: Path, **naming: Any) -> dict[int, Weights]:
    """Four steps of Lightning, saved at 2 and 4."""
    module = LitModel()
    saver = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, **naming)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=4,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[saver],
        )
        rows: Any = prompts()
        trainer.fit(module, DataLoader(rows, batch_size=2))
    return module.seen


def save_shards(content: dict[str, Any], folder: Path) -> Path:
    """What `torch.distributed.checkpoint` writes."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save(content, checkpoint_id=folder)
    return folder
