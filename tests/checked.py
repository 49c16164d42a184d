"""The shape checks of the test run: beartype, on the functions whose signatures name a shape.

jaxtyping wraps every function of the packages it is given, and a closure anew at every call of the
function around it: half the time of a measurement. So functions without shapes stay as they are
(their types are for mypy and pyright), and all closures of one function share a check.
"""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import beartype

_jaxtyped: Any = jaxtyping.jaxtyped
_names_shapes: dict[CodeType, bool] = {}
_closures: dict[tuple[str, str, str], Callable[..., Any]] = {}


def _jaxtyped_if_shaped(made: Any, **options: Any) -> Any:
    of_class = isinstance(made, type)
    function = vars(made).get("__init__") if of_class else getattr(made, "__func__", made)
    if not isinstance(function, FunctionType):
        return _jaxtyped(made, **options)
    if function.__code__ not in _names_shapes:
        _names_shapes[function.__code__] = "jaxtyping." in repr(function.__annotations__)
    return _jaxtyped(made, **options) if _names_shapes[function.__code__] else made


def _where_shapes_are_named(made: Any = None, **options: Any) -> Any:
    """Stand in for `jaxtyping.jaxtyped` as its import hook calls it, and as a context."""
    if made is None:
        return lambda late: _jaxtyped_if_shaped(late, **options)
    return _jaxtyped(made, **options)


jaxtyping.jaxtyped = _where_shapes_are_named  # type: ignore[assignment]


def checked(signature: Any) -> Any:
    """Return what checks the calls of a function of this signature."""
    if "<locals>" not in signature.__qualname__:
        return beartype(signature)
    # By their words: two jaxtyping shapes of the same words are not equal.
    key = signature.__module__, signature.__qualname__, repr(signature.__annotations__)
    if key not in _closures:
        _closures[key] = beartype(signature)
    return _closures[key]
