"""Where results go: a writer takes names, values and steps.

`MemoryWriter` keeps them, `JSONLWriter` writes lines that any tool can read, `TensorBoardWriter`
and `WandbWriter` show them. What is written is safe after `flush`. Values that are not finite are
left out of histograms; a scalar may be NaN.

    with closing(JSONLWriter("runs/1/stable_regions.jsonl")) as writer:
        writer.scalar(keys.WIDTH.name, 0.21, step)
"""

import errno
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.files import write_whole

_FIXES = {
    errno.ENOSPC: "free space on the disk, or name another log_dir",
    errno.EDQUOT: "free space on the disk, or name another log_dir",
    errno.EACCES: "make the folder writable, or name another log_dir",
    errno.EPERM: "make the folder writable, or name another log_dir",
    errno.EROFS: "name another log_dir",
    errno.ENOENT: "leave the log_dir in its place while the run goes on",
}

RGB = UInt8[np.ndarray, "row column 3"]
Frames = UInt8[np.ndarray, "frame row column 3"]

_FRAME_MS, _LAST_FRAME_MS = 500, 2000
_LINE_STARTS = b'{"step": '
_ENTRIES = {"step", "name", "kind", "value"}


class WriterError(RuntimeError):
    """A writer could not write: which, why, and what helps where that is known, in one line."""

    @classmethod
    def of(cls, failures: Sequence[tuple["Writer", Exception]]) -> "WriterError":
        """What is raised when these writers failed, each for its reason."""
        (writer, error), *others = failures
        reason = " ".join(str(error).split()) or type(error).__name__
        fix = _FIXES.get(error.errno or 0) if isinstance(error, OSError) else None
        also = "".join(f"; {type(writer).__name__} failed too" for writer, _ in others)
        return cls(
            f"{type(writer).__name__} could not write: {reason}{f'; {fix}' if fix else ''}{also}"
        )


@runtime_checkable
class Writer(Protocol):
    """What a result is written with; anything that has these methods will do."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """One number."""

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        """How many numbers are distributed; nothing at all if none of them is finite."""

    def image(self, name: str, rgb: RGB, step: int) -> None:
        """A picture, the top row first."""

    def animation(self, name: str, frames: Frames, step: int) -> None:
        """Pictures of one size, shown one after the other, again and again."""

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text in Markdown."""

    def flush(self) -> None:
        """What was written is safe now."""

    def close(self) -> None:
        """The last call, and no harm if it comes twice."""


