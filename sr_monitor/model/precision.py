"""Cut a model with float32 arithmetic where that can be had, whatever its training computes in.

with in_precision("auto", anatomy, cut) as stream:       # `cut` makes the stream
stream.precision
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from sr_monitor.errors import (
    InputError,
    PeerError,
    first_line,
    is_out_of_memory,
    level_of_caller,
    warn,
)
from sr_monitor.model.anatomy import Anatomy
from sr_monitor.model.arithmetic import Arithmetic, float32_arithmetic
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.stream import Stream
from sr_monitor.model.wrappers import without_autocast_patch, without_mixed_precision

Precision = Literal["auto", "run", "float32"]

_HAS_TYPES = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9 and newer

Cut = Callable[[Arithmetic | None], Stream]


@contextmanager
def in_precision(
    wanted: Precision, anatomy: Anatomy, cut: Cut, ranks: RankGroup = ALONE
) -> Iterator[Stream]:
    """Yield the stream that `cut` makes, in the wanted precision.

    "run" leaves the precision in force; "auto" falls back on it, with a warning, where the model
    fails in float32; "float32" refuses to. The `ranks` run in step, and so fall back together.
    """
    stream, reason = None, ""
    with ExitStack() as stack:
        if wanted != "run":
            try:
                stream = _in_float32(stack, anatomy, cut)
            except Exception as error:
                stack.close()
                if isinstance(error, InputError | PeerError) or is_out_of_memory(error):
                    raise
                ranks.all_failed(error)
                reason = first_line(error)
        if wanted == "float32" and stream is None:
            raise _refusal(f"the model fails in it, {reason!r}")
        if wanted == "float32" and stream is not None and stream.precision.itemsize < 4:
            raise _refusal(f"something in the model rounds to {stream.precision}")
        # Outside of `except`: what failed holds no memory any more.
        stream = stream or cut(None)
        if reason:
            warn(
                f"the model fails in float32 arithmetic, {reason!r}: it is measured in "
                f"{stream.arithmetic}, and the noise floor says how coarse that is",
                stacklevel=level_of_caller(),
            )
        yield stream


@contextmanager
def tf32_products(wanted: Precision, stream: Stream) -> Iterator[str]:
    """Let a GPU use TF32 where that is enough; yield the name of the arithmetic.

    Pictures are 61% of a default measurement's points. In SmolLM2 TF32 moves their colours by 0.23
    of a step of 8 bits at most.
    """
    if (
        wanted != "auto"
        or stream.precision != torch.float32
        or stream.anatomy.device.type != "cuda"
    ):
        yield stream.arithmetic
        return
    with _products_in("tf32", torch.backends.cuda.matmul):
        yield "tf32"


def _in_float32(stack: ExitStack, anatomy: Anatomy, cut: Cut) -> Stream:
    """Cut the model in float32, until `stack` is closed."""
    backends: Any = torch.backends
    holders = [backends.cuda.matmul]
    if _HAS_TYPES:
        holders += [backends.cudnn.conv, backends.cudnn.rnn]
        holders += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    stack.enter_context(_products_in("ieee", *holders))
    stack.enter_context(without_autocast_patch(anatomy.root))
    stack.enter_context(torch.autocast(anatomy.device.type, enabled=False))
    stack.enter_context(without_mixed_precision(anatomy.root))
    with ExitStack() as modes:
        arithmetic = modes.enter_context(float32_arithmetic())
        stream = cut(arithmetic)
        if arithmetic.is_needed:  # else every operation would be looked at in vain
            stack.enter_context(modes.pop_all())
    return stream


@contextmanager
def _products_in(precision: Literal["ieee", "tf32"], *holders: Any) -> Iterator[None]:
    """Set the precision of matrix products, and restore it afterwards.

    The older of the two interfaces raises an error once anybody has used the newer one.
    """
    if not _HAS_TYPES:
        old = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
            yield
        finally:
            torch.set_float32_matmul_precision(old)
        return
    before = [each.fp32_precision for each in holders]
    try:
        for each in holders:
            each.fp32_precision = precision
        yield
    finally:
        for each, setting in zip(holders, before, strict=True):
            # What follows `torch.backends.fp32_precision` is to follow it again.
            each.fp32_precision = "none"
            if each.fp32_precision != setting:
                each.fp32_precision = setting


def _refusal(reason: str) -> InputError:
    return InputError(
        f"precision='float32': {reason}; pass precision='auto' to measure it all the same"
    )
