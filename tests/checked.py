"""The type checks of the test run: beartype, with one check for all closures of one function.

A closure is made, and would be checked anew, at every call of the function around it: half the time
of a measurement. jaxtyping hands over an empty function of the same signature to check.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_closures: dict[tuple[str, str, str], Callable[..., Any]] = {}


def checked(signature: Any) -> Any:
    """Return what checks the calls of a function of this signature."""
    if "<locals>" not in signature.__qualname__:
        return beartype(signature)
    # By their words: two jaxtyping shapes of the same words are not equal.
    key = signature.__module__, signature.__qualname__, repr(signature.__annotations__)
    if key not in _closures:
        _closures[key] = beartype(signature)
    return _closures[key]
