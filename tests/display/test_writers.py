"""One contract for all writers, read back by other code; then what is particular to each."""

import html
import importlib
import io
import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sr_monitor.display.writers.base import Writer, encode_gif
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.errors import InputError
from sr_monitor.probes import keys

_PROCESSING = "tensorboard.backend.event_processing"
NAN, INF = math.nan, math.inf
WIDTH, SLOPES, CURVES = keys.WIDTH.name, keys.MAX_SLOPE.name, keys.CURVES.name
MOVING, PROMPTS = keys.ANIMATION.of(2), keys.PROMPTS.name
MARKDOWN = 'A | B <b>\n\n1. "ü" & `$x$`'


@dataclass
class Found:
    """What was written, as it is read back: by name, pairs of a step and a value."""

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    histograms: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # number of values
    images: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    animations: dict[str, list[tuple[int, list[Any]]]] = field(default_factory=dict)
    texts: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def put(self, kind: str, name: str, step: int, value: Any) -> None:
        getattr(self, f"{kind}s").setdefault(name, []).append((step, value))


def picture(height: int = 7, width: int = 11, dark: bool = False) -> Any:
    """A picture as `figures.rasterise` gives it: a view that cannot be written to."""
    rgba = np.random.default_rng(0).integers(0, 2 if dark else 256, (height, width, 4), np.uint8)
    return np.frombuffer(rgba.tobytes(), np.uint8).reshape(rgba.shape)[..., :3]


def film(count: int = 3) -> Any:
    """Frames of one colour each, which no palette changes."""
    colors = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250)], np.uint8)[:count]
    return np.broadcast_to(colors[:, None, None], (count, 6, 9, 3))


def pixels(content: bytes) -> Any:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def gif_frames(content: bytes) -> list[Any]:
    gif: Any = Image.open(io.BytesIO(content))
    assert gif.format == "GIF"
    frames = []
    for index in range(gif.n_frames):
        gif.seek(index)
        frames.append(np.array(gif.convert("RGB")))
    return frames


