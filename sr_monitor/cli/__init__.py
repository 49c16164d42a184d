"""The command `sr-monitor`: options in, a table and pictures out; the rest is elsewhere.

What a user gets wrong is one line on stderr that names the fix, and exit status 2. Ctrl-C ends
with 130. A traceback is a bug of ours.

    sr-monitor measure runs/demo/model --prompts prompts.json --out stable-regions/demo
    sr-monitor demo
"""

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import nn

from sr_monitor.cli.demo import DemoPlan, run_demo
from sr_monitor.cli.terminal import (
    complain,
    one_line_warnings,
    print_facts,
    print_rows,
    progress_bars,
)
from sr_monitor.errors import InputError
from sr_monitor.model.loading import TokenizerOnDemand, load_model
from sr_monitor.probes.sampling import Sampling
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measurement import measure_model

# NOTE: by its version, typer needs click or carries a copy of it; this is the UsageError in use.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# What measure and replay both take.
NumPairs = Annotated[int, typer.Option(min=1, help="Pairs of prompts.")]
NumSteps = Annotated[int, typer.Option(min=2, help="Alphas on a path, with both ends.")]
NumSlices = Annotated[int, typer.Option(min=0, help="Slices to draw.")]
SliceResolution = Annotated[int, typer.Option(min=2, help="Points along a side.")]
Layer = Annotated[int, typer.Option(min=0, help="Cut after this block; 0: before all.")]
Seed = Annotated[int, typer.Option(help="Of the choice of prompts.")]
NumTokens = Annotated[int, typer.Option(min=2, help="Tokens in a prompt.")]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: the accelerator if there is one.")
]
HowSampled = Annotated[Sampling, typer.Option(help="adaptive: the same slopes from fewer points.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="auto: as stored, but float32 on a CPU."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model.")
]

