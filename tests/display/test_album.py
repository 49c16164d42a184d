"""What is shown of a record, at which steps, and that a broken writer harms nobody but itself."""

import errno
import gc
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from sr_monitor.display.album import Album
from sr_monitor.display.writers.base import WriterError
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.errors import InputError
from sr_monitor.probes.drawing import rasterise
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.paths_pictures import draw_curves
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.probes.slices_pictures import draw_film, draw_slice
from sr_monitor.results.record import Record
from sr_monitor.results.run_keys import RUN_KEYS
from tests.made import NAN, PROMPTS, Rise, make_paths, make_prompts, make_record, make_slices

NAME = "stable_regions/"
CURVES, SLICE, FILM, ANIMATION = (
    NAME + name for name in ("curves", "slice/0", "film/0", "animation/0")
)
WIDTH, SLOPES = f"{NAME}width", f"{NAME}max_slope"


def shown(records: Sequence[Record], kept: Sequence[Record] = ()) -> MemoryWriter:
    """What is written when the records are shown, after others were kept."""
    album = Album([writer := MemoryWriter()])
    for record in kept:
        album.keep(record, prompts=PROMPTS)
    for record in records:
        album.show(record, prompts=PROMPTS)
    return writer


def records_of(*steps: int, **changes: Any) -> list[Record]:
    return [make_record(step, **changes) for step in steps]


def steps_of(entries: Sequence[tuple[int, Any]]) -> list[int]:
    return [step for step, _ in entries]


def film_of(records: Sequence[Record], index: int = 0) -> Any:
    """The film, drawn at once by the function for it."""
    entries = [(f"step {record.step}", record.slices) for record in records if record.slices]
    return rasterise(draw_film(entries, index))


def curves_of(records: Sequence[Record]) -> Any:
    *earlier, last = records
    behind = [(f"step {record.step}", record.paths) for record in earlier]
    return rasterise(draw_curves(last.paths, title=f"step {last.step}", earlier=behind))


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
        if event == "call" and code.co_name.startswith("draw_") and "new_page" in code.co_names:
            drawn.append(code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(before)
    return drawn


# What is written ---------------------------------------------------------------------------------


def test_every_number_and_the_slopes_of_the_pairs_that_count() -> None:
    writer = shown([record := make_record(3)])
    assert writer.scalars == {name: [(3, value)] for name, value in record.scalars.items()}
    ((step, slopes),) = writer.histograms[SLOPES]
    assert (step, slopes.tolist()) == (3, record.paths.max_slope[:-1].tolist())
    assert writer.num_flushes == 1


def test_what_is_logged_is_what_is_documented() -> None:
    metadata = {"seconds": 1.0, "share_of_time": 0.5, "failures": 0}
    album = Album([writer := MemoryWriter()])
    album.introduce(PROMPTS, 0)
    album.show(make_record(0, metadata=metadata), prompts=PROMPTS)
    kinds = ("scalar", "histogram", "image", "animation", "text")
    found = {(kind, name) for kind in kinds for name in getattr(writer, f"{kind}s")}
    keys = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
    assert found == {(key.kind, key.numbered(0).name) for key in keys}


def test_a_probe_of_another_package_is_shown_like_ours() -> None:
    records = [record.with_derived([Rise()]) for record in records_of(0, 1, 2)]
    writer, without = shown(records), shown(records_of(0, 1, 2))
    assert writer.names - without.names == {
        f"{NAME}rise{each}" for each in ("", "/median", "/picture")
    }
    assert [picture.shape for _, picture in writer.images[f"{NAME}rise/picture"]] == [
        (rows, 6, 3) for rows in (1, 2, 3)
    ]
    for name in without.images:
        np.testing.assert_array_equal(writer.images[name][-1][1], without.images[name][-1][1])


def test_another_prefix_takes_the_place_of_the_usual_one() -> None:
    usual, other = MemoryWriter(), MemoryWriter()
    for album in (Album([usual]), Album([other], prefix="stable_regions-2/")):
        album.introduce(PROMPTS, 0)
        album.show(make_record(0), prompts=PROMPTS)
    assert other.names == {name.replace(NAME, "stable_regions-2/") for name in usual.names}


# Picture steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "with_pictures"),
    [
        (range(11), [0, 1, 2, 4, 8]),
        ([0, 500, 999, 1000, 1500, 2000, 2500], [0, 500, 1000, 2000]),
        ([7, 13, 14], [7, 14]),
    ],
)
def test_pictures_come_when_the_step_has_doubled(
    steps: Sequence[int], with_pictures: list[int]
) -> None:
    writer = shown(records_of(*steps))
    for entries in (writer.images[CURVES], writer.images[FILM], writer.animations[ANIMATION]):
        assert steps_of(entries) == with_pictures
    assert steps_of(writer.scalars[WIDTH]) == list(steps)


