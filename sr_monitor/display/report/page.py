"""One page of HTML: its words and tables made here, its figures drawn by the page from its data.

    html = make_page(courses)

Nothing is loaded from anywhere, and only the page's own script runs: its hash is in the policy.
Prompts come from strangers: the page's data is inert JSON, and the script makes text nodes only.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from itertools import zip_longest
from string import Template
from typing import Any

from sr_monitor.display.report.charts import make_groups
from sr_monitor.display.report.course import Course
from sr_monitor.display.report.frames import extreme_pairs, make_frame, words
from sr_monitor.display.report.gallery import draw_gallery, spread
from sr_monitor.display.report.headline import criterion, emergence, headline

_SCRIPTS = ("base.js", "chart.js", "slices.js", "figures.js", "page.js")
_MOST_FRAMES, _FEWEST_FRAMES = 40, 8  # of a run; those of all share the room
_ROOM = 1_200_000  # characters, for the pictures that probes draw


def make_page(courses: Sequence[Course]) -> str:
    """Return the page of these runs."""
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    style = _asset("report.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    names = ", ".join(course.run.name for course in courses)
    return Template(_asset("report.html")).substitute(
        title=html.escape(f"Stable regions: {names}"),
        policy=html.escape(policy),
        style=style,
        names=html.escape(names),
        headlines="\n".join(_headlines(courses)),
        facts=_facts(courses),
        numbers="\n".join(map(_numbers, courses)),
        version=html.escape(_version()),
        data=_inert(_data(courses)),
        script=script,
    )


def _data(courses: Sequence[Course]) -> dict[str, Any]:
    most = max(_FEWEST_FRAMES, min(_MOST_FRAMES, 3 * _MOST_FRAMES // len(courses)))
    return {
        "groups": make_groups(courses),
        "runs": [_run(course, most, _ROOM // len(courses)) for course in courses],
    }


def _run(course: Course, most_frames: int, room: int) -> dict[str, Any]:
    """Return the data of one run: numbers of every step, frames of some."""
    last = course.last
    # Of a resampled run, a number is another pair at every step.
    has_pairs = last is not None and "paths" in last.parts and not last.metadata.get("resampled")
    pairs = extreme_pairs(last.paths) if last is not None and has_pairs else []
    steps = set(spread(course.steps, most_frames))
    found = emergence(course.points)
    frames: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []  # a sweep has a tokenizer for each model
    for record in course.run.records():
        if record.step in steps:
            frame = make_frame(record, pairs)
            prompts = course.run.prompts(record)
            drawn = prompts and record.prompts_in(prompts)
            own = words(drawn, pairs, len(frame.get("slices", ()))) if drawn else None
            if own is not None and own not in texts:
                texts.append(own)
            frame["words"] = texts.index(own) if own is not None else None
            frames.append(frame)
    return {
        "name": course.run.name,
        "isSweep": course.is_sweep,
        "steps": course.steps,
        "tokens": course.tokens if any(course.tokens) else None,
        "parameters": course.parameters if any(course.parameters) else None,
        "numbers": course.numbers,
        "emerged": [point.step for point in found] if found else None,
        "pairs": pairs,
        "words": texts,
        "frames": frames,
        "pictures": draw_gallery(course.run, room=room),
    }


def _headlines(courses: Sequence[Course]) -> Iterable[str]:
    """Yield the headline of the only run, or one for all and a line for each."""
    if len(courses) == 1:
        points = courses[0].points
        yield f"<h1>{html.escape(headline(points))}</h1>"
        yield f'<p class="criterion">{html.escape(criterion(points))}</p>'
        return
    yield f"<h1>{html.escape(_of_all(courses))}</h1>"
    yield '<ul class="runs">'
    for course in courses:
        texts = course.run.name, headline(course.points), criterion(course.points)
        name, said, why = map(html.escape, texts)
        yield f'<li><b>{name}</b> {said} <span class="why">{why}</span></li>'
    yield "</ul>"


def _of_all(courses: Sequence[Course]) -> str:
    ends = [(course.points[-1].median, course.run.name) for course in courses if course.points]
    if not ends:
        return headline([])
    (low, flattest), (high, sharpest) = min(ends), max(ends)
    return (
        f"{len(courses)} runs end at a median maximum slope from {low:.2f} ({flattest}) to "
        f"{high:.2f} ({sharpest})."
    )


def _facts(courses: Sequence[Course]) -> str:
    """Return the table of facts, a column for each run."""
    facts = [course.facts() for course in courses]
    labels = list(dict.fromkeys(label for each in facts for label in each))
    head = [[""] + [course.run.name for course in courses]] if len(courses) > 1 else []
    rows = [[label, *(each.get(label, "") for each in facts)] for label in labels]
    return _table(rows, head)


def _numbers(course: Course) -> str:
    """Return the maximum slope of each measurement as a table."""
    by_step = {point.step: point for point in course.points}
    head = ["parameters" if course.is_sweep else "step", "tokens", "median", "quartiles"]
    head += ["pairs", "left out"]
    rows = []
    for step, tokens in zip_longest(course.steps, course.tokens):
        cells = [f"{step:,}", "" if tokens is None else f"{tokens:,}"]
        if (point := by_step.get(step)) is not None:
            q25, median, q75 = point.quartiles
            cells += [f"{median:.3f}", f"{q25:.3f} to {q75:.3f}"]
            cells += [f"{len(point.slopes)}", f"{point.num_left_out}"]
        rows.append(cells + [""] * (len(head) - len(cells)))
    name = html.escape(course.run.name)
    return f"<details><summary>The numbers of {name}</summary>{_table(rows, [head])}</details>"


def _table(rows: Iterable[Sequence[str]], head: Iterable[Sequence[str]] = ()) -> str:
    def line(cells: Sequence[str], rest: str) -> str:
        first, *others = map(html.escape, cells)
        scope = "row" if rest == "td" else "col"
        inner = "".join(
            f"<{rest}>{cell}</{rest}>" if rest == "td" else f'<th scope="col">{cell}</th>'
            for cell in others
        )
        return f'<tr><th scope="{scope}">{first}</th>{inner}</tr>'

    top = "".join(line(cells, "th") for cells in head)
    body = "".join(line(cells, "td") for cells in rows)
    return f'<div class="wide"><table><thead>{top}</thead><tbody>{body}</tbody></table></div>'


def _inert(data: Any) -> str:
    """Return JSON in which nothing can end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(content: str) -> str:
    """Return the hash by which a policy allows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("sr_monitor.display.report") / "assets" / name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return version("sr-monitor")
    except PackageNotFoundError:
        return "from source"
