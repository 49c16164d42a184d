"""`sr-monitor report`: one self-contained page from records; figures and numbers as files.

sr-monitor report runs/1 runs/2 -o report.html --figures figures --csv numbers
"""

from pathlib import Path
from typing import Annotated

import typer

from sr_monitor.cli.options import check_writable, parse_probe, path_option
from sr_monitor.cli.terminal import say, size
from sr_monitor.errors import InputError


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="Log folders of runs, --out of replays, or what holds them."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page, which needs no network.")
    ] = Path("report.html"),
    figures: Annotated[
        Path | None, path_option("A folder for every figure, as PNG and SVG.")
    ] = None,
    csv: Annotated[Path | None, path_option("A folder for the numbers, as CSV.")] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...]",
            help="A probe to explain or derive its part, besides the built-in ones.",
        ),
    ] = None,
) -> None:
    """Show how regions formed: maximum slopes, curves, slices and films, on one page for all runs.

    The page opens in any browser and holds everything: send it, or keep it with a paper.
    """
    # Imported here, so that the help need not wait for torch.
    from sr_monitor.display.report import write_report

    if out.is_dir():
        raise InputError(f"--out {str(out)!r}: this is a folder; name a file, as report.html in it")
    check_writable(out.resolve().parent)
    for option, folder in (("--figures", figures), ("--csv", csv)):
        if folder is not None:
            check_writable(folder, option)
    probes = [parse_probe(text) for text in probe or ()]
    page, *others = write_report(folders, out, figures=figures, csv=csv, probes=probes)
    say(f"wrote {page}: {size(page.stat().st_size)}, to open in a browser")
    for folder in dict.fromkeys(path.parent for path in others):
        say(f"wrote {folder}: {sum(path.parent == folder for path in others)} files")
