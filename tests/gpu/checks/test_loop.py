"""A measurement keeps CUDA busy: it seldom waits for the device, and draws nothing of its own."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from sr_monitor import measure_paths
from tests.gpu.checks.helpers import DEVICE, llama, on_device, prompts
from tests.model.helpers import measure, watched


def test_random_numbers_of_cuda_are_put_back() -> None:
    """Dropout stays in training mode around it, and some forwards draw even in eval mode."""
    specimen, drawn = on_device("gpt2"), []

    def draw(_: nn.Module, args: object) -> None:
        drawn.append(torch.rand(1, device=DEVICE))

    specimen.model.train().register_forward_pre_hook(draw)
    before = torch.cuda.get_rng_state()
    measure(specimen)
    assert drawn
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(module.training for module in specimen.model.modules())


def _waits(model: nn.Module, blocks: Sequence[nn.Module], num_steps: int) -> tuple[int, int]:
    """Return how often the host waits for the device in a measurement, and its forwards."""
    forwards = 0

    def count(*_: int) -> None:
        nonlocal forwards
        forwards += 1

    with warnings.catch_warnings(record=True) as caught, watched(blocks[-1:], count):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            measure_paths(model, *prompts(8), num_steps=num_steps, max_tokens=2**14)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing CUDA operation" in str(each.message) for each in caught)
    return waits, forwards


def test_the_host_does_not_wait_more_often_for_more_points(
    record_property: Callable[[str, object], None],
) -> None:
    """Each forward copies the numbers of its points, at once; nothing waits for a single one."""
    model = llama(256)
    blocks = list(model.model.layers)
    waits, forwards = _waits(model, blocks, 64)
    assert waits > 0, "what is found comes to the CPU"
    record_property("waits for the device in each forward", waits / forwards)
    # One row of 64 points for each pair, then four of them: in as many forwards.
    more_waits, more_forwards = _waits(model, blocks, 256)
    assert more_forwards == forwards
    # Four rows of a context are copies of its keys and values, chosen by number in each block.
    assert more_waits - waits <= 2 * len(blocks) + 4
    assert _waits(model, blocks, 512) == (more_waits, forwards)
