"""One model, measured once: what the command line asks for, shows and writes.

Paths first, then slices; both of the same model, layer and prompts.

measurement = measure_model(model, prompts, MonitorConfig(num_pairs=64), bar)
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
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.probes.drawing import draw_curves, draw_slice, draw_slopes, save_figure
from sr_monitor.probes.paths import Paths, measure_paths
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.slices import Slices, measure_slices
from sr_monitor.probes.statistics import Summary, median_curve, summarise
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

    @property
    def slope(self) -> Summary:
        """The maximum slope over the pairs."""
        return summarise(self.paths.max_slope, self.paths.kept)

    def check_finite(self) -> None:
        """Refuse a measurement that tells nothing, because all outputs are NaN or Inf."""
        if bool(self.paths.distance.isinf().any(dim=1).all()):
            raise RuntimeError(
                f"not one output of {len(self.paths.distance)} pairs is finite: the weights hold "
                "NaN or Inf, as after a diverged loss; look at the loss and the learning rate"
            )

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
            **asdict(self.config),
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
        for earlier in folder.glob("slice-*.png"):  # there may be more of them than now
            earlier.unlink()
        pictures = {
            "curves.png": draw_curves(self.paths, title=title),
            "slopes.png": draw_slopes(self.paths, title=title),
        }
        if self.slices is not None:
            for index in range(len(self.slices.foot)):
                figure = draw_slice(self.slices, index, prompts=self.prompts.texts_of_triple(index))
                pictures[f"slice-{index}.png"] = figure
        for name, figure in pictures.items():
            save_figure(figure, folder / name)
        return [folder / name for name in pictures]


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
