"""Tiny trainings, and all that can be compared of them: with the Hugging Face Trainer, and by hand.

plain = train(tmp_path / "plain")
watched = train(tmp_path / "watched", watch(every=2))
assert watched.differences(plain) == []
"""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sr_monitor_transformers import StableRegionCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sr_monitor import Monitor, PromptSet, Record, measure_paths
from sr_monitor.model.precision import Precision
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.results.record import list_records
from sr_monitor.watch.config import WatchOptions
from tests.zoo import VOCAB, build

NAME = "stable_regions"
SMALL: dict[str, Any] = {
    "num_pairs": 4,
    "num_steps": 5,
    "num_slices": 0,
    "slice_resolution": 5,
    "num_tokens": 5,
    "writer": [],
    "on_error": "raise",
}
"""Measures little, draws nothing, and hides no error."""

_OF_THE_CLOCK = ("_runtime", "_per_second")

# Saving a checkpoint would draw a progress bar.
_log: Any = transformers.utils.logging
_log.disable_progress_bar()


def rows(num: int = 32, length: int = 12, seed: int = 0) -> Any:
    """A training set of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (num, length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


class Stream(IterableDataset[Any]):
    """Rows with neither a length nor access by index; each draws from the global random state."""

    def __init__(self, given: Sequence[Any]) -> None:
        self._rows = given

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            torch.rand(1)
            yield row


# ---- what a training leaves behind ---------------------------------------------------------------


def seed_everything() -> None:
    """The random states that every training starts from."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training that has ended, and what can be compared of it."""

    folder: Path
    """Where its records are."""
    model: Any
    facts: dict[str, Any]
    """Weights, optimizer, losses, modes, hooks, random states, and what the framework has more."""
    trainer: Any = None

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return list(self.facts["losses"])

    def differences(self, other: "Run") -> list[str]:
        """What of this training is not bit for bit as in the other one."""
        assert len(set(self.losses)) > 1, "nothing was trained"
        return [name for name, fact in self.facts.items() if not equal(fact, other.facts[name])]


def facts_of(
    model: nn.Module, optimizer: Any, losses: Sequence[float], **more: Any
) -> dict[str, Any]:
    """Everything that a measurement could have disturbed.

    Python's own generator is drawn from by beartype, which checks one item of each list, where it
    is there; so that one is compared in processes without it.
    """
    python = [] if "beartype" in sys.modules else [random.getstate()]
    modules = dict(model.named_modules())
    return {
        "weights": {name: _whole(value).clone() for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "losses": list(losses),
        "random": [torch.get_rng_state(), np.random.get_state(), *python],  # noqa: NPY002
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: len(module._forward_hooks) + len(module._forward_pre_hooks)
            for name, module in modules.items()
        },
        **more,
    }


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of plain values, tensors and arrays are the same; NaN is NaN."""
    if isinstance(a, Tensor | np.ndarray):
        return type(a) is type(b) and a.shape == b.shape and _bits(a) == _bits(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b) or (a != a and b != b)


def _bits(values: Any) -> bytes:
    if isinstance(values, np.ndarray):
        return values.tobytes()
    return bytes(_whole(values).detach().flatten().view(torch.uint8).numpy())


def _whole(value: Any) -> Tensor:
    """The value, gathered from all ranks if it is sharded."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def records(folder: Path, name: str = NAME) -> dict[int, Record]:
    """The records of a run, by step."""
    found = map(Record.load, list_records(folder / name))
    return {record.step: record for record in found}


def prompts_in(folder: Path, name: str = NAME) -> PromptSet:
    """The prompts of a run."""
    return PromptSet.load(folder / name / "prompts.json")


def event_files(folder: Path) -> list[Path]:
    """The TensorBoard runs below a folder."""
    return sorted(folder.rglob("events.out.tfevents.*"))


def logged(folder: Path, name: str = PathsProbe.MAX_SLOPE_MEDIAN.name) -> list[int]:
    """The steps of a scalar in the one TensorBoard run below a folder."""
    (file,) = event_files(folder)
    found = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in found.Scalars(name)]


