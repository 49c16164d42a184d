"""Write event files that TensorBoard shows; it is imported when a writer is made.

with closing(TensorBoardWriter("runs/1")) as writer:      # then: tensorboard --logdir runs
    writer.scalar("stable_regions_paths/width", 0.21, 500)
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import Frames, encode_gif, finite, import_or_refuse
from sr_monitor.errors import InputError
from sr_monitor.probes.base import RGB
from sr_monitor.probes.keys import short, without_run

# TensorBoard's margin chart takes the middle line first, then the band's lower and upper edge.
_BANDS = {
    "median and quartiles": ("median", "q25", "q75"),
    "median and its 95% interval": ("median", "median_low", "median_high"),
}
_EDGES = {edge for band in _BANDS.values() for edge in band}


class TensorBoardWriter:
    """Writes event files that TensorBoard shows.

    A text appears under its name followed by `/text_summary`, as is TensorBoard's custom.
    """

    def __init__(self, target: object, *, purge_step: int | None = None) -> None:
        """Write into a folder; after an error, such as a full disk, in a new file there.

        Each median that is logged with its quartiles or its interval gets a chart for each on the
        page CUSTOM SCALARS, if that cannot replace the layout of a `SummaryWriter`'s owner.

        Args:
            target: The folder of the run, or a `torch.utils.tensorboard.SummaryWriter`, which is
                left open when this one is closed.
            purge_step: Have TensorBoard forget what was written of this and later steps: a run
                that is resumed here comes to them again. Only for a folder.
        """
        call = f"TensorBoardWriter({target!r}, purge_step={purge_step})"
        fix = f"{call}: TensorBoard is not installed; run: pip install 'sr-monitor[tensorboard]'"
        self._proto: Any = import_or_refuse("tensorboard.compat.proto.summary_pb2", fix)
        self._is_own = isinstance(target, str | os.PathLike)
        if self._is_own:
            board = import_or_refuse("torch.utils.tensorboard", fix)
            files = import_or_refuse("tensorboard.summary.writer.event_file_writer", fix)
            folder = os.fspath(cast(str, target))
            self._make: Any = partial(_quiet, files, board.SummaryWriter, folder)
            self._open: Any = self._make(purge_step=purge_step)
        elif purge_step is None:
            self._open = target
        else:
            raise InputError(f"{call}: give `purge_step` to the SummaryWriter when it is made")
        self._folder = Path(self._open.log_dir)
        self._bands: dict[str, set[str]] = {}
        self._runs: tuple[str, ...] = ()

    @property
    def is_new(self) -> bool:
        """Return whether nothing was written into the run's folder before."""
        return len(list(self._folder.glob("events.out.tfevents.*"))) <= 1

    def scalar(self, name: str, value: float, step: int) -> None:
        with self._writer() as writer:
            writer.add_scalar(name, value, step)
            stem, _, edge = name.rpartition("/")
            found = self._bands.setdefault(stem, set())
            if self._is_own and edge in _EDGES and edge not in found:
                found.add(edge)
                if any(edge in band and found.issuperset(band) for band in _BANDS.values()):
                    self._lay_out(writer)

    def compare(self, runs: Sequence[str]) -> None:
        """Give medians that differ in their set of prompts a chart together; see `of_run`."""
        self._runs = tuple(runs)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        if len(values := finite(values)):
            with self._writer() as writer:
                writer.add_histogram(name, values, step)

    def image(self, name: str, rgb: RGB, step: int) -> None:
        with self._writer() as writer:
            writer.add_image(name, rgb, step, dataformats="HWC")

    def animation(self, name: str, frames: Frames, step: int) -> None:
        # NOTE: SummaryWriter makes a GIF with moviepy only; TensorBoard shows one as it is.
        summary = self._proto.Summary()
        picture = summary.value.add(tag=name).image
        picture.height, picture.width, picture.colorspace = frames.shape[1:]
        picture.encoded_image_string = encode_gif(frames)
        with self._writer() as writer:
            writer._get_file_writer().add_summary(summary, step)

    def text(self, name: str, markdown: str, step: int) -> None:
        with self._writer() as writer:
            writer.add_text(name, markdown, step)

    def flush(self) -> None:
        with self._writer() as writer:
            writer.flush()

    def close(self) -> None:
        if self._open is not None:
            with self._writer() as writer:
                writer.close() if self._is_own else writer.flush()

    @contextmanager
    def _writer(self) -> Iterator[Any]:
        """Lend the SummaryWriter; make a new one of our own once the one before has failed."""
        if self._open is None:
            self._open = self._make()
            self._bands = {}
        try:
            yield self._open
        except Exception:
            if self._is_own:
                self._open = None
            raise

    def _lay_out(self, writer: Any) -> None:
        """Lay out a chart for each whole band; TensorBoard takes the last layout that it finds."""
        charts = {}
        for stem, found in self._bands.items():
            for what, band in _BANDS.items():
                if found.issuperset(band):
                    title = f"{short(stem).replace('_', ' ')}: {what}"
                    charts[title] = ["Margin", [f"{stem}/{edge}" for edge in band]]
        for what, names in self._side_by_side().items():
            charts[f"{what.replace('_', ' ')}: median, by prompts"] = ["Multiline", names]
        writer.add_custom_scalars({"stable regions": charts})

    def _side_by_side(self) -> dict[str, list[str]]:
        """Return the medians of each quantity that has several, by prompts."""
        found: dict[str, list[str]] = {}
        for stem in (stem for stem, edges in self._bands.items() if "median" in edges):
            names = (without_run(stem, run) for run in reversed(self._runs))
            what = next((short(name) for name in names if name is not None), stem)
            found.setdefault(what, []).append(f"{stem}/median")
        return {what: names for what, names in found.items() if len(names) > 1}


def _quiet(files: Any, make: Any, *arguments: Any, **options: Any) -> Any:
    """Make a SummaryWriter whose thread keeps its error for us and prints no traceback."""
    loud: Any = files._AsyncWriterThread

    class Quiet(loud):  # type: ignore[misc]
        def run(self) -> None:
            with suppress(Exception):  # `write` and `flush` raise it
                super().run()

    files._AsyncWriterThread = Quiet
    try:
        return make(*arguments, **options)
    finally:
        files._AsyncWriterThread = loud
