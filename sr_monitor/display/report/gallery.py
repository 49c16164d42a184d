"""The pictures that probes draw themselves, by step, within the room that a page has for them.

pictures = draw_pictures(run, steps, room=1_200_000)
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sr_monitor.display.album import make_pages
from sr_monitor.display.report.frames import data_url
from sr_monitor.probes.base import ALWAYS, RGB, Page
from sr_monitor.probes.keys import Key
from sr_monitor.results.runs import Run

_MOST_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a probe drew at one step."""

    step: int
    probe: str
    key: Key
    rgb: RGB


def draw_all(run: Run, steps: Collection[int]) -> list[Picture]:
    """Draw every image of every probe but paths and slices at these steps."""
    found: list[Picture] = []
    pages: dict[str, list[Page]] = {}
    for record in run.records():
        if record.step in steps:
            now = make_pages(record, run.prompts(record))
            for probe, _ in record.known():
                if probe.name in ALWAYS or probe.name not in now:
                    continue
                page, earlier = now[probe.name], pages.setdefault(probe.name, [])
                for key, picture in probe.pictures(page, tuple(earlier)):
                    if key.kind == "image":
                        rgb: RGB = picture
                        own = Picture(step=record.step, probe=probe.name, key=key, rgb=rgb)
                        found.append(own)
                earlier.append(page)
    return found


def spread(steps: Sequence[int], most: int = _MOST_STEPS) -> list[int]:
    """Return at most so many of the steps: the first, the last, and some evenly between."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def draw_gallery(run: Run, *, room: int) -> list[dict[str, Any]]:
    """Return the images of each key by step; the last and first steps go first into the room."""
    drawn = draw_all(run, spread(run.steps))
    steps = sorted({picture.step for picture in drawn})
    first_to_last = [*steps[-1:], *steps[:1], *steps[-2:0:-1]]
    shown: list[tuple[Picture, str]] = []
    for step in dict.fromkeys(first_to_last):
        for picture in drawn:
            if picture.step == step:
                url = _encode(picture.rgb)
                if len(url) <= room:
                    shown.append((picture, url))
                    room -= len(url)
    shown.sort(key=lambda each: each[0].step)
    return [_entry(name, shown) for name in dict.fromkeys(each.key.name for each in drawn)]


def _entry(name: str, shown: Sequence[tuple[Picture, str]]) -> dict[str, Any]:
    own = [(picture, url) for picture, url in shown if picture.key.name == name]
    return {
        "title": own[0][0].key.label if own else name,
        "group": own[0][0].probe if own else "",
        "meaning": own[0][0].key.meaning if own else "",
        "shown": [{"step": picture.step, "url": url} for picture, url in own],
    }


def _encode(rgb: RGB) -> str:
    from PIL import Image

    Image.fromarray(rgb).save(content := io.BytesIO(), format="WEBP", lossless=True)
    return data_url("webp", content.getvalue())
