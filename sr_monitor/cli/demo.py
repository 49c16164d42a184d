"""`sr-monitor demo`: train and watch a small model here, with no download.

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
    """Train it here in about two minutes, on text that comes with Python."""
    # Imported here, so that the help need not wait for torch.
    from sr_monitor.cli.demo_training import DemoPlan, run_demo
    from sr_monitor.probes.statistics import summarise

    check_writable(out)
    with progress() as bar:
        records, losses = run_demo(
            out, DemoPlan(), "lightning" if lightning else "transformers", bar
        )
    rows = [("step", "loss", "median", "quartiles")]
    for record in records:
        slope = summarise(record.paths.max_slope, record.paths.kept)
        loss = f"{losses[record.step]:.2f}" if record.step in losses else ""
        quartiles = f"{slope.q25:.3f} to {slope.q75:.3f}"
        rows.append((f"{record.step}", loss, f"{slope.median:.3f}", quartiles))
    print_table(rows, ">>>>", title="maximum slope (1: no regions)")
    say(
        f"wrote {out}: film-*.png and curves.png (regions form), stable_regions/, model/",
        f"one page of it: {pasteable('sr-monitor', 'report', out, '-o', out / 'report.html')}",
        f"measure the model again: {pasteable('sr-monitor', 'measure', out / 'model')}",
        f"all of it in TensorBoard: {pasteable('tensorboard', '--logdir', out)}",
    )
