"""`--probe NAME[:OPTION=VALUE,...]`: a probe, with values for the fields of its dataclass.

parse_probe("divergence")
parse_probe("my_probe:scale=0.5,mode=fast")
"""

import ast
import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sr_monitor.errors import InputError
from sr_monitor.probes.base import Probe, available, probe_class

_CONSTANTS = {"true": True, "false": False, "none": None}


def parse_probe(text: str) -> Probe:
    """Make the probe that `text` names, with the options it gives."""
    call = f"--probe {text!r}"
    name, _, given = text.partition(":")
    _check_known(call, "probe", name, available())
    kind = probe_class(name)
    hints = get_type_hints(kind)
    hints = {each.name: hints[each.name] for each in fields(kind) if each.init}
    options: dict[str, Any] = {}
    # Only a comma before another OPTION= separates, so that a value may be "1,2,3".
    for each in re.split(r",(?=[\w-]+=)", given) if given else ():
        option, _, value = each.partition("=")
        _check_known(call, "option", option, hints)
        options[option] = _read(call, option, value, hints[option])
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:  # an option is missing, or out of range
        raise InputError(f"{call}: {error}") from error


def _check_known(call: str, what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        nearest = "".join(f"did you mean {each!r}? " for each in get_close_matches(name, known, 1))
        available = ", ".join(known) or "none"
        raise InputError(f"{call}: there is no {what} {name!r}; {nearest}available: {available}")


def _read(call: str, option: str, text: str, hint: Any) -> Any:
    """Return the first reading of `text` that is of the option's type."""
    for value in _readings(text):
        if _is_of(value, hint):
            return value
    expected = inspect.formatannotation(hint)
    raise InputError(f"{call}: {option} is {text!r}; pass {option}= and a value of {expected}")


def _readings(text: str) -> Iterator[Any]:
    if text.lower() in _CONSTANTS:
        yield _CONSTANTS[text.lower()]
    for read in (int, float, ast.literal_eval, str):
        with suppress(ValueError, SyntaxError):
            yield read(text)


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    return hint is Any or isinstance(value, get_origin(hint) or hint)
