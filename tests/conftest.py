"""What every test starts from: one thread, a fixed global seed, and no warning unseen."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from tests import checked  # noqa: F401  (for --jaxtyping-packages, which imports no submodule)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tiny models are slower on many threads, and other runs may share the machine.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def logged_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the library logs where warnings are errors, as they are here; a test takes it out."""
    lines: list[str] = []
    monkeypatch.setattr("sr_monitor.errors._log.warning", lines.append)
    yield lines
    assert lines == []


@pytest.fixture
def _as_users_run_it() -> Iterator[None]:
    """Without the type checks of the test run, which refuse bad input before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """A trap that is known to work, and must not have snapped at the end."""
    trap = Trap(tmp_path / "ran")
    pickle.loads(pickle.dumps(trap))
    trap.marker.unlink()
    yield trap
    assert not trap.marker.exists()
