"""Write to a run of trackio; trackio is imported when a writer is made.

writer = TrackioWriter(trackio.init(project="pretraining"))
"""

import tempfile
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import Frames, encode_gif, finite, import_or_refuse
from sr_monitor.display.writers.rows import RowWriter
from sr_monitor.probes.base import RGB


class TrackioWriter(RowWriter):
    """Writes to a trackio run, which its owner starts and finishes."""

    def __init__(self, run: Any) -> None:
        """Write to a run, as `trackio.init()` gives it."""
        super().__init__()
        missing = "TrackioWriter: trackio is not installed; run: pip install trackio"
        self._trackio: Any = import_or_refuse("trackio", missing)
        self._run = run

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add(name, value, step)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        if len(values := finite(values)):
            self._add(name, self._trackio.Histogram(values.numpy()), step)

    def image(self, name: str, rgb: RGB, step: int) -> None:
        self._add(name, self._trackio.Image(rgb), step)

    def animation(self, name: str, frames: Frames, step: int) -> None:
        self._add(name, encode_gif(frames), step)

    def text(self, name: str, markdown: str, step: int) -> None:
        self._add(name, self._trackio.Markdown(markdown), step)

    def _send(self, row: dict[str, Any], step: int) -> None:
        # NOTE: given frames, trackio would need ffmpeg; a file it copies.
        with tempfile.TemporaryDirectory() as folder:
            for number, (name, value) in enumerate(row.items()):
                if isinstance(value, bytes):
                    file = Path(folder) / f"{number}.gif"
                    file.write_bytes(value)
                    row[name] = self._trackio.Video(file, format="gif")
            self._run.log(row, step=step)
