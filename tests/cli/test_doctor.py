"""The doctor: what is installed, what is missing, and a comparison that can fail."""

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sr_monitor.cli import doctor, main

Capture = pytest.CaptureFixture[str]


def test_a_healthy_machine(capsys: Capture) -> None:
    before = torch.get_rng_state()
    assert main(["doctor"]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["sr-monitor"].split()[1] == version("sr-monitor")
    assert torch.__version__ in lines["torch"]
    for extra in ("transformers", "lightning", "tensorboard", "replay", "ray"):
        assert version("tensorboard" if extra == "replay" else extra) in lines[extra]
    assert "self-check passed: the fast ways differ" in lines["self-check"]


def test_it_says_what_is_missing_or_too_old(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"ray": "", "transformers": "4.57.0"}
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, found(name)))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ray missing; needs ray>=2.40: pip install 'sr-monitor[ray]'" in out
    assert "transformers 4.57.0; needs transformers>=5: pip install 'sr-monitor[transfo" in out


def test_it_fails_where_the_fast_way_is_off(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, engine: str) -> SimpleNamespace:
        return SimpleNamespace(relative=torch.tensor([2e-5 if engine == "rows" else 0.0]))

    monkeypatch.setattr("sr_monitor.probes.paths.measure_paths", measured)
    assert main(["doctor"]) == 1
    assert "self-check FAILED: the fast ways differ from the plain one by 2.0e-05" in (
        capsys.readouterr().out
    )
