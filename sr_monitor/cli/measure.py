"""`sr-monitor measure`: one model, measured now; a table, pictures, and the numbers as JSON.

sr-monitor measure runs/demo/model --num-pairs 64 --out stable-regions/demo
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from sr_monitor.cli import options
from sr_monitor.cli.terminal import print_table, progress, say
from sr_monitor.display.writers.base import encode_png
from sr_monitor.errors import InputError, is_out_of_memory
from sr_monitor.files import write_whole
from sr_monitor.model.loading import LoadOptions, TokenizerOnDemand, load_model
from sr_monitor.probes.base import ALWAYS, RGB, Page, Part, Probe
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import NUM_POINTS, short
from sr_monitor.probes.paths_pictures import draw_curves, draw_slopes
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.probes.slices_pictures import draw_slice
from sr_monitor.probes.statistics import median_curve, summarise
from sr_monitor.prompts.choose import PromptOptions, choose_prompts
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measure import take_record


@options.takes_options
def measure(
    model: Annotated[str, typer.Argument(help="A folder with a model, or its name on the hub.")],
    *,
    out: Annotated[
        Path | None, options.path_option("Where the results go; else stable-regions/MODEL.")
    ] = None,
    prompting: PromptOptions,
    config: MonitorConfig,
    loading: LoadOptions,
) -> None:
    """Print how sharp the boundaries between its stable regions are, and draw curves and slices."""
    if config.resample:
        raise InputError("--resample: it is for several steps, in a training or a replay; drop it")
    folder = out or Path("stable-regions") / Path(model).resolve().name
    options.check_writable(folder)
    with progress() as bar:
        loaded = bar("loading")
        network = load_model(model, **vars(loading))
        tokenizer = TokenizerOnDemand(model, loading.trust_remote_code)
        chosen = choose_prompts(prompting, tokenizer, config.num_prompts)
        loaded(1, 1)
        try:
            record = take_record(network, chosen, config, step=0, bar=bar, source=model)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"{model!r} cannot be measured: {error}") from error
    try:
        written = list(_write(folder, record, chosen, config))
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error}; name another") from error
    print_table(list(_facts(record, chosen).items()), "<<", title=model)
    say(f"wrote {folder}: {', '.join(written)}")


def _facts(record: Record, prompts: PromptSet) -> dict[str, str]:
    """Return the lines of the table."""
    paths, about = record.paths, record.metadata
    lines = {
        "model": f"{about['model']}, {about['dtype']} on {about['device']}",
        "prompts": f"{len(paths.distance)} pairs of {prompts.num_tokens} tokens, {prompts.source}",
    }
    for probe, part in record.known():
        lines |= probe.facts(part)
    points = record.scalars[NUM_POINTS.name]
    return lines | {
        "seconds": f"{about['seconds']:.1f}",
        "points": f"{points:,.0f} ({paths.engine})",
    }


def _write(
    folder: Path, record: Record, prompts: PromptSet, config: MonitorConfig
) -> Iterator[str]:
    """Write the pictures, the prompts and the numbers; yield the names of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("slice-*.png"):  # there may be more of them than now
        earlier.unlink()
    for name, picture in _pictures(record, prompts, folder.name):
        write_whole(folder / name, encode_png(picture))
        yield name
    prompts.save(folder / "prompts.json")
    yield "prompts.json"
    # One line for each entry at the top.
    lines = [
        f"  {json.dumps(name)}: {json.dumps(_plain(value), allow_nan=False)}"
        for name, value in _values(record, prompts, config).items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_whole(folder / "measurement.json", text.encode())
    yield "measurement.json"


def _pictures(record: Record, prompts: PromptSet, title: str) -> Iterator[tuple[str, RGB]]:
    """Draw each picture, with the name of its file."""
    yield "curves.png", pixels(draw_curves(record.paths, title=title))
    yield "slopes.png", pixels(draw_slopes(record.paths, title=title))
    if (slices := record.slices) is not None:
        for index in range(len(slices.foot)):
            picture = draw_slice(slices, index, prompts=prompts.texts_of_triple(index))
            yield f"slice-{index}.png", pixels(picture)
    for probe, part in _others(record):
        page = Page(title=title, part=part, parts=record.parts, prompts=prompts)
        for key, image in probe.pictures(page, ()):
            if key.kind == "image":
                yield short(key.name).replace("/", "-") + ".png", image


def _others(record: Record) -> list[tuple[Probe, Part]]:
    return [(probe, part) for probe, part in record.known() if probe.name not in ALWAYS]


def _values(record: Record, prompts: PromptSet, config: MonitorConfig) -> dict[str, Any]:
    """Return what was measured, how, and what was found."""
    paths, about = record.paths, record.metadata
    q25, median, q75 = median_curve(fill_gaps(paths.alphas, paths.relative), paths.kept)
    by_pair = "kept", "max_slope", "location", "width", "end_distance", "input_distance"
    alone = "noise_floor", "noise_distance", "num_points", "engine"
    return {
        **{name: about[name] for name in ("source", "model", "dtype", "device")},
        **config.recorded("curve", "record", "nothing"),
        "num_tokens": prompts.num_tokens,
        "prompts": prompts.source,
        "prompts_fingerprint": prompts.fingerprint,
        "seconds": about["seconds"],
        "max_slope": asdict(summarise(paths.max_slope, paths.kept)),
        **{name: getattr(paths, name) for name in alone},
        "curve": {"alpha": paths.alphas, "q25": q25, "median": median, "q75": q75},
        "pairs": {name: getattr(paths, name) for name in by_pair},
        **{probe.name: probe.pack(part) for probe, part in _others(record)},
    }


def _plain(value: Any) -> Any:
    """Return tensors as lists, and what JSON has no number for as null."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
