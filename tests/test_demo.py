"""The demo: a small model, trained here and watched."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sr_monitor.cli import main
from sr_monitor.demo import DemoPlan, Moment, docstrings, python_texts, run_demo
from sr_monitor.errors import InputError
from sr_monitor.measurement import Request

TINY = DemoPlan(
    steps=(0, 2, 6),
    batch_size=4,
    window=16,
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    request=Request(num_pairs=4, num_steps=5, num_slices=1, slice_resolution=4),
)


def no_bar(_: str) -> Callable[[int, int], None]:
    """Progress that nobody looks at."""
    return lambda done, total: None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def moments(folder: Path) -> list[Moment]:
    before = torch.get_rng_state()
    found = run_demo(folder, TINY, no_bar)
    assert torch.equal(torch.get_rng_state(), before)
    return found


def numbers_of(moment: Moment) -> list[float]:
    return [moment.loss, *moment.measurement.paths.max_slope.tolist()]


def test_there_is_enough_text_in_any_python() -> None:
    assert sum(map(len, python_texts())) > 300_000
    assert sum(map(len, docstrings())) > 300_000


def test_the_model_is_measured_at_the_steps_and_learns(moments: list[Moment]) -> None:
    assert [moment.step for moment in moments] == [0, 2, 6]
    assert moments[0].loss > moments[-1].loss
    assert moments[0].row()[0] == "0"
    first, last = moments[0].measurement.paths, moments[-1].measurement.paths
    assert not torch.equal(first.distance, last.distance)


def test_every_moment_and_a_film_are_left(moments: list[Moment], folder: Path) -> None:
    for moment in moments:
        step = folder / f"step-{moment.step:09d}"
        numbers = json.loads((step / "measurement.json").read_text())
        assert numbers["step"] == moment.step
        assert numbers["max_slope"]["median"] == moment.measurement.slope.median
        assert (step / "curves.png").is_file()
    with Image.open(folder / "film-0.png") as film:
        assert film.width > 2.5 * film.height


@pytest.mark.usefixtures("moments")
def test_the_saved_model_gives_the_last_moment_again(
    folder: Path, tmp_path: Path, moments: list[Moment]
) -> None:
    last = moments[-1].measurement
    prompts = str(folder / "step-000000006" / "prompts.json")
    options = ["--prompts", prompts, "--num-pairs", "4", "--num-steps", "5", "--num-slices", "0"]
    command = ["measure", str(folder / "model"), "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command, *options]) == 0
    numbers = json.loads((tmp_path / "measurement.json").read_text())
    assert numbers["pairs"]["max_slope"] == pytest.approx(last.paths.max_slope.tolist(), rel=1e-5)


def test_the_command_gives_the_same_numbers_again(
    moments: list[Moment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again: list[Moment] = []

    def tiny(folder: Path, _: DemoPlan, bar: Any) -> list[Moment]:
        again.extend(run_demo(folder, TINY, bar))
        return again

    monkeypatch.setattr("sr_monitor.cli.run_demo", tiny)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert [numbers_of(moment) for moment in again] == [numbers_of(moment) for moment in moments]
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows if row[0].isdigit()] == ["0", "2", "6"]
    assert f" measure {tmp_path / 'model'}\n" in out
    assert (tmp_path / "film-0.png").is_file()


def test_a_folder_that_cannot_be_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert main(["demo", "--out", str(tmp_path / "taken")]) == 2
    assert "is not a folder; name another" in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"the demo needs .* 'sr-monitor\[transformers\]'"):
        run_demo(tmp_path, TINY, no_bar)


@pytest.mark.slow
def test_regions_form(tmp_path: Path) -> None:
    slopes = [moment.measurement.slope.median for moment in run_demo(tmp_path, DemoPlan(), no_bar)]
    assert slopes[0] < 1.15
    assert slopes[-1] > 1.35
