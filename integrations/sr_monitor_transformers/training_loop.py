"""What the Trainer does not tell its callbacks: their siblings, the checkpoint, and the batches.

The first two are read off the functions that call us, the batches off the calls of the model.

    siblings, checkpoint = find_siblings(), resumed_from(args, state)
    first = FirstBatch(model, then=print)
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
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.model.wrappers import class_names


def find_siblings() -> Sequence[Any]:
    """Return the callbacks of the Trainer that calls us; their handler is one of our callers."""
    handlers = (local.get("self") for local in _callers())
    found: Any = next((each for each in handlers if "CallbackHandler" in class_names(each)), None)
    return [] if found is None else list(found.callbacks)


def writers_among(siblings: Sequence[Any]) -> list[Writer]:
    """Return the runs of TensorBoard and Weights & Biases that the Trainer writes to."""
    found: list[Writer] = []
    for sibling in siblings:
        names = class_names(sibling)
        if "TensorBoardCallback" in names and getattr(sibling, "tb_writer", None) is not None:
            found.append(TensorBoardWriter(sibling.tb_writer))
        if "WandbCallback" in names and getattr(getattr(sibling, "_wandb", None), "run", None):
            found.append(WandbWriter(sibling._wandb.run))
    return found


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def resumed_from(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the checkpoint that is resumed, perhaps of another run: the training loop knows it."""
    name = "resume_from_checkpoint"
    path = next((local[name] for local in _callers() if name in local), None)
    return Path(path) if isinstance(path, str | os.PathLike) else checkpoint_of(args, state)


def read_state(path: Path) -> Mapping[str, Any] | None:
    """Return the state that was saved in a file, if it is there."""
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}; delete it to go on") from error
    return state


def _callers() -> Iterator[Mapping[str, Any]]:
    """Yield the local variables of the functions that call us, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_locals
        frame = frame.f_back


class FirstBatch:
    """Has `then` called with the next batch, right before the model runs on it.

    Not afterwards: weights that FSDP1 has gathered for a forward without a backward would stay,
    and the next forward would not see the update between them.
    """

    def __init__(self, model: nn.Module, then: Callable[[Any], None]) -> None:
        """Wait for the batch."""
        self._then = then
        uncompiled: Any = torch.compiler.disable(self._note)  # type: ignore[no-untyped-call]
        # First of all hooks: those of FSDP2 gather weights that a measurement would let go.
        self._hook = model.register_forward_pre_hook(uncompiled, with_kwargs=True, prepend=True)

    def drop(self) -> None:
        """Wait no longer."""
        self._hook.remove()

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.drop()
        self._then(kwargs or args)
