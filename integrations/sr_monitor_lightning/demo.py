"""The demo's training, by Lightning.

losses = train(model, windows, plan, prompts, Path("runs/demo"), bar("training"))
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sr_monitor import PromptSet, at
from sr_monitor.cli.demo import DemoPlan
from sr_monitor_lightning.callback import StableRegionCallback


def train(
    model: nn.Module,
    windows: Int[Tensor, "window token"],
    plan: DemoPlan,
    prompts: PromptSet,
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[int, float]:
    """Trains `model` on `windows` and watches it; the loss of each step."""
    module = _Module(model, plan)
    watch = StableRegionCallback(
        prompts, schedule=at(plan.steps), log_dir=folder, on_error="raise", **vars(plan.config)
    )
    loader = DataLoader(_Windows(windows), batch_size=plan.batch_size, shuffle=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        Trainer(
            default_root_dir=folder,
            max_steps=plan.num_steps,
            accelerator="cpu",
            gradient_clip_val=1.0,
            callbacks=[watch, _Progress(progress)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, loader)
    return module.losses


class _Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, windows: Int[Tensor, "window token"]) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._windows[index], "labels": self._windows[index]}


class _Module(LightningModule):
    """Next-token training of a model."""

    def __init__(self, model: nn.Module, plan: DemoPlan) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.losses: dict[int, float] = {}

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.losses[self.global_step + 1] = loss.item()
        return loss

    def configure_optimizers(self) -> Any:
        rate, warm_up = self.plan.learning_rate, self.plan.warm_up
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-2, 1, total_iters=warm_up)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class _Progress(Callback):
    """Says how far the training is."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._progress(trainer.global_step, int(trainer.max_steps))
