"""One model, measured once: paths first, then slices, of the same model, layer and prompts.

measurement = measure_model(model, prompts, MonitorConfig(num_pairs=64), bar)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.probes.paths import Paths, measure_paths
from sr_monitor.probes.slices import Slices, measure_slices
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.watch.config import MonitorConfig

Bar = Callable[[str], Callable[[int, int], None]]


def no_bar(_: str) -> Callable[[int, int], None]:
    """Progress that nobody looks at."""
    return lambda done, total: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What was found, and in what."""

    config: MonitorConfig
    prompts: PromptSet
    paths: Paths
    slices: Slices | None
    """None where none was asked for."""
    seconds: float
    """How long it took, model and prompts at hand."""

    def check_finite(self) -> None:
        """Refuse a measurement that tells nothing, because all outputs are NaN or Inf."""
        if bool(self.paths.distance.isinf().any(dim=1).all()):
            raise RuntimeError(
                f"not one output of {len(self.paths.distance)} pairs is finite: the weights hold "
                "NaN or Inf, as after a diverged loss; look at the loss and the learning rate"
            )


def measure_model(
    model: nn.Module,
    prompts: PromptSet,
    config: MonitorConfig,
    bar: Bar = no_bar,
    *,
    ranks: RankGroup = ALONE,
) -> Measurement:
    """Takes the paths, then the slices; `bar` starts a progress bar."""
    started = time.perf_counter()
    shared: dict[str, Any] = {
        "layer": config.layer,
        "output": config.output,
        "precision": config.precision,
        "engine": config.engine,
        "layer_path": config.layer_path,
        "max_tokens": config.max_tokens,
        "ranks": ranks,
    }
    paths = measure_paths(
        model,
        *prompts.pairs(min(config.num_pairs, prompts.num_pairs)),
        num_steps=config.num_steps,
        sampling=config.sampling,
        progress=bar("paths"),
        **shared,
    )
    num_slices = min(config.num_slices, prompts.num_triples)
    slices = (
        measure_slices(
            model,
            *prompts.triples(num_slices),
            resolution=config.slice_resolution,
            progress=bar("slices"),
            **shared,
        )
        if num_slices
        else None
    )
    return Measurement(
        config=config,
        prompts=prompts,
        paths=paths,
        slices=slices,
        seconds=time.perf_counter() - started,
    )
