"""The options of a replay, each declared once: for `replay`, its command and the Ray workers.

ReplayOptions(num=20, base="gpt2", engine="ray")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sr_monitor.errors import InputError, check_kind, refused, whole
from sr_monitor.options import Options, option
from sr_monitor.prompts.prompt_set import PromptSet

_T = TypeVar("_T")


def _aside(default: _T, doc: str, *, least: int | None = None) -> _T:
    """Declare an option that no record depends on."""
    return option(default, doc, least=least, effect="nothing")


@dataclass(frozen=True, kw_only=True)
class Loading(Options):
    """How a checkpoint becomes a model."""

    base: str | None = _aside(
        None,
        "A model of the same architecture, for checkpoints without a config; also whose tokenizer "
        "is used.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "The type of the weights; auto: as stored, but float32 on a CPU."
    )
    device: str = _aside(
        "auto", "Where to measure: cpu, cuda, cuda:1, ...; auto: the accelerator if there is one."
    )
    device_map: str | None = _aside(
        None, "auto: spread a model over all accelerators of the machine."
    )
    trust_remote_code: bool = _aside(False, "Run the code that comes with a model.")

    def __post_init__(self) -> None:
        """Refuse what contradicts itself; keep a folder by its real path."""
        super().__post_init__()
        if self.device_map not in (None, "auto"):
            raise refused("device_map", self.device_map, "pass 'auto' or nothing")
        if self.device_map and self.device != "auto":
            raise InputError(
                f"replay: device={self.device!r} and device_map='auto': a model lies on one "
                "device or on all of them; pass one of the two"
            )
        if self.base is not None and Path(self.base).exists():
            object.__setattr__(self, "base", str(Path(self.base).resolve()))


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(Loading):
    """Which checkpoints are measured, with which prompts, and where."""

    prompts: PromptSet | str | Path | None = option(
        None,
        "A saved set, a file of text or JSONL, or a data set's name on the hub; by default, for "
        "each training, those of its live run, else Python's help topics.",
        effect="nothing",
    )
    num_tokens: int = _aside(10, "The length of a prompt that is drawn from a text.", least=2)
    seed: int = _aside(0, "Seed of the choice of prompts.")
    num: int | None = _aside(
        None,
        "At most so many checkpoints of each run, evenly spaced in the logarithm of the step.",
        least=2,
    )
    tokens: Sequence[int | float] | None = _aside(
        None, "The checkpoints nearest to these numbers of tokens."
    )
    keep_downloads: bool = _aside(
        False, "Keep downloads in the hub's cache instead of deleting each once measured."
    )
    engine: Literal["local", "ray"] = _aside(
        "local", "local: measure in this process; ray: each checkpoint is a Ray task."
    )
    ray_address: str | None = _aside(
        None, "A Ray cluster; by default that of RAY_ADDRESS, or else one on this machine."
    )

    def __post_init__(self) -> None:
        """Refuse arguments of the wrong type, and what contradicts itself."""
        super().__post_init__()
        fix = "pass a PromptSet, a file, or a data set's name"
        check_kind("prompts", self.prompts, PromptSet | str | Path | None, fix)
        object.__setattr__(self, "seed", whole("seed", self.seed))
        if self.tokens is not None:
            fix = "pass a list of numbers, such as [4e9, 10e9]"
            check_list("tokens", self.tokens, int | float, fix)
        if self.engine == "ray" and self.device_map is not None:
            raise InputError(
                "replay: engine='ray' gives each checkpoint one accelerator, and device_map="
                f"{self.device_map!r} wants all; pass one of the two"
            )


def check_list(name: str, value: Any, kind: Any, fix: str) -> None:
    """Refuse what is no sequence of this kind."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(entry, kind) for entry in value):
        raise refused(name, value, fix)
