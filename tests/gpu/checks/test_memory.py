"""Running out of a GPU's memory halves what runs at once, and leaves nothing behind."""

import pytest
import torch

from sr_monitor import measure_paths
from sr_monitor.errors import is_out_of_memory
from sr_monitor.model import memory
from tests.gpu.checks.helpers import TOLERANCE, gap, llama, prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_measurement_fits_into_a_quarter_of_the_memory_it_would_take(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = llama(1024).to(dtype), prompts(256)
    measure_paths(model, *pairs)  # the libraries' own workspaces stay
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    free = measure_paths(model, *pairs)
    assert torch.cuda.memory_allocated() == held
    limit = held + (torch.cuda.max_memory_allocated() - held) // 4
    halvings: list[bool] = []

    def note(error: BaseException) -> bool:
        halvings.append(is_out_of_memory(error))
        return halvings[-1]

    monkeypatch.setattr(memory, "is_out_of_memory", note)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _limit_memory(limit)
    try:
        found = measure_paths(model, *pairs)
    finally:
        _limit_memory(None)
    assert any(halvings)
    assert torch.cuda.max_memory_reserved() <= limit
    assert torch.cuda.memory_allocated() == held
    assert gap(found, free) <= TOLERANCE


def _limit_memory(limit: int | None) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit / total)