class Sink:
    """Where a writer writes: opens it, and reads back what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> Any:
        raise NotImplementedError

    def read(self) -> Found:
        raise NotImplementedError

    def end(self) -> None:
        pass


class MemorySink(Sink):
    def open(self) -> Any:
        self.writer = MemoryWriter()
        return self.writer

    def read(self) -> Found:
        made = self.writer
        return Found(
            scalars=made.scalars,
            histograms={k: [(s, len(v)) for s, v in got] for k, got in made.histograms.items()},
            images=dict(made.images),
            animations={k: [(s, list(v)) for s, v in got] for k, got in made.animations.items()},
            texts=made.texts,
        )


class JSONLSink(Sink):
    def open(self) -> Any:
        return JSONLWriter(self.folder / "two" / "deeper" / "log.jsonl")

    def read(self) -> Found:
        found, path = Found(), self.folder / "two" / "deeper" / "log.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
            value: Any = entry["value"]
            if entry["kind"] == "scalar" and value is None:
                value = NAN
            if entry["kind"] == "histogram":
                value = len(value)
            if entry["kind"] == "image":
                value = pixels((path.parent / value).read_bytes())
            if entry["kind"] == "animation":
                value = gif_frames((path.parent / value).read_bytes())
            found.put(entry["kind"], entry["name"], entry["step"], value)
        return found


class TensorBoardSink(Sink):
    def open(self) -> Any:
        return TensorBoardWriter(self.folder)

    def read(self) -> Found:
        found, events = Found(), accumulate(self.folder)
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found.put("scalar", name, event.step, event.value)
        for name in events.Tags()["histograms"]:
            for event in events.Histograms(name):
                found.put("histogram", name, event.step, int(event.histogram_value.num))
        for name in events.Tags()["images"]:
            for event in events.Images(name):
                self._read_image(found, name, event)
        for name in events.Tags()["tensors"]:
            if name.endswith("/text_summary"):
                for event in events.Tensors(name):
                    [text] = event.tensor_proto.string_val
                    found.put("text", name.removesuffix("/text_summary"), event.step, text.decode())
        return found

    def _read_image(self, found: Found, name: str, event: Any) -> None:
        content = event.encoded_image_string
        shape = pixels(content).shape
        assert (event.height, event.width, 3) == shape
        if Image.open(io.BytesIO(content)).format == "GIF":
            found.put("animation", name, event.step, gif_frames(content))
        else:
            found.put("image", name, event.step, pixels(content))


class SummaryWriterSink(TensorBoardSink):
    def open(self) -> Any:
        self.existing: Any = SummaryWriter(str(self.folder))
        return TensorBoardWriter(self.existing)

    def end(self) -> None:
        self.existing.close()


class WandbSink(Sink):
    """An offline run, read back from the file that it leaves."""

    def open(self) -> Any:
        reason = "wandb is not installed: pip install wandb"
        self.wandb: Any = pytest.importorskip("wandb", reason=reason)
        settings = self.wandb.Settings(console="off", silent=True, disable_git=True)
        self.run = self.wandb.init(
            mode="offline", dir=str(self.folder), project="x", settings=settings
        )
        return WandbWriter(self.run)

    def end(self) -> None:
        self.run.finish()
        self.wandb.teardown()  # its own process may still be writing until then

    def rows(self, kind: str = "history") -> Iterator[Any]:
        """The records of a kind in the run's file: blocks of 32 KiB, each piece with a header."""
        records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
        [path] = self.folder.glob("wandb/offline-run-*/*.wandb")
        content, place, record = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            _, length, piece = struct.unpack("<IHB", content[place : place + 7])
            record += content[place + 7 : place + 7 + length]
            place += 7 + length
            if piece in (1, 4):  # whole, or the last of several
                parsed = records.Record.FromString(record)
                record = b""
                if parsed.WhichOneof("record_type") == kind:
                    yield getattr(parsed, kind)

    def read(self) -> Found:
        found = Found()
        [files] = self.folder.glob("wandb/offline-run-*/files")
        for row in self.rows():
            values: dict[str, Any] = {}
            for item in row.item:
                name, *part = item.nested_key or [item.key]
                value: Any = json.loads(item.value_json)
                if part:
                    values.setdefault(name, {})[part[0]] = value
                else:
                    values[name] = value
            step = values.pop(keys.STEP, None)
            for name, value in values.items():
                if name.startswith(keys.PREFIX):
                    assert step is not None
                    self._put(found, name, step, value, files)
        return found

    def _put(self, found: Found, name: str, step: int, value: Any, files: Path) -> None:
        if not isinstance(value, dict):
            found.put("scalar", name, step, float(value))
            return
        kind = value["_type"]
        if kind == "histogram":
            found.put("histogram", name, step, sum(value["values"]))
        elif kind == "image-file":
            content = (files / value["path"]).read_bytes()
            assert pixels(content).shape == (value["height"], value["width"], 3)
            found.put("image", name, step, pixels(content))
        elif kind == "video-file":
            found.put("animation", name, step, gif_frames((files / value["path"]).read_bytes()))
        else:
            page = (files / value["path"]).read_text(encoding="utf-8")
            text = page[page.index("<pre>") + 5 : page.index("</pre>")]
            assert "<" not in text
            found.put("text", name, step, html.unescape(text))


def accumulate(folder: Path) -> Any:
    limits = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    reader: Any = importlib.import_module(f"{_PROCESSING}.event_accumulator")
    return reader.EventAccumulator(str(folder), size_guidance=limits).Reload()


SINKS = [MemorySink, JSONLSink, TensorBoardSink, SummaryWriterSink, WandbSink]


@pytest.fixture(params=SINKS, ids=lambda sink: sink.__name__)
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Sink:
    made: Sink = request.param(tmp_path)
    return made


def write_everything(writer: Writer, step: int) -> None:
    writer.scalar(WIDTH, 0.25 + step, step)
    writer.histogram(SLOPES, torch.tensor([1.0, NAN, 2.0, INF, 3.5, -INF]), step)
    writer.image(CURVES, picture(), step)
    writer.animation(MOVING, film(), step)
    writer.text(PROMPTS, f"{MARKDOWN} {step}", step)


