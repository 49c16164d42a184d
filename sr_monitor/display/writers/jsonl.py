"""Append every value to a file of JSON lines that any tool can read.

    {"step": 500, "name": "stable_regions_paths/width", "kind": "scalar", "value": 0.21}

The value of a picture is its file, in the folder `<stem>-images/` beside the lines; that of a
number that is not finite is null.

    with closing(JSONLWriter("runs/1/log.jsonl")) as writer:
        writer.scalar("stable_regions_paths/width", 0.21, 500)
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import Frames, encode_gif, encode_png, finite
from sr_monitor.errors import InputError
from sr_monitor.files import write_whole
from sr_monitor.probes.base import RGB

_LINE_STARTS = b'{"step": '
_ENTRIES = {"step", "name", "kind", "value"}


class JSONLWriter:
    """Appends a line of JSON for every value; pictures are files in a folder beside it."""

    def __init__(self, path: str | os.PathLike[str], *, purge_step: int | None = None) -> None:
        """Open a file to continue, or a new one; drop a last line that was left half-written.

        Lines of `purge_step` and later steps are dropped, too: a resumed run comes to them again.
        """
        self.path = Path(path)
        self.images = self.path.with_name(f"{self.path.stem}-images")
        if self.path.exists():
            _keep_earlier(self.path, purge_step)

    def scalar(self, name: str, value: float, step: int) -> None:
        self._append(name, "scalar", value if math.isfinite(value) else None, step)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        if len(values := finite(values)):
            self._append(name, "histogram", values.tolist(), step)

    def image(self, name: str, rgb: RGB, step: int) -> None:
        self._append(name, "image", self._file(name, step, "png", encode_png(rgb)), step)

    def animation(self, name: str, frames: Frames, step: int) -> None:
        self._append(name, "animation", self._file(name, step, "gif", encode_gif(frames)), step)

    def text(self, name: str, markdown: str, step: int) -> None:
        self._append(name, "text", markdown, step)

    def flush(self) -> None:
        pass  # every line is on the disk already

    def close(self) -> None:
        pass  # no file stays open, so a folder may be moved away

    def _append(self, name: str, kind: str, value: Any, step: int) -> None:
        line = json.dumps({"step": step, "name": name, "kind": kind, "value": value}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            end, rest = file.seek(0, os.SEEK_END), line.encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:  # a full disk: the next line must not continue half of this one
                file.truncate(end)
                raise

    def _file(self, name: str, step: int, suffix: str, content: bytes) -> str:
        """Write a picture, and return its path as seen from the folder of the lines."""
        self.images.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
        file = self.images / f"{slug}-{step:09d}.{suffix}"
        write_whole(file, content)
        return f"{self.images.name}/{file.name}"


def _keep_earlier(path: Path, purge_step: int | None) -> None:
    """Keep the whole lines of earlier steps; refuse a file that holds anything else."""
    content = path.read_bytes()
    *lines, torn = content.split(b"\n")
    steps = {line: _step_of(line) for line in lines}
    foreign = [line for line in lines if steps[line] is None]
    if foreign or not torn.startswith(_LINE_STARTS[: len(torn)]):
        start = (*foreign, torn)[0][:40].decode(errors="replace")
        raise InputError(
            f"JSONLWriter({str(path)!r}): the file holds {start!r}, which JSONLWriter does not "
            "write; name another file"
        )
    end = math.inf if purge_step is None else purge_step
    kept = b"".join(line + b"\n" for line in lines if (steps[line] or 0) < end)
    if kept != content:
        write_whole(path, kept)


def _step_of(line: bytes) -> int | None:
    """Return the step of a line; None if JSONLWriter did not write it."""
    try:
        entry = json.loads(line)
        return int(entry["step"]) if entry.keys() == _ENTRIES else None
    except (AttributeError, ValueError, TypeError):
        return None