@pytest.mark.parametrize(
    ("kept", "shown_steps", "expected"),
    [((3, 4), (5, 6, 8), [6]), ((2, 4), (3, 5), []), ((2, 4), (4, 5), [4])],
)
def test_a_kept_record_counts_as_a_picture_step(
    kept: tuple[int, ...], shown_steps: tuple[int, ...], expected: list[int]
) -> None:
    writer = shown(records_of(*shown_steps), kept=records_of(*kept))
    assert steps_of(writer.images.get(CURVES, [])) == expected


def test_the_last_step_has_pictures_in_any_case_and_once() -> None:
    album = Album([writer := MemoryWriter()])
    for step, last in ((4, False), (5, False), (5, True), (5, True), (8, False), (8, True)):
        album.show(make_record(step), prompts=PROMPTS, last=last)
    for entries in (writer.images[CURVES], writer.scalars[WIDTH], writer.histograms[SLOPES]):
        assert steps_of(entries) == [4, 5, 8]
    assert [len(frames) for _, frames in writer.animations[ANIMATION]] == [1, 2, 3]


# Pictures ----------------------------------------------------------------------------------------


def test_the_pictures_are_those_of_the_figures_each_drawn_once() -> None:
    records = records_of(0, 1, 2, num_slices=2)
    writers = []
    drawn = drawn_during(lambda: writers.append(shown(records)))
    assert sorted(drawn) == ["draw_curves"] * 3 + ["draw_film"] * 6 + ["draw_slice"] * 6
    (writer,) = writers
    assert records[-1].slices is not None
    np.testing.assert_array_equal(writer.images[CURVES][-1][1], curves_of(records))
    for index in range(2):
        prompts = [f"prompt {number}" for number in range(index, index + 3)]
        drawn_slice = rasterise(draw_slice(records[-1].slices, index, prompts=prompts))
        np.testing.assert_array_equal(writer.images[f"{NAME}slice/{index}"][-1][1], drawn_slice)
        film = writer.images[f"{NAME}film/{index}"][-1][1]
        np.testing.assert_array_equal(film, film_of(records, index))
        ((_, frames),) = writer.animations[f"{NAME}animation/{index}"][-1:]
        for frame, record in zip(frames, records, strict=True):
            np.testing.assert_array_equal(frame, film_of([record], index))


def test_what_was_shown_between_picture_steps_leaves_no_trace() -> None:
    some, few = shown(records_of(2, 3, 4)), shown(records_of(2, 4))
    assert same_pictures(some, few, 4)


def test_a_resumed_run_shows_what_the_whole_one_does() -> None:
    steps = (0, 2, 3, 8)
    whole, resumed = shown(records_of(*steps)), shown(records_of(8), kept=records_of(*steps[:-1]))
    assert same_pictures(whole, resumed, 8)
    assert set().union(*(steps_of(entries) for entries in resumed.scalars.values())) == {8}
    assert resumed.num_flushes == 1


