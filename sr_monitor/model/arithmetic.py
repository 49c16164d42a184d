"""Compute in float32 on 16-bit weights, and leave the weights as they are.

A slope is a maximum of small differences, so rounding to 16 bits biases it upward: by 13% in a
pretrained model. The numbers are those of the same model converted to float32.

    with float32_arithmetic() as arithmetic:
        model(prompts)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_HALVES = (torch.bfloat16, torch.float16)
_aten = torch.ops.aten

# These pick numbers out of a table that may be large: what they pick is widened, not the table.
_PICKS = {_aten.embedding, _aten.index, _aten.index_select, _aten.gather, _aten.clone}

# These compare the types of their operands before they break up into operations.
_WHOLE = {torch.conv1d, torch.conv2d, F.scaled_dot_product_attention, F.rms_norm}


@no_type_check  # at run time: every operation passes here
class Arithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Widens the 16-bit operands of every operation, and notes which results are rounded still."""

    is_needed = False
    """Whether anything of 16 bits was met."""
    rounded: torch.dtype | None = None
    """The 16-bit type that an operation rounded float32 operands to, if any did."""

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        return _treatment(func)(self, func, args, kwargs or {})

    def _keep(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _note(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note a 16-bit result, unless its operands had no more: then it is only moved."""
        result = func(*args, **kwargs)
        if torch.float32 in _types(args):
            self.rounded = next(
                (each for each in _types([result]) if each in _HALVES), self.rounded
            )
        return result

    def _pick(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        return self.widen(func(*args, **kwargs))

    def _compute(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs:
            kwargs = {name: self.widen(value) for name, value in kwargs.items()}
        return self.widen(func(*map(self.widen, args), **kwargs))

    def widen(self, value: Any) -> Any:
        """Return a tensor of 16 bits as float32, and float32 for the name of such a type."""
        kind = type(value)
        # Other subclasses hold packed numbers, and unpack them by themselves.
        if kind is Tensor or kind is nn.Parameter or kind.__name__ == "DTensor":
            if value.dtype not in _HALVES:
                return value
            self.is_needed = True
            return value.float()
        if kind is torch.dtype and value in _HALVES:
            self.is_needed = True
            return torch.float32
        return kind(map(self.widen, value)) if kind is list or kind is tuple else value


@no_type_check
class _WholeFunctions(TorchFunctionMode):
    """Widens the operands of functions that refuse mixed types before `Arithmetic` sees them."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._widen = arithmetic.widen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WHOLE:
            args = map(self._widen, args)
            kwargs = {name: self._widen(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def float32_arithmetic() -> Iterator[Arithmetic]:
    """Compute in float32 inside, whatever the types of the weights."""
    arithmetic = Arithmetic()  # type: ignore[no-untyped-call]
    with _WholeFunctions(arithmetic), arithmetic:
        yield arithmetic


@cache
def _treatment(func: OpOverload) -> Callable[[Arithmetic, OpOverload, Any, Any], Any]:
    name = func.overloadpacket.__name__
    reads = any("Tensor" in str(each.type) for each in func._schema.arguments)
    # The type of a new tensor is the caller's affair: a buffer to gather weights in, say.
    allocates = not reads or name.startswith("new_") or name.endswith("_like")
    if func.is_view or allocates:
        return Arithmetic._keep
    if func.namespace != "aten" or func._schema.is_mutable:
        return Arithmetic._note
    return Arithmetic._pick if func.overloadpacket in _PICKS else Arithmetic._compute


def _types(values: Iterable[Any]) -> Iterator[torch.dtype]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.dtype
        elif isinstance(value, list | tuple):
            yield from _types(value)
