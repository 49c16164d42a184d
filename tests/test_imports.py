"""`import sr_monitor` stays light, and its public names stay the ones that were promised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sr_monitor

HEAVY = (
    "beartype",
    "datasets",
    "huggingface_hub",
    "lightning",
    "matplotlib",
    "tensorboard",
    "torch",
    "torch.utils.tensorboard",
    "transformers",
    "transformers.trainer",
    "typer",
)


def heavy_after(code: str, folder: Path) -> tuple[str, ...]:
    """The heavy modules that are loaded once the code has run in a fresh interpreter."""
    probe = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    return tuple(name for name in HEAVY if name in loaded)


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import sr_monitor", ()),
        ("from sr_monitor import *; measure_paths", ("torch",)),
        ("import sr_monitor.replay", ("torch",)),
    ],
)
def test_import_is_light(tmp_path: Path, code: str, heavy: tuple[str, ...]) -> None:
    assert heavy_after(code, tmp_path) == heavy


def test_a_heavy_import_would_be_seen(tmp_path: Path) -> None:
    """The test above can fail, whichever of the names it is."""
    code = "import sr_monitor, " + ", ".join(HEAVY)
    assert heavy_after(code, tmp_path) == HEAVY


def test_public_names() -> None:
    assert sr_monitor.__all__ == [
        "InputError",
        "Monitor",
        "MonitorConfig",
        "Paths",
        "PromptSet",
        "Record",
        "Slices",
        "TensorBoardWriter",
        "at",
        "budget",
        "every",
        "log_spaced",
        "measure_paths",
        "measure_slices",
    ]


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    for name in sr_monitor.__all__:
        assert getattr(sr_monitor, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'measure'"):
        sr_monitor.measure  # type: ignore[attr-defined]  # noqa: B018
