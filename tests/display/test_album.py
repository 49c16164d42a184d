"""What is shown of a record, at which steps, and that a broken writer harms nobody but itself."""

import errno
import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from sr_monitor.display.album import Album
from sr_monitor.display.writers.base import WriterError
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.probes.base import Page
from sr_monitor.probes.drawing import rasterise
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.paths_pictures import draw_curves
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.probes.slices_pictures import draw_film, draw_slice
from sr_monitor.results.record import Record
from sr_monitor.results.run_keys import RUN_KEYS
from tests.made import PROMPTS, Rise, make_record, make_slices

NAME = "stable_regions/"
RISE, RISES, PICTURE = f"{NAME}rise/median", f"{NAME}rise", f"{NAME}rise/picture"


def small_record(step: int, *, has_part: bool = True, probe: Rise | None = None) -> Record:
    """A record of a probe of another package: its picture has a row for each step drawn in it."""
    bits = torch.tensor([float(step >> place & 1) for place in range(32)])
    parts = {"rise": {"rise": bits, "at": 0.5}} if has_part else {}
    return Record(step=step, parts=parts, probes=(probe or Rise(),))


def steps_in(picture: Any) -> list[int]:
    """The steps that a picture of small records shows."""
    return [sum(int(bit > 0) << place for place, bit in enumerate(row[:, 0])) for row in picture]


def shown(
    steps: Sequence[int], kept: Sequence[int] = (), make: Callable[[int], Record] = small_record
) -> MemoryWriter:
    """What is written when records are shown, after others were kept."""
    album = Album([writer := MemoryWriter()])
    for step in kept:
        album.keep(make(step), prompts=PROMPTS)
    for step in steps:
        album.show(make(step), prompts=PROMPTS)
    return writer


def pictures(writer: MemoryWriter) -> dict[int, list[int]]:
    """By the step at which a picture was drawn, the steps that it shows."""
    return {step: steps_in(picture) for step, picture in writer.images.get(PICTURE, [])}


def steps_of(entries: Sequence[tuple[int, Any]]) -> list[int]:
    return [step for step, _ in entries]


def test_what_is_logged_is_what_is_documented() -> None:
    """Every number of the record, and the slopes of the pairs that count."""
    record = make_record(3, metadata={"seconds": 1.0, "share_of_time": 0.5, "failures": 0})
    album = Album([writer := MemoryWriter()])
    album.introduce(PROMPTS, 3)
    album.show(record, prompts=PROMPTS)
    kinds = ("scalar", "histogram", "image", "animation", "text")
    found = {(kind, name) for kind in kinds for name in getattr(writer, f"{kind}s")}
    keys = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
    assert found == {(key.kind, key.numbered(0).name) for key in keys}
    assert writer.scalars == {name: [(3, value)] for name, value in record.scalars.items()}
    ((step, slopes),) = writer.histograms[f"{NAME}max_slope"]
    assert (step, slopes.tolist()) == (3, record.paths.max_slope[:-1].tolist())
    assert writer.num_flushes == 2


def test_another_prefix_takes_the_place_of_the_usual_one() -> None:
    usual, other = MemoryWriter(), MemoryWriter()
    for album in (Album([usual]), Album([other], prefix="stable_regions-2/")):
        album.introduce(PROMPTS, 0)
        album.show(small_record(0), prompts=PROMPTS)
    assert RISE in usual.names
    assert other.names == {name.replace(NAME, "stable_regions-2/") for name in usual.names}


@pytest.mark.parametrize(
    ("kept", "steps", "expected"),
    [
        ([], range(11), [0, 1, 2, 4, 8]),
        ([], [0, 500, 999, 1000, 1500, 2000, 2500], [0, 500, 1000, 2000]),
        ([], [7, 13, 14], [7, 14]),
        ([3, 4], [5, 6, 8], [6]),
        ([2, 4], [3, 5], []),
        ([2, 4], [4, 5], [4]),
        ([0, 2, 3], [8], [8]),
    ],
)
def test_pictures_come_when_the_step_has_doubled(
    kept: Sequence[int], steps: Sequence[int], expected: list[int]
) -> None:
    """Records that were kept count, too: a resumed run shows what the whole one does."""
    writer, whole = shown(steps, kept), shown([*kept, *steps])
    assert pictures(writer) == {step: pictures(whole)[step] for step in expected}
    assert all(drawn[-1] == step for step, drawn in pictures(writer).items())
    assert steps_of(writer.scalars[RISE]) == steps_of(writer.histograms[RISES]) == list(steps)


