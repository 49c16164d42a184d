"""One contract for all writers, read back by other code; then what is particular to each."""

import html
import importlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sr_monitor.display.writers.base import Writer, encode_gif
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.display.writers.trackio import TrackioWriter
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.errors import InputError
from sr_monitor.probes.keys import STEP, Key, of_run
from tests.made import INF, NAN
from tests.memory_writer import MemoryWriter

NAME = "stable_regions/"
WIDTH, SLOPES, CURVES = f"{NAME}width", f"{NAME}max_slope", f"{NAME}curves"
MOVING, PROMPTS = f"{NAME}animation/2", f"{NAME}prompts"
MARKDOWN = 'A | B <b>\n\n1. "ü" & `$x$`'


# What is read back: how it was written, under which name, at which step, and what.
Entry = tuple[str, str, int, Any]


def picture(height: int = 7, width: int = 11, dark: bool = False) -> Any:
    """A picture as `drawing.rasterise` gives it: a view that cannot be written to."""
    rgba = np.random.default_rng(0).integers(0, 2 if dark else 256, (height, width, 4), np.uint8)
    return np.frombuffer(rgba.tobytes(), np.uint8).reshape(rgba.shape)[..., :3]


def film(count: int = 3) -> Any:
    """Frames of one colour each, which no palette changes."""
    colors = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250)], np.uint8)[:count]
    return np.broadcast_to(colors[:, None, None], (count, 6, 9, 3))


def seen(content: bytes) -> tuple[str, Any]:
    """A PNG's pixels, or a GIF's frames, after the kind of entry that it is."""
    image: Any = Image.open(io.BytesIO(content))
    frames = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        frames.append(np.array(image.convert("RGB")))
    return ("image", frames[0]) if image.format == "PNG" else ("animation", frames)


class Sink:
    """Where a writer writes: opens it, and reads back what it wrote."""

    writer: Any

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def end(self) -> None:
        pass


class MemorySink(Sink):
    def open(self) -> Any:
        return MemoryWriter()

    def read(self) -> Iterator[Entry]:
        for kind in ("scalar", "histogram", "image", "animation", "text"):
            for name, entries in getattr(self.writer, f"{kind}s").items():
                for step, value in entries:
                    yield kind, name, step, len(value) if kind == "histogram" else value


class JSONLSink(Sink):
    def open(self) -> Any:
        self.path = self.folder / "two" / "deeper" / "log.jsonl"
        return JSONLWriter(self.path)

    def read(self) -> Iterator[Entry]:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
            kind, value = entry["kind"], entry["value"]
            if kind in ("image", "animation"):
                kind, value = seen((self.path.parent / value).read_bytes())
            elif kind == "histogram":
                value = len(value)
            yield kind, entry["name"], entry["step"], NAN if value is None else value


class TensorBoardSink(Sink):
    def open(self) -> Any:
        return TensorBoardWriter(self.folder)

    def read(self) -> Iterator[Entry]:
        events = accumulate(self.folder)
        tags = events.Tags()
        for name in tags["scalars"]:
            yield from (("scalar", name, each.step, each.value) for each in events.Scalars(name))
        for name in tags["histograms"]:
            for each in events.Histograms(name):
                yield "histogram", name, each.step, int(each.histogram_value.num)
        for name in tags["images"]:
            for each in events.Images(name):
                kind, value = seen(each.encoded_image_string)
                assert np.shape(value)[-3:] == (each.height, each.width, 3)
                yield kind, name, each.step, value
        for name in tags["tensors"]:
            stem, _, is_text = name.partition("/text_summary")
            for each in events.Tensors(name) if not is_text and stem != name else ():
                yield "text", stem, each.step, each.tensor_proto.string_val[0].decode()


class WandbSink(Sink):
    """An offline run, read back from the file that it leaves."""

    def open(self) -> Any:
        self.wandb: Any = pytest.importorskip("wandb", reason="pip install wandb")
        settings = self.wandb.Settings(console="off", silent=True, disable_git=True)
        folder = str(self.folder)
        self.run = self.wandb.init(mode="offline", dir=folder, project="x", settings=settings)
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
            if (left := 32768 - place % 32768) < 7:
                place += left
                continue
            _, length, piece = struct.unpack("<IHB", content[place : place + 7])
            record += content[place + 7 : place + 7 + length]
            place += 7 + length
            if piece in (1, 4):  # whole, or the last of several
                parsed, record = records.Record.FromString(record), b""
                if parsed.WhichOneof("record_type") == kind:
                    yield getattr(parsed, kind)

    def read(self) -> Iterator[Entry]:
        for row in self.rows():
            values: dict[str, Any] = {}
            for item in row.item:
                name, *part = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                values[name] = values.get(name, {}) | {part[0]: value} if part else value
            step = values.pop(STEP, None)
            for name in values:
                if name.startswith(NAME):
                    yield self._entry(name, step, values[name])

    def _entry(self, name: str, step: int, value: Any) -> Entry:
        if not isinstance(value, dict):
            return "scalar", name, step, float(value)
        if value["_type"] == "histogram":
            return "histogram", name, step, sum(value["values"])
        [files] = self.folder.glob("wandb/offline-run-*/files")
        content = (files / value["path"]).read_bytes()
        if value["_type"] in ("video-file", "image-file"):
            kind, picture = seen(content)
            return kind, name, step, picture
        found = re.search("<pre>([^<]*)</pre>", content.decode())
        assert found
        return "text", name, step, html.unescape(found[1])


