"""`import sr_monitor` and every `--help` stay light, and the public names are those promised."""

import subprocess
import sys
from pathlib import Path

import pytest

import sr_monitor

HEAVY = {
    *("beartype", "datasets", "huggingface_hub", "lightning", "matplotlib", "ray", "tensorboard"),
    *("torch", "torch.utils.tensorboard", "transformers", "transformers.trainer"),
}
STAGES = [
    ("import sr_monitor; assert 'typer' not in sys.modules", set()),
    ("from sr_monitor.cli import main; main(['--help']), main(['demo', '--help'])", set()),
    ("from sr_monitor import *; measure_paths; import sr_monitor.replay", {"torch"}),
    ("main(['measure', '--help']), main(['replay', '--help'])", {"torch"}),
]


def test_import_and_help_are_light(tmp_path: Path) -> None:
    show = f"print(*{HEAVY} & {{*sys.modules}}, file=sys.stderr)"
    code = "\n".join(f"{stage}\n{show}" for stage, _ in STAGES)
    command = [sys.executable, "-c", f"import sys\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [set(line.split()) for line in done.stderr.splitlines()]
    assert found == [heavy for _, heavy in STAGES]


def test_public_names_are_those_promised_and_have_docstrings() -> None:
    names = vars(sr_monitor)["__all__"]
    assert names == [
        *("InputError", "Monitor", "MonitorConfig", "Paths", "PromptSet", "Record", "Slices"),
        *("TensorBoardWriter", "at", "budget", "every", "log_spaced", "measure_paths"),
        "measure_slices",
    ]
    assert all(getattr(sr_monitor, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="no attribute 'measure'"):
        sr_monitor.measure  # type: ignore[attr-defined]  # noqa: B018
