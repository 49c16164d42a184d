"""Declare a logged name: what is logged under it, and what it means.

Each probe declares its own; those of a measurement as a whole are here.

    SLICE = Key.image("slice/<k>", "The plane through three prompts.")
    writer.image(SLICE.numbered(0).name, picture, step)
"""

from dataclasses import dataclass, replace
from typing import Literal

PREFIX = "stable_regions/"
STEP = f"{PREFIX}step"  # no value of its own: what is drawn against, where a writer needs it named

Kind = Literal["scalar", "histogram", "image", "animation", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One logged name. Each constructor takes the name without the prefix, and its meaning."""

    name: str
    """As it is logged, prefix included; `<k>` stands for a number."""
    kind: Kind
    """What is logged under it: the method of a writer that takes it."""
    meaning: str
    """One sentence for the docs."""

    @classmethod
    def scalar(cls, name: str, meaning: str) -> "Key":
        """Declare a number.

        x/median, x/q25 and x/q75 are drawn as one band, and x/median, x/low and x/high as another.
        """
        return cls(name=PREFIX + name, kind="scalar", meaning=meaning)

    @classmethod
    def histogram(cls, name: str, meaning: str) -> "Key":
        """Declare a distribution."""
        return cls(name=PREFIX + name, kind="histogram", meaning=meaning)

    @classmethod
    def image(cls, name: str, meaning: str) -> "Key":
        """Declare a picture."""
        return cls(name=PREFIX + name, kind="image", meaning=meaning)

    @classmethod
    def animation(cls, name: str, meaning: str) -> "Key":
        """Declare a moving picture."""
        return cls(name=PREFIX + name, kind="animation", meaning=meaning)

    @classmethod
    def text(cls, name: str, meaning: str) -> "Key":
        """Declare a text in Markdown."""
        return cls(name=PREFIX + name, kind="text", meaning=meaning)

    @property
    def label(self) -> str:
        """The name as a table shows it."""
        return self.name.removeprefix(PREFIX).replace("_", " ").replace("/", " ")

    def numbered(self, number: int) -> "Key":
        """Put a number in the place of `<k>`."""
        return replace(self, name=self.name.replace("<k>", str(number)))


NUM_POINTS = Key.scalar("num_points", "How many points were run in all.")
SECONDS = Key.scalar("seconds", "How long the measurement took.")
SHARE_OF_TIME = Key.scalar(
    "share_of_time",
    "The share of the run's wall time that the measurements before this one took.",
)
FAILURES = Key.scalar("failures", "How many measurements have failed so far.")
TOKENS = Key.scalar("tokens", "How many tokens were trained on so far.")
PROMPTS = Key.text("prompts", "The prompts that are measured, the same at every step.")
RUN_KEYS = (NUM_POINTS, SECONDS, SHARE_OF_TIME, FAILURES, TOKENS, PROMPTS)