def import_trackio() -> Any:
    """Import trackio, with a folder of the tests for its runs."""
    os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp())  # read once, at the import
    return pytest.importorskip("trackio", reason="pip install trackio")


class TrackioSink(Sink):
    """A run of trackio, read back from its database."""

    def open(self) -> Any:
        self.trackio: Any = import_trackio()
        self.name = self.folder.name
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.run = self.trackio.init(project=self.name, name="run", **quiet)
        return TrackioWriter(self.run)

    def end(self) -> None:
        self.run.finish()

    def read(self) -> Iterator[Entry]:
        for row in self.trackio.SQLiteStorage.get_logs(self.name, "run"):
            for name in row:
                if name.startswith(NAME):
                    yield self._entry(name, row["step"], row[name])

    def _entry(self, name: str, step: int, value: Any) -> Entry:
        if not isinstance(value, dict):
            return "scalar", name, step, float(value)
        if value["_type"] == "trackio.histogram":
            return "histogram", name, step, sum(value["values"])
        if value["_type"] == "trackio.markdown":
            return "text", name, step, value["_value"]
        folder = importlib.import_module("trackio.utils").MEDIA_DIR
        kind, picture = seen((folder / value["file_path"]).read_bytes())
        return kind, name, step, picture


def accumulate(folder: Path) -> Any:
    limits = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    return reader.EventAccumulator(str(folder), size_guidance=limits).Reload()


@pytest.fixture(params=[MemorySink, JSONLSink, TensorBoardSink, WandbSink, TrackioSink])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made: Any = request.param(tmp_path)
    made.writer = made.open()
    return made


def assert_entries(found: Iterable[Entry], expected: Iterable[Entry]) -> None:
    """The same entries, in whatever order."""
    ours, theirs = (sorted(entries, key=lambda entry: entry[:3]) for entries in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert one[:3] == other[:3]
        np.testing.assert_array_equal(one[3], other[3])


def test_what_was_written_can_be_read_back(sink: Any) -> None:
    """Nothing finite makes no histogram, NaN is a number, almost black stays almost black."""
    writer, dark = sink.writer, picture(1, 300, dark=True)
    assert isinstance(writer, Writer)
    for step in (0, 500):
        writer.scalar(WIDTH, 0.25 + step, step)
        writer.histogram(SLOPES, torch.tensor([1.0, NAN, 2.0, INF, 3.5, -INF]), step)
        writer.image(CURVES, picture(), step)
        writer.animation(MOVING, film(), step)
        writer.text(PROMPTS, f"{MARKDOWN} {step}", step)
        writer.flush()
    writer.scalar(WIDTH, NAN, 501)
    for nothing in (torch.full((4,), NAN), torch.empty(0)):
        writer.histogram(SLOPES, nothing, 501)
    writer.histogram(f"{NAME}one", torch.ones(1), 501)
    writer.image(CURVES, dark, 501)
    writer.animation(MOVING, film(count=1), 501)
    writer.flush()
    expected: list[Entry] = [
        *(("scalar", WIDTH, step, 0.25 + step) for step in (0, 500)),
        *(("histogram", SLOPES, step, 3) for step in (0, 500)),
        *(("image", CURVES, step, picture()) for step in (0, 500)),
        *(("animation", MOVING, step, film()) for step in (0, 500)),
        *(("text", PROMPTS, step, f"{MARKDOWN} {step}") for step in (0, 500)),
        ("scalar", WIDTH, 501, NAN),
        ("histogram", f"{NAME}one", 501, 1),
        ("image", CURVES, 501, dark),
        ("animation", MOVING, 501, film(count=1)),
    ]
    if not isinstance(sink, WandbSink | TrackioSink):  # what is flushed is there without a close
        assert_entries(sink.read(), expected)
    for finish in (writer.flush, writer.close, writer.close):
        finish()
    sink.end()
    assert_entries(sink.read(), expected)


def test_memory_keeps_what_it_got_and_not_what_became_of_it() -> None:
    writer, rgb, frames = MemoryWriter(), np.array(picture()), np.array(film())
    writer.image(CURVES, rgb, 1)
    writer.animation(MOVING, frames, 1)
    rgb[:] = frames[:] = 0
    np.testing.assert_array_equal(writer.images[CURVES][0][1], picture())
    np.testing.assert_array_equal(writer.animations[MOVING][0][1], film())
    assert writer.names == {CURVES, MOVING}


def test_a_gif_rests_on_its_last_frame_loops_and_keeps_the_colours_of_a_slice() -> None:
    gif: Any = Image.open(io.BytesIO(encode_gif(film())))
    durations = []
    for index in range(gif.n_frames):
        gif.seek(index)
        durations.append(gif.info["duration"])
    assert (durations, gif.info["loop"]) == ([500, 500, 2000], 0)
    # Smooth colour in all directions, the worst case for 256 colours.
    ramp = np.linspace(0, 255, 41).astype(np.uint8)
    one = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1, None]), axis=-1)
    [frame] = seen(encode_gif(one[None]))[1]
    assert np.abs(frame.astype(int) - one).max() <= 24


