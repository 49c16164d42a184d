"""The page holds what the records say, runs nothing of a stranger's, and stays small."""

import base64
import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from sr_monitor.display.report import write_report
from sr_monitor.display.report.charts import make_groups
from sr_monitor.display.report.course import Course
from sr_monitor.display.report.frames import extreme_pairs
from sr_monitor.errors import InputError
from sr_monitor.probes.base import Page
from sr_monitor.probes.keys import TOKENS, Key, short
from sr_monitor.probes.sharpness import fill_gaps
from sr_monitor.results.record import NewerError, Record, list_records, record_path
from sr_monitor.results.runs import find_runs
from tests.made import NAN, PROMPTS, Rise, make_paths, make_prompts, make_record, make_slices
from tests.reports import PageReader, rising, save_run

STEPS = [0, 10, 20, 30]
PREFIX, GROUP = "stable_regions/", "stable_regions_"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "demo", STEPS)


@pytest.fixture(scope="module")
def page(run: Path) -> PageReader:
    return PageReader.of(write_report(run, run.parent / "report.html")[0])


def record_of(run: Path, step: int) -> Record:
    return Record.load(record_path(run, step))


def test_words_and_tables_say_what_was_measured(page: PageReader, run: Path) -> None:
    (point, *_, last) = Course.of(find_runs(run)[0]).points
    said = page.text("h1")
    assert f"from {point.median:.2f} (step 0) to {last.median:.2f}" in said
    words = page.text()
    facts = ["LlamaForCausalLM", "float32 on cpu", "6 pairs of 3 tokens", "after block 1"]
    facts += [PROMPTS.fingerprint, "4, steps 0 to 30", "2 of 4 x 4 points", "1.5 each"]
    for fact in facts:
        assert fact in words, fact
    numbers = page.text("details")
    q25, median, q75 = last.quartiles
    assert f"{median:.3f}{q25:.3f} to {q75:.3f}" in numbers
    assert page.data["runs"][0]["name"] == "demo"


def test_the_numbers_of_the_charts_are_those_of_the_records(page: PageReader, run: Path) -> None:
    (shown,) = page.data["runs"]
    records = [record_of(run, step) for step in STEPS]
    assert shown["steps"] == STEPS
    assert shown["tokens"] == [record.tokens for record in records]
    for name in records[0].scalars:
        assert shown["numbers"][name] == [record.scalars[name] for record in records], name
    charted = {
        name
        for group in page.data["groups"]
        for chart in group["charts"]
        for line in chart["lines"]
        for edge, name in line.items()
        if edge != "label"
    }
    edges = ("median", "q25", "q75", "median_low", "median_high")
    slopes = {f"{PREFIX}max_slope/{edge}" for edge in edges}
    assert charted == records[0].scalars.keys() - slopes


def test_a_frame_holds_the_curves_slopes_and_pairs_of_its_record(
    page: PageReader, run: Path
) -> None:
    (shown,) = page.data["runs"]
    assert [frame["step"] for frame in shown["frames"]] == STEPS
    paths = record_of(run, 20).paths
    frame, kept = shown["frames"][2], paths.relative[paths.kept].double().numpy()
    for name, level in (("q25", 25), ("median", 50), ("q75", 75)):
        np.testing.assert_allclose(frame["curve"][name], np.percentile(kept, level, 0), atol=6e-4)
    np.testing.assert_allclose(frame["slopes"], paths.max_slope[paths.kept], atol=6e-4)
    # The sharpest first, of those that count at the last step.
    assert shown["pairs"] == [4, 3, 2, 1, 0]
    for pair, curve, slope in zip(shown["pairs"], frame["pairs"], frame["pairSlopes"], strict=True):
        np.testing.assert_allclose(curve, paths.relative[pair], atol=6e-4)
        assert abs(slope - float(paths.max_slope[pair])) < 6e-4
    texts = [pair["texts"] for pair in shown["words"][frame["words"]]["pairs"]]
    assert texts[0] == ["prompt 4", "prompt 5"]


