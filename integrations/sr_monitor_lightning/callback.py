"""The callback for Lightning: its events, handed to `sr_monitor.watch.watcher`.

Measured are the step that training begins at, each step of the schedule right after the update of
the optimizer, and the last step, all in the precision of the run. The state is part of Lightning's
checkpoints.

    L.Trainer(callbacks=[StableRegionCallback(every=500)]).fit(module)
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor import InputError, PromptSet
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.model.ranks import RankGroup
from sr_monitor.model.wrappers import class_names
from sr_monitor.prompts.token_ids import count_tokens
from sr_monitor.watch.guard import ErrorGuard
from sr_monitor.watch.watcher import CallbackCore, Prompts

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise InputError(
        "sr_monitor_lightning: lightning is not installed; run: pip install 'sr-monitor[lightning]'"
    ) from error

from sr_monitor_lightning.language_model import Wanted, as_in_training, find_language_model


class StableRegionCallback(CallbackCore, Callback):
    """Watches how stable regions form in a language model inside a `LightningModule`.

        L.Trainer(callbacks=[StableRegionCallback()]).fit(module)

    All arguments but `model` are those of `sr_monitor.watch.watcher.CallbackCore`. The step is
    `trainer.global_step`, the number of updates.
    """

    def __init__(
        self,
        prompts: Prompts | None = None,
        *,
        model: Wanted | None = None,
        **options: Any,
    ) -> None:
        """Does nothing until the training begins.

        Args:
            prompts: What is measured; see `CallbackCore`.
            model: The language model, the attribute of the `LightningModule` that holds it, or a
                function that finds it; by default the one Hugging Face model in it, else the one
                module in it that has a list of blocks, else itself.
            options: See `CallbackCore`.
        """
        super().__init__(prompts, **options)
        self._model = model
        self._found: nn.Module | None = None
        self._state: dict[str, Any] | None = None  # that was restored, or of a training that ended
        # On the device, so that counting does not wait for it; None: not all of them were counted.
        self._tokens: Tensor | None = None
        self._wanted = False  # a checkpoint was saved or an evaluation made, and it is to be shown
        self._key = self._make_key()  # once: Lightning asks for it several times a step

    @property
    def state_key(self) -> str:
        """What tells this callback's state from that of another one."""
        return self._key

    def _make_key(self) -> str:
        """All options that make a difference, in words that are the same in every process."""
        given, model = self._prompts, self._model
        return self._generate_state_key(
            name=self.name,
            model=type(model).__name__ if isinstance(model, nn.Module) else _told(model),
            prompts=given.fingerprint if isinstance(given, PromptSet) else given and str(given),
            num_tokens=self.num_tokens,
            seed=self.seed,
            log_dir=self.log_dir and str(self.log_dir),
            schedule=_told(self.schedule),
            with_save=self.with_save,
            with_eval=self.with_eval,
            **asdict(self.config),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to go on."""
        if self.monitor is None:
            return self._state or {}
        return self.monitor.state_dict() | {"tokens": self._num_tokens()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the training begins."""
        self._state = state_dict or None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Finds the state of a callback whose options were others when it was saved.

        States that no callback asks for go to the callbacks that have none, in their order, if
        there are as many of the one as of the other.
        """
        states: dict[Any, Any] = checkpoint["callbacks"]
        running: Any = trainer
        ours = [each for each in running.callbacks if type(each) is type(self)]
        lacking = [each for each in ours if each.state_key not in states]
        asked, beginning = {each.state_key for each in ours}, f"{type(self).__qualname__}{{"
        left = [key for key in states if key not in asked and str(key).startswith(beginning)]
        if self in lacking and len(left) == len(lacking):
            self.load_state_dict(states[left[lacking.index(self)]])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares everything, and measures the model as it is before the first update."""
        if is_new := trainer.global_step == 0:
            self._state = None  # of a training before this one
        tokens = (self._state or {}).get("tokens", 0 if is_new else None)
        known = isinstance(tokens, int)
        self._tokens = torch.tensor(tokens, device=pl_module.device) if known else None
        self._wanted = False  # by an evaluation before the training, as the sanity check
        if self._begin(trainer, pl_module, None):
            self._measure(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins here where only a batch shows what the model is trained on."""
        waiting = self.monitor is None and not self._guard.is_off
        if self._wanted or (waiting and self._begin(trainer, pl_module, batch)):
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measures if it is time to."""
        if self.monitor is not None and self._tokens is not None:
            more = _count_tokens(batch, trainer.train_dataloader)
            more = None if more is None else more.to(self._tokens.device, non_blocking=True)
            self._tokens = None if more is None else self._tokens + more * trainer.world_size
        self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that an evaluation was made."""
        self._wanted |= self.with_eval

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes that a checkpoint is saved."""
        self._wanted |= self.with_save

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the last step, and closes the writers."""
        self._measure(trainer, pl_module, last=True)
        self.end()

    def end(self) -> None:
        """Closes everything but the state: a checkpoint may be saved after the training."""
        if self.monitor is not None:
            self._state = self.state_dict()
        self._found = None
        super().end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Shows what there is; other processes may be gone."""
        self.end()

    def _measure(self, trainer: Trainer, pl_module: LightningModule, *, last: bool = False) -> None:
        if self.monitor is None or self._found is None:
            return
        with as_in_training(self._found, trainer, pl_module) as model:
            self.at_step(
                model,
                trainer.global_step,
                tokens=self._num_tokens,
                also=self._wanted,
                last=last,
            )
        self._wanted = False

    def _sample_each(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any
    ) -> PromptSet | None:
        """Prompts from the first loader, or its part of the batch, that holds token ids."""
        tokenizer = getattr(pl_module, "tokenizer", None)
        loaders = trainer.train_dataloader
        if batch is None:
            drawn = (self.sample(None, loader, tokenizer) for loader in _split(loaders, loaders))
        else:
            drawn = (self.sample(part, None, tokenizer) for part in _split(batch, loaders))
        return next((prompts for prompts in drawn if prompts is not None), None)

    def _num_tokens(self) -> int | None:
        return None if self._tokens is None else int(self._tokens)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        self._guard = ErrorGuard(self._guard.on_error, tells=trainer.is_global_zero)
        with self._guard.catching("starting sr-monitor", final=True):
            with RankGroup.present().failing_together():
                found = find_language_model(
                    pl_module, self._model, layer_path=self.config.layer_path
                )
            running: Any = trainer
            # NOTE: asked for on every process, because Lightning broadcasts it.
            log_dir = trainer.log_dir or trainer.default_root_dir
            begun = self.begin(
                found,
                trainer.global_step,
                run=trainer,
                log_dir=None if running.fast_dev_run else log_dir,
                find_writers=lambda: _writers_of(trainer),
                sample=lambda: self._sample_each(trainer, pl_module, batch),
                find_state=lambda name: self._state,
                is_last_chance=self.is_last_chance(batch),
            )
            self._found = found
            return begun
        return False


def _count_tokens(batch: Any, loaders: Any) -> Tensor | None:
    """Those that all loaders gave; None where none gave any."""
    try:
        counts = [count_tokens(part) for part in _split(batch, loaders)]
        known = [count for count in counts if count is not None]
        return sum(known, torch.tensor(0)) if known else None
    except Exception:  # a batch may be anything, and this is about one number
        return None


def _split(given: Any, loaders: Any) -> list[Any]:
    """What is each loader's: of several, the batches come in a dict or a list, as they do."""
    if isinstance(loaders, Mapping) and isinstance(given, Mapping):
        return list(given.values()) if given.keys() == loaders.keys() else [given]
    if isinstance(loaders, list | tuple) and isinstance(given, list | tuple):
        return list(given) if len(given) == len(loaders) else [given]
    return [given]


def _told(thing: Any) -> str:
    """An object in words, without the address that it has in this process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _writers_of(trainer: Trainer) -> list[Writer]:
    """The runs of TensorBoard and Weights & Biases that Lightning writes to."""
    found: list[Writer] = []
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        names = class_names(logger)
        if "TensorBoardLogger" in names:
            found.append(TensorBoardWriter(logger.experiment))
        if "WandbLogger" in names:
            found.append(WandbWriter(logger.experiment))
    return found
