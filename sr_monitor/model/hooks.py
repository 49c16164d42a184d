"""Ways into a running model, there only while a forward runs: edit, capture, stand aside.

Each is a context manager that leaves the module as it was, also after an exception.

    with editing(block, replace_last, before=True), capturing(norm) as seen:
        model(prompts)
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.spread import placed_like, whole


@contextmanager
def editing(
    module: nn.Module, edit: Callable[[Tensor], Any], *, before: bool, pick: Any = None
) -> Iterator[None]:
    """Pass the first input of `module`, or the tensor in its output, through `edit`.

    `pick` finds that tensor, the first one by default; `edit` sees it whole where it is spread over
    ranks. Where `edit` returns None, nothing is replaced; that it was never called is an error.
    """
    calls: list[None] = []

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append(None)
        name = None if args else _first_tensor_name(kwargs)
        old = args[0] if name is None else kwargs[name]
        new = edit(whole(old))
        if new is None:
            return None
        new = placed_like(old, new)
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    def on_output(_: nn.Module, __: Any, output: Any) -> Any:
        calls.append(None)
        old = (pick or first_tensor)(output)
        new = edit(whole(old))
        return None if new is None else with_first_tensor(output, placed_like(old, new))

    if before:
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise InputError(
            f"a hook on a {type(module).__name__} did not fire: the model runs compiled or "
            "exported code, or calls a module's forward; pass the module that was compiled, and "
            "call modules themselves"
        )


@contextmanager
def capturing(
    module: nn.Module, pick: Any = None, *, before: bool = False
) -> Iterator[list[Tensor]]:
    """Collect the first input of each call of `module`, or what `pick` finds in its output."""
    seen: list[Tensor] = []
    with editing(module, seen.append, before=before, pick=pick):
        yield seen


@contextmanager
def standing_aside(modules: Sequence[nn.Module], tuple_length: int = 0) -> Iterator[None]:
    """Let modules hand their first input through, at no cost.

    `tuple_length` is the length of the tuple they put out, 0 for a bare tensor.
    """
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(forward_replaced(module, partial(_hand_on, tuple_length)))
        yield


def _hand_on(tuple_length: int, *args: Any, **kwargs: Any) -> Any:
    hidden = args[0] if args else kwargs[_first_tensor_name(kwargs)]
    return (hidden, *[None] * (tuple_length - 1)) if tuple_length else hidden


@contextmanager
def failing_last(modules: Sequence[nn.Module], tuple_length: int = 0) -> Iterator[None]:
    """Hold back a module's error until the forward is over; the modules after it stand aside.

    Ranks that share weights exchange them in every module: if one rank broke off a forward, the
    others would wait in the middle of theirs.
    """
    errors: list[Exception] = []

    def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not errors:
            try:
                return forward(*args, **kwargs)
            except Exception as error:
                errors.append(error)
        return _hand_on(tuple_length, *args, **kwargs)

    try:
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(forward_replaced(module, partial(run, module.forward)))
            yield
    except Exception:
        if not errors:
            raise
    if errors:
        raise errors[0]


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have `forward` run when the module is called; its hooks stay."""
    # An instance may have a `forward` of its own already, from offloading or mixed precision.
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def _first_tensor_name(kwargs: dict[str, Any]) -> str:
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


def first_tensor(output: Any) -> Any:
    """Return the tensor a module puts out: the output itself, or its first entry."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple | list) or hasattr(output, "to_tuple") else None


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return an output of the same kind, with `tensor` in the place of its first one."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple | list):
        return type(output)([tensor, *output[1:]])
    other = copy.copy(output)  # a Hugging Face output: a dictionary that keeps its order
    other[next(iter(other))] = tensor
    return other
