"""What `replay` is called with, checked before anything is done: kinds, and names of options.

check_kinds(num=20, seed=0)
config = with_options(config, {"num_pairs": 64}, known=signature(replay).parameters)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.watch.config import MonitorConfig

_WHOLE, _PLACE = "a whole number", (str, Path)
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "sources": (_PLACE, "a list of folders, files or owner/name@GLOB, such as ['runs/gpt2']"),
    "out": (_PLACE, "a folder"),
    "prompts": ((PromptSet, *_PLACE), "a PromptSet, a file, or a data set's name"),
    "num": ((int,), _WHOLE),
    "tokens": ((int, float), "a list of numbers, such as [4e9, 10e9]"),
    "num_tokens": ((int,), _WHOLE),
    "seed": ((int,), _WHOLE),
    "config": ((MonitorConfig,), "a MonitorConfig, or its entries by their names"),
}
_LISTS = {"sources", "tokens"}
_MAY_BE_NONE = {"prompts", "num", "tokens", "config"}


def check_kinds(**given: Any) -> None:
    """Refuses arguments that are not of their kind."""
    for name, value in given.items():
        kinds, words = _KINDS[name]
        is_right = _is_list(value, kinds) if name in _LISTS else _is_one(value, kinds)
        if not is_right and not (value is None and name in _MAY_BE_NONE):
            raise InputError(f"replay: {name}={value!r}: pass {words}")


def with_options(
    config: MonitorConfig | None, options: Mapping[str, Any], *, known: Iterable[str]
) -> MonitorConfig:
    """The config with single entries replaced; the names in `known` may have been meant, too."""
    entries = [entry.name for entry in fields(MonitorConfig)]
    for name, value in options.items():
        if name not in entries:
            nearest = get_close_matches(name, [*entries, *known], n=1, cutoff=0.0)[0]
            raise InputError(
                f"replay: {name}={value!r}: there is no such option; the nearest is {nearest!r}"
            )
    return replace(config or MonitorConfig(), **options)


def _is_one(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_list(value: Any, kinds: tuple[type, ...]) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(_is_one(entry, kinds) for entry in value)
