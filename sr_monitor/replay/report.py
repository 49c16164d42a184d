"""What became of the checkpoints of a replay.

report = replay(["runs/gpt2"], "replays/gpt2")
report.measured, report.failures
"""

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of each checkpoint, by name."""

    measured: list[str] = field(default_factory=list)
    """Measured now."""
    kept: list[str] = field(default_factory=list)
    """Measured by an earlier replay."""
    same: dict[str, str] = field(default_factory=dict)
    """Duplicates, each with the checkpoint whose measurement it shares."""
    failures: dict[str, str] = field(default_factory=dict)
    """Not measured, and why."""
    left: int = 0
    """How many were not tried because the hub was unreachable."""

    def add(self, later: "Report") -> None:
        """Add what became of the checkpoints of a later round."""
        known = {*self.measured, *self.kept, *self.same}
        self.kept += [label for label in later.kept if label not in known]
        self.measured += later.measured
        self.same |= later.same
        failures = self.failures | later.failures
        done = {*self.measured, *self.kept, *self.same}
        self.failures = {label: why for label, why in failures.items() if label not in done}
        self.left = later.left
