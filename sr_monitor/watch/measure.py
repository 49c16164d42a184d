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
from sr_monitor.probes.paths import Paths
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig


def take_record(
    model: nn.Module,
    prompts: PromptSet,
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

    Args:
        model: A causal language model.
        prompts: What is measured; of a set that holds fewer pairs than wanted, all are.
        config: How much is measured, and where.
        step: How many times the optimizer has updated the model.
        tokens: How many tokens it was trained on, if that is known.
        ranks: The ranks that share the measurement; every one of them makes this call.
        way: How an earlier measurement of the run ran points, `record.paths.engine`; no faster
            way is taken.
        bar: Starts a progress bar.
        about: More for the metadata, as plain values.

    Raises:
        InputError: Something asked for cannot be measured in this model.
        RuntimeError: Not one output is finite.
    """
    began = time.perf_counter()
    parts = measure_probes(model, prompts, config.measured, config, ranks=ranks, way=way, bar=bar)
    _check_finite(parts["paths"])
    weight = next(model.parameters())
    return Record(
        step=step,
        tokens=tokens,
        parts=parts,
        probes=config.measured,
        metadata={
            "config": config.recorded("curve", "record"),
            "prompts": prompts.fingerprint,
            "model": type(core_of(unwrap(model))).__name__,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "seconds": time.perf_counter() - began,
            **about,
        },
    )


def _check_finite(paths: Paths) -> None:
    if bool(paths.distance.isinf().any(dim=1).all()):
        raise RuntimeError(
            f"not one output of {len(paths.distance)} pairs is finite: the weights hold NaN or "
            "Inf, as after a diverged loss; look at the loss and the learning rate"
        )
