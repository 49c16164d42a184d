"""What the Trainer does not tell its callbacks: their siblings, the checkpoint, and the batches.

The first two are read off the stack of callers, the batches off the calls of the model.

    siblings, saved = find_siblings(), read_state(args, state, "stable_regions")
    stop_waiting = when_next_called(model, print)
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from sr_monitor import InputError
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.display.writers.trackio import TrackioWriter
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.model.wrappers import class_names


def find_siblings() -> Sequence[Any]:
    """Return the callbacks of the Trainer; the handler that holds them is one of our callers."""
    handlers = (local.get("self") for local in _callers())
    found: Any = next((each for each in handlers if "CallbackHandler" in class_names(each)), None)
    return [] if found is None else list(found.callbacks)


def find_eval_dataset() -> Any:
    """Return the data set, or several by name, that the Trainer evaluates on; one calls us."""
    trainers = (local.get("self") for local in _callers())
    found: Any = next((each for each in trainers if "Trainer" in class_names(each)), None)
    return getattr(found, "eval_dataset", None)


def writers_among(siblings: Sequence[Any]) -> list[Writer]:
    """Return the runs of TensorBoard, Weights & Biases and trackio that the Trainer writes to."""
    found: list[Writer] = []
    for sibling in siblings:
        names = class_names(sibling)
        if "TensorBoardCallback" in names and getattr(sibling, "tb_writer", None) is not None:
            found.append(TensorBoardWriter(sibling.tb_writer))
        if "WandbCallback" in names and getattr(getattr(sibling, "_wandb", None), "run", None):
            found.append(WandbWriter(sibling._wandb.run))
        if "TrackioCallback" in names and getattr(sibling, "_initialized", False):
            found.append(TrackioWriter(sibling._trackio.context_vars.current_run.get()))
    return found


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def read_state(args: TrainingArguments, state: TrainerState, name: str) -> Any:
    """Return what was saved under this name in the checkpoint that is resumed, if it is there.

    That checkpoint may be another run's; the training loop has its path.
    """
    key = "resume_from_checkpoint"
    given = next((local[key] for local in _callers() if key in local), None)
    folder = given if isinstance(given, str | os.PathLike) else checkpoint_of(args, state)
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}; delete it to go on") from error
    return saved


def _callers() -> Iterator[Mapping[str, Any]]:
    """Yield the local variables of the functions that call us, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_locals
        frame = frame.f_back


def when_next_called(model: nn.Module, then: Callable[[Any], object]) -> Callable[[], None]:
    """Call `then` once with the next batch, right before the model runs; return how to cancel.

    Not afterwards: weights that FSDP1 has gathered for a forward without a backward would stay,
    and the next forward would not see the update between them.
    """

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled():  # no evaluation, nor another callback's measurement
            hook.remove()
            then(kwargs or args)

    uncompiled: Any = torch.compiler.disable(note)  # type: ignore[no-untyped-call]
    # First of all hooks: those of FSDP2 gather weights that a measurement would let go.
    hook = model.register_forward_pre_hook(uncompiled, with_kwargs=True, prepend=True)
    return hook.remove