def test_what_was_written_can_be_read_back(sink: Sink) -> None:
    writer = sink.open()
    assert isinstance(writer, Writer)
    for step in (0, 500):
        write_everything(writer, step)
        writer.flush()
    writer.flush()
    writer.close()
    writer.close()
    sink.end()
    found = sink.read()
    assert found.scalars == {WIDTH: [(0, 0.25), (500, 500.25)]}
    assert found.histograms == {SLOPES: [(0, 3), (500, 3)]}
    assert found.texts == {PROMPTS: [(0, f"{MARKDOWN} 0"), (500, f"{MARKDOWN} 500")]}
    assert (list(found.images), list(found.animations)) == ([CURVES], [MOVING])
    for step, (found_step, image) in zip((0, 500), found.images[CURVES], strict=True):
        assert step == found_step
        np.testing.assert_array_equal(image, picture())
    for step, (found_step, frames) in zip((0, 500), found.animations[MOVING], strict=True):
        assert step == found_step
        np.testing.assert_array_equal(frames, film())


def test_odd_values(sink: Sink) -> None:
    """Nothing finite makes no histogram, NaN is a number, almost black stays almost black."""
    writer = sink.open()
    writer.scalar(WIDTH, NAN, 3)
    writer.histogram(SLOPES, torch.full((4,), NAN), 3)
    writer.histogram(SLOPES, torch.empty(0), 3)
    writer.histogram("stable_regions/one", torch.ones(1), 3)
    writer.image(CURVES, picture(1, 300, dark=True), 3)
    writer.animation(MOVING, film(count=1), 3)
    writer.close()
    sink.end()
    found = sink.read()
    [(step, value)] = found.scalars[WIDTH]
    assert step == 3
    assert math.isnan(value)
    assert found.histograms == {"stable_regions/one": [(3, 1)]}
    [(_, image)] = found.images[CURVES]
    np.testing.assert_array_equal(image, picture(1, 300, dark=True))
    [(_, frames)] = found.animations[MOVING]
    np.testing.assert_array_equal(frames, film(count=1))


def test_nothing_written_and_closed_twice(sink: Sink) -> None:
    writer = sink.open()
    writer.flush()
    writer.close()
    writer.close()
    sink.end()


def test_flushed_is_there_without_a_close(sink: Sink) -> None:
    writer = sink.open()
    write_everything(writer, 1)
    writer.flush()
    if isinstance(sink, WandbSink):
        sink.end()
    assert sink.read().scalars == {WIDTH: [(1, 1.25)]}
    writer.close()
    sink.end()


def test_memory_keeps_what_it_got_and_not_what_became_of_it() -> None:
    writer = MemoryWriter()
    values, rgb, frames = torch.ones(2), np.ones((2, 2, 3), np.uint8), np.array(film())
    writer.histogram(SLOPES, values, 1)
    writer.image(CURVES, rgb, 1)
    writer.animation(MOVING, frames, 1)
    for changed in (values, rgb, frames):
        changed[:] = 0
    assert writer.histograms[SLOPES][0][1].tolist() == [1, 1]
    assert writer.images[CURVES][0][1].min() == 1
    np.testing.assert_array_equal(writer.animations[MOVING][0][1], film())
    assert writer.names == {SLOPES, CURVES, MOVING}
    assert (writer.num_flushes, writer.closed) == (0, False)
    writer.flush()
    writer.close()
    assert (writer.num_flushes, writer.closed) == (1, True)


def test_a_gif_rests_on_its_last_frame_and_runs_for_ever() -> None:
    gif: Any = Image.open(io.BytesIO(encode_gif(film())))
    durations = []
    for index in range(gif.n_frames):
        gif.seek(index)
        durations.append(gif.info["duration"])
    assert durations == [500, 500, 2000]
    assert gif.info["loop"] == 0


def test_a_gif_keeps_the_colours_of_a_slice() -> None:
    """Smooth colour in all directions, the worst case for 256 colours."""
    ramp = np.linspace(0, 255, 41).astype(np.uint8)
    one = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1, None]), axis=-1)
    [frame] = gif_frames(encode_gif(one[None]))
    assert np.abs(frame.astype(int) - one).max() <= 24
    assert np.abs(frame.astype(int) - one).mean() <= 6


# JSON lines


def lines(path: Path) -> list[tuple[int, str]]:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry["step"], entry["name"]) for entry in entries]


