"""What a real TensorBoard shows of a real run, asked over its own HTTP interface."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sr_monitor import Monitor, MonitorConfig, PromptSet, Record, TensorBoardWriter, at
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.results.record import list_records
from sr_monitor.results.run_keys import RUN_KEYS
from tests.zoo import build

NAME = "stable_regions/"
KEYS = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
STEPS = [0, 1, 2, 3, 4]
PICTURE_STEPS = [0, 1, 2, 4]


def train(folder: Path) -> None:
    """A few updates of a tiny model, watched."""
    torch.manual_seed(0)
    model = build("llama").model
    ids = torch.arange(36).reshape(6, 6) % 23
    monitor = Monitor(
        PromptSet.from_token_ids(ids),
        MonitorConfig(num_pairs=5, num_steps=7, num_slices=1, slice_resolution=5),
        writers=[TensorBoardWriter(folder)],
        schedule=at(STEPS),
        log_dir=folder,
        on_error="raise",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in STEPS:
        monitor.step(model, step, tokens=36 * step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.close()


class Board:
    """A running TensorBoard."""

    def __init__(self, url: str) -> None:
        self.url = url

    def bytes(self, path: str, **query: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}data/{path}?{urllib.parse.urlencode(query)}") as it:
            content: bytes = it.read()
            return content

    def json(self, path: str, **query: str) -> Any:
        return json.loads(self.bytes(path, **query))

    def steps(self, plugin: str, tag: str) -> list[int]:
        if plugin == "images":
            found = self.json("plugin/images/images", run=".", tag=tag, sample="0")
            return [image["step"] for image in found]
        found = self.json(f"plugin/{plugin}/{plugin}", run=".", tag=tag)
        return [entry[1] for entry in found]


@contextmanager
def tensorboard(folder: Path) -> Iterator[Board]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    options = ["--host", "127.0.0.1", "--port", "0", "--samples_per_plugin", "images=100"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stderr)
            yield Board(next(match[0] for match in found if match))
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train(folder := tmp_path_factory.mktemp("run"))
    return folder


@pytest.fixture(scope="module")
def board(folder: Path) -> Iterator[Board]:
    with tensorboard(folder) as board:
        for _ in range(100):  # it is there before it has read everything
            if board.json("plugin/images/tags"):
                break
            time.sleep(0.2)
        yield board


def test_every_name_is_served_with_its_kind(board: Board) -> None:
    plugins = {"scalar": "scalars", "histogram": "histograms", "text": "text"}
    served = {
        (plugin, tag.removesuffix("/text_summary"))
        for plugin in {*plugins.values(), "images"}
        for tag in board.json(f"plugin/{plugin}/tags")["."]
    }
    expected = {(plugins.get(key.kind, "images"), key.numbered(0).name) for key in KEYS}
    assert served == expected


def test_scalars_are_the_records_at_every_step(board: Board, folder: Path) -> None:
    records = [Record.load(path) for path in list_records(folder)]
    assert [record.step for record in records] == STEPS
    for name in (f"{NAME}max_slope/median", f"{NAME}tokens", f"{NAME}share_of_time"):
        served = board.json("plugin/scalars/scalars", run=".", tag=name)
        assert [entry[1] for entry in served] == STEPS
        values = [record.scalars[name] for record in records]
        assert [entry[2] for entry in served] == pytest.approx(values, rel=1e-6)


def test_histograms_come_at_every_step(board: Board) -> None:
    assert board.steps("histograms", f"{NAME}max_slope") == STEPS


def test_pictures_come_whenever_the_step_has_doubled_and_can_be_opened(board: Board) -> None:
    for name in ("curves", "slice/0", "film/0", "animation/0"):
        images = board.json("plugin/images/images", run=".", tag=NAME + name, sample="0")
        assert [image["step"] for image in images] == PICTURE_STEPS
        query = urllib.parse.parse_qs(images[-1]["query"])
        content = board.bytes(
            "plugin/images/individualImage", **{k: v[0] for k, v in query.items()}
        )
        with Image.open(io.BytesIO(content)) as image:
            num_frames = len(PICTURE_STEPS) if name == "animation/0" else 1
            assert image.format == ("PNG" if num_frames == 1 else "GIF")
            assert getattr(image, "n_frames", 1) == num_frames


def test_the_slopes_are_one_chart_with_a_band(board: Board) -> None:
    (category,) = board.json("plugin/custom_scalars/layout")["category"]
    (series,) = category["chart"][0]["margin"]["series"]
    assert series == {
        "value": f"{NAME}max_slope/median",
        "lower": f"{NAME}max_slope/q25",
        "upper": f"{NAME}max_slope/q75",
    }


def test_the_prompts_can_be_read(board: Board) -> None:
    (text,) = board.json("plugin/text/text", run=".", tag=f"{NAME}prompts/text_summary")
    assert "0 1 2 3 4 5" in text["text"]
    assert "6 7 8 9 10 11" in text["text"]
