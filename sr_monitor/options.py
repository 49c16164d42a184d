"""Options, each declared once: a dataclass field with its default, its sentence and its limits.

Signatures, documentation, the command line, records and the comparison of runs all read the
declaration.

    @dataclass(frozen=True, kw_only=True)
    class PathsOptions(Options):
        num_steps: int = option(51, "Alphas on a path, both ends included.", least=2)
"""

import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_origin

from sr_monitor.errors import check_word, whole

Effect = Literal["curve", "record", "nothing"]
"""What an option changes: the curve, only what a record holds beside it, or memory and time."""

_T = TypeVar("_T")
_P = ParamSpec("_P")
_F = TypeVar("_F", bound=Callable[..., Any])


def option(default: _T, doc: str, *, least: int | None = None, effect: Effect = "curve") -> _T:
    """Declare a field of an `Options` class.

    `doc` is one sentence for docstrings, the command line and the docs; `least` is the smallest
    whole number that makes sense.
    """
    declared: _T = field(default=default, metadata={"doc": doc, "least": least, "effect": effect})
    return declared


@dataclass(frozen=True, kw_only=True)
class Options:
    """A set of options, checked when it is made."""

    def __post_init__(self) -> None:
        """Refuse values out of range; convert whole numbers of any kind to int."""
        hints = typing.get_type_hints(type(self))
        for each in fields(self):
            least, value = each.metadata.get("least"), getattr(self, each.name)
            if get_origin(hints[each.name]) is Literal:
                check_word(each.name, value, hints[each.name])
            is_number = least is not None or hints[each.name] is int
            if is_number and (value is not None or each.default is not None):
                object.__setattr__(self, each.name, whole(each.name, value, least=least))

    def recorded(self, *effects: Effect) -> dict[str, Any]:
        """Return the options with these effects by name; undeclared ones change the curve."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.metadata.get("effect", "curve") in effects
        }


def declared(options: type[Options]) -> dict[str, Field[Any]]:
    """Return the fields that were declared by `option`, by name."""
    return {each.name: each for each in fields(options) if "doc" in each.metadata}


def takes(options: Callable[_P, Options]) -> Callable[[Any], Callable[Concatenate[Any, _P], None]]:
    """Give an `__init__(self, *args, **kwargs)` the signature and documentation of `options`."""

    def decorate(method: Any) -> Callable[Concatenate[Any, _P], None]:
        own = next(iter(inspect.signature(method).parameters.values()))
        passed = inspect.signature(options).parameters.values()
        method.__signature__ = inspect.Signature([own, *passed], return_annotation=None)
        explained = explains(cast(type[Options], options))(method)
        return cast(Callable[Concatenate[Any, _P], None], explained)

    return decorate


def explains(*options: type[Options]) -> Callable[[_F], _F]:
    """Say in the docstring of a function what those of its arguments mean that are options.

    All options are arguments of a function that takes `**options`.
    """

    def decorate(function: _F) -> _F:
        docs = {name: each.metadata["doc"] for of in options for name, each in declared(of).items()}
        taken = inspect.signature(function).parameters
        names = docs if "options" in taken else docs.keys() & taken
        lines = [f"    {name}: {doc}" for name, doc in docs.items() if name in names]
        doc = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join([doc, "", "Args:", *lines])
        return function

    return decorate
