"""Writes nothing and keeps everything, for tests to look at."""

from jaxtyping import Float
from torch import Tensor

from sr_monitor.display.writers.base import Frames, finite
from sr_monitor.probes.base import RGB


class MemoryWriter:
    """Keeps what it is given, by name, as pairs of a step and a value."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.histograms: dict[str, list[tuple[int, Tensor]]] = {}
        self.images: dict[str, list[tuple[int, RGB]]] = {}
        self.animations: dict[str, list[tuple[int, Frames]]] = {}
        self.texts: dict[str, list[tuple[int, str]]] = {}
        self.num_flushes = 0
        self.closed = False

    @property
    def names(self) -> set[str]:
        """Every name that something was written under."""
        return {*self.scalars, *self.histograms, *self.images, *self.animations, *self.texts}

    def scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def histogram(self, name: str, values: Float[Tensor, " value"], step: int) -> None:
        if len(values := finite(values)):
            self.histograms.setdefault(name, []).append((step, values))

    def image(self, name: str, rgb: RGB, step: int) -> None:
        self.images.setdefault(name, []).append((step, rgb.copy()))

    def animation(self, name: str, frames: Frames, step: int) -> None:
        self.animations.setdefault(name, []).append((step, frames.copy()))

    def text(self, name: str, markdown: str, step: int) -> None:
        self.texts.setdefault(name, []).append((step, markdown))

    def flush(self) -> None:
        self.num_flushes += 1

    def close(self) -> None:
        self.closed = True
