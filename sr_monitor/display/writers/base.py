"""What a writer is: it takes names, values and steps, and shows or keeps them.

What is written is safe after `flush`. Values that are not finite are left out of histograms; a
scalar may be NaN.

    with closing(JSONLWriter("runs/1/stable_regions.jsonl")) as writer:
        writer.scalar(keys.WIDTH.name, 0.21, step)
"""

import errno
import importlib
import io
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from sr_monitor.errors import InputError

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


def import_or_refuse(module: str, missing: str) -> Any:
    """Import a module, or raise an `InputError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(missing) from error
