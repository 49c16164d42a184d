"""Writers for the dashboards of others, TensorBoard and Weights & Biases; see `sr_monitor.writers`.

Neither is imported before a writer is made.

    with closing(TensorBoardWriter("runs/1")) as writer:      # then: tensorboard --logdir runs
        writer.scalar(keys.WIDTH.name, 0.21, step)
"""

import html
import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr_monitor import keys
from sr_monitor.arguments import refused
from sr_monitor.errors import InputError
from sr_monitor.writers import RGB, Frames, Writer, encode_gif, finite

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
        self._summary: Any = _import("tensorboard.compat.proto.summary_pb2", missing).Summary
        self._is_own = isinstance(target, str | os.PathLike)
        self._folder = Path(target if self._is_own else target.log_dir)
        self._make: Any = lambda **options: target
        if self._is_own:
            kind = _import("torch.utils.tensorboard", missing).SummaryWriter
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


class WandbWriter:
    """Writes to a run of Weights & Biases that somebody else has started and will finish.

    Its own step counts calls, and never goes back; so it is left to the run's owner. Values are
    collected and sent in one call when a measurement is complete, with `stable_regions/step`,
    which they are drawn against.
    """

    def __init__(self, run: Any) -> None:
        """Takes a run, as `wandb.init()` or `WandbLogger.experiment` gives it."""
        missing = "WandbWriter: wandb is not installed; run: pip install wandb"
        self._wandb: Any = _import("wandb", missing)
        self._run = run
        self._row: dict[str, Any] = {}
        self._prefixes: set[str] = set()
        run.define_metric(keys.STEP)

    @property
    def is_new(self) -> bool:
        """Whether the run was started, not resumed."""
        return not getattr(self._run, "resumed", False)

    def scalar(self, name: str, value: float, step: int) -> None:  # noqa: D102
        self._add(name, value, step)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:  # noqa: D102
        if len(values := finite(values)):
            self._add(name, self._wandb.Histogram(values.numpy()), step)

    def image(self, name: str, rgb: RGB, step: int) -> None:  # noqa: D102
        from PIL import Image

        # NOTE: of a bare array, wandb would brighten a picture that is all but black.
        self._add(name, self._wandb.Image(Image.fromarray(rgb)), step)

    def animation(self, name: str, frames: Frames, step: int) -> None:  # noqa: D102
        video = self._wandb.Video(io.BytesIO(encode_gif(frames)), format="gif")
        self._add(name, video, step)

    def text(self, name: str, markdown: str, step: int) -> None:  # noqa: D102
        self._add(name, self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>"), step)

    def flush(self) -> None:  # noqa: D102
        row, self._row = self._row, {}
        if row:
            self._run.log(row)

    def close(self) -> None:  # noqa: D102
        self.flush()

    def _add(self, name: str, value: Any, step: int) -> None:
        prefix, _, _ = name.partition("/")
        if prefix not in self._prefixes:
            self._prefixes.add(prefix)
            self._run.define_metric(f"{prefix}/*", step_metric=keys.STEP)
        if self._row.get(keys.STEP, step) != step:
            self.flush()
        self._row |= {name: value, keys.STEP: step}


def as_writers(name: str, given: Any) -> list[Writer]:
    """What was given as the argument `name`: a writer, a `SummaryWriter`, or several of them."""
    several = given if isinstance(given, list | tuple) else [given]
    return [_as_writer(name, each) for each in several]


def _as_writer(name: str, given: Any) -> Writer:
    is_class = isinstance(given, type)  # it has all the methods
    if hasattr(given, "add_scalar") and not is_class:
        return TensorBoardWriter(given)
    if is_class or not isinstance(given, Writer):
        raise refused(
            name,
            given,
            f"a {type(given).__name__} is no writer; pass a TensorBoardWriter, a SummaryWriter, a "
            "JSONLWriter, or anything with the methods of sr_monitor.writers.Writer",
        )
    return given


def _import(module: str, missing: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(missing) from error
