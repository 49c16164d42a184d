"""Options of the subcommands, made from the declarations of their classes.

`--probe NAME[:OPTION=VALUE,...]` names a probe, with values for the fields of its dataclass.

@takes_options
def measure(model: str, config: MonitorConfig, loading: LoadOptions) -> None: ...
"""

import ast
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import Field, fields
from difflib import get_close_matches
from inspect import Parameter
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from sr_monitor.errors import InputError, check_word, refused, whole
from sr_monitor.options import Options, declared

if TYPE_CHECKING:
    from sr_monitor.probes.base import Probe

_FLAGS = {
    "config_engine": "--way",  # replay's --engine says where checkpoints are measured
    "config_probes": "--probe",
}
_METAVARS = {"probes": "NAME[:OPTION=VALUE,...]", "prompts": "FILE-OR-DATASET"}
_TEXT: Any = str | None
# What is written there where Python takes more.
_ON_THE_LINE = {"probes": list[str], "layer_path": _TEXT, "prompts": _TEXT, "tokens": _TEXT}
_PYTHON_ONLY = {"call"}
_CONSTANTS = {"true": True, "false": False, "none": None}


def path_option(help: str) -> Any:
    """Declare an option that names a folder for results."""

    def folder(text: str | Path) -> Path:
        if not text:  # as of a variable that is not set
            raise typer.BadParameter("it is empty; name a folder ('.' is this one)")
        return Path(text)

    return typer.Option(parser=folder, metavar="PATH", help=help)


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's sets of options by one option for each field that they declare."""
    own = inspect.signature(command).parameters
    kinds = {
        name: each.annotation
        for name, each in own.items()
        if isinstance(each.annotation, type) and issubclass(each.annotation, Options)
    }

    def run(**given: Any) -> None:
        for name, kind in kinds.items():
            values = {field: _taken(given, name, field, kind) for field in _on_the_line(kind)}
            if "probes" in values:
                values["probes"] = [parse_probe(text) for text in values["probes"]]
            if "prompts" in values:
                values["prompts"] = named_prompts(values["prompts"])
            given[name] = kind(**values)
        command(**given)

    parameters: list[Parameter] = []
    for name, each in own.items():
        shown = _parameters_of(name, kinds[name]) if name in kinds else [each]
        parameters += (one.replace(kind=Parameter.KEYWORD_ONLY) for one in shown)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run


def named_prompts(prompts: str | None) -> str | dict[str, str] | None:
    """Return NAME=FILE,NAME=FILE as a dict, unless there is a file of that name."""
    if prompts is None or "=" not in prompts or Path(prompts).exists():
        return prompts
    each = (part.partition("=") for part in re.split(r",(?=[\w-]+=)", prompts))
    return {name: file for name, _, file in each}


def _on_the_line(options: type[Options]) -> dict[str, Field[Any]]:
    return {name: each for name, each in declared(options).items() if name not in _PYTHON_ONLY}


def _parameters_of(name: str, options: type[Options]) -> Iterator[Parameter]:
    hints: dict[str, Any] = get_type_hints(options) | _ON_THE_LINE
    for field, each in _on_the_line(options).items():
        read_here = _spelling(hints[field])
        default = typer.Option(
            each.default,
            _flag(name, field),
            metavar=_METAVARS.get(field, read_here),
            help=each.metadata["doc"],
        )
        kind = _TEXT if read_here else hints[field]
        parameter = f"{name}_{field}"
        yield Parameter(parameter, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _flag(name: str, field: str) -> str:
    return _FLAGS.get(f"{name}_{field}", f"--{field.replace('_', '-')}")


def _spelling(hint: Any) -> str | None:
    """Return how a word or a whole number is written, which are read here, in words of ours."""
    if get_origin(hint) is Literal:
        return f"<{'|'.join(get_args(hint))}>"
    return "<int>" if int in (hint, *get_args(hint)) else None


def _taken(given: dict[str, Any], name: str, field: str, options: type[Options]) -> Any:
    """Take an option's value out of what is given on the line."""
    hint, flag = (get_type_hints(options) | _ON_THE_LINE)[field], _flag(name, field)
    value = given.pop(f"{name}_{field}")
    if get_origin(hint) is Literal:
        check_word(flag, value, hint)
    elif value is not None and _spelling(hint):
        try:
            number = int(value)
        except ValueError:
            raise refused(flag, value, "pass a whole number") from None
        return whole(flag, number, least=declared(options)[field].metadata["least"])
    return value


def parse_probe(text: str) -> "Probe":
    """Make the probe that `text` names, with the options it gives."""
    from sr_monitor.probes.base import available, probe_class  # not for the demo: with torch

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
    for read in (ast.literal_eval, float, str):
        with suppress(ValueError, SyntaxError):
            yield read(text)


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    return hint is Any or isinstance(value, get_origin(hint) or hint)


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuse a folder for results before the work, not after it."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise InputError(f"{option} {str(folder)!r}: {error.strerror}; name another") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "a folder that can be written to" if there.is_dir() else "a folder"
        raise InputError(f"{option} {str(folder)!r}: {str(there)!r} is not {kind}; name another")