def test_numbers_are_repeated_without_pictures() -> None:
    album = Album([writer := MemoryWriter()])
    for record in records_of(0, 1):
        album.keep(record, prompts=PROMPTS)
        album.repeat(record)
    assert writer.names == {*make_record(0).scalars, SLOPES}
    assert all(steps_of(entries) == [0, 1] for entries in writer.scalars.values())
    album.show(make_record(2), prompts=PROMPTS)
    assert same_pictures(writer, shown(records_of(0, 1, 2)), 2)


def test_a_later_record_is_not_behind_an_earlier_one() -> None:
    album = Album([writer := MemoryWriter()])
    for record in records_of(0, 8):
        album.keep(record, prompts=PROMPTS)
    album.show(make_record(5), prompts=PROMPTS, last=True)
    assert same_pictures(writer, shown(records_of(0, 5)), 5)


@pytest.mark.parametrize(
    ("num_kept", "expected"),
    [
        (15, [0, *(2**power for power in range(14)), 9**9]),
        (16, [0, *(2**power for power in range(1, 14, 2)), 9**9]),
        (23, [0, *(2**power for power in range(1, 22, 2)), 9**9]),
    ],
)
def test_a_picture_holds_at_most_16_steps_with_the_first_and_the_last(
    num_kept: int, expected: list[int]
) -> None:
    kept = records_of(0, *(2**power for power in range(num_kept - 1)))
    writer = shown(records_of(9**9), kept=kept)
    chosen = [record for record in [*kept, make_record(9**9)] if record.step in expected]
    assert len(writer.animations[ANIMATION][0][1]) == len(chosen) == len(expected) <= 16
    np.testing.assert_array_equal(writer.images[FILM][0][1], film_of(chosen))
    np.testing.assert_array_equal(writer.images[CURVES][0][1], curves_of(chosen))


def test_records_without_slices_and_with_other_numbers_of_them() -> None:
    counts = {0: 0, 1: 2, 2: 1, 4: 0, 8: 2}
    records = [make_record(step, num_slices=count) for step, count in counts.items()]
    writer = shown(records)
    assert steps_of(writer.images[CURVES]) == [0, 1, 2, 4, 8]
    assert steps_of(writer.images[SLICE]) == [1, 2, 8]
    assert [len(frames) for _, frames in writer.animations[ANIMATION]] == [1, 2, 3]
    (first, _), (second, both) = writer.images[f"{NAME}film/1"]
    assert (first, second) == (1, 8)
    np.testing.assert_array_equal(both, film_of([records[1], records[4]], 1))


def test_without_a_pair_that_counts_there_is_a_picture_all_the_same() -> None:
    lost: dict[str, Any] = {"paths": make_paths(), "slices": make_slices()}
    for part in lost.values():
        part.distance.fill_(NAN)
    writer = shown([make_record(0, parts=lost), make_record(1), make_record(2, parts=lost)])
    assert steps_of(writer.images[CURVES]) == steps_of(writer.images[SLICE]) == [0, 1, 2]
    assert steps_of(writer.histograms[SLOPES]) == [1]
    assert math.isnan(writer.scalars[f"{NAME}max_slope/median"][0][1])
    assert [value for _, value in writer.scalars[f"{NAME}pairs_left_out"]] == [6, 1, 6]


