"""Options, each declared once: a dataclass field with its default, its sentence and its limits.

Signatures, documentation, the command line, records and the comparison of runs all read the
declaration.

    @dataclass(frozen=True, kw_only=True)
    class PathsOptions(Options):
        num_steps: int = option(51, "Alphas on a path, both ends included.", least=2)
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_args, get_origin

from sr_monitor.errors import check_word, whole

Effect = Literal["curve", "record", "nothing"]
"""What changes with an option: which curve a measurement belongs to, only what its record holds
beside the curve, or nothing but memory and time."""

_T = TypeVar("_T")
_P = ParamSpec("_P")


def option(default: _T, doc: str, *, least: int | None = None, effect: Effect = "curve") -> _T:
    """Declare a field of an `Options` class.

    Args:
        default: The default.
        doc: What it means, in one sentence: for docstrings, the command line and the docs.
        least: The smallest whole number that makes sense.
        effect: What changes with it.
    """
    declared: _T = field(default=default, metadata={"doc": doc, "least": least, "effect": effect})
    return declared


@dataclass(frozen=True, kw_only=True)
class Options:
    """A set of options, checked when it is made."""

    def __post_init__(self) -> None:
        """Refuse what is out of range; turn whole numbers of any kind into int."""
        words = _literals(type(self))
        for each in fields(self):
            least, value = each.metadata.get("least"), getattr(self, each.name)
            if each.name in words:
                check_word(each.name, value, words[each.name])
            if least is not None and (value is not None or each.default is not None):
                object.__setattr__(self, each.name, whole(each.name, value, least=least))

    def recorded(self, *effects: Effect) -> dict[str, Any]:
        """Return the options with these effects by name, as a record keeps them.

        What was not declared by `option`, such as a plain field of a probe, changes the curve.
        """
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.metadata.get("effect", "curve") in effects
        }


def declared(options: type[Options]) -> dict[str, Field[Any]]:
    """Return the fields of a class that were declared by `option`, by name."""
    return {each.name: each for each in fields(options) if "doc" in each.metadata}


def takes(options: Callable[_P, Options]) -> Callable[[Any], Callable[Concatenate[Any, _P], None]]:
    """Give an `__init__(self, *args, **kwargs)` the signature and documentation of `options`."""

    def decorate(method: Any) -> Callable[Concatenate[Any, _P], None]:
        own = next(iter(inspect.signature(method).parameters.values()))
        passed = inspect.signature(options).parameters.values()
        method.__signature__ = inspect.Signature([own, *passed], return_annotation=None)
        method.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\n{_arguments(options)}"
        return cast(Callable[Concatenate[Any, _P], None], method)

    return decorate


def _arguments(options: Any) -> str:
    lines = (f"    {name}: {each.metadata['doc']}" for name, each in declared(options).items())
    return "\n".join(["Args:", *lines])


def _literals(options: type) -> Mapping[str, Any]:
    """Return the `Literal` types among the annotations, by the names of their fields."""
    hints = typing.get_type_hints(options)
    return {name: hint for name, hint in hints.items() if _is_literal(hint)}


def _is_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal and all(isinstance(word, str) for word in get_args(hint))
