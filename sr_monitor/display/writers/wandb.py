"""Write to a run of Weights & Biases; wandb is imported when a writer is made.

writer = WandbWriter(wandb.init())
"""

import html
import io
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import Frames, encode_gif, finite, import_or_refuse
from sr_monitor.display.writers.rows import RowWriter
from sr_monitor.probes.base import RGB
from sr_monitor.probes.keys import STEP


class WandbWriter(RowWriter):
    """Writes to a Weights & Biases run, which its owner starts and finishes.

    wandb's own step never goes back, so it is left to the run's owner. Values are sent in one call
    when a measurement is complete, and drawn against `stable_regions/step`.
    """

    def __init__(self, run: Any) -> None:
        """Write to a run, as `wandb.init()` or `WandbLogger.experiment` gives it."""
        super().__init__()
        missing = "WandbWriter: wandb is not installed; run: pip install wandb"
        self._wandb: Any = import_or_refuse("wandb", missing)
        self._run = run
        self._defined: set[str] = set()
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

    def _add(self, name: str, value: Any, step: int) -> None:
        group, slash, _ = name.partition("/")
        metrics = f"{group}/*" if slash else name
        if metrics not in self._defined:
            self._defined.add(metrics)
            self._run.define_metric(metrics, step_metric=STEP)
        super()._add(name, value, step)

    def _send(self, row: dict[str, Any], step: int) -> None:
        self._run.log({**row, STEP: step})