def test_a_resumed_file_forgets_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = JSONLWriter(path)
    for step in (0, 500, 1000, 1500):
        writer.scalar(WIDTH, 1.0, step)
    with path.open("a") as file:
        file.write('{"step": 1500, "na')  # killed here
    resumed = JSONLWriter(path, purge_step=1000)
    assert lines(path) == [(0, WIDTH), (500, WIDTH)]
    resumed.scalar(WIDTH, 2.0, 1000)
    assert lines(path) == [(0, WIDTH), (500, WIDTH), (1000, WIDTH)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    JSONLWriter(path).scalar(WIDTH, 1.0, 0)
    inode = path.stat().st_ino
    JSONLWriter(path).scalar(WIDTH, 1.0, 500)
    assert path.stat().st_ino == inode  # nothing to drop, so not written anew
    with path.open("a") as file:
        file.write('{"st')
    JSONLWriter(path).scalar(WIDTH, 1.0, 1000)
    assert lines(path) == [(0, WIDTH), (500, WIDTH), (1000, WIDTH)]


@pytest.mark.parametrize(
    "content",
    [
        "loss 3.5\n",
        '{"loss": 1}\n',
        '{"step": 1}\n[]\n',
        "notes",
        '{"loss": 1',
        "5\n",
        '{"step": 1, "loss": 1}\n',
    ],
)
def test_a_file_of_others_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(
        InputError, match=r"JSONLWriter\('.*notes\.txt'\): the file holds '.*'"
    ) as no:
        JSONLWriter(path, purge_step=0)
    assert "\n" not in str(no.value)
    assert path.read_text() == content


def test_pictures_lie_beside_the_lines(tmp_path: Path) -> None:
    writer = JSONLWriter(tmp_path / "log.jsonl")
    writer.image(keys.SLICE.of(3), picture(), 500)
    writer.image("../../up", picture(), 500)
    writer.animation(MOVING, film(), 500)
    names = {file.name for file in (tmp_path / "log-images").iterdir()}
    assert names == {
        "stable_regions-slice-3-000000500.png",
        "..-..-up-000000500.png",
        "stable_regions-animation-2-000000500.gif",
    }
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("log.jsonl", "log-images"):
        shutil.move(tmp_path / name, moved / name)
    first = json.loads((moved / "log.jsonl").read_text().splitlines()[0])
    np.testing.assert_array_equal(pixels((moved / first["value"]).read_bytes()), picture())


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.jsonl"
    writer = JSONLWriter(path)
    writer.scalar(WIDTH, 1.0, 0)
    shutil.rmtree(path.parent)
    writer.image(CURVES, picture(), 500)
    shutil.rmtree(path.parent)
    writer.scalar(WIDTH, 1.0, 1000)
    assert lines(path) == [(1000, WIDTH)]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """The limit on the size of a file stops a write in its middle, as a full disk does."""
    code = (
        "import resource, sys\n"
        "from sr_monitor.display.writers.base import JSONLWriter\n"
        "writer = JSONLWriter(sys.argv[1])\n"
        "writer.scalar('a', 1.0, 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "try: writer.text('b', 'long' * 100, 1)\n"
        "except OSError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "writer.scalar('c', 1.0, 2)\n"
    )
    path = tmp_path / "log.jsonl"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert lines(path) == [(0, "a"), (2, "c")]


# TensorBoard


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    for purge_step, steps in ((None, (0, 500, 1000, 1500)), (1000, (1000, 1500))):
        writer = TensorBoardWriter(tmp_path, purge_step=purge_step)
        for step in steps:
            writer.scalar(WIDTH, float(purge_step or 0), step)
            writer.image(CURVES, picture(), step)
        writer.close()
    found = TensorBoardSink(tmp_path).read()
    assert found.scalars[WIDTH] == [(0, 0), (500, 0), (1000, 1000), (1500, 1000)]
    assert [step for step, _ in found.images[CURVES]] == [0, 500, 1000, 1500]


def margin_charts(folder: Path) -> list[Any]:
    events = accumulate(folder)
    if "custom_scalars__config__" not in events.Tags()["tensors"]:
        return []
    *_, event = events.Tensors("custom_scalars__config__")  # what TensorBoard takes, too
    layouts: Any = importlib.import_module("tensorboard.plugins.custom_scalar.layout_pb2")
    layout = layouts.Layout.FromString(event.tensor_proto.string_val[0])
    return [chart.margin.series[0] for part in layout.category for chart in part.chart]


def test_a_run_of_our_own_has_a_margin_chart_of_each_prefix(tmp_path: Path) -> None:
    with closing(TensorBoardWriter(tmp_path)) as writer:
        for step in range(3):
            writer.scalar(WIDTH, 1.0, step)
            writer.scalar("stable_regions/max_slope/median", 1.0, step)
            writer.scalar("layer-2/max_slope/median", 2.0, step)
    found = [(band.value, band.lower, band.upper) for band in margin_charts(tmp_path)]
    numbers = ("median", "q25", "q75")
    assert found == [
        tuple(f"{prefix}/max_slope/{number}" for number in numbers)
        for prefix in ("stable_regions", "layer-2")
    ]


def test_a_run_of_our_own_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    """The limit on the size of a file stops a write in its middle, as a full disk does."""
    code = (
        "import resource, sys, time\n"
        "from sr_monitor import TensorBoardWriter\n"
        "writer = TensorBoardWriter(sys.argv[1])\n"
        "def add(step, size):\n"
        "    writer.scalar('a', 1.0, step)\n"
        "    writer.text('b', 'long' * size, step)\n"
        "    writer.flush()\n"
        "add(0, 1)\n"
        "time.sleep(1)  # files of one second have one name\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
        "try: add(1, 1000); add(1, 1000)\n"
        "except OSError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "add(2, 1)\n"
        "writer.close()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    steps = [step for step, _ in TensorBoardSink(tmp_path).read().scalars["a"]]
    assert {0, 2} <= set(steps)


def test_a_writer_that_is_there_keeps_its_layout_and_stays_open(tmp_path: Path) -> None:
    owner: Any = SummaryWriter(str(tmp_path))
    writer = TensorBoardWriter(owner)
    writer.scalar(WIDTH, 1.0, 1)
    writer.close()
    assert TensorBoardSink(tmp_path).read().scalars == {WIDTH: [(1, 1)]}
    owner.add_scalar("loss", 2.0, 1)
    owner.close()
    writer.close()
    writer.flush()
    assert margin_charts(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1  # closed and opened again would make two
    assert TensorBoardSink(tmp_path).read().scalars == {WIDTH: [(1, 1)], "loss": [(1, 2)]}
    with pytest.raises(InputError, match=r"purge_step=5\): give `purge_step` to the SummaryWriter"):
        TensorBoardWriter(owner, purge_step=5)


@pytest.mark.parametrize("module", ["tensorboard", "torch.utils.tensorboard"])
def test_without_tensorboard_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(module)]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"run: pip install 'sr-monitor\[tensorboard\]'$"):
        TensorBoardWriter(tmp_path)


def test_without_wandb_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"run: pip install wandb$"):
        WandbWriter(object())


