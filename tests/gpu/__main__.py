"""Checks everything that needs a GPU, and says what a measurement costs there; `make gpu`.

It runs from the checkout with any Python that has torch and transformers; what else is missing is
skipped by name. Each part has a process and a time limit of its own, so one that hangs or breaks
the device costs the others nothing. The report is gpu.md and gpu.json in $OUT (./gpu-report).

    python -m tests.gpu                   # everything; the exit status says whether checks passed
    python -m tests.gpu tiny tiny.json    # one part: checks, OLMo-1B, OLMo-7B, tiny (on a CPU)
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
CHECKS = "checks"
PARTS = {CHECKS: 260.0, "OLMo-1B": 90.0, "OLMo-7B": 170.0}
"""The parts, and the seconds each may take: below nine minutes in all."""
_NO_GPU = 3


def main(arguments: list[str]) -> int:
    """Run everything, or one part; return the exit status."""
    if arguments:
        _run_here(arguments[0], Path(arguments[1]))
        return 0
    if not _has_gpu():
        parts = ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in PARTS.items())
        _say("No CUDA device, or no torch: nothing is run. On a machine with a GPU this would")
        _say("check exactness, precision, training, memory and sharding on it, and time a default")
        _say(f"measurement beside training steps: {parts}. gpu.md and gpu.json go to $OUT.")
        return _NO_GPU
    return _run_all(Path(os.environ.get("OUT") or "gpu-report").absolute())


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _run_all(out: Path) -> int:
    from tests.gpu.report import has_passed, to_markdown

    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.log").unlink(missing_ok=True)
    found: dict[str, Any] = {}
    for name, seconds in PARTS.items():
        found[name] = _run_apart(name, seconds, out / "gpu.log")
        _say(f"{name}: {found[name]['status']} after {found[name]['seconds']:.0f} s")
        # After each part, so that a run that is stopped leaves what it found.
        (out / "gpu.json").write_text(json.dumps(found, indent=1))
        (out / "gpu.md").write_text(to_markdown(found))
    _say(to_markdown(found))
    return 0 if has_passed(found[CHECKS]) else 1


def _run_apart(name: str, seconds: float, log: Path) -> dict[str, Any]:
    """Run one part in a process of its own, and return what it found, whole or not."""
    began = time.monotonic()
    with TemporaryDirectory() as folder, log.open("a") as stream:
        file = Path(folder, "found.json")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.gpu", name, str(file)],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            )
            status = f"failed with exit status {done.returncode}" if done.returncode else "complete"
        except subprocess.TimeoutExpired:
            status = f"stopped at its {seconds:.0f} s"
        found = json.loads(file.read_text()) if file.exists() else {}
    return {**found, "status": status, "seconds": time.monotonic() - began}


def environment() -> dict[str, str]:
    """Return the environment of a part: our modules, the first GPU, no network, no plugins."""
    given = os.environ
    paths = [str(ROOT), str(ROOT / "integrations"), *filter(None, [given.get("PYTHONPATH")])]
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUDA_VISIBLE_DEVICES": given.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        # Deterministic algorithms ask for this before the first matrix product.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


def _run_here(name: str, file: Path) -> None:
    """Run one part, and keep what it found in `file` whenever there is more."""
    if importlib.util.find_spec("jaxtyping") is None:
        sys.path.append(str(Path(__file__).parent / "standin"))
    from sr_monitor.files import write_whole

    def keep(found: dict[str, Any]) -> None:
        write_whole(file, json.dumps(found).encode())

    if name == CHECKS:
        from tests.gpu.report import run_checks

        run_checks(keep)
        return
    from tests.gpu.costs import SHAPES, costs

    deadline = time.monotonic() + 0.8 * PARTS.get(name, 60.0)
    for found in costs(SHAPES[name], deadline=deadline):
        keep(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
