"""The demo: a small model, trained here and watched."""

import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from sr_monitor import cli
from sr_monitor.cli.demo_training import DemoPlan, Framework, Outcome, run_demo
from sr_monitor.errors import InputError
from sr_monitor.probes.measuring import no_bar
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.statistics import summarise
from sr_monitor.prompts.python_corpus import docstrings, python_texts
from sr_monitor.watch.config import MonitorConfig

TINY = DemoPlan(
    steps=(0, 2, 6),
    batch_size=4,
    window=16,
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    config=MonitorConfig(num_pairs=4, num_steps=5, num_slices=1, slice_resolution=4),
)
FRAMEWORKS: tuple[Framework, ...] = get_args(Framework)


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    name: Framework = request.param
    return name


@pytest.fixture(scope="module")
def folder(framework: Framework, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(framework)


@pytest.fixture(scope="module")
def outcome(folder: Path, framework: Framework) -> Outcome:
    before = torch.get_rng_state()
    found = run_demo(folder, TINY, framework, no_bar)
    assert torch.equal(torch.get_rng_state(), before)
    return found


def slopes_of(outcome: Outcome) -> list[list[float]]:
    return [record.paths.max_slope.tolist() for record in outcome.records]


def test_there_is_enough_text_in_any_python() -> None:
    assert sum(map(len, python_texts())) > 300_000
    assert sum(map(len, docstrings())) > 300_000


def test_the_model_is_measured_at_the_steps_and_learns(outcome: Outcome) -> None:
    assert [record.step for record in outcome.records] == [0, 2, 6]
    assert sorted(outcome.losses) == [1, 2, 3, 4, 5, 6]
    assert outcome.losses[1] > outcome.losses[6]
    assert outcome.records[-1].tokens == 6 * TINY.batch_size * TINY.window
    first, last = outcome.records[0].paths, outcome.records[-1].paths
    assert not torch.equal(first.distance, last.distance)


@pytest.mark.usefixtures("outcome")
def test_a_film_and_the_curves_are_left(folder: Path) -> None:
    with Image.open(folder / "film-0.png") as film:
        assert film.width > 2.5 * film.height
    with Image.open(folder / "curves.png") as curves:
        assert curves.width > curves.height
    assert len(list((folder / "stable_regions").glob("events.out.tfevents.*"))) == 1


def test_the_saved_model_gives_the_last_record_again(
    folder: Path, tmp_path: Path, outcome: Outcome
) -> None:
    prompts = str(folder / "stable_regions" / "prompts.json")
    options = ["--prompts", prompts, "--num-pairs", "4", "--num-steps", "5", "--num-slices", "0"]
    command = ["measure", str(folder / "model"), "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main([*command, *options]) == 0
    numbers = json.loads((tmp_path / "measurement.json").read_text())
    assert numbers["pairs"]["max_slope"] == pytest.approx(slopes_of(outcome)[-1], rel=1e-5)


def test_the_command_gives_the_same_numbers_again(
    outcome: Outcome,
    framework: Framework,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again: list[Outcome] = []

    def tiny(folder: Path, _: DemoPlan, framework: Framework, bar: Any) -> Outcome:
        again.append(run_demo(folder, TINY, framework, bar))
        return again[0]

    monkeypatch.setattr("sr_monitor.cli.demo_training.run_demo", tiny)
    option = ["--lightning"] if framework == "lightning" else []
    assert cli.main(["demo", "--out", str(tmp_path), *option]) == 0
    assert slopes_of(again[0]) == slopes_of(outcome)
    slopes = summarise(outcome.records[0].paths.max_slope, outcome.records[0].paths.kept)
    assert again[0].losses == outcome.losses
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"sr-monitor: results in {tmp_path / 'stable_regions'}; to watch: "
        f"tensorboard --logdir {tmp_path}"
    ]
    losses = [f"{outcome.losses[step]:.2f}" for step in (2, 6)]
    rows = [line.split() for line in out.splitlines()]
    rows = [row[:2] for row in rows if row[0].isdigit()]
    assert rows == [["0", f"{slopes.median:.3f}"], ["2", losses[0]], ["6", losses[1]]]
    assert f" measure {tmp_path / 'model'}\n" in out
    assert out.endswith(f"tensorboard --logdir {tmp_path}\n")


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"the demo needs .* 'sr-monitor\[transformers\]'"):
        run_demo(tmp_path, TINY, "transformers", no_bar)


@pytest.mark.slow
def test_regions_form(tmp_path: Path, framework: Framework) -> None:
    records = run_demo(tmp_path, DemoPlan(), framework, no_bar).records
    slopes = [record.scalars[PathsProbe.MAX_SLOPE_MEDIAN.name] for record in records]
    assert slopes[0] < 1.15
    assert slopes[-1] > 1.4
