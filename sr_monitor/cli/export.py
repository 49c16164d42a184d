"""`sr-monitor export`: records to TensorBoard, Weights & Biases or trackio again.

sr-monitor export runs/demo --log-dir runs-again
sr-monitor export replays --wandb pretraining
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sr_monitor.cli.options import check_writable, parse_probe, path_option
from sr_monitor.cli.terminal import say
from sr_monitor.errors import InputError, warn

if TYPE_CHECKING:
    from sr_monitor.display.writers.base import Writer

_Opens = Callable[[str], AbstractContextManager["Writer"]]


def export(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="Log folders of runs, --out of replays, or what holds them."
        ),
    ],
    log_dir: Annotated[
        Path | None, path_option("Write a TensorBoard run for each, in a folder of its name.")
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="A Weights & Biases run for each.")
    ] = None,
    trackio: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="A trackio run for each.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...]",
            help="A probe to explain or derive its part, besides the built-in ones.",
        ),
    ] = None,
) -> None:
    """Write all that a live run writes: numbers at every step, pictures at some, the prompts."""
    # Imported here, so that the help need not wait for torch.
    from sr_monitor.display.export import export_run
    from sr_monitor.results.runs import find_runs

    targets: dict[str, _Opens] = {}
    if log_dir is not None:
        check_writable(log_dir, "--log-dir")
        targets[str(log_dir)] = lambda name: _tensorboard(log_dir / name)
    if wandb is not None:
        targets[f"Weights & Biases, project {wandb!r}"] = lambda name: _wandb(wandb, name)
    if trackio is not None:
        targets[f"trackio, project {trackio!r}"] = lambda name: _trackio(trackio, name)
    if not targets:
        raise InputError("export: say where to: --log-dir DIR, --wandb PROJECT, --trackio PROJECT")
    runs = find_runs(folders, [parse_probe(text) for text in probe or ()], call="export: ")
    for target, opens in targets.items():
        for run in runs:
            with opens(run.name) as writer:
                count = export_run(run, [writer])
            say(f"wrote {run.name} to {target}: {count} measurements")
    for reason in (reason for run in runs for reason in run.damaged.values()):
        warn(f"left out: {reason}")


def _tensorboard(folder: Path) -> AbstractContextManager["Writer"]:
    from sr_monitor.display.writers.tensorboard import TensorBoardWriter

    if any(folder.glob("events.out.tfevents.*")):
        raise InputError(
            f"--log-dir: {str(folder)!r} holds a TensorBoard run already, and both would be shown "
            "as one; name another folder"
        )
    return closing(TensorBoardWriter(folder))


@contextmanager
def _wandb(project: str, name: str) -> Iterator["Writer"]:
    from sr_monitor.display.writers.base import import_or_refuse
    from sr_monitor.display.writers.wandb import WandbWriter

    missing = "--wandb: wandb is not installed; run: pip install wandb"
    run: Any = import_or_refuse("wandb", missing).init(project=project, name=name)
    try:
        yield WandbWriter(run)
    finally:
        run.finish()


@contextmanager
def _trackio(project: str, name: str) -> Iterator["Writer"]:
    from sr_monitor.display.writers.base import import_or_refuse
    from sr_monitor.display.writers.trackio import TrackioWriter

    missing = "--trackio: trackio is not installed; run: pip install trackio"
    run: Any = import_or_refuse("trackio", missing).init(
        project=project, name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False
    )
    try:
        yield TrackioWriter(run)
    finally:
        run.finish()
