"""What a real TensorBoard serves over its own HTTP interface; `test_writers` reads its files."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sr_monitor import TensorBoardWriter
from sr_monitor.display.album import Album
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.results.run_keys import RUN_KEYS
from tests.made import PROMPTS, make_record

NAME = "stable_regions/"
PLUGINS = {"scalar": "scalars", "histogram": "histograms", "text": "text"}
PICTURE_STEPS = [0, 1, 2, 4]


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a running TensorBoard that has read everything."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    options = ["--host", "127.0.0.1", "--port", "0", "--samples_per_plugin", "images=100"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stderr)
            url = f"{next(match[0] for match in found if match)}data/plugin/"
            while not served(f"{url}images/tags"):
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def served(path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{path}?{urllib.parse.urlencode(query)}") as answer:
        content = answer.read()
    return content if "individual" in path else json.loads(content)


def test_every_name_is_served_with_its_kind_at_its_steps(tmp_path: Path) -> None:
    timed = {"seconds": 1.0, "share_of_time": 0.5, "failures": 0}
    records = [make_record(step, metadata=timed) for step in range(5)]
    with closing(TensorBoardWriter(tmp_path)) as writer:
        album = Album([writer])
        album.introduce(PROMPTS, 0)
        for record in records:
            album.show(record, prompts=PROMPTS)
    with tensorboard(tmp_path) as url:
        for key in (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS):
            plugin, name = PLUGINS.get(key.kind, "images"), key.numbered(0).name
            tag = f"{name}/text_summary" if plugin == "text" else name
            found = served(f"{url}{plugin}/{plugin}", run=".", tag=tag, sample="0")
            if plugin == "text":
                assert "prompt 0" in found[0]["text"]
            elif plugin == "images":
                assert [image["step"] for image in found] == PICTURE_STEPS
                query = dict(urllib.parse.parse_qsl(found[-1]["query"]))
                picture = Image.open(io.BytesIO(served(f"{url}images/individualImage", **query)))
                num_frames = len(PICTURE_STEPS) if key.kind == "animation" else 1
                assert getattr(picture, "n_frames", 1) == num_frames
            else:
                assert [entry[1] for entry in found] == [0, 1, 2, 3, 4]
            if plugin == "scalars":
                values = [record.scalars[name] for record in records]
                assert [entry[2] for entry in found] == pytest.approx(values, rel=1e-6)
        (category,) = served(f"{url}custom_scalars/layout")["category"]
        (series,) = category["chart"][0]["margin"]["series"]
        edges = {"value": "median", "lower": "q25", "upper": "q75"}
        assert series == {each: f"{NAME}max_slope/{edge}" for each, edge in edges.items()}
