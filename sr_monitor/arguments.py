"""What is wrong with an argument, said in the same words everywhere.

Each raises an `InputError` that restates the argument and names the fix.

num_steps = whole("num_steps", num_steps, least=2)
check_word("sampling", sampling, Sampling)
"""

import operator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from sr_monitor.errors import InputError

_MOST_CHARACTERS = 60


def refused(name: str, value: Any, fix: str, *, call: str | None = None) -> InputError:
    """The error to raise for a value that is of no use; of a long one, the beginning is shown."""
    text = " ".join(repr(value).split())
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
    what = f"{name}={shown}:" if call is None else f"{call}: {name} is {shown};"
    return InputError(f"{what} {fix}")


def whole(name: str, value: Any, *, least: int | None = None, call: str | None = None) -> int:
    """The value as an int, whatever kind of whole number it is; or refused, as part of a `call`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise refused(name, value, "pass a whole number", call=call) from None
    if least is not None and number < least:
        raise refused(name, number, f"pass {least} or more", call=call)
    return number


def check_word(name: str, value: Any, words: Any) -> None:
    """Refuses what is none of the words of a `Literal`."""
    if value not in get_args(words):
        raise refused(name, value, f"pass one of {', '.join(get_args(words))}")


def check_kind(name: str, value: Any, kind: type | UnionType, fix: str) -> None:
    """Refuses what is not of this kind."""
    if not isinstance(value, kind):
        raise refused(name, value, fix)


def check_folder_name(name: str, value: Any) -> None:
    """Refuses what is not the name of one folder: a path, or nothing at all."""
    if not isinstance(value, str) or value in ("", "..") or Path(value).name != value:
        raise refused(name, value, "pass the name of one folder, such as 'stable_regions'")
