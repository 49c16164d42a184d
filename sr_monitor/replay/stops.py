"""One checkpoint on the way of a replay: where it is, what it costs, and which curve it is on.

What comes of a plan is a list of them; see `plan`.

    [stop.label for stop in stops if not stop.problem]
    twins(stops)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.hub import Item
from sr_monitor.replay.names import CheckpointName, read_name

SIZES = "sizes"
"""The curve of a sweep, whichever models are on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """One checkpoint on the way."""

    name: CheckpointName
    """Step, tokens, stage, branch."""
    home: str
    """Which training it is of: a repository, or the folder that its steps lie in."""
    run: str = ""
    """The folder of its curve; "" is the only one."""
    curve: str = ""
    """Which curve that is, whatever its folder is called: a training, and a branch of it."""
    checkpoint: LocalCheckpoint | None = None
    """Where it lies, if it lies on this machine."""
    item: Item | None = None
    """What it needs, if it is on the hub."""

    @property
    def label(self) -> str:
        """What it is called in messages and records."""
        if self.item is not None:
            return f"{self.item.repo}@{self.item.revision.name}"
        assert self.checkpoint is not None
        return str(self.checkpoint.path)

    @property
    def commit(self) -> str | None:
        """What its name stands for on the hub now."""
        return None if self.item is None else self.item.revision.commit

    @property
    def has_step(self) -> bool:
        """Whether its place on the x-axis is a step; that of a bare model is its size."""
        return says_step(self.name)

    @property
    def problem(self) -> str:
        """Why it cannot be measured; empty where nothing is known against it."""
        if self.item is not None:
            return self.item.problem
        assert self.checkpoint is not None
        return self.checkpoint.problem or ""

    @property
    def needs_base(self) -> bool:
        """Whether a model of the same architecture has to be named for it."""
        return self.checkpoint is not None and self.checkpoint.config is None and not self.problem

    @property
    def num_bytes(self) -> int:
        """How large it is, without what belongs to the optimizer where that lies apart."""
        if self.item is not None:
            return self.item.num_bytes
        assert self.checkpoint is not None
        return self.checkpoint.num_bytes

    @property
    def missing_bytes(self) -> int:
        """What is still to be downloaded."""
        return 0 if self.item is None else self.item.missing_bytes

    @property
    def weights(self) -> str | None:
        """Equal for equal weights and configs; None where that is not known."""
        if self.item is None or self.item.problem:
            return None
        return f"{self.item.weights} {self.item.config}"


def says_step(name: CheckpointName) -> bool:
    """Whether a step is known, be it step 0."""
    return name.step > 0 or read_name(name.text) is not None


def is_sweep(stops: Sequence[Stop]) -> bool:
    """Whether models of different sizes are compared, and not steps of one training."""
    return len(stops) > 1 and not any(stop.has_step for stop in stops)


def twins(stops: Sequence[Stop]) -> dict[str, Stop]:
    """By its label, each one whose weights an earlier one has, and that one."""
    first: dict[str, Stop] = {}
    found: dict[str, Stop] = {}
    for stop in () if is_sweep(stops) else stops:
        other = first.setdefault(stop.weights or stop.label, stop)
        if other is not stop:
            found[stop.label] = other
    return found
