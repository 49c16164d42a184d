"""Made-up records and prompts, and a probe of another package, to test what keeps and shows them.

record = make_record(500, num_slices=2)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_monitor.probes.base import Page, Probe
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.slices import Slices
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record

NAN, INF = math.nan, math.inf
NUM_PAIRS, NUM_STEPS = 6, 11


def make_prompts(num_prompts: int = 7) -> PromptSet:
    ids = torch.arange(3 * num_prompts).reshape(num_prompts, 3)
    texts = tuple(f"prompt {index}" for index in range(num_prompts))
    return replace(PromptSet.from_token_ids(ids), texts=texts)


PROMPTS = make_prompts()


def make_paths(seed: int = 1, *, num_pairs: int = NUM_PAIRS, num_steps: int = NUM_STEPS) -> Paths:
    """Steeper curves for a larger seed; the last pair did not move, so it does not count."""
    alphas = torch.linspace(0, 1, num_steps)
    distance = alphas ** torch.linspace(1, 1 + seed % 7, num_pairs)[:, None]
    distance[-1:] = 0
    return Paths(
        alphas=alphas,
        distance=distance,
        input_distance=torch.arange(10.0, 10 + num_pairs),
        noise_distance=1e-6,
        noise_floor=1 / 3e6,
        num_points=num_pairs * num_steps,
        engine="shared",
        noise=torch.arange(1.0, num_pairs + 1) / 1e6,
    )


def make_slices(seed: int = 0, num_slices: int = 1, resolution: int = 4) -> Slices:
    shape = (num_slices, 3, resolution, resolution)
    return Slices(
        coordinates=torch.linspace(-0.25, 1.25, resolution),
        distance=torch.rand(shape, generator=torch.Generator().manual_seed(seed)),
        foot=torch.full((num_slices,), 0.4),
        num_points=math.prod(shape),
        engine="rows",
    )


def make_record(
    step: int = 500,
    num_slices: int = 1,
    *,
    paths: Paths | None = None,
    slices: Slices | None = None,
    **changes: Any,
) -> Record:
    """A record that differs from that of any other step."""
    parts: dict[str, Any] = {"paths": paths or make_paths(step)}
    if slices is not None or num_slices:
        parts["slices"] = slices or make_slices(step, num_slices)
    whole = {"tokens": 10 * step, "parts": parts, "metadata": {"seconds": 1.5}}
    return Record(step=step, **{**whole, **changes})


@dataclass(frozen=True, kw_only=True)
class Rise(Probe):
    """How far each curve has risen in the middle, computed from the paths."""

    name = "rise"
    keys = (
        MEDIAN := Key.scalar("rise/median", "The median rise."),
        ALL := Key.histogram("rise", "All rises."),
        PICTURE := Key.image("rise/picture", "All rises, as a row of greys."),
    )
    at: float = 0.5

    def derive(self, parts: Mapping[str, Any]) -> dict[str, Any] | None:
        if "paths" not in parts:
            return None
        relative: Tensor = parts["paths"].relative
        return {"rise": relative[:, round(self.at * (relative.shape[1] - 1))], "at": self.at}

    def scalars(self, part: Mapping[str, Any]) -> dict[Key, float]:
        return {self.MEDIAN: float(part["rise"].nanmedian())}

    def histograms(self, part: Mapping[str, Any]) -> dict[Key, Tensor]:
        return {self.ALL: part["rise"]}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, Any]]:
        rows = [each.part["rise"].nan_to_num().numpy() for each in (*earlier, page)]
        grey = (np.stack(rows).clip(0, 1) * 255).astype(np.uint8)
        yield self.PICTURE, np.repeat(grey[..., None], 3, axis=-1)
