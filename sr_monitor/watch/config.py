"""What a monitor measures: the options of the session, of paths and of slices, and more probes.

MonitorConfig(num_pairs=64, num_slices=0, probes=["divergence"])
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sr_monitor.model.session import SessionOptions
from sr_monitor.options import Effect, Options, option
from sr_monitor.probes.base import Probe, resolve
from sr_monitor.probes.paths import PathsOptions, PathsProbe
from sr_monitor.probes.slices import SlicesOptions, SlicesProbe

_Part = TypeVar("_Part", bound=Options)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(SessionOptions, SlicesOptions, PathsOptions):
    """What is measured, and how closely."""

    probes: Sequence[str | Probe] = option(
        (), "What else is measured: probes, or their names.", effect="nothing"
    )

    def __post_init__(self) -> None:
        """Refuse what no model can be measured with; replace names of probes by the probes."""
        super().__post_init__()
        beside = ["paths", "slices"] if self.num_slices else ["paths"]
        object.__setattr__(self, "probes", resolve(self.probes, beside=beside))

    @property
    def measured(self) -> tuple[Probe, ...]:
        """All probes: paths, slices unless there are none, and those that were asked for."""
        slices = (self._part(SlicesProbe),) if self.num_slices else ()
        asked_for = (probe for probe in self.probes if isinstance(probe, Probe))
        return (self._part(PathsProbe), *slices, *asked_for)

    @property
    def num_prompts(self) -> int:
        """How many prompts in a chain are enough."""
        return max(self.num_pairs + 1, self.num_slices + 2)

    def recorded(self, *effects: Effect) -> dict[str, Any]:
        """Return the options with these effects, and those of the probes under "probes"."""
        probes = {probe.name: probe.recorded(*effects) for probe in self.probes}  # type: ignore[union-attr]
        return super().recorded(*effects) | ({"probes": probes} if probes else {})

    def _part(self, kind: type[_Part]) -> _Part:
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})
