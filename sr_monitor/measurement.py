"""One model, measured once: what the command line asks for, shows and writes.

Paths first, then slices; both of the same model, layer and prompts.

measurement = measure_model(model, prompts, Request(num_pairs=64), bar)
measurement.write(Path("stable-regions/gpt2"), title="gpt2")
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.figures import draw_curves, draw_slice, draw_slopes, save_figure
from sr_monitor.paths import Paths, measure_paths
from sr_monitor.prompts import PromptSet
from sr_monitor.sampling import Sampling
from sr_monitor.sharpness import fill_gaps
from sr_monitor.slices import Slices, measure_slices
from sr_monitor.statistics import Summary, median_curve, summarise

Bar = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """How much is measured, and where."""

    num_pairs: int = 256
    """Paths to take; a saved set that holds fewer pairs is taken whole."""
    num_steps: int = 51
    """Alphas on a path, both ends included."""
    num_slices: int = 4
    """Slices to take; 0 for none."""
    slice_resolution: int = 41
    """Points along a side of a slice."""
    layer: int = 1
    """Where the stream is cut; 0 is the embedding."""
    sampling: Sampling = "grid"
    """How the alphas of a path are chosen."""

    @property
    def num_prompts(self) -> int:
        """How many prompts in a chain are enough."""
        return max(self.num_pairs + 1, self.num_slices + 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What was found, and in what."""

    request: Request
    prompts: PromptSet
    paths: Paths
    slices: Slices | None
    """None where none was asked for."""
    seconds: float
    """How long it took, model and prompts at hand."""

    @property
    def slope(self) -> Summary:
        """The maximum slope over the pairs."""
        return summarise(self.paths.max_slope, self.paths.kept)

    def facts(self) -> dict[str, str]:
        """The lines of the table."""
        slope, paths = self.slope, self.paths
        points = paths.num_points + (self.slices.num_points if self.slices else 0)
        return {
            "prompts": f"{len(paths.distance)} pairs of {self.prompts.num_tokens} tokens, "
            f"{self.prompts.source}",
            "maximum slope": f"{slope.median:.3f} (median)",
            "quartiles": f"{slope.q25:.3f} to {slope.q75:.3f}",
            "95% interval": f"{slope.low:.3f} to {slope.high:.3f} (of the median)",
            "noise floor": f"{paths.noise_floor:.1e}",
            "pairs left out": f"{paths.num_left_out}",
            "seconds": f"{self.seconds:.1f}",
            "points": f"{points:,} ({paths.engine})",
        }

    def numbers(self) -> dict[str, Any]:
        """Everything but the slices' maps, as plain values."""
        paths = self.paths
        curves = fill_gaps(paths.alphas, paths.relative)
        q25, median, q75 = median_curve(curves, paths.kept)
        return {
            **asdict(self.request),
            "num_tokens": self.prompts.num_tokens,
            "prompts": self.prompts.source,
            "prompts_fingerprint": self.prompts.fingerprint,
            "max_slope": asdict(self.slope),
            "noise_floor": paths.noise_floor,
            "noise_distance": paths.noise_distance,
            "num_points": paths.num_points,
            "engine": paths.engine,
            "seconds": self.seconds,
            "curve": {"alpha": paths.alphas, "q25": q25, "median": median, "q75": q75},
            "pairs": {
                "kept": paths.kept,
                "max_slope": paths.max_slope,
                "location": paths.location,
                "width": paths.width,
                "end_distance": paths.end_distance,
                "input_distance": paths.input_distance,
            },
        }

    def write(self, folder: Path, *, title: str, **about: Any) -> list[Path]:
        """Writes the pictures, the prompts and the numbers; returns their paths."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = [*self._draw(folder, title), folder / "prompts.json"]
            self.prompts.save(written[-1])
            written.append(folder / "measurement.json")
            written[-1].write_text(_to_json(about | self.numbers()), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {str(folder)!r}: {error}; name another") from error
        return written

    def _draw(self, folder: Path, title: str) -> list[Path]:
        pictures = {
            "curves.png": draw_curves(self.paths, title=title),
            "slopes.png": draw_slopes(self.paths, title=title),
        }
        if self.slices is not None:
            for index in range(len(self.slices.foot)):
                figure = draw_slice(self.slices, index, prompts=self.texts_of_triple(index))
                pictures[f"slice-{index}.png"] = figure
        for name, figure in pictures.items():
            save_figure(figure, folder / name)
        return [folder / name for name in pictures]

    def texts_of_triple(self, index: int) -> tuple[str, ...] | None:
        """The three prompts of a slice, where their text is known."""
        first = index * (1 if self.prompts.pairing == "chain" else 2)
        return self.prompts.texts and self.prompts.texts[first : first + 3]


def measure_model(model: nn.Module, prompts: PromptSet, request: Request, bar: Bar) -> Measurement:
    """Takes the paths, then the slices; `bar` starts a progress bar."""
    started = time.perf_counter()
    paths = measure_paths(
        model,
        *prompts.pairs(min(request.num_pairs, prompts.num_pairs)),
        num_steps=request.num_steps,
        sampling=request.sampling,
        progress=bar("paths"),
        layer=request.layer,
    )
    num_slices = min(request.num_slices, prompts.num_triples)
    slices = (
        measure_slices(
            model,
            *prompts.triples(num_slices),
            resolution=request.slice_resolution,
            progress=bar("slices"),
            layer=request.layer,
        )
        if num_slices
        else None
    )
    return Measurement(
        request=request,
        prompts=prompts,
        paths=paths,
        slices=slices,
        seconds=time.perf_counter() - started,
    )


def _to_json(numbers: dict[str, Any]) -> str:
    """One line for each entry at the top."""
    plain = _plain(numbers).items()
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in plain]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    """Tensors as lists, and what JSON has no number for as null."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