def test_a_full_disk_leaves_whole_lines_and_a_run_that_goes_on(tmp_path: Path) -> None:
    """`limit(bytes)` stops a write in its middle, as a full disk does."""
    code = """
import resource, sys, time
from sr_monitor import TensorBoardWriter
from sr_monitor.display.writers.jsonl import JSONLWriter
def limit(size=resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def add(step, size):
    writer.scalar('a', 1.0, step)
    writer.text('b', 'long' * size, step)
    writer.flush()
for writer in (JSONLWriter(sys.argv[1] + '/log.jsonl'), TensorBoardWriter(sys.argv[1])):
    add(0, 1)
    time.sleep(1)  # files of one second have one name
    limit(2000)
    try: add(1, 1000); add(1, 1000)
    except OSError as error: print(error)
    limit()
    add(2, 1)
    writer.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("File too large") == 2
    assert done.stderr == ""  # whoever wrote tells; no thread prints its traceback
    assert lines(tmp_path / "log.jsonl") == [(0, "a"), (0, "b"), (1, "a"), (2, "a"), (2, "b")]
    found = TensorBoardSink(tmp_path).read()
    assert {0, 2} <= {step for _, name, step, _ in found if name == "a"}


def lines(path: Path) -> list[tuple[int, str]]:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry["step"], entry["name"]) for entry in entries]


def test_a_resumed_file_forgets_later_steps_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writer = JSONLWriter(path)
    for step in (0, 500, 1000, 1500):
        writer.scalar(WIDTH, 1.0, step)
    inode = path.stat().st_ino
    JSONLWriter(path)
    assert path.stat().st_ino == inode  # nothing to drop, so not written anew
    with path.open("a") as file:
        file.write('{"step": 1500, "na')  # killed here
    resumed = JSONLWriter(path, purge_step=1000)
    assert lines(path) == [(0, WIDTH), (500, WIDTH)]
    resumed.scalar(WIDTH, 2.0, 1000)
    with path.open("a") as file:
        file.write('{"st')
    JSONLWriter(path).scalar(WIDTH, 1.0, 1500)
    assert lines(path) == [(step, WIDTH) for step in (0, 500, 1000, 1500)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["loss 3.5\n", "notes", "5\n", '{"step": 1}\n'])
def test_a_file_of_others_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=r"^JSONLWriter\('.*notes\.txt'\): the file holds '.*$"):
        JSONLWriter(path, purge_step=0)
    assert path.read_text() == content


def test_pictures_lie_beside_the_lines_in_a_folder_that_may_vanish(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.jsonl"
    writer = JSONLWriter(path)
    for name in (f"{NAME}slice/3", "../../up"):
        writer.image(name, picture(), 500)
        writer.animation(MOVING, film(), 500)
        names = {file.name for file in path.with_name("log-images").iterdir()}
        slug = name.replace("/", "-")
        assert names == {f"{slug}-000000500.png", "stable_regions-animation-2-000000500.gif"}
        moved = path.parent.rename(tmp_path / slug)
        first = json.loads((moved / "log.jsonl").read_text().splitlines()[0])
        np.testing.assert_array_equal(seen((moved / first["value"]).read_bytes())[1], picture())


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    for purge_step, steps in ((None, (0, 500, 1000, 1500)), (1000, (1000, 1500))):
        writer = TensorBoardWriter(tmp_path, purge_step=purge_step)
        for step in steps:
            writer.scalar(WIDTH, float(purge_step or 0), step)
            writer.image(CURVES, picture(), step)
        writer.close()
    steps = (0, 500, 1000, 1500)
    expected = [("scalar", WIDTH, step, step // 1000 * 1000) for step in steps[:3]]
    images = [("image", CURVES, step, picture()) for step in steps]
    found = TensorBoardSink(tmp_path).read()
    assert_entries(found, [*expected, ("scalar", WIDTH, 1500, 1000), *images])


def charts_of(folder: Path) -> list[Any]:
    events = accumulate(folder)
    if "custom_scalars__config__" not in events.Tags()["tensors"]:
        return []
    *_, event = events.Tensors("custom_scalars__config__")  # what TensorBoard takes, too
    layouts: Any = importlib.import_module("tensorboard.plugins.custom_scalar.layout_pb2")
    layout = layouts.Layout.FromString(event.tensor_proto.string_val[0])
    return [chart for part in layout.category for chart in part.chart]


def margin_charts(folder: Path) -> list[Any]:
    return [chart.margin.series[0] for chart in charts_of(folder)]


def test_a_median_with_its_quartiles_or_its_interval_is_a_chart(tmp_path: Path) -> None:
    stems = (f"{NAME}max_slope", "layer-2/max_slope", f"{NAME}radius")
    quartiles, interval = ("median", "q25", "q75"), ("median", "median_low", "median_high")
    with closing(TensorBoardWriter(tmp_path)) as writer:
        for step in range(3):
            writer.scalar(WIDTH, 1.0, step)
            writer.scalar(f"{NAME}alone/median", 1.0, step)
            for stem in stems:
                edges = [*quartiles, *(interval[1:] if stem == stems[0] else ())]
                for edge in edges:
                    writer.scalar(f"{stem}/{edge}", 1.0, step)
    found = [(band.value, band.lower, band.upper) for band in margin_charts(tmp_path)]
    expected = [(stems[0], quartiles), (stems[0], interval), *((s, quartiles) for s in stems[1:])]
    assert found == [tuple(f"{stem}/{edge}" for edge in band) for stem, band in expected]


def test_sets_of_prompts_are_curves_of_one_chart(tmp_path: Path) -> None:
    with closing(TensorBoardWriter(tmp_path)) as writer:
        writer.compare(runs := [f"{NAME}{each}" for each in ("train", "train-resampled")])
        for stem in ("max_slope", "exponent/random", "radius/random"):
            for run in runs[: 1 + (stem != "radius/random")]:
                for edge in ("q25", "median", "q75"):
                    key = Key.scalar(f"{stem}/{edge}", "")
                    writer.scalar(of_run(key.name, run), 1.0, 0)
    charts = [chart for chart in charts_of(tmp_path) if chart.HasField("multiline")]
    titles = ("max slope", "exponent/random")
    assert [chart.title for chart in charts] == [f"{each}: median, by prompts" for each in titles]
    stems = ("stable_regions/{}/max_slope", "stable_regions_exponent/{}/random")
    names = [[f"{s.format(r)}/median" for r in ("train", "train-resampled")] for s in stems]
    assert [list(chart.multiline.tag) for chart in charts] == names


def test_a_writer_that_is_there_keeps_its_layout_and_stays_open(tmp_path: Path) -> None:
    owner: Any = SummaryWriter(str(tmp_path))
    writer = TensorBoardWriter(owner)
    writer.scalar(WIDTH, 1.0, 1)
    writer.close()
    owner.add_scalar("loss", 2.0, 1)
    owner.close()
    writer.close()
    writer.flush()
    assert margin_charts(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1  # closed and opened again would make two
    found = TensorBoardSink(tmp_path).read()
    assert_entries(found, [("scalar", WIDTH, 1, 1), ("scalar", "loss", 1, 2)])
    with pytest.raises(InputError, match=r"purge_step=5\): give `purge_step` to the SummaryWriter"):
        TensorBoardWriter(owner, purge_step=5)


@pytest.mark.parametrize(
    ("module", "kind", "package"),
    [
        ("torch.utils.tensorboard", TensorBoardWriter, r"'sr-monitor\[tensorboard\]'"),
        ("wandb", WandbWriter, "wandb"),
        ("trackio", TrackioWriter, "trackio"),
    ],
)
def test_what_is_missing_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, kind: Any, package: str
) -> None:
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"run: pip install {package}$"):
        kind(tmp_path)


def test_a_run_of_wandb_loses_nothing_and_is_drawn_against_our_step(tmp_path: Path) -> None:
    """Its owner counts steps itself; a measurement takes one of them, however much it writes."""
    sink = WandbSink(tmp_path)
    writer = sink.open()
    for step in range(4):
        writer.scalar(WIDTH, float(step), 1000 * step)
        writer.scalar(f"{NAME}location", float(step), 1000 * step)
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
    curve = [(step, value) for _, name, step, value in sink.read() if name == WIDTH]
    assert curve == [(0, 0), (1000, 1), (2000, 2), (3000, 3), (5000, 7), (6000, 8)]
    axes = {metric.glob_name: metric.step_metric for metric in sink.rows("metric")}
    assert axes["stable_regions/*"] == axes["layer-2/*"] == "stable_regions/step"
