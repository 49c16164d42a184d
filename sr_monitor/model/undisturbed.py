"""The guard around a measurement: whatever it touches is put back, also after an exception.

Inside, every module is in eval mode, gradients are off and compiled code steps back so that
hooks fire. Afterwards each module's mode and buffers, the random states (torch's, Python's and
numpy's), the gradient mode and the compile stance are bit for bit what they were, and FSDP modules
hold their shards again. Autocast is left as the caller has it, on purpose: a measurement runs in
the precision of the run.

Buffers of up to a million values are copied for that; larger ones are masks or packed weights. What
a forward writes elsewhere, into plain attributes or past autograd (`buffer.data`), is not put back.

    with undisturbed(model):
        model(prompts)
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor.model.wrappers import resharded_afterwards

_MOST_VALUES = 2**20


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and eager code inside; everything as it was afterwards."""
    with preserving_random_states(), _preserving(model):
        yield


@contextmanager
def preserving_random_states() -> Iterator[None]:
    """Put the global generators of torch, CUDA, Python and numpy back as they were before."""
    undo: list[Callable[[], object]] = [
        partial(torch.set_rng_state, torch.get_rng_state()),
        partial(random.setstate, random.getstate()),
    ]
    # Asking for the states of GPUs that are not in use would start them.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    # Where numpy is not loaded nobody has seeded it, and there is nothing to keep.
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is not None:
        undo.append(partial(numpy.set_state, numpy.get_state(legacy=False)))
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


@contextmanager
def _preserving(model: nn.Module) -> Iterator[None]:
    # Modes are kept module by module: a submodule held in eval mode must not wake up in training.
    modes = [(module, module.training) for module in model.modules()]
    # What autocast casts without gradients would stay in its cache for the caller's own backward.
    cached = torch.is_autocast_cache_enabled()
    buffers = [(module, dict(module._buffers), _numbers(module)) for module, _ in modes]
    copies = _copies(model)
    try:
        torch.set_autocast_cache_enabled(False)
        for module, _ in modes:
            module.training = False
        # inference_mode is not used: it would make tensors that a later FSDP step cannot update.
        with resharded_afterwards(model), torch.no_grad(), _eager():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, own, numbers in buffers:
            _restore_buffers(module, own, numbers)
        _restore_values(copies)
        torch.set_autocast_cache_enabled(cached)


def _numbers(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, int | float)}


def _restore_buffers(
    module: nn.Module, buffers: dict[str, Tensor | None], numbers: dict[str, Any]
) -> None:
    """Puts back buffers that a forward exchanged, and the lengths kept beside them.

    Rotary embeddings that scale with the prompt do so. Other modules' numbers are left alone:
    wrappers that shard or offload keep their state in some.
    """
    if any(module._buffers.get(name) is not buffer for name, buffer in buffers.items()):
        module._buffers.update(buffers)
        vars(module).update(numbers)


def _copies(model: nn.Module) -> list[tuple[Tensor, int, Tensor]]:
    """Each buffer with its version and a copy: some forwards write into them, in eval mode too.

    Counters of what experts were given do so, and running averages. Inference tensors have no
    version, and refuse to be written to where a training goes on.
    """
    return [
        (buffer, buffer._version, buffer.detach().clone())
        for buffer in model.buffers()
        if not buffer.is_inference() and buffer.numel() <= _MOST_VALUES
    ]


def _restore_values(copies: list[tuple[Tensor, int, Tensor]]) -> None:
    """Only what was written to is put back, so that a waiting backward finds the rest untouched."""
    for buffer, version, value in copies:
        if buffer._version != version:
            buffer.data.copy_(value)


def _eager() -> AbstractContextManager[Any]:
    """Hooks added after compilation fire only when compiled code steps back."""
    # Without dynamo loaded nothing is compiled, and loading it takes over a second.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
