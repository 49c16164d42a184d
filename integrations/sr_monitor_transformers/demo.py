"""The demo's training, by the Hugging Face Trainer.

train(model, rows, plan, callback, Path("runs/demo"), tell)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sr_monitor.cli.demo_training import DemoPlan, Rows
from sr_monitor_transformers.callback import StableRegionCallback


def train(
    model: nn.Module,
    rows: Rows,
    plan: DemoPlan,
    callback: StableRegionCallback,
    folder: Path,
    tell: Callable[[int, float], None],
) -> None:
    """Train `model` on `rows`, watched by `callback`; `tell` is told the loss of each step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.num_steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=plan.warm_up,
        seed=plan.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        include_num_input_tokens_seen="all",
    )
    data: Any = rows
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback, _Losses(tell)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _Losses(TrainerCallback):
    def __init__(self, tell: Callable[[int, float], None]) -> None:
        self._tell = tell

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:  # the summary at the end has none
            self._tell(state.global_step, kwargs["logs"]["loss"])