def test_matplotlib_is_loaded_for_pictures_only() -> None:
    program = """
import sys
from sr_monitor.display.album import Album
from sr_monitor.display.writers.memory import MemoryWriter
from tests.made import PROMPTS, make_record
album = Album([writer := MemoryWriter()])
album.introduce(PROMPTS, 3)
album.keep(make_record(3), prompts=PROMPTS)
album.show(make_record(5), prompts=PROMPTS)
Album([]).show(make_record(5), prompts=PROMPTS)
assert writer.scalars and "matplotlib" not in sys.modules
album.show(make_record(6), prompts=PROMPTS)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=root)


def test_pictures_leave_little_to_the_garbage_collector() -> None:
    """Training loops switch it off. Figures left alone leave some 9,000 objects here."""
    album = Album([MemoryWriter()])
    album.show(make_record(1), prompts=PROMPTS)  # loads and caches
    gc.collect()
    gc.disable()
    try:
        album.show(make_record(2), prompts=PROMPTS)
        assert gc.collect() < 1500
    finally:
        gc.enable()


def test_the_numbers_are_safe_before_anything_is_drawn() -> None:
    album = Album([writer := MemoryWriter()])
    too_few = make_prompts(3)  # for a second slice
    with pytest.raises(InputError, match=r"texts_of_triple\(1\)"):
        album.show(make_record(0, num_slices=2), prompts=too_few)
    assert dict(writer.scalars[f"{NAME}seconds"]) == {0: 1.5}
    assert writer.num_flushes == 1


# Broken writers ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", ["scalar", "histogram", "image", "animation", "flush", "text"])
def test_the_others_get_everything_when_a_writer_breaks(kind: str) -> None:
    first, broken, last = MemoryWriter(), Broken(kind, OSError("two\nlines")), MemoryWriter()
    album, record = Album([first, broken, last]), make_record(0)
    with pytest.raises(WriterError, match=r"^Broken could not write: two lines$") as caught:
        album.introduce(PROMPTS, 0) if kind == "text" else album.show(record, prompts=PROMPTS)
    assert caught.value.__cause__ is broken.error
    assert broken.calls[broken.calls.index(kind) :] == [kind]
    for good in (first, last):
        assert good.num_flushes == 1
        if kind == "text":
            assert steps_of(good.texts[f"{NAME}prompts"]) == [0]
        else:
            assert good.scalars == shown([record]).scalars
            assert same_pictures(good, shown([record]), 0)


def test_a_broken_writer_gets_another_chance_with_the_next_record() -> None:
    album = Album([broken := Broken("image", RuntimeError("for now"))])
    with pytest.raises(WriterError):
        album.show(make_record(4), prompts=PROMPTS)
    album.show(make_record(5), prompts=PROMPTS)
    broken.kind = ""
    album.show(make_record(8), prompts=PROMPTS)
    assert steps_of(broken.scalars[WIDTH]) == [4, 5, 8]
    assert [len(frames) for _, frames in broken.animations[ANIMATION]] == [2]


@pytest.mark.parametrize(
    ("kind", "drawn"), [("scalar", []), (None, []), ("image", ["draw_curves"])]
)
def test_nothing_is_drawn_where_nobody_is_left(kind: str | None, drawn: list[str]) -> None:
    writers = [] if kind is None else [Broken(kind, RuntimeError("no"))] * 2

    def show() -> None:
        try:
            Album(writers).show(make_record(0), prompts=PROMPTS)
        except WriterError:
            assert writers

    assert drawn_during(show) == drawn


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            OSError(errno.ENOSPC, "No space left"),
            "; free space on the disk, or name another log_dir",
        ),
        (OSError(errno.EACCES, "Denied"), "; make the folder writable, or name another log_dir"),
        (OSError("odd"), ""),
        (RuntimeError(), ""),
        (RuntimeError(errno.ENOSPC, "no error of the system"), ""),
    ],
)
def test_the_error_names_reason_and_fix(error: Exception, fix: str) -> None:
    message = str(WriterError.of([(MemoryWriter(), error), (JSONLWriter("x"), error)]))
    reason = str(error) or "RuntimeError"
    assert message == f"MemoryWriter could not write: {reason}{fix}; JSONLWriter failed too"


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    album = Album([JSONLWriter(tmp_path / "run" / "lines.jsonl"), writer := MemoryWriter()])
    album.show(make_record(4), prompts=PROMPTS)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").touch()
    with pytest.raises(WriterError, match=r"^JSONLWriter could not write: .*run"):
        album.show(make_record(5), prompts=PROMPTS)
    assert steps_of(writer.scalars[WIDTH]) == [4, 5]
