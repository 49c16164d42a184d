"""Guard a measurement: whatever it touches is put back, also after an exception.

That is: modes, buffers, random states (torch's, Python's and numpy's), the gradient mode, and the
shards of FSDP. What a forward writes into plain attributes or past autograd (`buffer.data`) stays.

    with undisturbed(model):
        model(prompts)
"""

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor.model.wrappers import resharded_afterwards

_MOST_VALUES = 2**20  # of a buffer that is copied; larger ones are masks or packed weights


@contextmanager
def preserving_global_state() -> Iterator[None]:
    """Put back the global generators of torch, CUDA, Python and numpy, and the gradient mode."""
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        stack.callback(random.setstate, random.getstate())
        # Asking for the states of GPUs that are not in use would start them.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        # Where numpy is not loaded nobody has seeded it, and there is nothing to keep.
        numpy: Any = sys.modules.get("numpy.random")
        if numpy is not None:
            stack.callback(numpy.set_state, numpy.get_state(legacy=False))
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run eagerly, in eval mode and without gradients; put everything back afterwards."""
    # Modes are kept module by module: a submodule held in eval mode must not wake up in training.
    modes = [(module, module.training) for module in model.modules()]
    # What autocast casts without gradients would stay in its cache for the caller's own backward.
    cached = torch.is_autocast_cache_enabled()
    buffers = [(module, dict(module._buffers), _numbers(module)) for module, _ in modes]
    # Some forwards write into buffers, in eval mode too: experts count tokens, averages run.
    # Inference tensors have no version, and cannot be written to where a training goes on.
    copies = [
        (buffer, buffer._version, buffer.detach().clone())
        for buffer in model.buffers()
        if not buffer.is_inference() and buffer.numel() <= _MOST_VALUES
    ]
    with preserving_global_state():
        try:
            torch.set_autocast_cache_enabled(False)
            for module, _ in modes:
                module.training = False
            # Not inference_mode: it would make tensors that a later FSDP step cannot update.
            with resharded_afterwards(model), torch.no_grad(), _eager():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, own, numbers in buffers:
                # Rotary embeddings that scale with the prompt exchange buffers, and keep lengths
                # beside them. Other numbers stay: wrappers keep the state of their shards there.
                if any(module._buffers.get(name) is not each for name, each in own.items()):
                    module._buffers.update(own)
                    vars(module).update(numbers)
            for buffer, version, value in copies:
                # Only what was written to: a waiting backward must find the rest untouched.
                if buffer._version != version:
                    buffer.data.copy_(value)
            torch.set_autocast_cache_enabled(cached)


def _numbers(module: nn.Module) -> dict[str, Any]:
    kinds = int | float | Tensor  # a length may be a tensor
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds)}


def _eager() -> AbstractContextManager[Any]:
    """Make compiled code run eagerly: hooks that are added after compilation fire only there."""
    # Without dynamo loaded nothing is compiled, and loading it takes over a second.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
