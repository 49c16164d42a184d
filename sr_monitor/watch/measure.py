"""One measurement of one model, as a record: what `Monitor`, `sr-monitor measure` and replay take.

record = take_record(model, prompts, MonitorConfig(num_pairs=64), step=500)
"""

import time
from typing import Any

from torch import nn

from sr_monitor.model.engine import Way
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.wrappers import core_of, unwrap
from sr_monitor.probes.measuring import Bar, measure_probes, no_bar
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.samples import Sample


def take_record(
    model: nn.Module,
    prompts: PromptSet | Sample,
    config: MonitorConfig,
    *,
    step: int,
    tokens: int | None = None,
    ranks: RankGroup = ALONE,
    way: Way | None = None,
    bar: Bar = no_bar,
    **about: Any,
) -> Record:
    """Measure what `config` says, and note what it was measured in.

    Of a `Sample`, the record says the name; if it is resampled, its prompts are those of the step.
    Every one of the `ranks` makes this call. `way` is how an earlier measurement of the run ran
    points, `record.paths.engine`, and no faster way is taken; `bar` starts a progress bar; `about`
    goes into the metadata.

    Raises:
        InputError: Something asked for cannot be measured in this model.
        RuntimeError: Not one output is finite.
    """
    began = time.perf_counter()
    sample = prompts if isinstance(prompts, Sample) else Sample(name="", prompts=prompts)
    drawn, probes = sample.at(step), config.measured
    parts = measure_probes(model, drawn, probes, config, ranks=ranks, way=way, bar=bar)
    distance = parts["paths"].distance
    if bool(distance.isinf().any(dim=1).all()):
        raise RuntimeError(
            f"not one output of {len(distance)} pairs is finite: the weights hold NaN or Inf, as "
            "after a diverged loss; look at the loss and the learning rate"
        )
    return Record(
        step=step,
        tokens=tokens,
        parts=parts,
        probes=probes,
        metadata={
            "config": config.recorded("curve", "record"),
            "prompts": sample.prompts.fingerprint,
            **sample.noted(),
            "model": type(core_of(unwrap(model))).__name__,
            "dtype": parts["paths"].weights,
            "device": next(model.parameters()).device.type,
            "seconds": time.perf_counter() - began,
            **about,
        },
    )