def assert_curve_of(
    model: nn.Module,
    folder: Path,
    step: int = 0,
    *,
    name: str = NAME,
    gap: float = 1e-4,
    precision: Precision = "auto",
) -> None:
    """What was measured is what the core finds; only the shape of batches may differ."""
    found = records(folder, name)[step].paths.distance
    num_pairs, num_steps = found.shape
    pairs = prompts_in(folder, name).pairs(num_pairs)
    options: dict[str, Any] = {"num_steps": num_steps, "precision": precision}
    expected = measure_paths(model, *pairs, **options).distance
    torch.testing.assert_close(found, expected, rtol=gap, atol=gap)
    assert found.dtype == torch.float32


@contextmanager
def failing_at(model: nn.Module, step: int | None) -> Iterator[None]:
    """Have the model raise an error of its own in this step of the training."""
    count = [0]

    def fail(module: nn.Module, *_: Any) -> None:
        count[0] += module.training and torch.is_grad_enabled()
        if count[0] == step:
            raise ZeroDivisionError("in the training itself")

    hook = None if step is None else model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


# ---- a loop of one's own -------------------------------------------------------------------------


def _given(options: WatchOptions, otherwise: PromptSet) -> Any:
    """The set or the sets that are asked for; a monitor takes no files."""
    return options.prompts if isinstance(options.prompts, PromptSet | dict) else otherwise


def train_by_hand(
    folder: Path,
    *watched: WatchOptions,
    model: Any = None,
    max_steps: int = 6,
    save_steps: int | None = None,
    resume: Path | None = None,
    fail_at: int | None = None,
) -> Run:
    """A loop around AdamW that draws its batches at random."""
    seed_everything()
    model = build("gpt2").model if model is None else model
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    losses: list[float] = []
    prompts = PromptSet.from_token_ids(torch.stack([row["input_ids"][:5] for row in rows(7)]))
    monitors = [
        Monitor(
            _given(options, prompts),
            options,
            writers=options.writer or (),
            schedule=options.when,
            log_dir=folder,
            name=options.name,
            on_error=options.on_error,
        )
        for options in watched
    ]
    first = 0
    if resume is not None:
        saved = torch.load(resume, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        first, losses = saved["step"], saved["losses"]
        for monitor, state in zip(monitors, saved["monitors"], strict=False):
            monitor.load_state_dict(state)
    try:
        with failing_at(model, fail_at):
            for monitor in monitors:
                monitor.step(model, first)
            for step in range(first + 1, max_steps + 1):
                ids = torch.randint(VOCAB, (4, 12))
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                for monitor in monitors:
                    monitor.step(model, step, last=step == max_steps)
                if save_steps and step % save_steps == 0:
                    folder.mkdir(exist_ok=True)
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "random": torch.get_rng_state(),
                        "losses": losses,
                        "step": step,
                        "monitors": [monitor.state_dict() for monitor in monitors],
                    }
                    torch.save(state, folder / f"step={step}.ckpt")
    finally:
        for monitor in monitors:
            monitor.close()
    return Run(folder=folder, model=model, facts=facts_of(model, optimizer, losses))


# ---- the Hugging Face Trainer --------------------------------------------------------------------


def watch(**options: Any) -> StableRegionCallback:
    """A callback that measures little."""
    return StableRegionCallback(**(SMALL | options))


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    model: Any = None,
    data: Any = None,
    resume: Path | None = None,
    fail_at: int | None = None,
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

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if module.training and "input_ids" in kwargs:
            batches.append(kwargs["input_ids"].clone())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    with failing_at(model, fail_at):
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    hook.remove()
    logs = [
        {name: value for name, value in entry.items() if not name.endswith(_OF_THE_CLOCK)}
        for entry in trainer.state.log_history
    ]
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    facts = facts_of(model, trainer.optimizer, losses, logs=logs, batches=batches)
    return Run(folder=folder, model=model, facts=facts, trainer=trainer)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Six steps of four rows each, all of them logged, nothing saved."""
    usual: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "steps" if "save_steps" in options else "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **(usual | options))
