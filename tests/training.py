"""Tiny trainings with the real Hugging Face Trainer, and what is left of them to compare.

Run by `torchrun`, it is what each of two processes does in the test of sharing.

plain = train(tmp_path / "plain")
watched = train(tmp_path / "watched", watch(every=2))
assert watched.differences(plain) == []
"""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from jaxtyping import Int
from sr_monitor_transformers import StableRegionCallback
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sr_monitor import Record
from sr_monitor.results.record import list_records
from tests.zoo import VOCAB, build

Row = dict[str, Tensor]

_OF_THE_CLOCK = ("_runtime", "_per_second")

# Saving a checkpoint would draw a progress bar.
_log: Any = transformers.utils.logging
_log.disable_progress_bar()


def rows(num: int = 32, length: int = 12, seed: int = 0) -> Any:
    """A training set of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (num, length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


class Stream(IterableDataset[Row]):
    """The same rows, with neither a length nor access by index."""

    def __init__(self, given: Sequence[Row]) -> None:
        self._rows = given

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)


def watch(**options: Any) -> StableRegionCallback:
    """A callback that measures little, draws nothing, and hides no error."""
    small: dict[str, Any] = {
        "num_pairs": 4,
        "num_steps": 5,
        "num_slices": 0,
        "slice_resolution": 5,
        "num_tokens": 5,
        "writer": [],
        "on_error": "raise",
    }
    return StableRegionCallback(**(small | options))


class StopAt(TrainerCallback):
    """Ends the training after this step, as early stopping does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training leaves behind."""

    folder: Path
    trainer: Trainer
    model: Any
    batches: list[Int[Tensor, "row token"]]
    """What the model was trained on, in order."""
    random: list[Any]
    """The states of the global generators."""

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Everything that was logged, less what the clock says."""
        return [
            {name: value for name, value in entry.items() if not name.endswith(_OF_THE_CLOCK)}
            for entry in self.trainer.state.log_history
        ]

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [entry["loss"] for entry in self.logs if "loss" in entry]

    def differences(self, other: "Run") -> list[str]:
        """What of this training is not bit for bit as in the other one."""
        return [
            name
            for name, mine in self._everything().items()
            if not _equal(mine, other._everything()[name])
        ]

    def _everything(self) -> dict[str, Any]:
        optimizer: Any = self.trainer.optimizer
        modules = [*self.model.named_modules()]
        return {
            "weights": dict(self.model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "logs": self.logs,
            "random": self.random,
            "batches": self.batches,
            "modes": {name: module.training for name, module in modules},
            "hooks": {name: _num_hooks(module) for name, module in modules},
        }


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    model: Any = None,
    data: Any = None,
    resume: Path | None = None,
    **options: Any,
) -> Run:
    """Trains a small GPT-2, with dropout, for six steps; `options` are `TrainingArguments`."""
    model = build("gpt2").model if model is None else model
    trainer = Trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=rows() if data is None else data,
        eval_dataset=rows(4, seed=1),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    batches: list[Tensor] = []
    with _noting(model, batches):
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return Run(folder=folder, trainer=trainer, model=model, batches=batches, random=_random())


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Six steps of four rows each, all of them logged, nothing saved."""
    usual: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **(usual | options))


def records(folder: Path, name: str = "stable_regions") -> dict[int, Record]:
    """The records of a run, by step."""
    found = map(Record.load, list_records(folder / name))
    return {record.step: record for record in found}


class _noting:
    """Notes the token ids of each forward in training mode."""

    def __init__(self, model: nn.Module, batches: list[Tensor]) -> None:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module.training and "input_ids" in kwargs:
                batches.append(kwargs["input_ids"].clone())

        self._hook = model.register_forward_pre_hook(note, with_kwargs=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def _random() -> list[Any]:
    """The states of the global generators.

    Python's own is drawn from by beartype, which checks one item of each list, where it is there;
    so this one is compared in processes without it.
    """
    python = [] if "beartype" in sys.modules else [random.getstate()]
    return [torch.get_rng_state(), np.random.get_state(), *python]  # noqa: NPY002


def _num_hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def _equal(a: Any, b: Any) -> bool:
    """Whether two nests of plain values, tensors and arrays are the same."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


# ---- what each of two processes does -------------------------------------------------------------


def share_trainings(folder: Path) -> None:
    """Trains with and without a callback in all processes that `torchrun` has started."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {"max_steps": 3, "ddp_backend": "gloo"}
    plain = train(folder / "plain", **options)
    callback = watch(every=3, num_slices=1, writer=None)
    watched = train(folder / "watched", callback, report_to="tensorboard", **options)
    assert dist.get_world_size() == 2
    assert len(plain.random) == 3  # Python's own generator is among what is compared
    assert watched.differences(plain) == [], watched.differences(plain)
    options["accelerator_config"] = {"dispatch_batches": False}
    plain = train(folder / "plain", data=Stream(rows()), **options)
    stream = train(folder / "stream", watch(every=3), data=Stream(rows()), **options)
    assert stream.differences(plain) == [], stream.differences(plain)
    if dist.get_rank() == 0:
        torch.save(watched.model.state_dict(), folder / "watched.pt")
        torch.save(stream.model.state_dict(), folder / "stream.pt")
    for shard in (_shard_1, _shard_2):
        name = folder / shard.__name__
        unwatched = _train_sharded(shard(build("llama").model), arguments(name))
        losses = _train_sharded(shard(build("llama").model), arguments(name), watch(every=1))
        assert losses == unwatched, (shard, losses, unwatched)
    print(f"process {dist.get_rank()} is done", flush=True)  # noqa: T201


def _shard_1(model: Any) -> nn.Module:
    policy = ModuleWrapPolicy({type(model.model.layers[0])})
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )


def _shard_2(model: Any) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    sharded: nn.Module = fully_shard(model, reshard_after_forward=True)
    return sharded


def _train_sharded(
    model: nn.Module, args: TrainingArguments, *callbacks: StableRegionCallback
) -> list[float]:
    """Three steps with the Trainer's events in their order; on a CPU it does not shard itself."""
    state = transformers.TrainerState(max_steps=3, is_world_process_zero=dist.get_rank() == 0)
    told = (args, state, transformers.TrainerControl())
    objects: Any = {"model": model, "processing_class": None, "train_dataloader": None}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses: list[float] = []
    for callback in callbacks:
        callback.on_train_begin(*told, **objects)
        callback.on_epoch_begin(*told, **objects)
    for row in rows(3, length=48, seed=dist.get_rank()):
        batch = {name: ids[None] for name, ids in row.items()}
        loss = model(**batch).loss
        loss.backward()
        for callback in callbacks:
            callback.on_pre_optimizer_step(*told, **objects)
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        for callback in callbacks:
            callback.on_step_end(*told, **objects)
        losses.append(loss.item())
    for callback in callbacks:
        callback.on_train_end(*told, **objects)
    return losses


if __name__ == "__main__":
    share_trainings(Path(sys.argv[1]))
    # A thread of gloo that lets go of a tensor while Python ends aborts the process.
    os._exit(0)
