"""What is shown of a record, at which steps, and that a broken writer harms nobody but itself."""

import errno
import html
import importlib
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from sr_monitor.display.album import Album
from sr_monitor.display.writers.base import WriterError
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.errors import InputError
from sr_monitor.probes import keys
from sr_monitor.probes.drawing import draw_curves, draw_film, draw_slice, rasterise
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.slices import Slices
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record

CURVES, FILM, SLICE = keys.CURVES.name, keys.FILM, keys.SLICE
NUM_PAIRS, NUM_STEPS = 6, 11


def make_prompts(num_prompts: int = 7) -> PromptSet:
    ids = torch.arange(3 * num_prompts).reshape(num_prompts, 3)
    return replace(
        PromptSet.from_token_ids(ids),
        texts=tuple(f"prompt {index}" for index in range(num_prompts)),
    )


PROMPTS = make_prompts()


def make_paths(seed: int) -> Paths:
    """Steeper curves for a larger seed; the last pair did not move, so it does not count."""
    alphas = torch.linspace(0, 1, NUM_STEPS)
    power = torch.linspace(1, 1 + seed % 7, NUM_PAIRS)[:, None]
    distance = alphas**power
    distance[-1] = 0
    return Paths(
        alphas=alphas,
        distance=distance,
        input_distance=torch.ones(NUM_PAIRS),
        noise_distance=1e-6,
        noise_floor=1e-6,
        num_points=NUM_PAIRS * NUM_STEPS,
        engine="plain",
    )


def make_slices(seed: int, num_slices: int, resolution: int = 4) -> Slices:
    shape = (num_slices, 3, resolution, resolution)
    return Slices(
        coordinates=torch.linspace(-0.25, 1.25, resolution),
        distance=torch.rand(shape, generator=torch.Generator().manual_seed(seed)),
        foot=torch.full((num_slices,), 0.4),
        num_points=math.prod(shape),
        engine="plain",
    )


def make_record(step: int, num_slices: int = 1, **changes: Any) -> Record:
    """A record that differs from that of any other step."""
    slices = make_slices(step, num_slices) if num_slices else None
    whole = {"step": step, "tokens": 10 * step, "paths": make_paths(step), "slices": slices}
    return Record(**{**whole, "metadata": {"seconds": 1.5}, **changes})


def nothing_kept(step: int) -> Record:
    paths = make_paths(step)
    nan = torch.full_like(paths.distance, math.nan)
    slices = make_slices(step, 1)
    lost = replace(slices, distance=torch.full_like(slices.distance, math.nan))
    return make_record(step, paths=replace(paths, distance=nan), slices=lost)


def shown(records: Sequence[Record], kept: Sequence[Record] = ()) -> MemoryWriter:
    """What is written when the records are shown, after others were kept."""
    album = Album([writer := MemoryWriter()])
    for record in kept:
        album.keep(record)
    for record in records:
        album.show(record, prompts=PROMPTS)
    return writer


def steps_of(entries: Sequence[tuple[int, Any]]) -> list[int]:
    return [step for step, _ in entries]


def film_of(records: Sequence[Record], index: int = 0) -> Any:
    """The film, drawn at once by the function for it."""
    entries = [(f"step {record.step}", record.slices) for record in records if record.slices]
    return rasterise(draw_film(entries, index))


