"""Checks are skipped, and not even imported, where there is no CUDA device."""

import gc
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


class _Checks(pytest.Module):
    """A file of checks; other libraries may warn in it."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; `make gpu`")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.add_marker(pytest.mark.filterwarnings("default"))
        return super().collect()


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
    module: pytest.Module = _Checks.from_parent(parent, path=module_path)
    return module


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """The same random numbers for each check, and all memory."""
    torch.manual_seed(0)
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def _deterministic() -> Iterator[None]:
    """Kernels that give the same bits each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
