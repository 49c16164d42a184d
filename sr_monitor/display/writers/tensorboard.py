"""Write event files that TensorBoard shows; it is imported when a writer is made.

with closing(TensorBoardWriter("runs/1")) as writer:      # then: tensorboard --logdir runs
writer.scalar(keys.WIDTH.name, 0.21, step)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import (
    RGB,
    Frames,
    encode_gif,
    finite,
    import_or_refuse,
)
from sr_monitor.errors import InputError
from sr_monitor.probes import keys

# Its margin chart takes the middle line first, then the lower, then the upper edge of the band.
_MARGIN = [key.name for key in (keys.MAX_SLOPE_MEDIAN, keys.MAX_SLOPE_Q25, keys.MAX_SLOPE_Q75)]


class TensorBoardWriter:
    """Writes event files that TensorBoard shows.

    A text is found under its name followed by `/text_summary`, as is TensorBoard's custom.
    """

    def __init__(self, target: Any, *, purge_step: int | None = None) -> None:
        """Starts a writer of our own, or takes one that is there.

        A writer of our own also lays out the chart of the maximum slope and its quartiles on the
        page CUSTOM SCALARS; of one that is there it could replace the owner's layout. After an
        error, of a full disk say, it goes on in a new file: one that has failed takes no more.

        Args:
            target: The folder of the run, or a `torch.utils.tensorboard.SummaryWriter`, which is
                left open when this one is closed.
            purge_step: Have TensorBoard forget what was written of this and later steps: a run
                that is resumed here comes to them again. Not for a writer that is there.
        """
        call = f"TensorBoardWriter({target!r}, purge_step={purge_step})"
        missing = (
            f"{call}: TensorBoard is not installed; run: pip install 'sr-monitor[tensorboard]'"
        )
        self._summary: Any = import_or_refuse(
            "tensorboard.compat.proto.summary_pb2", missing
        ).Summary
        self._is_own = isinstance(target, str | os.PathLike)
        self._folder = Path(target if self._is_own else target.log_dir)
        self._make: Any = lambda **options: target
        if self._is_own:
            kind = import_or_refuse("torch.utils.tensorboard", missing).SummaryWriter
            self._make = lambda **options: kind(os.fspath(target), **options)
        elif purge_step is not None:
            raise InputError(f"{call}: give `purge_step` to the SummaryWriter when it is made")
        self._open: Any = self._make(purge_step=purge_step)
        self._charts: dict[str, list[Any]] = {}

    @property
    def is_new(self) -> bool:
        """Whether nothing was written into the run's folder before."""
        return len(list(self._folder.glob("events.out.tfevents.*"))) <= 1

    def scalar(self, name: str, value: float, step: int) -> None:  # noqa: D102
        with self._writer() as writer:
            writer.add_scalar(name, value, step)
            prefix = name.removesuffix(_MARGIN[0].removeprefix(keys.PREFIX))
            if self._is_own and prefix != name and prefix not in self._charts:
                self._lay_out(writer, prefix)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:  # noqa: D102
        if len(values := finite(values)):
            with self._writer() as writer:
                writer.add_histogram(name, values, step)

    def image(self, name: str, rgb: RGB, step: int) -> None:  # noqa: D102
        with self._writer() as writer:
            writer.add_image(name, rgb, step, dataformats="HWC")

    def animation(self, name: str, frames: Frames, step: int) -> None:  # noqa: D102
        # NOTE: SummaryWriter makes a GIF with moviepy only; TensorBoard shows one as it is.
        _, height, width, num_colors = frames.shape
        image = self._summary.Image(
            height=height,
            width=width,
            colorspace=num_colors,
            encoded_image_string=encode_gif(frames),
        )
        value = self._summary.Value(tag=name, image=image)
        with self._writer() as writer:
            writer._get_file_writer().add_summary(self._summary(value=[value]), step)

    def text(self, name: str, markdown: str, step: int) -> None:  # noqa: D102
        with self._writer() as writer:
            writer.add_text(name, markdown, step)

    def flush(self) -> None:  # noqa: D102
        with self._writer() as writer:
            writer.flush()

    def close(self) -> None:  # noqa: D102
        if self._open is not None:
            with self._writer() as writer:
                writer.close() if self._is_own else writer.flush()

    @contextmanager
    def _writer(self) -> Iterator[Any]:
        """The SummaryWriter; of our own a new one, once the one before has failed."""
        if self._open is None:
            self._open = self._make()
            self._charts = {}
        try:
            yield self._open
        except Exception:
            if self._is_own:
                self._open = None
            raise

    def _lay_out(self, writer: Any, prefix: str) -> None:
        """One more chart of the slopes; what was laid out before has to be said again."""
        names = [prefix + name.removeprefix(keys.PREFIX) for name in _MARGIN]
        chart = "maximum slope: median and quartiles"
        title = chart if prefix == keys.PREFIX else f"{prefix.rstrip('/')}, {chart}"
        self._charts[prefix] = [title, ["Margin", names]]
        writer.add_custom_scalars({"stable regions": dict(self._charts.values())})
