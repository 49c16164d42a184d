"""From a checkpoint's place to its record: fetch it, load it, measure it, take it out again.

with fetch_stop(stop, keep=False) as checkpoint:
record = measure_stop(stop, loading.keeper().load(checkpoint), prompts, config, sweep=False)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

from torch import nn

from sr_monitor.errors import InputError
from sr_monitor.measurement import Bar, MonitorConfig, measure_model, no_bar
from sr_monitor.prompts import PromptSet
from sr_monitor.records import Record
from sr_monitor.replay.cache import Journal
from sr_monitor.replay.checkpoints import Checkpoint, find_checkpoints
from sr_monitor.replay.downloads import Fetched, discard, fetch
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.plan import Stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How a checkpoint becomes a model."""

    base: str | None = None
    """A model of the same architecture, for checkpoints without a config."""
    dtype: str = "auto"
    """"auto" is as stored, and float32 on a CPU."""
    device: str = "auto"
    """"auto" is the accelerator if there is one."""
    trust_remote_code: bool = False
    """Run the code that comes with a model."""

    def keeper(self) -> ModelKeeper:
        """A place for one model."""
        return ModelKeeper(
            base=self.base,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """A checkpoint on this machine, and what was downloaded for it."""

    checkpoint: Checkpoint
    """Where it lies."""
    fetched: Fetched | None = None
    """None where it was on disk before."""

    def leave(self) -> None:
        """Takes out what was downloaded; a second call does nothing."""
        if self.fetched is not None:
            discard(self.fetched)


def bring(
    stop: Stop,
    *,
    stop_event: Event | None = None,
    journal: Journal | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Here:
    """Has the checkpoint on this machine, by a download if need be."""
    if stop.problem:
        raise InputError(stop.problem)
    if stop.checkpoint is not None:
        return Here(checkpoint=stop.checkpoint)
    assert stop.item is not None
    fetched = fetch(
        stop.item.repo, stop.item.revision, progress=progress, stop=stop_event, journal=journal
    )
    return Here(checkpoint=find_checkpoints(fetched.folder)[0], fetched=fetched)


@contextmanager
def fetch_stop(stop: Stop, *, keep: bool) -> Iterator[Checkpoint]:
    """The checkpoint on this machine, while it is needed."""
    here = bring(stop)
    try:
        yield here.checkpoint
    finally:
        if not keep:
            here.leave()


def measure_stop(
    stop: Stop,
    model: nn.Module,
    prompts: PromptSet,
    config: MonitorConfig,
    *,
    sweep: bool,
    bar: Bar = no_bar,
) -> Record:
    """The record of one checkpoint; in a sweep, its step is the number of parameters."""
    measured = measure_model(model, prompts, config, bar)
    measured.check_finite()
    size = sum(weight.numel() for weight in model.parameters())
    return measured.record(
        model,
        step=size if sweep else stop.name.step,
        tokens=stop.name.tokens,
        source=stop.label,
        parameters=size,
        x_axis="parameters" if sweep else "step",
    )
