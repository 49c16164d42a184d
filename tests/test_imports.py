"""`import sr_monitor` stays light, and its public names stay the ones that were promised."""

import subprocess
import sys
from pathlib import Path

import pytest

import sr_monitor

HEAVY = {
    *("beartype", "datasets", "huggingface_hub", "lightning", "matplotlib", "tensorboard"),
    *("torch", "torch.utils.tensorboard", "transformers", "transformers.trainer", "typer"),
}
LIGHT = "import sr_monitor; "
MEASURES = "from sr_monitor import *; measure_paths; "


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (LIGHT, set()),
        (MEASURES, {"torch"}),
        ("import sr_monitor.replay; ", {"torch"}),
        (f"{LIGHT} import {', '.join(HEAVY)}; ", HEAVY),  # so those above can fail
    ],
)
def test_import_is_light(code: str, heavy: set[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"{code} import sys; print(*sys.modules)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == heavy


def test_public_names_are_those_promised_and_have_docstrings() -> None:
    assert sr_monitor.__all__ == [
        *("InputError", "Monitor", "MonitorConfig", "Paths", "PromptSet", "Record", "Slices"),
        *("TensorBoardWriter", "at", "budget", "every", "log_spaced", "measure_paths"),
        "measure_slices",
    ]
    for name in sr_monitor.__all__:
        assert getattr(sr_monitor, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'measure'"):
        sr_monitor.measure  # type: ignore[attr-defined]  # noqa: B018