def test_importing_the_writers_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, sr_monitor.display.writers.tensorboard, sr_monitor.results.record\n"
        "heavy = ('tensorboard', 'torch.utils.tensorboard', 'wandb', 'PIL', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Weights & Biases


def test_a_run_of_wandb_loses_nothing_and_is_drawn_against_our_step(tmp_path: Path) -> None:
    """Its owner counts steps itself; a measurement takes one of them, however much it writes."""
    sink = WandbSink(tmp_path)
    writer = sink.open()
    for step in range(4):
        writer.scalar(WIDTH, float(step), 1000 * step)
        writer.scalar(keys.LOCATION.name, float(step), 1000 * step)
        writer.flush()
        sink.run.log({"loss": 10.0 + step}, step=step + 1)
    writer.scalar(WIDTH, 7.0, 5000)
    writer.scalar(WIDTH, 8.0, 6000)  # a new step alone sends what there is
    writer.scalar("layer-2/width", 9.0, 6000)  # of another callback
    writer.close()
    sink.end()
    losses = [
        json.loads(item.value_json)
        for row in sink.rows()
        for item in row.item
        if (item.key or item.nested_key[0]) == "loss"
    ]
    assert losses == [10.0, 11.0, 12.0, 13.0]
    curve = sink.read().scalars[WIDTH]
    assert curve == [(0, 0), (1000, 1), (2000, 2), (3000, 3), (5000, 7), (6000, 8)]
    axes = {metric.glob_name: metric.step_metric for metric in sink.rows("metric")}
    assert axes["stable_regions/*"] == axes["layer-2/*"] == "stable_regions/step"
