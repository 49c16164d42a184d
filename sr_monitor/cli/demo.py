"""`sr-monitor demo`: a small model is trained here and watched; nothing is downloaded.

sr-monitor demo --out runs/demo
"""

from pathlib import Path
from typing import Annotated

import typer

from sr_monitor.cli.options import check_writable, path_option
from sr_monitor.cli.terminal import pasteable, print_table, progress, say


def demo(
    out: Annotated[Path, path_option("Where the model and the pictures go.")] = Path("runs/demo"),
    lightning: Annotated[
        bool, typer.Option("--lightning", help="Train with Lightning, not with the Trainer.")
    ] = False,
) -> None:
    """Train it here in about three minutes, on text that Python brings along."""
    # Imported here, so that the help need not wait for torch.
    from sr_monitor.cli.demo_training import DemoPlan, run_demo

    check_writable(out)
    with progress() as bar:
        outcome = run_demo(out, DemoPlan(), "lightning" if lightning else "transformers", bar)
    header = ("step", "loss", "median", "quartiles")
    print_table([header, *outcome.rows()], ">>>>", title="maximum slope (1: no regions)")
    say(
        f"wrote {out}: film-*.png and curves.png (regions form), stable_regions/, model/",
        f"next: {pasteable('sr-monitor', 'measure', out / 'model')}",
        f"to watch it: {pasteable('tensorboard', '--logdir', out)}",
    )
