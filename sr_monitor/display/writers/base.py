"""Define writers: they take names, values and steps, and show or keep them.

Anything with the methods of `Writer` will do. One that has an attribute `is_new`, and it is true,
gets the earlier numbers of a resumed run again.

    with closing(JSONLWriter("runs/1/stable_regions.jsonl")) as writer:
        writer.scalar("stable_regions_paths/width", 0.21, step)
"""

import errno
import importlib
import io
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.probes.base import RGB

_FULL = "free space on the disk, or name another log_dir"
_DENIED = "make the folder writable, or name another log_dir"
_FIXES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EACCES: _DENIED, errno.EPERM: _DENIED}
_FIXES |= {errno.EROFS: "name another log_dir"}
_FIXES |= {errno.ENOENT: "leave the log_dir in its place while the run goes on"}

Frames: TypeAlias = UInt8[np.ndarray, "frame row column 3"]

_FRAME_MS, _LAST_FRAME_MS = 500, 2000


class WriterError(RuntimeError):
    """A writer could not write; the message says which, why, and what helps, in one line."""

    @classmethod
    def of(cls, failures: Sequence[tuple["Writer", Exception]]) -> "WriterError":
        """Return the error to raise when these writers failed, each for its reason."""
        (writer, error), *others = failures
        reason = " ".join(str(error).split()) or type(error).__name__
        fix = _FIXES.get(error.errno or 0) if isinstance(error, OSError) else None
        also = "".join(f"; {type(writer).__name__} failed too" for writer, _ in others)
        return cls(
            f"{type(writer).__name__} could not write: {reason}{f'; {fix}' if fix else ''}{also}"
        )


@runtime_checkable
class Writer(Protocol):
    """Shows or keeps results."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one number, which may be NaN."""

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        """Write the distribution of the finite values, if there are any."""

    def image(self, name: str, rgb: RGB, step: int) -> None:
        """Write a picture, the top row first."""

    def animation(self, name: str, frames: Frames, step: int) -> None:
        """Write pictures of one size, to be shown one after the other, again and again."""

    def text(self, name: str, markdown: str, step: int) -> None:
        """Write a text in Markdown."""

    def flush(self) -> None:
        """Write out what is buffered."""

    def close(self) -> None:
        """End the log; a second call does nothing."""


def finite(values: Float[Tensor, " value"]) -> Float[Tensor, " finite"]:
    """Return the finite values, on the CPU."""
    return values[values.isfinite()].detach().cpu()


def encode_png(rgb: RGB) -> bytes:
    """Encode a picture as PNG, which is lossless."""
    from PIL import Image

    Image.fromarray(rgb).save(content := io.BytesIO(), format="PNG")
    return content.getvalue()


def encode_gif(frames: Frames) -> bytes:
    """Encode pictures as a GIF that loops and rests on the last; each has 256 colours."""
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
