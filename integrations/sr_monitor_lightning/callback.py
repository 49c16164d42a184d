"""The callback for Lightning: hands its events to a `sr_monitor` watcher.

It measures the first step, each step of the schedule right after the update of the optimizer, and
the last step. Checkpoints hold what a resumed run needs under "sr_monitor".

    L.Trainer(callbacks=[StableRegionCallback(every=500)]).fit(module)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_monitor import InputError
from sr_monitor.options import option, takes
from sr_monitor.watch.config import WatchOptions
from sr_monitor.watch.watcher import Training, Watcher, name_datasets

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise InputError(
        "sr_monitor_lightning: lightning is not installed; run: pip install 'sr-monitor[lightning]'"
    ) from error

from sr_monitor_lightning.language_model import Wanted, as_in_training, find_language_model
from sr_monitor_lightning.training_loop import datasets_of, num_batches_of, parts_of, writers_of

_STATES = "sr_monitor"  # in a checkpoint


@dataclass(frozen=True, kw_only=True)
class LightningOptions(WatchOptions):
    """What the callback for Lightning is asked to do."""

    model: Wanted | None = option(
        None,
        "The language model, its name in the `LightningModule`, or a function that finds it; by "
        "default the only language model in it.",
        effect="nothing",
    )


class StableRegionCallback(Callback):
    """Watches how stable regions form in a language model inside a `LightningModule`.

    The step is `trainer.global_step`, the number of updates.
    """

    @takes(LightningOptions)
    def __init__(self, *args: Any, **options: Any) -> None:
        """Do nothing until the training begins."""
        self.watcher = Watcher(LightningOptions(*args, **options))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until the training begins."""
        self.watcher.end()
        self.watcher.states = dict(checkpoint.get(_STATES) or _old_states(checkpoint))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save what a resumed run needs in order to go on."""
        self.watcher.add_state(checkpoint.setdefault(_STATES, {}))
        self.watcher.wanted |= self.watcher.options.with_save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model as it is before the first update."""
        _begin(self.watcher, trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin here where only a batch shows what the model is trained on."""
        if self.watcher.is_waiting:
            _begin(self.watcher, trainer, pl_module, parts_of(batch, trainer.train_dataloader))
        if self.watcher.wanted:
            _measure(self.watcher, trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is time to."""
        if not self.watcher.guard.is_off:
            parts = parts_of(batch, trainer.train_dataloader)
            self.watcher.tokens.add(parts, num_ranks=num_batches_of(trainer))
        _measure(self.watcher, trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that an evaluation was made."""
        self.watcher.wanted |= self.watcher.options.with_eval

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step, and close the writers."""
        _measure(self.watcher, trainer, pl_module, last=True)
        self.watcher.end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Show what there is; other ranks may be gone."""
        self.watcher.end()


def _begin(
    watcher: Watcher[LightningOptions],
    trainer: Trainer,
    pl_module: LightningModule,
    batch: Sequence[Any] | None = None,
) -> None:
    def describe() -> Training:
        running: Any = trainer
        # On every rank and before anything that can fail, because Lightning broadcasts it.
        log_dir = trainer.log_dir or trainer.default_root_dir
        options, loaders = watcher.options, trainer.train_dataloader
        return Training(
            model=find_language_model(pl_module, options.model, options.layer_path),
            step=trainer.global_step,
            run=trainer,
            log_dir=None if running.fast_dev_run else log_dir,
            find_writers=lambda: writers_of(trainer),
            find_state=lambda name: watcher.states.get(name),
            loaders=parts_of(loaders, loaders),
            datasets=name_datasets(datasets_of(trainer.val_dataloaders)),
            tokenizer=getattr(pl_module, "tokenizer", None),
        )

    if watcher.begin(describe, batch):
        _measure(watcher, trainer, pl_module)


def _measure(
    watcher: Watcher[LightningOptions],
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    last: bool = False,
) -> None:
    if watcher.training is not None and (watcher.monitor is not None or last):
        precision = watcher.options.precision
        with as_in_training(watcher.training.model, trainer, pl_module, precision) as model:
            tokens = watcher.tokens
            watcher.at_step(model, trainer.global_step, tokens=lambda: tokens.total, last=last)


def _old_states(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states that version 0.1 kept under keys of Lightning's, by the folder's name."""
    states = checkpoint.get("callbacks", {}).items()
    found = (state for key, state in states if str(key).startswith("StableRegionCallback{"))
    return {Path(state.get("folder") or "stable_regions").name: state for state in found}
