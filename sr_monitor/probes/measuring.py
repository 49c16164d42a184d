"""Measure all probes of one model in one session.

Each set of points is run once, for the probe it belongs to and for all that ride on it.

    parts = measure_probes(model, prompts, [PathsProbe(num_pairs=64), Divergence()], options)
    parts["paths"].max_slope
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from sr_monitor.model.engine import Way
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.session import SessionOptions, open_session
from sr_monitor.probes.base import (
    Part,
    Probe,
    Progress,
    Riders,
    Run,
    leaving_out,
    no_progress,
    unserved,
)
from sr_monitor.prompts.prompt_set import PromptSet

Bar: TypeAlias = Callable[[str], Progress]
"""Starts a progress bar by its name."""


def no_bar(_: str) -> Progress:
    """Start no progress bar."""
    return no_progress


def measure_probes(
    model: nn.Module,
    prompts: PromptSet,
    probes: Sequence[Probe],
    options: SessionOptions,
    *,
    ranks: RankGroup = ALONE,
    way: Way | None = None,
    bar: Bar = no_bar,
) -> dict[str, Part]:
    """Return the parts of all probes, by name; the model comes back exactly as it was.

    The names of `probes` differ, and those they ride on are among them. Each of the `ranks` makes
    this call, and gets all parts. No faster way than `way`, which an earlier measurement of the run
    took, is considered.
    """
    parts: dict[str, Part] = {}
    serving = [probe for probe in probes if type(probe).measure is not Probe.measure]
    for probe in probes:
        if probe.rides is not None and probe.rides not in {each.name for each in serving}:
            raise unserved(probe)
    examples = prompts.pairs(min(2, prompts.num_pairs))
    with open_session(model, examples, options, ranks, way) as session:
        for probe in serving:
            riders = Riders(session, [each for each in probes if each.rides == probe.name])
            part = None
            with leaving_out(probe, session), session.stream.tapping(riders.taps):
                run = Run(
                    session=session,
                    prompts=prompts,
                    riders=riders,
                    progress=bar(probe.name),
                    parts=parts,
                )
                part = probe.measure(run)
            if part is not None:
                parts[probe.name] = part
                parts |= riders.parts(parts)
    return parts | derived(probes, parts)


def derived(probes: Sequence[Probe], parts: dict[str, Part]) -> dict[str, Part]:
    """Return the parts that can be computed from others, derived ones included, in any order."""
    found: dict[str, Part] = {}
    missing = [probe for probe in probes if probe.name not in parts]
    for _ in missing:
        for probe in missing:
            if probe.name not in found and (part := probe.derive(parts | found)) is not None:
                found[probe.name] = part
    return found
