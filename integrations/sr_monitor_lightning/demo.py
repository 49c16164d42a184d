"""The demo's training, by Lightning.

train(model, rows, plan, callback, Path("runs/demo"), tell)
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sr_monitor.cli.demo_training import DemoPlan, Rows
from sr_monitor_lightning.callback import StableRegionCallback


def train(
    model: nn.Module,
    rows: Rows,
    plan: DemoPlan,
    callback: StableRegionCallback,
    folder: Path,
    tell: Callable[[int, float], None],
) -> None:
    """Train `model` on `rows`, watched by `callback`; `tell` is told the loss of each step."""
    loader: DataLoader[Any] = DataLoader(rows, batch_size=plan.batch_size, shuffle=True)  # type: ignore[arg-type]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        Trainer(
            default_root_dir=folder,
            max_steps=plan.num_steps,
            accelerator="cpu",
            gradient_clip_val=1.0,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(_Module(model, plan, tell), loader)


class _Module(LightningModule):
    def __init__(
        self, model: nn.Module, plan: DemoPlan, tell: Callable[[int, float], None]
    ) -> None:
        super().__init__()
        self.model, self.plan, self.tell = model, plan, tell

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.tell(self.global_step + 1, loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        plan = self.plan
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-2, 1, total_iters=plan.warm_up)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