def test_the_last_step_has_pictures_in_any_case_and_once() -> None:
    album = Album([writer := MemoryWriter()])
    for step, last in ((4, False), (5, False), (5, True), (5, True), (8, False), (8, True)):
        album.show(small_record(step), prompts=PROMPTS, last=last)
    assert pictures(writer) == {4: [4], 5: [4, 5], 8: [4, 5, 8]}
    for entries in (writer.images[PICTURE], writer.scalars[RISE], writer.histograms[RISES]):
        assert steps_of(entries) == [4, 5, 8]


def test_numbers_are_repeated_without_pictures() -> None:
    album = Album([writer := MemoryWriter()])
    for step in (0, 1):
        album.keep(small_record(step), prompts=PROMPTS)
        album.repeat(small_record(step))
    assert writer.names == {*small_record(0).scalars, RISES}
    assert all(steps_of(entries) == [0, 1] for entries in writer.scalars.values())
    album.show(small_record(2), prompts=PROMPTS)
    assert pictures(writer) == {2: [0, 1, 2]}


def test_a_picture_shows_no_later_step_and_none_without_its_part() -> None:
    album = Album([writer := MemoryWriter()])
    for step in (0, 1, 8):
        album.keep(small_record(step, has_part=step != 1), prompts=PROMPTS)
    album.show(small_record(5), prompts=PROMPTS, last=True)
    assert pictures(writer) == {5: [0, 5]}


@pytest.mark.parametrize(
    ("num_kept", "powers"), [(15, range(14)), (16, range(1, 14, 2)), (23, range(1, 22, 2))]
)
def test_a_picture_holds_at_most_16_steps_with_the_first_and_the_last(
    num_kept: int, powers: Sequence[int]
) -> None:
    kept = [0, *(2**power for power in range(num_kept - 1))]
    expected = [0, *(2**power for power in powers), 9**9]
    assert pictures(shown([9**9], kept)) == {9**9: expected}
    assert len(expected) <= 16


def test_the_pictures_are_those_of_the_figures_each_drawn_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = Counter[str]()
    for real in (draw_curves, draw_slice, draw_film):

        def counted(*arguments: Any, real: Any = real, **options: Any) -> Any:
            drawn[real.__name__] += 1
            return real(*arguments, **options)

        probe = "paths" if real is draw_curves else "slices"
        monkeypatch.setattr(f"sr_monitor.probes.{probe}.{real.__name__}", counted)
    records = {step: make_record(step, num_slices=2) for step in (0, 1)}
    writer = shown([0, 1], make=records.__getitem__)
    assert drawn == {"draw_curves": 2, "draw_film": 4, "draw_slice": 4}
    images, animations = writer.images, writer.animations
    slices = {f"step {step}": record.parts["slices"] for step, record in records.items()}
    behind = [("step 0", records[0].paths)]
    curves = draw_curves(records[1].paths, title="step 1", earlier=behind)
    np.testing.assert_array_equal(images[f"{NAME}curves"][-1][1], rasterise(curves))
    for index in range(2):
        prompts = [f"prompt {number}" for number in range(index, index + 3)]
        alone = draw_slice(slices["step 1"], index, prompts=prompts)
        np.testing.assert_array_equal(images[f"{NAME}slice/{index}"][-1][1], rasterise(alone))
        film = draw_film(list(slices.items()), index)
        np.testing.assert_array_equal(images[f"{NAME}film/{index}"][-1][1], rasterise(film))
        frames = animations[f"{NAME}animation/{index}"][-1][1]
        for frame, entry in zip(frames, slices.items(), strict=True):
            np.testing.assert_array_equal(frame, rasterise(draw_film([entry], index)))


