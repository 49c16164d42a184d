"""The demo: a small model, trained here and watched."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from sr_monitor import Record
from sr_monitor.cli import main
from sr_monitor.cli.demo_training import DemoPlan, Framework, run_demo
from sr_monitor.errors import InputError
from sr_monitor.probes.measuring import no_bar
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.prompts.choose import help_topics
from sr_monitor.results.record import list_records
from sr_monitor.watch.config import MonitorConfig

Demo = tuple[Framework, Path, str]
TINY = DemoPlan(
    steps=(0, 2, 6),
    batch_size=4,
    warm_up=1,
    window=16,
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    config=MonitorConfig(num_pairs=4, num_steps=5, num_slices=1, slice_resolution=4),
)


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("lightning", marks=pytest.mark.slow)]
)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The folder that the command left, with a tiny plan, and what it said."""
    folder, before = tmp_path_factory.mktemp(request.param), torch.get_rng_state()
    option = ["--lightning"] if request.param == "lightning" else []
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        _little_text(patch)
        patch.setattr("sr_monitor.cli.demo_training.DemoPlan", lambda: TINY)
        assert main(["demo", "--out", str(folder), *option]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    return request.param, folder, out.getvalue()


def _little_text(patch: pytest.MonkeyPatch) -> None:
    """Take a fifth of the text: most of a tiny demo's time goes into tokenising it."""
    patch.setattr("sr_monitor.cli.demo_training.help_topics", lambda: help_topics()[:20])


def test_a_model_its_measurements_and_pictures_are_left(demo: Demo, tmp_path: Path) -> None:
    _, folder, out = demo
    records = [Record.load(path) for path in list_records(folder)]
    assert [record.step for record in records] == [0, 2, 6]
    assert records[-1].tokens == 6 * TINY.batch_size * TINY.window
    assert not torch.equal(records[0].paths.distance, records[-1].paths.distance)
    with Image.open(folder / "film-0.png") as film, Image.open(folder / "curves.png") as curves:
        assert film.width > 2.5 * film.height
        assert curves.width > curves.height
    assert len(list((folder / "stable_regions").glob("events.out.tfevents.*"))) == 1
    assert f" measure {folder / 'model'}\n" in out
    assert out.endswith(f"tensorboard --logdir {folder}\n")
    prompts = str(folder / "stable_regions" / "prompts.json")
    options = ["--prompts", prompts, "--num-pairs", "4", "--num-steps", "5", "--num-slices", "0"]
    command = ["measure", str(folder / "model"), "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command, *options]) == 0
    numbers = json.loads((tmp_path / "measurement.json").read_text())
    assert numbers["pairs"]["max_slope"] == records[-1].paths.max_slope.tolist()


def test_the_same_training_gives_the_same_numbers(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework, folder, out = demo
    _little_text(monkeypatch)
    records, losses = run_demo(tmp_path, TINY, framework, no_bar)
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[1] > losses[6]
    printed = [line.split() for line in out.splitlines() if line.split()[0].isdigit()]
    for record, path, row in zip(records, list_records(folder), printed, strict=True):
        assert torch.equal(record.paths.distance, Record.load(path).paths.distance)
        median = record.scalars[PathsProbe.MAX_SLOPE_MEDIAN.name]
        loss = [f"{losses[record.step]:.2f}"] if record.step else []
        assert row[:-3] == [str(record.step), *loss, f"{median:.3f}"]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"the demo needs .* 'sr-monitor\[transformers\]'"):
        run_demo(tmp_path, TINY, framework, no_bar)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["transformers", "lightning"])
def test_regions_form(tmp_path: Path, framework: Framework) -> None:
    records, _ = run_demo(tmp_path, DemoPlan(), framework, no_bar)
    slopes = [record.scalars[PathsProbe.MAX_SLOPE_MEDIAN.name] for record in records]
    assert slopes[0] < 1.15
    assert slopes[-1] > 2.5
