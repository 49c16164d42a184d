"""What of `make gpu` can be tested on a CPU."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import PARTS, ROOT, main
from tests.gpu.costs import SHAPES, costs
from tests.gpu.report import Found, has_passed, to_markdown

_ABSENT = ("beartype", "datasets", "pytest_cov", "pytest_timeout", "typer", "xdist")
"""What a machine with a GPU may lack; jaxtyping has a stand-in."""


def test_without_a_gpu_it_says_what_it_would_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert main([]) == 3
    said = capsys.readouterr().out
    assert all(name in said for name in PARTS)
    assert not list(tmp_path.iterdir())
    assert sum(PARTS.values()) < 9 * 60


@pytest.mark.slow
def test_costs_are_timed_and_reported() -> None:
    *_, found = costs(SHAPES["tiny"], deadline=math.inf)
    rows = found["measurements"]
    kinds = [(row["precision"], row["sampling"], *row["operations"]) for row in rows]
    assert kinds == [
        (precision, sampling, arithmetic)
        for precision, arithmetic in (("auto", "float32"), ("run", "bfloat16"))
        for sampling in ("grid", "adaptive")
    ]
    assert found["step"]["sequences"] == SHAPES["tiny"].most_sequences
    rows[0] |= {"ms": 300, "operations": {"float32": 0.05e12, "tf32": 0.01e12}, "peak_gb": 1.5}
    rows[2] = {"sampling": "grid", "precision": "run", "error": "a | b"}
    found |= {"rates": {"float32": 1e12, "tf32": 1e12}, "status": "stopped at its 90 s"}
    found["step"] = {"sequences": 8, "ms": 200, "fills_memory": True}
    table = [line.split(" | ")[1:] for line in to_markdown({"tiny": found}).splitlines()]
    cells = [row for row in table if row and row[0] not in ("sampling", "---")]
    assert cells[0][2:] == [
        "float32, tf32",
        rows[0]["engine"],
        "300",
        "0.20",
        "1.50",
        "200 (8)",
        "0.30%",
        "150 |",
    ]
    assert cells[2][2] == "failed: a / b"
    assert cells[4][0] == "stopped at its 90 s"


def test_checks_pass_only_if_all_ran_and_none_failed() -> None:
    passed: Found = {"status": "complete", "passed": 3, "failed": []}
    assert has_passed(passed)
    changes: list[Found] = [{"status": "stopped"}, {"passed": 0}, {"failed": ["one"]}]
    for change in changes:
        bad = passed | change
        assert not has_passed(bad)
        assert bad["status"] in to_markdown({"checks": bad})


@pytest.mark.slow  # starts Python three times; the tests above run the same code
def test_the_whole_runs_on_a_bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in _ABSENT)]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'tests/gpu/standin'}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    parts = {"checks": 100.0, "OLMo-1B": 0.1, "tiny": 100.0}
    monkeypatch.setattr("tests.gpu.__main__.PARTS", parts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main([]) == 1, "no check could run"
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    log = (tmp_path / "out" / "gpu.log").read_text()
    statuses = [part["status"] for part in found.values()]
    assert statuses == ["complete", "stopped at its 0 s", "complete"], log
    assert sum(found["checks"]["skipped"].values()) == 6
    assert len(found["tiny"]["measurements"]) == 4
    assert "| tiny | grid | auto | float32 |" in (tmp_path / "out" / "gpu.md").read_text()