def test_a_slice_is_the_record_s_colours_the_highest_row_first(page: PageReader, run: Path) -> None:
    slices = record_of(run, 10).slices
    assert slices is not None
    shown = page.data["runs"][0]["frames"][1]["slices"][1]
    picture = Image.open(io.BytesIO(base64.b64decode(shown["png"].split(",")[1])))
    expected = (255 * slices.rgb[1]).round().flip(0)
    assert np.array_equal(np.asarray(picture)[..., :3], expected.numpy())
    assert np.asarray(picture)[..., 3].min() == 255
    # From the outer edges of the cells, half a spacing (0.5) beyond the outermost coordinates.
    assert shown["span"] == [-0.5, 1.5]
    assert shown["foot"] == pytest.approx(0.4)
    assert page.data["runs"][0]["words"][0]["triples"][1] == ["prompt 1", "prompt 2", "prompt 3"]


def test_points_that_are_not_finite_are_transparent_and_numbers_null(tmp_path: Path) -> None:
    slices = make_slices()
    slices.distance[0, 1, 2, 3] = math.inf
    paths = make_paths(1)
    broken = replace(paths, distance=paths.distance.clone(), noise_floor=NAN)
    broken.distance[2, 4] = NAN
    run = save_run(tmp_path, [5], lambda step: make_record(step, paths=broken, slices=slices))
    (shown,) = PageReader.of(write_report(run, tmp_path / "r.html")[0]).data["runs"]
    picture = shown["frames"][0]["slices"][0]["png"].split(",")[1]
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))[..., 3]
    assert [*zip(*np.nonzero(alpha == 0), strict=True)] == [(4 - 1 - 2, 3)]
    assert shown["numbers"][f"{GROUP}diagnostics/noise_floor"] == [None]
    pair = shown["frames"][0]["pairs"][shown["pairs"].index(2)]
    filled = fill_gaps(broken.alphas, broken.relative)
    np.testing.assert_allclose(pair, filled[2], atol=6e-4)


