"""Every name that is logged, once, with what it means; the docs' table is made from it.

A name ends in `<k>` where there is one for each slice. Scalars of paths are medians over the pairs
that count; see `sr_monitor.probes.paths` for the words.

    writer.scalar(keys.WIDTH.name, 0.21, step)
    writer.image(keys.SLICE.of(0), picture, step)
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from sr_monitor.errors import InputError

PREFIX = "stable_regions/"
STEP = f"{PREFIX}step"  # no value of its own: what is drawn against, where a writer needs it named

Kind = Literal["scalar", "histogram", "image", "animation", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One logged name."""

    name: str
    """As it is logged, prefix included; `<k>` stands for the number of a slice."""
    kind: Kind
    """What is logged under it."""
    meaning: str
    """One sentence for the docs."""

    @classmethod
    def scalar(cls, name: str, meaning: str) -> "Key":
        """Declare a number, by its name without the prefix."""
        return cls(name=PREFIX + name, kind="scalar", meaning=meaning)

    @classmethod
    def histogram(cls, name: str, meaning: str) -> "Key":
        """Declare a distribution, by its name without the prefix."""
        return cls(name=PREFIX + name, kind="histogram", meaning=meaning)

    @classmethod
    def image(cls, name: str, meaning: str) -> "Key":
        """Declare a picture, by its name without the prefix."""
        return cls(name=PREFIX + name, kind="image", meaning=meaning)

    @property
    def label(self) -> str:
        """The name as a table shows it."""
        return self.name.removeprefix(PREFIX).replace("_", " ")

    def numbered(self, index: int) -> "Key":
        """Return the key of the slice with this number."""
        return replace(self, name=self.of(index))

    def of(self, index: int) -> str:
        """The name for the slice with this number."""
        return self.name.replace("<k>", str(index))


def _key(kind: Kind, name: str, meaning: str) -> Key:
    return Key(name=PREFIX + name, kind=kind, meaning=meaning)


MAX_SLOPE_MEDIAN = _key(
    "scalar",
    "max_slope/median",
    "How sharp the boundaries are: the median maximum slope; 1 is a straight line, no regions.",
)
MAX_SLOPE_Q25 = _key("scalar", "max_slope/q25", "A quarter of the maximum slopes are below.")
MAX_SLOPE_Q75 = _key("scalar", "max_slope/q75", "A quarter of the maximum slopes are above.")
LOCATION = _key("scalar", "location", "Where the boundary is: the alpha of the steepest rise.")
WIDTH = _key(
    "scalar", "width", "How wide the boundary is: from a quarter to three quarters of the way."
)
END_DISTANCE = _key("scalar", "end_distance", "How far the output moves in all: d(1).")
INPUT_DISTANCE = _key(
    "scalar", "input_distance", "How far apart the two activations, a and b, are."
)
NOISE_FLOOR = _key(
    "scalar", "noise_floor", "How far points that should be equal land apart, relative to d(1)."
)
PAIRS_LEFT_OUT = _key(
    "scalar",
    "pairs_left_out",
    "How many pairs do not count: their d(1) is noise, or an output was not finite.",
)
NUM_POINTS = _key("scalar", "num_points", "How many points were run, on paths and slices.")
SECONDS = _key("scalar", "seconds", "How long the measurement took.")
SHARE_OF_TIME = _key(
    "scalar",
    "share_of_time",
    "The share of the run's wall time that the measurements before this one took.",
)
FAILURES = _key("scalar", "failures", "How many measurements have failed so far.")
TOKENS = _key("scalar", "tokens", "How many tokens were trained on so far.")
MAX_SLOPE = _key("histogram", "max_slope", "The maximum slopes of the pairs that count.")
CURVES = _key(
    "image",
    "curves",
    "The median curve with its quartile band, those of earlier steps fading behind.",
)
SLICE = _key("image", "slice/<k>", "The plane through three prompts, whose points are marked.")
FILM = _key("image", "film/<k>", "The same slice at chosen steps, side by side.")
ANIMATION = _key("animation", "animation/<k>", "The same slice at chosen steps, as a moving GIF.")
PROMPTS = _key("text", "prompts", "The prompts that are measured, the same at every step.")

KEYS = tuple(entry for entry in list(globals().values()) if isinstance(entry, Key))


def key_of(name: str) -> Key:
    """The entry that a logged name belongs to.

    key_of("stable_regions/slice/3") is SLICE
    """
    general = re.sub(r"/\d+$", "/<k>", name)
    for key in KEYS:
        if key.name == general:
            return key
    raise InputError(
        f"key_of({name!r}): nothing is logged under this name; see sr_monitor.probes.keys"
    )


def markdown_table() -> str:
    """The table of the docs, one line for each name."""
    rows = (f"| `{key.name}` | {key.kind} | {key.meaning} |\n" for key in KEYS)
    return "".join(["| name | kind | meaning |\n| --- | --- | --- |\n", *rows])
