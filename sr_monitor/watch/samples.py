"""Name the samples of prompts that are measured side by side, each a curve of its own.

samples = samples_of({"train": one, "code": other}, MonitorConfig(resample=True))
[sample.name for sample in samples]   # train, train-resampled, code, code-resampled
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.sets import by_name, check_sets
from sr_monitor.watch.config import MonitorConfig

Sets: TypeAlias = PromptSet | Mapping[str, PromptSet]
"""One set of prompts, or several by name."""

RESAMPLED = "resampled"
"""The name of the pairs that are drawn anew at every measurement, or the end of it."""
_FIX = "pass a PromptSet; PromptSet.from_texts makes one, and a dict of them names several"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One curve's prompts."""

    name: str
    """"" for those of the only set."""
    prompts: PromptSet
    is_resampled: bool = False
    """Whether its pairs are drawn anew at each step, from the seed and the step."""

    def at(self, step: int) -> PromptSet:
        """Return the prompts whose first pairs are measured at a step."""
        return self.prompts.reordered(step) if self.is_resampled else self.prompts

    def measured_as(self, config: MonitorConfig) -> MonitorConfig:
        """Leave slices out where prompts change: there is no plane to follow."""
        if not self.is_resampled:
            return config
        kept = tuple(probe for probe in config.probes if getattr(probe, "rides", "") != "slices")
        return replace(config, num_slices=0, probes=kept)

    def noted(self) -> dict[str, Any]:
        """Return what records say of it."""
        name = {"set": self.name} if self.name else {}
        return name | ({"resampled": True} if self.is_resampled else {})


def sample_names(sets: Iterable[str], config: MonitorConfig) -> list[str]:
    """Return the names of the samples of these sets."""
    return [each for name in sets for each in (name, _other(name))[: 1 + config.resample]]


def is_resampled(name: str) -> bool:
    """Return whether this is the name of pairs that are drawn anew."""
    return name == RESAMPLED or name.endswith(f"-{RESAMPLED}")


def samples_of(sets: Sets, config: MonitorConfig) -> list[Sample]:
    """Return a sample for each set and, with `resample`, one of other pairs beside it."""
    check_sets(sets, PromptSet, _FIX)
    named = by_name(sets)
    names = sample_names(named, config)
    if len(set(names)) < len(names):
        raise InputError(
            f"prompts={{{', '.join(map(repr, named))}}}, resample=True: two curves would have one "
            f"name; pass names that do not end in {RESAMPLED!r}"
        )
    return [sample for each in named.items() for sample in _both(*each, config)]


def _both(name: str, prompts: PromptSet, config: MonitorConfig) -> Iterator[Sample]:
    yield Sample(name=name, prompts=prompts)
    if config.resample:
        if prompts.pairing == "explicit" and prompts.num_pairs <= config.num_pairs:
            raise InputError(
                f"resample=True, num_pairs={config.num_pairs}: the prompts form "
                f"{prompts.num_pairs} explicit pairs, so there are no others to draw; pass a "
                "smaller num_pairs="
            )
        yield Sample(name=_other(name), prompts=prompts, is_resampled=True)


def _other(name: str) -> str:
    return "-".join(filter(None, (name, RESAMPLED)))