class MemoryWriter:
    """Keeps everything, by name, as pairs of a step and a value."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.histograms: dict[str, list[tuple[int, Tensor]]] = {}
        self.images: dict[str, list[tuple[int, RGB]]] = {}
        self.animations: dict[str, list[tuple[int, Frames]]] = {}
        self.texts: dict[str, list[tuple[int, str]]] = {}
        self.num_flushes = 0
        self.closed = False

    @property
    def names(self) -> set[str]:
        """Everything something was written under."""
        return {*self.scalars, *self.histograms, *self.images, *self.animations, *self.texts}

    def scalar(self, name: str, value: float, step: int) -> None:  # noqa: D102
        self.scalars.setdefault(name, []).append((step, value))

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:  # noqa: D102
        if len(values := finite(values)):
            self.histograms.setdefault(name, []).append((step, values))

    def image(self, name: str, rgb: RGB, step: int) -> None:  # noqa: D102
        self.images.setdefault(name, []).append((step, rgb.copy()))

    def animation(self, name: str, frames: Frames, step: int) -> None:  # noqa: D102
        self.animations.setdefault(name, []).append((step, frames.copy()))

    def text(self, name: str, markdown: str, step: int) -> None:  # noqa: D102
        self.texts.setdefault(name, []).append((step, markdown))

    def flush(self) -> None:  # noqa: D102
        self.num_flushes += 1

    def close(self) -> None:  # noqa: D102
        self.closed = True


class JSONLWriter:
    """Appends a line of JSON for every value; pictures are files in a folder beside it.

        {"step": 500, "name": "stable_regions/width", "kind": "scalar", "value": 0.21}

    Of a picture the value is its file, in `<stem>-images/`; of a number that is not finite, null.
    """

    def __init__(self, path: str | os.PathLike[str], *, purge_step: int | None = None) -> None:
        """Opens a file to go on with, or a new one.

        Args:
            path: The file; a last line that a killed process left half-written is dropped.
            purge_step: Drop what was written of this and later steps: a run that is resumed here
                comes to them again.
        """
        self.path = Path(path)
        self.images = self.path.with_name(f"{self.path.stem}-images")
        if self.path.exists():
            _keep_earlier(self.path, purge_step)

    def scalar(self, name: str, value: float, step: int) -> None:  # noqa: D102
        self._append(name, "scalar", value if math.isfinite(value) else None, step)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:  # noqa: D102
        if len(values := finite(values)):
            self._append(name, "histogram", values.tolist(), step)

    def image(self, name: str, rgb: RGB, step: int) -> None:  # noqa: D102
        self._append(name, "image", self._file(name, step, "png", encode_png(rgb)), step)

    def animation(self, name: str, frames: Frames, step: int) -> None:  # noqa: D102
        self._append(name, "animation", self._file(name, step, "gif", encode_gif(frames)), step)

    def text(self, name: str, markdown: str, step: int) -> None:  # noqa: D102
        self._append(name, "text", markdown, step)

    def flush(self) -> None:  # noqa: D102
        pass  # every line is written at once

    def close(self) -> None:  # noqa: D102
        pass  # nothing stays open, so a folder that was moved away is no trouble

    def _append(self, name: str, kind: str, value: Any, step: int) -> None:
        line = json.dumps({"step": step, "name": name, "kind": kind, "value": value}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            rest = line.encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:  # a full disk: the next line is not to go on in the middle of this one
                file.truncate(end)
                raise

    def _file(self, name: str, step: int, suffix: str, content: bytes) -> str:
        """Write a picture; its path as seen from the folder of the lines."""
        self.images.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
        file = self.images / f"{slug}-{step:09d}.{suffix}"
        write_whole(file, content)
        return f"{self.images.name}/{file.name}"


def finite(values: Float[Tensor, " value"]) -> Float[Tensor, " finite"]:
    """The values that can be counted, on the CPU."""
    return values[values.isfinite()].detach().cpu()


def encode_png(rgb: RGB) -> bytes:
    """The picture as a PNG, lossless."""
    from PIL import Image

    Image.fromarray(rgb).save(content := io.BytesIO(), format="PNG")
    return content.getvalue()


def encode_gif(frames: Frames) -> bytes:
    """The pictures as a GIF that runs for ever and rests on the last; 256 colours for each."""
    from PIL import Image

    first, *others = (Image.fromarray(frame).quantize() for frame in frames)
    first.save(
        content := io.BytesIO(),
        format="GIF",
        save_all=True,
        append_images=others,
        duration=[*[_FRAME_MS] * len(others), _LAST_FRAME_MS],
        loop=0,
    )
    return content.getvalue()


def _keep_earlier(path: Path, purge_step: int | None) -> None:
    """Leave the whole lines of earlier steps, in one go; refuse a file that holds anything else."""
    content = path.read_bytes()
    *lines, torn = content.split(b"\n")
    end = math.inf if purge_step is None else purge_step
    kept = b"".join(line + b"\n" for line in lines if _step_of(line, path) < end)
    if not torn.startswith(_LINE_STARTS[: len(torn)]):
        raise _foreign(path, torn)
    if kept != content:
        write_whole(path, kept)


def _step_of(line: bytes, path: Path) -> int:
    try:
        entry = json.loads(line)
        if entry.keys() == _ENTRIES:
            return int(entry["step"])
    except (AttributeError, ValueError, TypeError):
        pass
    raise _foreign(path, line)


def _foreign(path: Path, line: bytes) -> InputError:
    start = line[:40].decode(errors="replace")
    return InputError(
        f"JSONLWriter({str(path)!r}): the file holds {start!r}, which JSONLWriter does not write; "
        "name another file"
    )
