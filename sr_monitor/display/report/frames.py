"""What moves with the slider: the curves, slopes, pairs and slices of one measurement.

    pairs = extreme_pairs(last.paths)
    frame = make_frame(record, pairs)

A slice is a picture of the closeness to A, B and C in its three channels, so that the page can
colour it in several ways; it is transparent where an output was not finite.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from sr_monitor.probes.paths import Paths
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.slices import Slices
from sr_monitor.probes.statistics import median_curve
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record

_EXTREMES = 8  # pairs with the sharpest boundary, and as many with the flattest
_MOST_CHARACTERS = 160


def extreme_pairs(paths: Paths) -> list[int]:
    """Return the pairs with the sharpest boundaries, the sharpest first, then the flattest."""
    slopes = torch.where(paths.kept, paths.max_slope, torch.nan)
    order = [int(pair) for pair in slopes.argsort(descending=True) if slopes[pair].isfinite()]
    if len(order) <= 2 * _EXTREMES:
        return order
    return order[:_EXTREMES] + order[-_EXTREMES:]


def make_frame(record: Record, pairs: Sequence[int]) -> dict[str, Any]:
    """Return what the page draws of one measurement; `pairs` are those it can show alone."""
    frame: dict[str, Any] = {"step": record.step}
    if "paths" in record.parts:
        paths = record.paths
        filled = fill_gaps(paths.alphas, paths.relative)
        curves = dict(zip(("q25", "median", "q75"), median_curve(filled, paths.kept), strict=True))
        there = [pair if pair < len(filled) else None for pair in pairs]
        frame["curve"] = {name: rounded(curve, 3) for name, curve in curves.items()}
        frame["slopes"] = rounded(paths.max_slope[paths.kept], 3)
        frame["pairs"] = [None if pair is None else rounded(filled[pair], 3) for pair in there]
        frame["pairSlopes"] = [
            None if pair is None else rounded(paths.max_slope[pair], 3) for pair in there
        ]
    if record.slices is not None:
        frame["slices"] = [_slice(record.slices, each) for each in range(len(record.slices.foot))]
    return frame


def words(prompts: PromptSet, pairs: Sequence[int], num_triples: int) -> dict[str, Any]:
    """Return the texts of these pairs, with their labels, and those of the first triples."""
    texts = prompts.texts or [" ".join(map(str, ids)) for ids in prompts.token_ids.tolist()]
    shown, labels = [on_one_line(text) for text in texts], prompts.labels
    every = 1 if prompts.pairing == "chain" else 2
    return {
        "pairs": [
            {
                "texts": shown[pair * every : pair * every + 2],
                "label": on_one_line(labels[pair]) if labels else "",
            }
            for pair in pairs
            if pair < prompts.num_pairs
        ],
        "triples": [
            shown[triple * every : triple * every + 3]
            for triple in range(min(num_triples, prompts.num_triples))
        ],
    }


def on_one_line(text: str) -> str:
    """Put a text on one line and keep the end of a long one: its last token is replaced."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"…{text[-_MOST_CHARACTERS:]}"
    spaced = ("↵" if char == "\n" else " " if char.isspace() else char for char in cut)
    return "".join(char if char.isprintable() else "□" for char in spaced)


def rounded(values: Shaped[Tensor, "..."], digits: int) -> Any:
    """Return a tensor as lists of numbers for JSON, null for what is not finite."""

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(entry) for entry in value]
        return round(value, digits) if math.isfinite(value) else None

    return of(values.tolist())


def data_url(kind: Literal["png", "webp"], content: bytes) -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _slice(slices: Slices, triple: int) -> dict[str, Any]:
    from PIL import Image

    # (corner, row, column) -> (row, column, 1), beside rgb of (row, column, 3)
    finite = slices.distance[triple].isfinite().all(dim=0)[..., None]
    rgba = torch.cat([slices.rgb[triple], finite], dim=-1).clamp(0, 1)
    pixels = (255 * rgba).round().byte().flip(0).numpy()  # the highest row first
    Image.fromarray(pixels).save(content := io.BytesIO(), format="PNG", optimize=True)
    low, high = float(slices.coordinates[0]), float(slices.coordinates[-1])
    half = (high - low) / (len(slices.coordinates) - 1) / 2  # a colour is that of its cell's middle
    return {
        "png": data_url("png", content.getvalue()),
        "span": [round(low - half, 4), round(high + half, 4)],
        "foot": rounded(slices.foot[triple], 4),
    }
