"""Declare a logged name: what is logged under it, and what it means.

Dashboards group by what is before the first slash, and sort. So what matters first has the group
"stable_regions"; "divergence/end" goes to "stable_regions_divergence".

    SLICE = Key.image("slice/<k>", "The plane through three prompts.")
    writer.image(SLICE.numbered(0).name, picture, step)
"""

from dataclasses import dataclass, replace
from typing import Literal

NAME = "stable_regions"
PREFIX = f"{NAME}/"
STEP = f"{PREFIX}step"  # no value of its own: what is drawn against, where a writer needs it named

_FIRST = ("curves", "film", "max_slope", "prompts", "slice")  # what is seen before anything else

Kind = Literal["scalar", "histogram", "image", "animation", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One logged name. Each constructor takes it as `short` gives it, and its meaning."""

    name: str
    """As it is logged, group included; `<k>` stands for a number."""
    kind: Kind
    """What is logged under it: the method of a writer that takes it."""
    meaning: str
    """One sentence for the docs."""

    @classmethod
    def scalar(cls, name: str, meaning: str) -> "Key":
        """Declare a number.

        Of x/median, x/q25 and x/q75 make one band, x/median_low and x/median_high another.
        """
        return cls(name=_logged(name), kind="scalar", meaning=meaning)

    @classmethod
    def histogram(cls, name: str, meaning: str) -> "Key":
        """Declare a distribution."""
        return cls(name=_logged(name), kind="histogram", meaning=meaning)

    @classmethod
    def image(cls, name: str, meaning: str) -> "Key":
        """Declare a picture."""
        return cls(name=_logged(name), kind="image", meaning=meaning)

    @classmethod
    def animation(cls, name: str, meaning: str) -> "Key":
        """Declare a moving picture."""
        return cls(name=_logged(name), kind="animation", meaning=meaning)

    @classmethod
    def text(cls, name: str, meaning: str) -> "Key":
        """Declare a text in Markdown."""
        return cls(name=_logged(name), kind="text", meaning=meaning)

    @property
    def label(self) -> str:
        """The name as a table shows it."""
        return short(self.name).replace("_", " ").replace("/", " ")

    def numbered(self, number: int) -> "Key":
        """Put a number in the place of `<k>`."""
        return replace(self, name=self.name.replace("<k>", str(number)))


def short(name: str) -> str:
    """Return a logged name without "stable_regions": "max_slope/median", "divergence/end"."""
    return name.removeprefix(NAME)[1:] if name.startswith((PREFIX, f"{NAME}_")) else name


def of_run(name: str, run: str) -> str:
    """Return a logged name for another run in the log, and maybe a set of prompts of it.

    Of "x/code": "x/code/curves", "x_paths/code/width".
    """
    run, slash, prompts = run.partition("/")
    group, *rest = name.split("/", 1)
    return "/".join([group.replace(NAME, run, 1), *([prompts] if slash else []), *rest])


def without_run(name: str, run: str) -> str | None:
    """Return what `of_run` was given; None if the name is not of this run."""
    run, slash, prompts = run.partition("/")
    group, *rest = name.split("/", 2 if slash else 1)
    is_of_run = group == run or group.startswith(f"{run}_")
    if not is_of_run or (slash and (not rest or rest.pop(0) != prompts)):
        return None
    return "/".join([group.replace(run, NAME, 1), *rest])


def _logged(name: str) -> str:
    return PREFIX + name if name.split("/")[0] in _FIRST else f"{NAME}_{name}"


NUM_POINTS = Key.scalar("diagnostics/num_points", "How many points were run in all.")
SECONDS = Key.scalar("diagnostics/seconds", "How long the measurement took.")
SHARE_OF_TIME = Key.scalar(
    "diagnostics/share_of_time",
    "The share of the run's wall time that the measurements before this one took.",
)
FAILURES = Key.scalar("diagnostics/failures", "How many measurements have failed so far.")
TOKENS = Key.scalar("diagnostics/tokens", "How many tokens were trained on so far.")
PROMPTS = Key.text("prompts", "The prompts that are measured, the same at every step.")
RUN_KEYS = (NUM_POINTS, SECONDS, SHARE_OF_TIME, FAILURES, TOKENS, PROMPTS)