def test_only_the_page_s_own_script_may_run_and_nothing_may_be_loaded(page: PageReader) -> None:
    (policy,) = [v for tag, name, v in page.attributes if name == "content" and "default" in v]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    data, script = page.inside["script"]
    for content, rule in ((script, "script-src"), (page.inside["style"][0], "style-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    assert ("script", "type", "application/json") in page.attributes
    assert not [each for each in page.attributes if each[1].startswith("on") or each[1] == "src"]
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in script
    assert data.isascii()


EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<!--<script>",
    "]]>'\"&amp;\u2028 $title ${version}",
    "\udc80 half a pair, a bell \x07 and an override \u202e",
)


def test_nothing_that_strangers_write_becomes_markup(
    tmp_path: Path, page: PageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tuple(EVIL[index % len(EVIL)] for index in range(7))
    evil = replace(PROMPTS, texts=texts, source=EVIL[0], labels=(EVIL[1],) * 6)
    about = {"model": EVIL[1], "dtype": EVIL[0], "device": EVIL[2], "config": {"layer": EVIL[0]}}

    def make(step: int) -> Record:
        parts = {**rising(step).parts, EVIL[2]: {"x": torch.ones(1)}}
        return Record(step=step, tokens=10 * step, parts=parts, metadata=about)

    run = save_run(tmp_path / "<img src=x onerror=alert(3)>", STEPS, make, evil)
    (run / "stable_regions" / "step-000000040.safetensors").write_bytes(b"<script>")
    with pytest.warns(RuntimeWarning, match="left out"):
        (path,) = write_report(run, tmp_path / "report.html")
    found = PageReader.of(path)
    same = {tag: count for tag, count in found.tags.items() if tag not in ("tr", "th", "td")}
    assert same == {tag: count for tag, count in page.tags.items() if tag in same}
    assert {(tag, name) for tag, name, _ in found.attributes} == {
        (tag, name) for tag, name, _ in page.attributes
    }
    (shown,) = found.data["runs"]
    words = shown["words"][0]
    assert words["pairs"][0]["label"] == EVIL[1]
    assert words["triples"][0][:2] == list(EVIL[:2])
    assert words["triples"][1][2] == "]]>'\"&amp;  $title ${version}"
    assert EVIL[1] in found.text("td")
    assert path.read_text(encoding="utf-8").count("<script") == 2 + 0


def test_several_runs_are_on_one_axis_and_in_one_table(tmp_path: Path, run: Path) -> None:
    save_run(tmp_path / "flat", [0, 10], lambda step: make_record(step, paths=make_paths(7)))
    page = PageReader.of(write_report([run, tmp_path], tmp_path / "r.html")[0])
    assert [each["name"] for each in page.data["runs"]] == ["demo", "flat"]
    assert page.text("h1").startswith("2 runs end at a median maximum slope from 1.00 (flat) to")
    assert page.text("li").count("Median maximum slope") == 2
    assert page.tags["details"] == 2
    assert "demoflat" in page.text("thead")


def test_models_of_a_sweep_lie_at_their_sizes(tmp_path: Path) -> None:
    def make(step: int) -> Record:
        return make_record(step, paths=make_paths(step // 100), metadata={"x_axis": "parameters"})

    run = save_run(tmp_path / "sizes", [100, 300], make)
    make_prompts(4).save(run / "stable_regions" / "prompts-000000100.json")
    (page,) = (PageReader.of(write_report(run, tmp_path / "r.html")[0]),)
    (shown,) = page.data["runs"]
    assert (shown["isSweep"], shown["parameters"]) == (True, [100, 300])
    assert "(100 parameters)" in page.text("h1")
    assert shown["emerged"] is None
    assert [frame["words"] for frame in shown["frames"]] == [0, None]


def test_a_probe_of_another_package_appears_by_itself(tmp_path: Path, run: Path) -> None:
    (path,) = write_report(run, tmp_path / "r.html", probes=[Rise()])
    data = PageReader.of(path).data
    (group,) = [each for each in data["groups"] if each["title"] == "rise"]
    assert group["about"] == "How far each curve has risen in the middle, computed from the paths."
    assert [chart["title"] for chart in group["charts"]] == ["rise"]
    assert group["charts"][0]["lines"] == [{"median": f"{GROUP}rise/median", "label": ""}]
    (picture,) = data["runs"][0]["pictures"]
    assert (picture["title"], picture["group"]) == ("rise picture", "rise")
    assert [shown["step"] for shown in picture["shown"]] == STEPS
    webp = base64.b64decode(picture["shown"][2]["url"].removeprefix("data:image/webp;base64,"))
    # A row for each step so far; without loss.
    probe, record = Rise(), record_of(run, 20).with_derived([Rise()])
    grey = (record.parts["rise"]["rise"].nan_to_num().numpy().clip(0, 1) * 255).astype(np.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(webp)))
    assert drawn.shape == (3, 6, 3)
    assert np.array_equal(drawn[-1, :, 0], grey)
    assert probe.name in [each["title"] for each in data["groups"]]


@dataclass(frozen=True, kw_only=True)
class Growth(Rise):
    """How much the rise has grown since the measurement before."""

    keys = (*Rise.keys, GROWN := Key.scalar("rise/grown", "The growth."))  # type: ignore[assignment]

    def changes(self, page: Page, before: Page) -> dict[Key, float]:
        means = [float(each.part["rise"].nanmean()) for each in (page, before)]
        return {self.GROWN: means[0] - means[1]}


def test_numbers_that_compare_a_measurement_with_the_one_before(tmp_path: Path, run: Path) -> None:
    (path,) = write_report(run, tmp_path / "r.html", probes=[Growth()])
    numbers = PageReader.of(path).data["runs"][0]["numbers"]
    records = [record_of(run, step).with_derived([Rise()]) for step in STEPS]
    means = [float(record.parts["rise"]["rise"].nanmean()) for record in records]
    grown = numbers[f"{GROUP}rise/grown"]
    assert grown[0] is None
    assert grown[1:] == pytest.approx([b - a for a, b in pairwise(means)])


def test_a_part_that_nothing_here_explains_is_told(tmp_path: Path) -> None:
    run = save_run(
        tmp_path, [0], lambda step: make_record(step, parts={"aura": {"x": torch.ones(1)}})
    )
    page = PageReader.of(write_report(run, tmp_path / "r.html")[0])
    assert "parts of probes that are not known here: aura" in page.text("td")
    assert "every one was left out" in page.text("h1")


def test_numbers_that_differ_in_a_number_share_a_chart(run: Path) -> None:
    course = Course.of(find_runs(run)[0])
    for scalars in course.scalars:
        for block in (1, 2):
            for edge in ("median", "q25", "q75"):
                scalars[f"{GROUP}depth/{block}/{edge}"] = 1.0
        scalars |= {f"{GROUP}sure/{edge}": 1.0 for edge in ("median_low", "median_high", "median")}
        scalars[f"{GROUP}never"] = NAN
        scalars |= {f"{GROUP}guess/{edge}": 1.0 for edge in ("high", "low", "value")}
    charts = {c["title"]: c for group in make_groups([course]) for c in group["charts"]}
    guess = {"median": "guess/value", "q25": "guess/low", "q75": "guess/high"}
    expected = [{edge: GROUP + name for edge, name in guess.items()} | {"label": ""}]
    assert charts["guess"]["lines"] == expected
    sure = {"median": "sure/median", "q25": "sure/median_low", "q75": "sure/median_high"}
    expected = [{edge: GROUP + name for edge, name in sure.items()} | {"label": ""}]
    assert charts["sure"]["lines"] == expected
    chart = charts["depth"]
    expected = [
        {**{e: f"{GROUP}depth/{n}/{e}" for e in ("median", "q25", "q75")}, "label": f"{n}"}
        for n in (1, 2)
    ]
    assert chart["lines"] == expected
    assert "never" not in str(make_groups([course]))


def test_the_sharpest_and_the_flattest_pairs_are_those_of_a_sort() -> None:
    paths = make_paths(6, num_pairs=40, num_steps=51)
    slopes = paths.max_slope.tolist()
    order = sorted((n for n in range(39)), key=lambda n: -slopes[n])  # the last does not count
    assert extreme_pairs(paths) == order[:8] + order[-8:]


def test_thirty_measurements_of_the_usual_size_stay_below_three_megabytes(tmp_path: Path) -> None:
    """Ten below a third of that: with slices of noise, which nothing can compress."""

    def make(step: int) -> Record:
        paths = make_paths(step % 7, num_pairs=256, num_steps=51)
        return make_record(step, paths=paths, slices=make_slices(step, 4, 41))

    run = save_run(tmp_path / "run", range(0, 1000, 100), make, make_prompts(257))
    (path,) = write_report(run, tmp_path / "report.html")
    assert len(PageReader.of(path).data["runs"][0]["frames"]) == 10
    assert path.stat().st_size < 1_000_000


def test_of_a_long_run_all_numbers_are_shown_and_some_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_monitor.display.report.page._MOST_FRAMES", 8)
    run = save_run(tmp_path / "run", range(12), lambda step: make_record(step, num_slices=0))
    (shown,) = PageReader.of(write_report(run, tmp_path / "r.html")[0]).data["runs"]
    frames = [frame["step"] for frame in shown["frames"]]
    assert len(shown["steps"]) == 12
    assert (len(frames), frames[0], frames[-1]) == (8, 0, 11)
    assert set(np.diff(frames)) <= {1, 2}


def test_the_tables_are_the_records_to_the_last_digit(tmp_path: Path, run: Path) -> None:
    broken = replace(make_paths(1), noise_floor=NAN)
    save_run(tmp_path / "other", [7], lambda step: make_record(step, paths=broken, tokens=None))
    _, *files = write_report([run, tmp_path / "other"], tmp_path / "r.html", csv=tmp_path / "csv")
    assert [file.name for file in files] == ["numbers.csv", "curves.csv", "pairs.csv"]
    numbers, curves, pairs = ([*csv.DictReader(file.read_text().splitlines())] for file in files)
    expected = {("demo", str(step)): record_of(run, step) for step in STEPS}
    expected["other", "7"] = record_of(tmp_path / "other", 7)
    assert [(row["run"], row["step"]) for row in numbers] == list(expected)
    for row in numbers:
        record = expected[row["run"], row["step"]]
        assert row["tokens"] == ("" if record.tokens is None else str(record.tokens))
        for name, value in record.scalars.items():
            shown = row["tokens" if name == TOKENS.name else short(name)]
            assert float(shown) == value if math.isfinite(value) else shown == "", name
    assert len(pairs) == 5 * 6
    for row in pairs:
        paths = expected[row["run"], row["step"]].paths
        pair = int(row["pair"])
        assert row["kept"] == str(int(paths.kept[pair]))
        for name in ("max_slope", "location", "width", "end_distance", "input_distance"):
            value = float(getattr(paths, name)[pair])
            assert float(row[name]) == value if math.isfinite(value) else row[name] == "", name
    at = [row for row in curves if (row["run"], row["step"]) == ("demo", "30")]
    paths = record_of(run, 30).paths
    assert [float(row["alpha"]) for row in at] == paths.alphas.tolist()
    median = paths.relative[paths.kept].quantile(0.5, dim=0)
    np.testing.assert_allclose([float(row["median"]) for row in at], median, rtol=1e-6)


@pytest.mark.slow
def test_every_figure_is_a_png_and_an_svg_of_one_shape(tmp_path: Path, run: Path) -> None:
    few = save_run(tmp_path / "few", [0, 10])
    written = write_report(few, tmp_path / "r.html", figures=tmp_path / "f", probes=[Rise()])[1:]
    names = {file.stem for file in written}
    assert names == {
        *("max-slope", "curves", "slopes", "slice-0", "slice-1", "film-0", "film-1"),
        *("numbers-paths", "numbers-diagnostics", "numbers-rise", "rise-picture"),
    }
    assert len(written) == 2 * len(names)
    for name in names:
        with Image.open(tmp_path / "f" / f"{name}.png") as png:
            width, height = png.size
        svg = ElementTree.parse(tmp_path / "f" / f"{name}.svg").getroot()
        of = [float(svg.attrib[side].removesuffix("pt")) for side in ("width", "height")]
        assert of[0] / of[1] == pytest.approx(width / height, rel=0.02), name
    again = write_report(few, tmp_path / "r.html", figures=tmp_path / "g", probes=[Rise()])[1:]
    for one, other in zip(written, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_damaged_record_is_left_out_and_told_a_newer_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "run", STEPS)
    list_records(run)[1].write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="left out: .*step-000000010") as told:
        (path,) = write_report(run, tmp_path / "report.html")
    assert len(told) == 1
    page = PageReader.of(path)
    assert page.data["runs"][0]["steps"] == [0, 20, 30]
    assert "step-000000010.safetensors: damaged" in page.text("td")
    with monkeypatch.context() as later:
        later.setattr("sr_monitor.results.record._SCHEMA", 99)
        rising(40).save(record_path(run, 40))
    with pytest.raises(NewerError, match="upgrade"):
        write_report(run, tmp_path / "newer.html")
    assert not (tmp_path / "newer.html").exists()


def test_nothing_but_damaged_records_is_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", [0])
    list_records(run)[0].write_bytes(b"")
    with pytest.raises(InputError, match=r"report: no record can be read: .*step-000000000"):
        write_report(run, tmp_path / "report.html")


def ids(page: PageReader) -> Iterator[str]:
    return (value for _, name, value in page.attributes if name == "id")


def test_the_script_asks_only_for_elements_that_are_there(page: PageReader) -> None:
    there, script = list(ids(page)), page.inside["script"][1]
    asked = set(re.findall(r'byId\("([\w-]+)"\)', script))
    assert len(there) == len(set(there))
    assert asked <= {*there}
    figures: Any = re.search(r"const FIGURES = \{(.*?)\n\};", script, re.DOTALL)
    assert set(re.findall(r"^  (\w+): \[", figures[1], re.MULTILINE)) <= {*there}
