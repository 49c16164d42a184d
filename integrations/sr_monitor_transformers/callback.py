"""The callback for the Hugging Face Trainer: its events, handed to `sr_monitor.watch.watcher`.

Measured are the step that training begins at, each step of the schedule right after the update of
the optimizer, and the last step, before the best weights may take its place. What a resumed run
needs lies in `stable_regions.json` inside each checkpoint; the Trainer's own way to save a
callback's state is not used, because it replaces the callback by another one.

    Trainer(model, args, train_dataset=dataset, callbacks=[StableRegionCallback(every=500)])
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from sr_monitor import InputError
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.files import write_whole
from sr_monitor.model.wrappers import class_names
from sr_monitor.watch.watcher import CallbackCore

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise InputError(
        "sr_monitor_transformers: transformers is not installed; run: pip install "
        "'sr-monitor[transformers]'"
    ) from error


class StableRegionCallback(CallbackCore, TrainerCallback):
    """Watches how stable regions form in the model that a `Trainer` trains.

        Trainer(model, args, train_dataset=dataset, callbacks=[StableRegionCallback()])

    All arguments are those of `sr_monitor.watch.watcher.CallbackCore`. Tokens are logged where the
    Trainer counts them (`include_num_input_tokens_seen`).
    """

    _first_batch: "_FirstBatch | None" = None
    _has_begun = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Forgets an earlier training, whether it ended or was interrupted."""
        self._forget()
        self._has_begun = False

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Prepares everything, and measures the model as it is before the first update.

        Not at the beginning of the training: callbacks further down the list, of a logger perhaps,
        learn of that later than this one.
        """
        if self._has_begun:
            return
        self._has_begun = True
        model, siblings = kwargs["model"], _siblings()

        def begin(batch: Any) -> None:
            if self._begin(args, state, batch, siblings, **kwargs):
                self.at_step(model, state.global_step, tokens=_tokens(state))
            else:
                self._first_batch = _FirstBatch(model, begin)

        begin(None)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measures if it is time to."""
        if not self._has_begun:  # the loops of some trainers know no epochs
            self.on_epoch_begin(args, state, control, **kwargs)
        self.at_step(kwargs["model"], state.global_step, tokens=_tokens(state))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measures where it was asked to at evaluations."""
        if self.with_eval:
            self.at_step(kwargs["model"], state.global_step, tokens=_tokens(state), also=True)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leaves in the checkpoint what a resumed run needs."""
        if self.with_save:
            self.at_step(kwargs["model"], state.global_step, tokens=_tokens(state), also=True)
        if self.monitor is not None and state.is_world_process_zero:
            with self.monitor.guard.catching("saving the state of sr-monitor"):
                folder = _saved_now(args, state)
                if folder.is_dir():
                    path = folder / f"{self.monitor.store.name}.json"
                    write_whole(path, json.dumps(self.monitor.state_dict()).encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measures the last step, and draws the last pictures.

        The end of the training is too late: by then the best weights may have been loaded in
        place of the last ones, and the loggers are closed. The log of the whole training, the one
        that holds its speed in steps, is the last event before.
        """
        if "train_steps_per_second" in kwargs.get("logs", ()):
            self._finish(state, **kwargs)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Does the same where a training was ended without a log of the whole."""
        self._finish(state, **kwargs)

    def _finish(self, state: TrainerState, **kwargs: Any) -> None:
        self.at_step(kwargs["model"], state.global_step, tokens=_tokens(state), last=True)
        self._forget()

    def _forget(self) -> None:
        if self._first_batch is not None:
            self._first_batch.drop()
            self._first_batch = None
        self.end()

    def _begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        batch: Any,
        siblings: Sequence[TrainerCallback],
        **kwargs: Any,
    ) -> bool:
        loader, tokenizer = kwargs.get("train_dataloader"), kwargs.get("processing_class")
        return self.begin(
            kwargs["model"],
            state.global_step,
            run=state,
            log_dir=str(args.output_dir),
            find_writers=lambda: _writers_among(siblings),
            sample=lambda: self.sample(batch, loader, tokenizer),
            find_state=lambda name: _read_state(_checkpoint(args, state) / f"{name}.json"),
            # Of copies that run in threads, no one sees the whole batch, and all would begin.
            is_last_chance=self.is_last_chance(batch) or args.n_gpu > 1,
        )


class _FirstBatch:
    """Has `then` called with the first batch, right before the model runs on it.

    Not afterwards: weights that FSDP1 has gathered for a forward without a backward would stay,
    and the next forward would not see the update between them.
    """

    def __init__(self, model: nn.Module, then: Callable[[Any], None]) -> None:
        self._then = then
        uncompiled: Any = torch.compiler.disable(self._note)  # type: ignore[no-untyped-call]
        # First of all hooks: those of FSDP2 gather weights that a measurement would let go.
        self._hook = model.register_forward_pre_hook(uncompiled, with_kwargs=True, prepend=True)

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.drop()
        self._then(kwargs or args)

    def drop(self) -> None:
        """Waits no longer."""
        self._hook.remove()


def _tokens(state: TrainerState) -> int | None:
    """The tokens seen, where the Trainer counts them."""
    return int(state.num_input_tokens_seen) or None


def _saved_now(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint of this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint that is resumed, perhaps one of another run.

    A callback is not told of it; it is a variable of the training loop that calls us.
    """
    frame = sys._getframe()
    while "resume_from_checkpoint" not in frame.f_locals and frame.f_back is not None:
        frame = frame.f_back
    path = frame.f_locals.get("resume_from_checkpoint")
    return Path(path) if isinstance(path, str | os.PathLike) else _saved_now(args, state)


def _read_state(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}; delete it to go on") from error
    return state


def _siblings() -> Sequence[TrainerCallback]:
    """The callbacks of the Trainer that calls us.

    A callback is not told of them; they are with their handler, which is one of our callers.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        caller: Any = frame.f_locals.get("self")
        if "CallbackHandler" in class_names(caller):
            return list(caller.callbacks)
        frame = frame.f_back
    return []


def _writers_among(siblings: Sequence[TrainerCallback]) -> list[Writer]:
    """The runs of TensorBoard and Weights & Biases that the Trainer writes to."""
    found: list[Writer] = []
    callbacks: Sequence[Any] = siblings
    for sibling in callbacks:
        names = class_names(sibling)
        if "TensorBoardCallback" in names and getattr(sibling, "tb_writer", None) is not None:
            found.append(TensorBoardWriter(sibling.tb_writer))
        if "WandbCallback" in names and getattr(getattr(sibling, "_wandb", None), "run", None):
            found.append(WandbWriter(sibling._wandb.run))
    return found