def same_pictures(one: MemoryWriter, other: MemoryWriter, step: int) -> bool:
    """Whether everything that was drawn at a step is the same."""
    assert one.names == other.names
    images = [(images, other.images[name]) for name, images in one.images.items()]
    frames = [(frames, other.animations[name]) for name, frames in one.animations.items()]
    pairs = [(dict(ours)[step], dict(theirs)[step]) for ours, theirs in [*images, *frames]]
    return len(pairs) > 2 and all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def drawn_during(action: Callable[[], object]) -> list[str]:
    """Which functions that draw are called meanwhile."""
    drawn: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code  # what checks the types is called by the same names, and draws nothing
        if event == "call" and code.co_name.startswith("draw_") and "_page" in code.co_names:
            drawn.append(code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(before)
    return drawn


# What is written


def test_every_number_and_the_slopes_of_the_pairs_that_count() -> None:
    class Raw(MemoryWriter):
        def histogram(self, name: str, values: torch.Tensor, step: int) -> None:
            self.histograms[name] = [(step, values)]

    record = make_record(3)
    Album([writer := Raw()]).show(record, prompts=PROMPTS)
    assert writer.scalars == {name: [(3, value)] for name, value in record.scalars.items()}
    ((step, slopes),) = writer.histograms[keys.MAX_SLOPE.name]
    assert step == 3
    assert slopes.tolist() == record.paths.max_slope[:-1].tolist()
    assert writer.num_flushes == 1


def test_every_name_is_known_and_of_its_kind() -> None:
    album = Album([writer := MemoryWriter()])
    album.introduce(PROMPTS, 0)
    album.show(make_record(0, num_slices=3), prompts=PROMPTS)
    kinds: dict[str, dict[str, Any]] = {
        "scalar": writer.scalars,
        "histogram": writer.histograms,
        "image": writer.images,
        "animation": writer.animations,
        "text": writer.texts,
    }
    for kind, entries in kinds.items():
        assert {keys.key_of(name).kind for name in entries} == {kind}
    missing = set(keys.KEYS) - {keys.key_of(name) for name in writer.names}
    assert missing == {keys.SHARE_OF_TIME, keys.FAILURES}  # not in this record
    assert {SLICE.of(k) for k in range(3)} <= writer.names


def test_another_prefix_takes_the_place_of_the_usual_one() -> None:
    usual, other = MemoryWriter(), MemoryWriter()
    for album in (Album([usual]), Album([other], prefix="stable_regions-2/")):
        album.introduce(PROMPTS, 0)
        album.show(make_record(0), prompts=PROMPTS)
    swapped = {name.replace("stable_regions/", "stable_regions-2/") for name in usual.names}
    assert other.names == swapped
    assert len(swapped) > 10


# Picture steps


@pytest.mark.parametrize(
    ("steps", "with_pictures"),
    [
        (range(11), [0, 1, 2, 4, 8]),
        ([0, 500, 999, 1000, 1500, 2000, 2500], [0, 500, 1000, 2000]),
        ([0, 3, 5, 7, 13], [0, 3, 7]),
        ([7, 13, 14], [7, 14]),
    ],
)
def test_pictures_come_when_the_step_has_doubled(
    steps: Sequence[int], with_pictures: list[int]
) -> None:
    writer = shown([make_record(step) for step in steps])
    for name in (CURVES, SLICE.of(0), FILM.of(0)):
        assert steps_of(writer.images[name]) == with_pictures
    assert steps_of(writer.animations[keys.ANIMATION.of(0)]) == with_pictures
    assert steps_of(writer.scalars[keys.WIDTH.name]) == list(steps)


def test_a_kept_record_counts_as_a_picture_step() -> None:
    writer = shown([make_record(step) for step in (5, 6, 8)], kept=[make_record(3), make_record(4)])
    assert steps_of(writer.images[CURVES]) == [6]
    writer = shown([make_record(3), make_record(5)], kept=[make_record(2), make_record(4)])
    assert not writer.images
    writer = shown([make_record(4), make_record(5)], kept=[make_record(2), make_record(4)])
    assert steps_of(writer.images[CURVES]) == [4]


def test_the_last_step_has_pictures_in_any_case_and_once() -> None:
    album = Album([writer := MemoryWriter()])
    for step, last in ((4, False), (5, False), (5, True), (5, True), (8, False), (8, True)):
        album.show(make_record(step), prompts=PROMPTS, last=last)
    assert steps_of(writer.images[CURVES]) == [4, 5, 8]
    assert steps_of(writer.scalars[keys.WIDTH.name]) == [4, 5, 8]
    assert steps_of(writer.histograms[keys.MAX_SLOPE.name]) == [4, 5, 8]
    frames = [len(frames) for _, frames in writer.animations[keys.ANIMATION.of(0)]]
    assert frames == [1, 2, 3]


# Pictures


def test_the_pictures_are_those_of_the_figures() -> None:
    records = [make_record(step, num_slices=2) for step in (0, 1, 2)]
    writer = shown(records)
    *earlier, last = records
    behind = [(f"step {record.step}", record.paths) for record in earlier]
    curves = rasterise(draw_curves(last.paths, title="step 2", earlier=behind))
    np.testing.assert_array_equal(writer.images[CURVES][-1][1], curves)
    for index, texts in enumerate((("0", "1", "2"), ("1", "2", "3"))):
        assert last.slices is not None
        of_triple = [f"prompt {number}" for number in texts]
        drawn = rasterise(draw_slice(last.slices, index, prompts=of_triple))
        np.testing.assert_array_equal(writer.images[SLICE.of(index)][-1][1], drawn)
        film = film_of(records, index)
        np.testing.assert_array_equal(writer.images[FILM.of(index)][-1][1], film)
        ((_, frames),) = writer.animations[keys.ANIMATION.of(index)][-1:]
        assert len(frames) == 3
        for frame, record in zip(frames, records, strict=True):
            np.testing.assert_array_equal(frame, film_of([record], index))


def test_earlier_curves_lie_behind() -> None:
    """The same record after others gives another picture; how it differs depends on them."""
    now = make_record(8)
    alone = shown([now])
    after_one = shown([make_record(1), now])
    after_another = shown([make_record(1, paths=make_paths(5)), now])
    after_two = shown([make_record(1), make_record(2), now])
    pictures = [dict(w.images[CURVES])[8] for w in (alone, after_one, after_another, after_two)]
    changed = [(pictures[0] != picture).any(axis=-1).sum() for picture in pictures[1:]]
    assert all(count > 300 for count in changed)
    assert (pictures[1] != pictures[2]).any(axis=-1).sum() > 300
    assert changed[2] > changed[0]
    assert len({picture.shape for picture in pictures}) == 1


def test_what_was_shown_between_picture_steps_leaves_no_trace() -> None:
    some = shown([make_record(step) for step in (0, 4, 5, 6, 7, 8)])
    few = shown([make_record(step) for step in (0, 4, 8)])
    assert same_pictures(some, few, 8)


def test_a_resumed_run_shows_what_the_whole_one_does() -> None:
    steps = (0, 1, 2, 3, 4, 5, 8)
    whole = shown([make_record(step) for step in steps])
    resumed = shown([make_record(8)], kept=[make_record(step) for step in steps[:-1]])
    assert same_pictures(whole, resumed, 8)
    assert set().union(*(steps_of(entries) for entries in resumed.scalars.values())) == {8}
    assert resumed.num_flushes == 1


def test_numbers_are_repeated_without_pictures() -> None:
    album = Album([writer := MemoryWriter()])
    records = [make_record(step) for step in (0, 1)]
    for record in records:
        album.keep(record)
        album.repeat(record)
    assert writer.names == {*records[0].scalars, keys.MAX_SLOPE.name}
    assert all(steps_of(entries) == [0, 1] for entries in writer.scalars.values())
    album.show(make_record(2), prompts=PROMPTS)
    assert same_pictures(writer, shown([*records, make_record(2)]), 2)


def test_a_later_record_is_not_behind_an_earlier_one() -> None:
    album = Album([writer := MemoryWriter()])
    for step in (0, 8):
        album.keep(make_record(step))
    album.show(make_record(5), prompts=PROMPTS, last=True)
    expected = shown([make_record(step) for step in (0, 5)])
    assert same_pictures(writer, expected, 5)


def test_no_frame_is_drawn_twice() -> None:
    records = [make_record(step, num_slices=2) for step in (0, 1, 2, 4)]
    drawn = drawn_during(lambda: shown(records))
    assert drawn.count("draw_film") == len(records) * 2
    assert drawn.count("draw_slice") == len(records) * 2
    assert drawn.count("draw_curves") == len(records)


@pytest.mark.parametrize(
    ("num_kept", "expected"),
    [
        (15, [0, *(2**power for power in range(14)), 9**9]),
        (16, [0, *(2**power for power in range(1, 14, 2)), 9**9]),
        (23, [0, *(2**power for power in range(1, 22, 2)), 9**9]),
    ],
)
def test_a_film_has_at_most_16_frames_with_the_first_and_the_last(
    num_kept: int, expected: list[int]
) -> None:
    records = [make_record(step) for step in [0, *(2**power for power in range(num_kept - 1))]]
    writer = shown([last := make_record(9**9)], kept=records)
    chosen = [record for record in [*records, last] if record.step in expected]
    assert [record.step for record in chosen] == expected
    ((_, frames),) = writer.animations[keys.ANIMATION.of(0)]
    assert len(frames) == len(expected) <= 16
    ((_, film),) = writer.images[FILM.of(0)]
    np.testing.assert_array_equal(film, film_of(chosen))
    ((_, curves),) = writer.images[CURVES]
    behind = [(f"step {record.step}", record.paths) for record in chosen[:-1]]
    title = f"step {last.step}"
    expected_curves = rasterise(draw_curves(last.paths, title=title, earlier=behind))
    np.testing.assert_array_equal(curves, expected_curves)


def test_records_without_slices_and_with_other_numbers_of_them() -> None:
    counts = {0: 0, 1: 2, 2: 1, 4: 0, 8: 2}
    records = [make_record(step, num_slices=count) for step, count in counts.items()]
    writer = shown(records)
    assert steps_of(writer.images[CURVES]) == [0, 1, 2, 4, 8]
    assert steps_of(writer.images[SLICE.of(0)]) == [1, 2, 8]
    assert steps_of(writer.images[FILM.of(1)]) == [1, 8]
    assert [len(frames) for _, frames in writer.animations[keys.ANIMATION.of(0)]] == [1, 2, 3]
    np.testing.assert_array_equal(
        writer.images[FILM.of(1)][-1][1], film_of([records[1], records[4]], 1)
    )


def test_without_a_pair_that_counts_there_is_a_picture_all_the_same() -> None:
    records = [nothing_kept(0), make_record(1), nothing_kept(2)]
    writer = shown(records)
    assert steps_of(writer.images[CURVES]) == [0, 1, 2]
    assert steps_of(writer.images[SLICE.of(0)]) == [0, 1, 2]
    assert steps_of(writer.histograms[keys.MAX_SLOPE.name]) == [1]
    medians = dict(writer.scalars[keys.MAX_SLOPE_MEDIAN.name])
    assert math.isnan(medians[0])
    assert dict(writer.scalars[keys.PAIRS_LEFT_OUT.name]) == {0: 6, 1: 1, 2: 6}


def test_matplotlib_is_loaded_for_pictures_only() -> None:
    program = """
import sys
from sr_monitor.display.album import Album
from sr_monitor.display.writers.memory import MemoryWriter
from tests.display.test_album import PROMPTS, make_record
album = Album([writer := MemoryWriter()])
album.introduce(PROMPTS, 3)
album.keep(make_record(3))
album.show(make_record(5), prompts=PROMPTS)
Album([]).show(make_record(5), prompts=PROMPTS)
assert writer.scalars and "matplotlib" not in sys.modules
album.show(make_record(6), prompts=PROMPTS)
assert "matplotlib" in sys.modules
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=root)


def test_the_numbers_are_safe_before_anything_is_drawn() -> None:
    album = Album([writer := MemoryWriter()])
    too_few = make_prompts(3)  # for a second slice
    with pytest.raises(InputError, match=r"texts_of_triple\(1\)"):
        album.show(make_record(0, num_slices=2), prompts=too_few)
    assert dict(writer.scalars[keys.SECONDS.name]) == {0: 1.5}
    assert writer.num_flushes == 1


# Broken writers


class Broken(MemoryWriter):
    """A writer that breaks at one kind of call, and counts the calls that it gets afterwards."""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__()
        self.kind, self.error = kind, error
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("scalar", "histogram", "image", "animation", "text", "flush"):
            return found

        def call(*arguments: Any) -> None:
            self.calls.append(name)
            if name == self.kind:
                raise self.error
            found(*arguments)

        return call


@pytest.mark.parametrize("kind", ["scalar", "histogram", "image", "animation", "flush"])
def test_the_others_get_everything_when_a_writer_breaks(kind: str) -> None:
    first, broken, last = MemoryWriter(), Broken(kind, OSError("gone")), MemoryWriter()
    album, record = Album([first, broken, last]), make_record(0, num_slices=2)
    with pytest.raises(WriterError, match=r"^Broken could not write: gone$") as caught:
        album.show(record, prompts=PROMPTS)
    assert caught.value.__cause__ is broken.error
    expected = shown([record])
    for good in (first, last):
        assert good.scalars == expected.scalars
        assert same_pictures(good, expected, 0)
        assert good.num_flushes == 1
    assert broken.calls.count(kind) == 1
    assert broken.calls[-1] == kind


def test_a_broken_writer_gets_another_chance_with_the_next_record() -> None:
    album = Album([broken := Broken("image", RuntimeError("for now"))])
    with pytest.raises(WriterError):
        album.show(make_record(4), prompts=PROMPTS)
    album.show(make_record(5), prompts=PROMPTS)
    broken.kind = ""
    album.show(make_record(8), prompts=PROMPTS)
    assert steps_of(broken.scalars[keys.WIDTH.name]) == [4, 5, 8]
    assert [len(frames) for _, frames in broken.animations[keys.ANIMATION.of(0)]] == [2]


def test_nothing_is_drawn_where_nobody_is_left() -> None:
    broken = Broken("scalar", RuntimeError("no"))
    error: list[Exception] = []

    def show() -> None:
        try:
            Album([broken, broken]).show(make_record(0), prompts=PROMPTS)
        except WriterError as caught:
            error.append(caught)

    assert drawn_during(show) == []
    assert len(error) == 1
    assert drawn_during(lambda: Album([]).show(make_record(0), prompts=PROMPTS)) == []
    broken.kind = "image"
    assert set(drawn_during(show)) == {"draw_curves"}  # after which it was broken


def test_the_prompts_are_told_although_a_writer_breaks() -> None:
    good, broken = MemoryWriter(), Broken("text", ValueError("two\nlines"))
    with pytest.raises(WriterError, match=r"^Broken could not write: two lines$"):
        Album([broken, good]).introduce(PROMPTS, 0)
    assert steps_of(good.texts[keys.PROMPTS.name]) == [0]
    assert good.num_flushes == 1


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left"), "free space on the disk, or name another log_dir"),
        (OSError(errno.EACCES, "Denied"), "make the folder writable, or name another log_dir"),
        (OSError("odd"), None),
        (RuntimeError(), None),
        (RuntimeError(errno.ENOSPC, "no error of the system"), None),
    ],
)
def test_the_error_names_reason_and_fix(error: Exception, fix: str | None) -> None:
    message = str(WriterError.of([(MemoryWriter(), error)]))
    reason = str(error) or "RuntimeError"
    assert message == f"MemoryWriter could not write: {reason}" + (f"; {fix}" if fix else "")


def test_of_several_broken_writers_the_first_gives_the_reason() -> None:
    one, other = Broken("image", OSError("first")), Broken("scalar", OSError("second"))
    with pytest.raises(WriterError, match=r"write: second; Broken failed too$"):
        Album([one, MemoryWriter(), other]).show(make_record(0), prompts=PROMPTS)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    lines = JSONLWriter(tmp_path / "run" / "lines.jsonl")
    album = Album([lines, writer := MemoryWriter()])
    album.show(make_record(4), prompts=PROMPTS)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").touch()
    with pytest.raises(WriterError, match=r"^JSONLWriter could not write: .*run"):
        album.show(make_record(5), prompts=PROMPTS)
    assert steps_of(writer.scalars[keys.WIDTH.name]) == [4, 5]


# Prompts


NASTY = (
    "a | b || c",
    "`code` *bold* _it_ __init__ ~",
    "<b>tag</b> & &amp; &lt;",
    "[link](http://a.b) ![image](c)",
    "back\\slash \\| \\\\| $x$ \\( # -",
    "1. one --- | :-: |",
)


def table_of(prompts: PromptSet) -> tuple[str, list[str], list[list[str]]]:
    """The text before the table, its head and its rows, as TensorBoard shows them."""
    Album([writer := MemoryWriter()]).introduce(prompts, 7)
    ((step, markdown),) = writer.texts[keys.PROMPTS.name]
    assert step == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard brings along
        page = importlib.import_module("tensorboard.plugin_util").markdown_to_safe_html(markdown)
    about, table = page.split("<table>")
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.S) for row in table.split("<tr>")[1:]]
    head, *body = [[html.unescape(cell) for cell in row] for row in rows]
    return html.unescape(about), head, body


def test_the_table_holds_the_pairs_and_tells_their_source() -> None:
    prompts = replace(PROMPTS, source="a <corpus> | of_mine_", seed=3)
    about, head, rows = table_of(prompts)
    assert "6 pairs of prompts of 3 tokens each, from a <corpus> | of_mine_;" in about
    assert f"fingerprint {prompts.fingerprint}. These are all:" in about
    assert head == ["pair", "A", "B"]
    expected = [[f"{pair}", f"prompt {pair}", f"prompt {pair + 1}"] for pair in range(6)]
    assert rows == expected


def test_texts_are_shown_as_they_are() -> None:
    _, _, rows = table_of(replace(make_prompts(len(NASTY)), texts=NASTY))
    assert [row[1] for row in rows] == list(NASTY[:-1])
    assert [row[2] for row in rows] == list(NASTY[1:])


def test_a_text_stays_on_its_line_and_keeps_its_end() -> None:
    texts = ("two\nlines\r\n\tand a bell \x07 and half a pair \udc80", "word " * 400 + "end", "x")
    _, _, rows = table_of(replace(make_prompts(3), texts=texts))
    assert rows[0][1] == "two↵lines ↵ and a bell □ and half a pair □"
    assert rows[1][1].startswith("…")
    assert rows[1][1].endswith("word end")
    assert len(rows[1][1]) <= 161


def test_without_texts_there_are_ids() -> None:
    _, _, rows = table_of(replace(PROMPTS, texts=None))
    assert rows[1] == ["1", "3 4 5", "6 7 8"]


def test_of_many_pairs_the_first_are_shown_and_all_counted() -> None:
    for prompts in (make_prompts(500), replace(make_prompts(500), texts=None)):
        about, _, rows = table_of(prompts)
        assert "499 pairs" in about
        assert "The first 32 are:" in about
        assert len(rows) == 32
        assert rows[-1][0] == "31"
    assert "These are all:" in table_of(make_prompts(33))[0]


def test_explicit_pairs_with_their_labels() -> None:
    explicit = replace(make_prompts(8), pairing="explicit", labels=("a", "b|", "", "d"))
    _, head, rows = table_of(explicit)
    assert head == ["pair", "label", "A", "B"]
    assert rows[1] == ["1", "b|", "prompt 2", "prompt 3"]
    assert rows[2] == ["2", "", "prompt 4", "prompt 5"]
    assert len(rows) == 4


def test_the_texts_of_a_triple() -> None:
    explicit = replace(make_prompts(6), pairing="explicit")
    assert PROMPTS.texts_of_triple(1) == ("prompt 1", "prompt 2", "prompt 3")
    assert explicit.texts_of_triple(1) == ("prompt 2", "prompt 3", "prompt 4")
    for prompts, count in ((PROMPTS, 5), (explicit, 2)):
        corners = torch.stack(prompts.triples(), dim=1)
        assert len(corners) == count
        for index, ids in enumerate(corners.tolist()):
            texts = tuple(f"prompt {first // 3}" for first, _, _ in ids)
            assert prompts.texts_of_triple(index) == texts
    assert replace(PROMPTS, texts=None).texts_of_triple(0) is None
    for index in (-1, 5):
        with pytest.raises(InputError, match=rf"texts_of_triple\({index}\): the set has 5 triples"):
            PROMPTS.texts_of_triple(index)
