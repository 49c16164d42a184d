"""`sr-monitor replay`: the same measurement over saved checkpoints, here or on the hub.

sr-monitor replay runs/gpt2 --out replays/gpt2
sr-monitor replay 'allenai/OLMo-1B-0724-hf@step*' --num 20 --dry-run
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sr_monitor.cli import options
from sr_monitor.cli.terminal import complain, pasteable, print_table, progress, say, size
from sr_monitor.errors import InputError
from sr_monitor.replay import Report
from sr_monitor.replay import replay as run_replay
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.plan import PlannedCheckpoint, find_duplicates, make_plan, with_files
from sr_monitor.replay.run import check_base
from sr_monitor.watch.config import MonitorConfig


@options.takes_options
def replay(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A checkpoint, a folder of them, or owner/name@GLOB, revisions on the hub.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        options.path_option("Where records and the TensorBoard run go; --dry-run needs none."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be measured, and its size.")
    ] = False,
    own: ReplayOptions,
    config: MonitorConfig,
) -> None:
    """Use the same prompts for all, and continue an earlier replay that was stopped."""
    if dry_run:
        planned = make_plan(sources, num=own.num, tokens=own.tokens, revisions=own.revisions)
        check_base(planned, own)
        with progress() as bar:
            planned = with_files(planned, bar("listing"))
        _print_plan(planned, own.base)
        return
    if out is None:
        raise InputError("replay: name the folder for the results, --out DIR (or ask --dry-run)")
    options.check_writable(out)
    with progress() as bar:
        report = run_replay(sources, out, bar=bar, config=config, **vars(own))
    _print_report(report, out)


def _print_plan(planned: Sequence[PlannedCheckpoint], base: str | None) -> None:
    """Print what would be measured; end with 1, as the run would, if not all can be."""
    same = find_duplicates(planned)
    problems = {each.label: problem for each in planned if (problem := _problem(each, base))}
    header = ("run", "step", "tokens", "size", "to download", "checkpoint")
    rows = [_row(each, same.get(each.label), problems.get(each.label)) for each in planned]
    print_table([header, *rows], ">>>>><")
    alone = [each.source for each in planned if each.label not in same | problems]
    say(
        f"{len(planned)} checkpoints, {len(alone)} to measure: "
        f"{size(sum(source.num_bytes for source in alone))}, "
        f"{size(sum(source.missing_bytes for source in alone))} of it to download"
    )
    if problems:
        raise typer.Exit(1)


def _problem(planned: PlannedCheckpoint, base: str | None) -> str | None:
    if planned.source.needs_base and base is None:
        return "it has no config.json; name a model of the same architecture: --base NAME"
    return planned.source.problem


def _row(
    planned: PlannedCheckpoint, earlier: PlannedCheckpoint | None, problem: str | None
) -> tuple[str, ...]:
    """Return a checkpoint's line in the table; `earlier` is another with the same weights."""
    name, source = planned.name, planned.source
    note = f" (the same weights as {earlier.label})" if earlier else ""
    note = f" (cannot be measured: {problem})" if problem else note
    if planned.wanted and planned.tokens is not None:
        wanted = ", ".join(map(_billions, planned.wanted))
        note = f" (nearest to {wanted}: it has seen {_billions(planned.tokens)}){note}"
    return (
        planned.run or "-",
        f"{name.step}" if name.has_step else "-",
        "-" if name.tokens is None else _billions(name.tokens),
        size(source.num_bytes),
        size(0 if earlier else source.missing_bytes),
        planned.label + note,
    )


def _billions(tokens: int | float) -> str:
    return f"{tokens / 1e9:.5g}B"


def _print_report(report: Report, out: Path) -> None:
    """Print what became of the checkpoints; end with 1 if one could not be measured."""
    done = f"{len(report.measured)} measured"
    if report.kept:
        done += f", {len(report.kept)} measured before"
    if report.same:
        done += f", {len(report.same)} with the weights of another"
        label, other = next(iter(report.same.items()))
        more = f", and {len(report.same) - 1} more like it" if len(report.same) > 1 else ""
        say(f"{label}: the same weights as {other}{more}")
    for label, reason in report.failures.items():
        complain("error", f"{label}: {reason}")
    say(f"wrote {out}: {done}, {len(report.failures)} failed")
    if report.left:
        complain("error", f"the hub is unreachable: {report.left} left, run the same again")
    say(f"to watch it: {pasteable('tensorboard', '--logdir', out)}")
    if report.failures or report.left:
        raise typer.Exit(1)