def test_a_film_shows_the_steps_that_have_its_slice() -> None:
    counts = {1: 2, 2: 1, 4: 2}
    writer = shown(
        [*counts],
        make=lambda step: Record(step=step, parts={"slices": make_slices(0, counts[step])}),
    )
    frames = {
        name: {step: len(each) for step, each in found} for name, found in writer.animations.items()
    }
    assert frames == {f"{NAME}animation/0": {1: 1, 2: 2, 4: 3}, f"{NAME}animation/1": {1: 1, 4: 2}}


def test_what_pictures_need_is_loaded_when_they_are_drawn() -> None:
    program = """
import sys
import sr_monitor.display.writers.wandb, sr_monitor.display.writers.jsonl
from sr_monitor.display.album import Album
from sr_monitor.display.writers.memory import MemoryWriter
from tests.made import PROMPTS, make_record
album = Album([writer := MemoryWriter()])
album.introduce(PROMPTS, 3)
album.keep(make_record(3), prompts=PROMPTS)
album.show(make_record(5), prompts=PROMPTS)
Album([]).show(make_record(5), prompts=PROMPTS)
heavy = {"matplotlib", "PIL", "tensorboard", "torch.utils.tensorboard", "wandb"}
assert writer.scalars and not heavy & {*sys.modules}
album.show(make_record(6), prompts=PROMPTS)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=root)


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


class Drawing(Rise):
    """Counts the pictures it draws, and fails with the third."""

    drawn: ClassVar[list[int]] = []

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, Any]]:
        for number in range(3):
            self.drawn.append(number)
            if number == 2:
                raise ArithmeticError("cannot draw")
            yield from super().pictures(page, earlier)


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


@pytest.mark.parametrize(("kind", "drawn"), [("", 3), ("image", 1), ("scalar", 0)])
def test_numbers_are_safe_before_anything_is_drawn_and_nothing_is_drawn_for_nobody(
    kind: str, drawn: int
) -> None:
    """Whether drawing fails, or every writer has."""
    Drawing.drawn.clear()
    Album([]).show(small_record(0, probe=Drawing()), prompts=PROMPTS)
    writers = [Broken(kind, RuntimeError("no")) for _ in range(2)]
    with pytest.raises(WriterError if kind else ArithmeticError):
        Album(writers).show(small_record(0, probe=Drawing()), prompts=PROMPTS)
    assert len(Drawing.drawn) == drawn
    for writer in writers:
        assert (RISE in writer.scalars) == (kind != "scalar")
        assert writer.num_flushes == (kind == "")


@pytest.mark.parametrize("kind", ["scalar", "histogram", "image", "flush", "text"])
def test_the_others_get_everything_when_a_writer_breaks(kind: str) -> None:
    first, broken, last = MemoryWriter(), Broken(kind, OSError("two\nlines")), MemoryWriter()
    album, record = Album([first, broken, last]), small_record(0)
    with pytest.raises(WriterError, match=r"^Broken could not write: two lines$") as caught:
        album.introduce(PROMPTS, 0) if kind == "text" else album.show(record, prompts=PROMPTS)
    assert caught.value.__cause__ is broken.error
    assert broken.calls[broken.calls.index(kind) :] == [kind]
    for good in (first, last):
        assert good.num_flushes == 1
        if kind == "text":
            assert steps_of(good.texts[f"{NAME}prompts"]) == [0]
        else:
            assert (good.scalars, pictures(good)) == (shown([0]).scalars, {0: [0]})


def test_a_broken_writer_gets_another_chance_with_the_next_record() -> None:
    album = Album([broken := Broken("image", RuntimeError("for now"))])
    with pytest.raises(WriterError):
        album.show(small_record(4), prompts=PROMPTS)
    album.show(small_record(5), prompts=PROMPTS)
    broken.kind = ""
    album.show(small_record(8), prompts=PROMPTS)
    assert steps_of(broken.scalars[RISE]) == [4, 5, 8]
    assert pictures(broken) == {8: [4, 8]}


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (OSError(errno.ENOSPC, "Full"), "; free space on the disk, or name another log_dir"),
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
