"""The demo's training, by the Hugging Face Trainer.

losses = train(model, windows, plan, prompts, Path("runs/demo"), bar("training"))
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sr_monitor import PromptSet, at
from sr_monitor.cli.demo import DemoPlan
from sr_monitor_transformers.callback import StableRegionCallback


def train(
    model: nn.Module,
    windows: Int[Tensor, "window token"],
    plan: DemoPlan,
    prompts: PromptSet,
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[int, float]:
    """Trains `model` on `windows` and watches it; the loss of each step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.num_steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=plan.warm_up,
        adam_beta2=0.95,
        seed=plan.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        include_num_input_tokens_seen="all",
    )
    watch = StableRegionCallback(
        prompts, schedule=at(plan.steps), log_dir=folder, on_error="raise", **vars(plan.config)
    )
    rows: Any = [{"input_ids": window, "labels": window} for window in windows]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        callbacks=[watch, _Progress(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logs = trainer.state.log_history
    return {int(entry["step"]): entry["loss"] for entry in logs if "loss" in entry}


class _Progress(TrainerCallback):
    """Says how far the training is."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps)
