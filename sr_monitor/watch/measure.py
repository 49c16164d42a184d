"""One measurement of one model, as a record: what `Monitor`, `sr-monitor measure` and replay take.

record = take_record(model, prompts, MonitorConfig(num_pairs=64), step=500)
"""

import time
from typing import Any

from torch import nn

from sr_monitor.model.anatomy import dissect
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measurement import Bar, measure_model, no_bar


def take_record(
    model: nn.Module,
    prompts: PromptSet,
    config: MonitorConfig,
    *,
    step: int,
    tokens: int | None = None,
    ranks: RankGroup = ALONE,
    way: str | None = None,
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
    measured = measure_model(model, prompts, config, bar, ranks=ranks)
    measured.check_finite()
    weight = next(model.parameters())
    return Record(
        step=step,
        tokens=tokens,
        paths=measured.paths,
        slices=measured.slices,
        metadata={
            "config": config.recorded("curve", "record"),
            "prompts": prompts.fingerprint,
            "model": type(dissect(model, config.layer_path).core).__name__,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "seconds": time.perf_counter() - began,
            **about,
        },
    )
