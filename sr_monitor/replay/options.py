"""The options of a replay, each declared once: for `replay`, its command and the Ray workers.

ReplayOptions(num=20, base="gpt2", engine="ray")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sr_monitor.errors import InputError, refused
from sr_monitor.model.loading import LoadOptions
from sr_monitor.options import option
from sr_monitor.prompts.choose import PromptOptions

_T = TypeVar("_T")


def _aside(default: _T, doc: str, *, least: int | None = None) -> _T:
    """Declare an option that no record depends on."""
    return option(default, doc, least=least, effect="nothing")


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(LoadOptions, PromptOptions):
    """Which checkpoints are measured, with which prompts, how they are loaded, and where."""

    base: str | None = _aside(
        None,
        "A model of the same architecture, for checkpoints without a config; also whose tokenizer "
        "is used.",
    )
    device_map: str | None = _aside(
        None, "auto: spread a model over all accelerators of the machine."
    )
    num: int | None = _aside(
        None,
        "At most so many checkpoints of each run, evenly spaced in the logarithm of the step.",
        least=2,
    )
    tokens: Sequence[int | float] | str | None = _aside(
        None, "The checkpoints nearest to these numbers of tokens, such as 4B,10B,100B."
    )
    revisions: Literal["refs", "commits"] = _aside(
        "refs",
        "What a repository named without @GLOB stands for; refs: its main branch; commits: each "
        "step that a training pushed, by the titles of its commits.",
    )
    follow: bool = _aside(
        False,
        "Go on: measure each new checkpoint of the sources once it is whole, until Ctrl-C or "
        "`until`.",
    )
    until: int | None = _aside(None, "With `follow`: end after this step.", least=0)
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
        if self.device_map not in (None, "auto"):
            raise refused("device_map", self.device_map, "pass 'auto' or nothing")
        if self.device_map and self.device != "auto":
            raise InputError(
                f"replay: device={self.device!r} and device_map='auto': a model lies on one "
                "device or on all of them; pass one of the two"
            )
        if self.until is not None and not self.follow:
            raise InputError(
                f"replay: until={self.until} ends what follow=True begins; pass that, too"
            )
        if self.follow and (self.num is not None or self.tokens is not None):
            raise InputError(
                f"replay: follow=True measures every checkpoint as it comes, and num={self.num}, "
                f"tokens={self.tokens!r} choose among all of them; leave one of the two out"
            )
        if self.base is not None and Path(self.base).exists():
            object.__setattr__(self, "base", str(Path(self.base).resolve()))
        if not isinstance(self.tokens, str | None):
            fix = "pass a list of numbers, such as [4e9, 10e9]"
            check_list("tokens", self.tokens, int | float, fix)
        if self.ray_address is not None and self.engine != "ray":
            raise InputError(
                f"replay: ray_address={self.ray_address!r} is for engine='ray', and the engine is "
                f"{self.engine!r}; pass engine='ray'"
            )
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
