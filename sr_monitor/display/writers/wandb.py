"""Write to a run of Weights & Biases; wandb is imported when a writer is made.

writer = WandbWriter(wandb.init())
"""

import html
import io
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import Frames, encode_gif, finite, import_or_refuse
from sr_monitor.probes.base import RGB
from sr_monitor.probes.keys import STEP


class WandbWriter:
    """Writes to a Weights & Biases run, which its owner starts and finishes.

    wandb's own step never goes back, so it is left to the run's owner. Values are sent in one call
    when a measurement is complete, and drawn against `stable_regions/step`.
    """

    def __init__(self, run: Any) -> None:
        """Write to a run, as `wandb.init()` or `WandbLogger.experiment` gives it."""
        missing = "WandbWriter: wandb is not installed; run: pip install wandb"
        self._wandb: Any = import_or_refuse("wandb", missing)
        self._run = run
        self._row: dict[str, Any] = {}
        self._prefixes: set[str] = set()
        run.define_metric(STEP)

    @property
    def is_new(self) -> bool:
        """Return whether the run was started, not resumed."""
        return not getattr(self._run, "resumed", False)

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add(name, value, step)

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        if len(values := finite(values)):
            self._add(name, self._wandb.Histogram(values.numpy()), step)

    def image(self, name: str, rgb: RGB, step: int) -> None:
        from PIL import Image

        # NOTE: given a bare array, wandb would brighten a picture that is nearly black.
        self._add(name, self._wandb.Image(Image.fromarray(rgb)), step)

    def animation(self, name: str, frames: Frames, step: int) -> None:
        video = self._wandb.Video(io.BytesIO(encode_gif(frames)), format="gif")
        self._add(name, video, step)

    def text(self, name: str, markdown: str, step: int) -> None:
        self._add(name, self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>"), step)

    def flush(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._run.log(row)

    def close(self) -> None:
        self.flush()

    def _add(self, name: str, value: Any, step: int) -> None:
        prefix, _, _ = name.partition("/")
        if prefix not in self._prefixes:
            self._prefixes.add(prefix)
            self._run.define_metric(f"{prefix}/*", step_metric=STEP)
        if self._row.get(STEP, step) != step:
            self.flush()
        self._row |= {name: value, STEP: step}
