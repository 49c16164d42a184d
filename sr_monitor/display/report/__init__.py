"""One self-contained page from the records of runs, and their figures and numbers as files.

from sr_monitor.display.report import write_report
write_report(["runs/1", "runs/2"], "report.html", figures="figures", csv="numbers")
"""

import os
from collections.abc import Sequence
from pathlib import Path

from sr_monitor.display.report.course import Course
from sr_monitor.display.report.figures import write_figures
from sr_monitor.display.report.page import make_page
from sr_monitor.display.report.tables import write_tables
from sr_monitor.errors import InputError, level_of_caller, warn
from sr_monitor.files import write_whole
from sr_monitor.probes.base import Probe
from sr_monitor.results.runs import Folders, find_runs


def write_report(
    folders: Folders,
    out: str | os.PathLike[str] = "report.html",
    *,
    figures: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    probes: Sequence[Probe] = (),
) -> list[Path]:
    """Write the page, and return all files that were written, the page first.

    Args:
        folders: Log folders of runs, the `out` of replays, or folders that hold several.
        out: The page.
        figures: A folder for every figure, as PNG and as SVG.
        csv: A folder for the numbers.
        probes: Probes that explain their parts of the records, besides the built-in ones; what
            they derive from others is shown of old records, too.

    Raises:
        InputError: A folder holds no records, none that can be read, or one of a newer version.
    """
    courses = [Course.of(run) for run in find_runs(folders, probes, call="report: ")]
    _tell_damaged(courses)
    whole = [course for course in courses if course.steps]
    write_whole(path := Path(out), make_page(whole).encode())
    written = [path]
    written += write_figures(whole, Path(figures)) if figures is not None else []
    return written + (write_tables(whole, Path(csv)) if csv is not None else [])


def _tell_damaged(courses: Sequence[Course]) -> None:
    """Warn of each record that is left out; refuse to report on nothing."""
    reasons = [reason for course in courses for reason in course.run.damaged.values()]
    if not any(course.steps for course in courses):
        raise InputError(f"report: no record can be read: {reasons[0]}")
    for reason in reasons:
        warn(f"left out: {reason}", stacklevel=level_of_caller())
