"""The guard around a measurement: whatever it touches is put back, also after an exception.

Inside, every module is in eval mode, gradients are off and compiled code steps back so that
hooks fire. Afterwards each module's mode, the random states, the gradient mode and the compile
stance are bit for bit what they were. Autocast is left as the caller has it, on purpose: a
measurement runs in the precision of the run.

    with undisturbed(model):
        model(prompts)
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and eager code inside; everything as it was afterwards."""
    # Modes are kept module by module: a submodule held in eval mode must not wake up in training.
    modes = [(module, module.training) for module in model.modules()]
    random = _random_states()
    try:
        for module, _ in modes:
            module.training = False
        # inference_mode is not used: it would make tensors that a later FSDP step cannot update.
        with torch.no_grad(), _eager():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        _restore_random_states(random)


def _eager() -> AbstractContextManager[Any]:
    """Hooks added after compilation fire only when compiled code steps back."""
    # Without dynamo loaded nothing is compiled, and loading it takes over a second.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _random_states() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), cuda


def _restore_random_states(states: tuple[Tensor, list[Tensor]]) -> None:
    cpu, cuda = states
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
