"""What a monitor measures, and what a callback does with it: all options, each declared once.

MonitorConfig(num_pairs=64, num_slices=0, probes=["divergence"])
WatchOptions("prompts.json", every=1000, num_pairs=64)
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, TypeAlias, TypeVar

from sr_monitor.display.writers import as_writers
from sr_monitor.errors import check_folder_name, check_kind
from sr_monitor.model.session import SessionOptions
from sr_monitor.options import Effect, Options, option
from sr_monitor.probes.base import Probe, resolve
from sr_monitor.probes.keys import NAME
from sr_monitor.probes.paths import PathsOptions, PathsProbe
from sr_monitor.probes.slices import SlicesOptions, SlicesProbe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.sets import check_sets
from sr_monitor.watch.guard import OnError
from sr_monitor.watch.schedule import Schedule, check_schedule, every

Prompts: TypeAlias = PromptSet | str | os.PathLike[str]
_PROMPTS_TO_DRAW_FROM = 4  # times as many as are measured at once
_Part = TypeVar("_Part", bound=Options)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(SessionOptions, SlicesOptions, PathsOptions):
    """What is measured, and how closely."""

    probes: Sequence[str | Probe] = option(
        (), "What else is measured: probes, or their names.", effect="nothing"
    )

    resample: bool = option(
        False,
        "Measure as many other pairs, too: drawn anew each time, from the seed and the step, as a "
        "curve beside that of the pairs that are kept.",
        effect="nothing",
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
        """How many prompts in a chain are enough; with `resample`, to draw from."""
        enough = max(self.num_pairs + 1, self.num_slices + 2)
        return enough * (_PROMPTS_TO_DRAW_FROM if self.resample else 1)

    def recorded(self, *effects: Effect) -> dict[str, Any]:
        """Return the options with these effects, and those of the probes under "probes"."""
        probes = {probe.name: probe.recorded(*effects) for probe in self.probes}  # type: ignore[union-attr]
        return super().recorded(*effects) | ({"probes": probes} if probes else {})

    def _part(self, kind: type[_Part]) -> _Part:
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})


@dataclass(frozen=True)
class WatchOptions(MonitorConfig):
    """What a callback measures, when, and where results go."""

    prompts: Prompts | Mapping[str, Prompts | None] | None = option(
        None,
        "A `PromptSet`, or the file of a saved one; by default taken from the training data. "
        "Several by name, such as {'train': None, 'held_out': 'eval_dataset', 'code': ...}, are "
        "measured side by side; 'eval_dataset' is the trainer's, 'eval_dataset.NAME' one of it.",
        effect="nothing",
    )
    _: KW_ONLY
    every: int = option(
        500, "Measure at step 0 and then every so many steps.", least=1, effect="nothing"
    )
    schedule: Schedule | None = option(
        None,
        "When to measure, instead of `every`: `log_spaced()`, `at([...])`, `budget(0.01, "
        "schedule=...)`, or any function of the step.",
        effect="nothing",
    )
    with_save: bool = option(
        False, "Measure also whenever the framework saves a checkpoint.", effect="nothing"
    )
    with_eval: bool = option(
        False, "Measure also whenever the framework evaluates.", effect="nothing"
    )
    num_tokens: int = option(
        10, "The length of a prompt from the training data.", least=2, effect="nothing"
    )
    log_dir: str | os.PathLike[str] | None = option(
        None, "Where records go, in its folder `name`; by default the run's own.", effect="nothing"
    )
    name: str = option(
        NAME,
        "That folder, and what logged names begin with; a second callback there gets a number.",
        effect="nothing",
    )
    writer: Any = option(
        None,
        "Where results are shown: a writer, a `SummaryWriter`, or several; by default the "
        "framework's TensorBoard and Weights & Biases runs, or else a TensorBoard run of our own.",
        effect="nothing",
    )
    on_error: OnError = option(
        "warn", '"warn" lets training go on whatever happens; "raise" does not.', effect="nothing"
    )
    seed: int = option(0, "Seed of the choice of prompts.", effect="nothing")

    def __post_init__(self) -> None:
        """Refuse what no training can be watched with; replace what is no writer by one."""
        super().__post_init__()
        fix = "pass a PromptSet, the file of a saved one, or nothing; for a schedule pass every="
        check_sets(self.prompts, PromptSet | str | os.PathLike | None, fix)
        check_kind("log_dir", self.log_dir, str | os.PathLike | None, "pass the path of a folder")
        check_folder_name("name", self.name)
        check_schedule(self.when)
        if self.writer is not None:
            object.__setattr__(self, "writer", as_writers("writer", self.writer))

    @property
    def when(self) -> Schedule:
        """The schedule, whichever way it was given."""
        return every(self.every) if self.schedule is None else self.schedule