app = typer.Typer(
    help="Track how stable regions form in a language model's residual stream.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command, without arguments its help; the exit status."""
    args = (sys.argv[1:] if args is None else args) or ["--help"]
    command = typer.main.get_command(app)
    with one_line_warnings():
        try:
            status = command.main(args, prog_name="sr-monitor", standalone_mode=False)
        except InputError as error:
            complain("error", str(error))
            return 2
        except _UsageError as error:
            message = getattr(error, "format_message", error.__str__)()
            complain("error", f"{message} (see --help)")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            complain("error", f"{error}; make room there, or write elsewhere")
            _drop_output()
            return 2
    return status if isinstance(status, int) else 0


def _drop_output() -> None:
    """What could not be printed would be tried once more at the end of Python, with a traceback."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _folder(text: str) -> Path:
    """A folder for results; an empty name, as of a variable that is not set, is none."""
    if not text:
        raise typer.BadParameter("it is empty; name a folder ('.' is this one)")
    return Path(text)


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="A folder with a model, or its name on the hub.")],
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE-OR-DATASET",
            help="A text, JSONL or saved prompts.json file, or a data set's name on the hub; "
            "without it, the text that any Python brings along.",
        ),
    ] = None,
    num_pairs: NumPairs = 256,
    num_steps: NumSteps = 51,
    num_slices: NumSlices = 4,
    slice_resolution: SliceResolution = 41,
    layer: Layer = 1,
    sampling: HowSampled = "grid",
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    num_tokens: NumTokens = 10,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_folder,
            metavar="PATH",
            help="Where the results go; else stable-regions/MODEL.",
        ),
    ] = None,
) -> None:
    """Measure a model now.

    How sharp the boundaries between its stable regions are: a table, curves and slices.
    """
    from sr_monitor.prompts.choose import choose_prompts

    folder = out or Path("stable-regions") / Path(model).resolve().name
    _check_writable(folder)
    config = MonitorConfig(
        num_pairs=num_pairs,
        num_steps=num_steps,
        num_slices=num_slices,
        slice_resolution=slice_resolution,
        layer=layer,
        sampling=sampling,
    )
    with progress_bars() as bar:
        loading = bar("loading")
        network = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        tokenizer = TokenizerOnDemand(model, trust_remote_code)
        chosen = choose_prompts(
            prompts, tokenizer, num_tokens=num_tokens, num_prompts=config.num_prompts, seed=seed
        )
        loading(1, 1)
        measurement = measure_model(network, chosen, config, bar)
    try:
        measurement.check_finite()
    except RuntimeError as error:
        raise InputError(f"{model!r} cannot be measured: {error}") from error
    about = _describe(network)
    written = measurement.write(folder, title=folder.name, source=model, **about)
    measured = f"{about['model']}, {about['dtype']} on {about['device']}"
    print_facts(model, {"model": measured, **measurement.facts()})
    typer.echo(f"wrote {folder}: {', '.join(path.name for path in written)}")


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(parser=_folder, metavar="PATH", help="Where the model and the pictures go."),
    ] = Path("runs/demo"),
    lightning: Annotated[
        bool, typer.Option("--lightning", help="Train with Lightning, not with the Trainer.")
    ] = False,
) -> None:
    """Watch regions form in a small model.

    It is trained here in about three minutes, on text that Python brings along; nothing is
    downloaded.
    """
    _check_writable(out)
    with progress_bars() as bar:
        outcome = run_demo(out, DemoPlan(), "lightning" if lightning else "transformers", bar)
    print_rows(
        "maximum slope (1: no regions)",
        ("step", "loss", "median", "quartiles"),
        outcome.rows(),
    )
    typer.echo(f"wrote {out}: film-*.png and curves.png (regions form), stable_regions/, model/")
    typer.echo(f"next: {_beside('sr-monitor')} measure {out / 'model'}")
    typer.echo(f"to watch it: {_beside('tensorboard')} --logdir {out}")


def _beside(command: str) -> str:
    """A command that can be pasted: by its path where it is installed beside us, off the PATH."""
    neighbour = Path(sys.argv[0]).with_name(command)
    return str(neighbour) if not shutil.which(command) and neighbour.is_file() else command


@app.command()
def replay(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A checkpoint, a folder of them, or owner/name@GLOB, revisions on the hub.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=_folder,
            metavar="PATH",
            help="Where records and the TensorBoard run go; --dry-run needs none.",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE-OR-DATASET",
            help="As for measure; without it, those of the live run, or Python's own text.",
        ),
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=2, help="At most so many of a run, log-spaced by step.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="The checkpoints nearest to these: 4B,10B,100B.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be measured, and its size.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="A model of the same architecture, for checkpoints without a config."),
    ] = None,
    num_pairs: NumPairs = 256,
    num_steps: NumSteps = 51,
    num_slices: NumSlices = 4,
    slice_resolution: SliceResolution = 41,
    layer: Layer = 1,
    sampling: HowSampled = "grid",
    dtype: Dtype = "auto",
    device: Device = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(help="auto: spread a model over all accelerators that does not fit on one."),
    ] = None,
    seed: Seed = 0,
    num_tokens: NumTokens = 10,
    keep_downloads: Annotated[
        bool, typer.Option("--keep-downloads", help="Leave in the cache what is downloaded.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: each checkpoint is a Ray task.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster; else one on this machine.")
    ] = None,
) -> None:
    """Measure saved checkpoints.

    With the same prompts for all; what was stopped goes on where it was.
    """
    from sr_monitor.replay import replay as run_replay
    from sr_monitor.replay.models import Loading
    from sr_monitor.replay.names import parse_tokens
    from sr_monitor.replay.plan import make_plan
    from sr_monitor.replay.progress import replay_bars
    from sr_monitor.replay.run import check_base

    if ray_address is not None and engine != "ray":
        raise InputError(
            f"replay: --ray-address {ray_address!r} is for --engine ray, and the engine is "
            f"{engine!r}; add --engine ray, or leave the address out"
        )
    wanted = None if tokens is None else parse_tokens(tokens)
    if dry_run:
        stops = make_plan(sources, num=num, tokens=wanted)
        check_base(stops, Loading(base=base, trust_remote_code=trust_remote_code))
        _print_plan(stops, base)
        return
    if out is None:
        raise InputError("replay: name the folder for the results, --out DIR (or ask --dry-run)")
    _check_writable(out)
    with replay_bars() as bar:
        report = run_replay(
            sources,
            out,
            prompts=prompts,
            num=num,
            tokens=wanted,
            num_tokens=num_tokens,
            seed=seed,
            base=base,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            keep_downloads=keep_downloads,
            engine=engine,
            ray_address=ray_address,
            bar=bar,
            num_pairs=num_pairs,
            num_steps=num_steps,
            num_slices=num_slices,
            slice_resolution=slice_resolution,
            layer=layer,
            sampling=sampling,
        )
    _print_report(report, out)
    if report.failures:
        raise typer.Exit(1)


def _print_plan(stops: Sequence[Any], base: str | None) -> None:
    """What would be measured; nothing is downloaded. As the run, it ends with 1 if not all can."""
    from sr_monitor.replay.stops import twins

    same = twins(stops)
    problems = {stop.label: problem for stop in stops if (problem := _problem(stop, base))}
    rows: list[tuple[str, ...]] = [("run", "step", "tokens", "GB", "to download", "checkpoint")]
    rows += [_row(stop, same.get(stop.label), problems.get(stop.label)) for stop in stops]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        # NOTE: no table that adapts to the terminal: it would cut off names.
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        typer.echo("  ".join([*cells, row[-1]]))
    alone = [stop for stop in stops if stop.label not in same | problems]
    total, missing = (sum(getattr(s, n) for s in alone) for n in ("num_bytes", "missing_bytes"))
    typer.echo(
        f"{len(stops)} checkpoints, {len(alone)} to measure: {total / 1e9:.2f} GB, "
        f"{missing / 1e9:.2f} GB of it to download"
    )
    if problems:
        raise typer.Exit(1)


def _problem(stop: Any, base: str | None) -> str:
    """Why it could not be measured; empty where nothing is known against it."""
    if stop.needs_base and base is None:
        return "it has no config.json; name a model of the same architecture: --base NAME"
    return str(stop.problem)


def _row(stop: Any, twin: Any | None, problem: str | None) -> tuple[str, ...]:
    """A checkpoint in the table; `twin` is another with the same weights."""
    note = f" (the same weights as {twin.label})" if twin else ""
    note = f" (cannot be measured: {problem})" if problem else note
    tokens = stop.name.tokens
    return (
        stop.run or "-",
        f"{stop.name.step}" if stop.has_step else "-",
        "-" if tokens is None else f"{tokens / 1e9:.4g}B",
        f"{stop.num_bytes / 1e9:.2f}",
        f"{0 if twin else stop.missing_bytes / 1e9:.2f}",
        stop.label + note,
    )


def _print_report(report: Any, out: Path) -> None:
    done = f"{len(report.measured)} measured"
    if report.kept:
        done += f", {len(report.kept)} had been before"
    for label, other in report.same.items():
        typer.echo(f"{label}: the same weights as {other}")
    for label, reason in report.failures.items():
        complain("error", f"{label}: {reason}")
    typer.echo(f"wrote {out}: {done}, {len(report.failures)} failed")
    typer.echo(f"to watch it: {_beside('tensorboard')} --logdir {out}")


def _check_writable(folder: Path) -> None:
    """Refuses a folder for results before the work, not after it."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise InputError(f"--out {str(folder)!r}: {error.strerror}; name another") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "a folder that can be written to" if there.is_dir() else "a folder"
        raise InputError(f"--out {str(folder)!r}: {str(there)!r} is not {kind}; name another")


def _describe(model: nn.Module) -> dict[str, str]:
    weight = next(model.parameters())
    return {
        "model": type(model).__name__,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
    }
