"""Every figure of runs as a file: PNG to look at, SVG to print.

    write_figures([Course.of(run) for run in runs], Path("figures"))

max-slope shows all runs; the others are of each run's last measurement, with earlier ones behind,
in a folder of its name if there are several.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from sr_monitor.display.report.charts import make_groups
from sr_monitor.display.report.course import Course
from sr_monitor.display.report.drawings import draw_numbers, draw_slope_by_step, frame_pixels
from sr_monitor.display.report.gallery import draw_all, spread
from sr_monitor.files import write_whole
from sr_monitor.probes.drawing import Figure, own_style, pixels
from sr_monitor.probes.keys import short
from sr_monitor.probes.paths_pictures import draw_curves, draw_slopes
from sr_monitor.probes.slices_pictures import draw_frame, draw_slice, join_frames
from sr_monitor.results.record import Record

_MOST_FRAMES = 16


def write_figures(courses: Sequence[Course], folder: Path) -> list[Path]:
    """Write the figures, and return their files."""
    written: list[Path] = []

    def write(path: Path, figure: Figure) -> None:
        kinds: tuple[Literal["png", "svg"], ...] = ("png", "svg")
        for kind in kinds:
            file = path.with_name(f"{path.name}.{kind}")
            write_whole(file, _encode(figure, kind))
            written.append(file)

    if any(course.points for course in courses):
        write(folder / "max-slope", draw_slope_by_step(courses))
    for group in make_groups(courses):
        write(folder / f"numbers-{_slug(group['title'])}", draw_numbers(courses, group))
    for course in courses:
        own = folder if len(courses) == 1 else folder / _slug(course.run.name)
        for name, figure in _of_run(course):
            write(own / name, figure)
    return written


def _of_run(course: Course) -> Iterator[tuple[str, Figure]]:
    """Draw the figures of one run, each with its name."""
    steps = spread(course.steps, _MOST_FRAMES)
    records = [record for record in course.run.records() if record.step in steps]
    paths = [(f"step {each.step}", each.paths) for each in records if "paths" in each.parts]
    if paths:
        title, last = paths[-1]
        yield "curves", draw_curves(last, title=title, earlier=paths[:-1])
        yield "slopes", draw_slopes(last, title=title)
    yield from _slices(course, [record for record in records if record.slices is not None])
    drawn = {picture.key.name: picture for picture in draw_all(course.run, steps)}
    for name, picture in drawn.items():
        yield _slug(short(name)), frame_pixels(picture.rgb)


def _slices(course: Course, records: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    last = records[-1] if records else None
    if last is None or last.slices is None:
        return
    prompts = course.run.prompts(last)
    for index in range(len(last.slices.foot)):
        texts = prompts.texts_of_triple(index) if prompts else None
        yield f"slice-{index}", draw_slice(last.slices, index, prompts=texts)
        frames = [
            pixels(draw_frame(each.slices, index, f"step {each.step}"))
            for each in records
            if each.slices is not None and index < len(each.slices.foot)
        ]
        yield f"film-{index}", frame_pixels(join_frames(frames))


@own_style()
def _encode(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return a file that is the same whenever it is made."""
    from matplotlib import rc_context

    about = {"Date": None} if kind == "svg" else None
    with rc_context({"svg.hashsalt": "sr-monitor"}):
        figure.savefig(content := io.BytesIO(), format=kind, metadata=about)
    return content.getvalue()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")
