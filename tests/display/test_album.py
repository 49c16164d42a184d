"""What is shown of a record, at which steps, and that a broken writer harms nobody but itself."""

import errno
import gc
import html
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import matplotlib
import numpy as np
import pytest
import torch
from packaging.version import Version

from sr_monitor.display.album import Album, describe_prompts
from sr_monitor.display.writers.base import WriterError
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.probes.base import Page
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import RUN_KEYS, Key
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.paths_pictures import draw_curves
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.probes.slices_pictures import draw_frame, draw_slice, join_frames
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from tests.made import PROMPTS, Rise, make_prompts, make_record, make_slices
from tests.memory_writer import MemoryWriter

NAME, VIDEO = "stable_regions/", "stable_regions_video/"
RISE, RISES, PICTURE = (
    "stable_regions_rise/median",
    "stable_regions_rise",
    "stable_regions_rise/picture",
)


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
    for album in (Album([usual]), Album([other], name="stable_regions-2")):
        album.introduce(PROMPTS, 0)
        album.show(small_record(0), prompts=PROMPTS)
    assert RISE in usual.names
    assert other.names == {
        name.replace("stable_regions", "stable_regions-2") for name in usual.names
    }
    assert {"stable_regions-2_rise/median", "stable_regions-2/prompts"} <= other.names


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
        album.repeat(small_record(step), prompts=PROMPTS)
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
    """A frame of a film is drawn at its own step, and shown again at later ones."""
    drawn = Counter[str]()
    for real in (draw_curves, draw_slice, draw_frame):

        def counted(*arguments: Any, real: Any = real, **options: Any) -> Any:
            drawn[real.__name__] += 1
            return real(*arguments, **options)

        probe = "paths" if real is draw_curves else "slices"
        monkeypatch.setattr(f"sr_monitor.probes.{probe}.{real.__name__}", counted)
    records = {step: make_record(step, num_slices=2) for step in (0, 1)}
    writer = shown([0, 1], make=records.__getitem__)
    assert drawn == {"draw_curves": 2, "draw_frame": 4, "draw_slice": 4}
    behind = [("step 0", records[0].paths)]
    expected = {"curves": pixels(draw_curves(records[1].paths, title="step 1", earlier=behind))}
    for index in range(2):
        frames = [
            pixels(draw_frame(record.parts["slices"], index, f"step {step}"))
            for step, record in records.items()
        ]
        prompts = [f"prompt {number}" for number in range(index, index + 3)]
        alone = draw_slice(records[1].parts["slices"], index, prompts=prompts)
        expected |= {f"slice/{index}": pixels(alone), f"film/{index}": join_frames(frames)}
        found = writer.animations[f"{VIDEO}{index}"][-1][1]
        np.testing.assert_array_equal(found, np.stack(frames))
    for name, image in expected.items():
        np.testing.assert_array_equal(writer.images[NAME + name][-1][1], image)


def test_a_film_shows_the_steps_that_have_its_slice() -> None:
    counts = {1: 2, 2: 1, 4: 2}
    writer = shown(
        [*counts],
        make=lambda step: Record(step=step, parts={"slices": make_slices(0, counts[step])}),
    )
    frames = {
        name: {step: len(each) for step, each in found} for name, found in writer.animations.items()
    }
    assert frames == {f"{VIDEO}0": {1: 1, 2: 2, 4: 3}, f"{VIDEO}1": {1: 1, 4: 2}}


@pytest.mark.skipif(
    Version(matplotlib.__version__) < Version("3.9"),
    reason="matplotlib 3.8 leaves about 100",
)
def test_pictures_leave_nothing_to_the_garbage_collector() -> None:
    """Training loops switch it off. Figures left alone leave some 9,000 objects here."""
    album = Album([MemoryWriter()])
    album.show(make_record(1), prompts=PROMPTS)  # loads and caches
    gc.collect()
    gc.disable()
    try:
        album.show(make_record(2), prompts=PROMPTS)
        assert gc.collect() == 0
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


@pytest.mark.parametrize("kind", ["scalar", "image", "flush", "text"])
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
    if kind == "image":  # another chance with the next record
        broken.kind = ""
        album.show(small_record(1), prompts=PROMPTS)
        assert (steps_of(broken.scalars[RISE]), pictures(broken)) == ([0, 1], {1: [0, 1]})


def test_the_error_names_reason_and_fix() -> None:
    for error, fix in (
        (OSError(errno.ENOSPC, "Full"), "; free space on the disk, or name another log_dir"),
        (OSError(errno.EACCES, "Denied"), "; make the folder writable, or name another log_dir"),
        (OSError("odd"), ""),
        (RuntimeError(errno.ENOSPC, "no error of the system"), ""),
    ):
        message = str(WriterError.of([(MemoryWriter(), error), (JSONLWriter("x"), error)]))
        assert message == f"MemoryWriter could not write: {error}{fix}; JSONLWriter failed too"
    assert str(WriterError.of([(MemoryWriter(), ValueError())])).endswith(": ValueError")


NASTY = (
    "a | b || c",
    "`code` *bold* _it_ __init__ ~ 1. one --- | :-: |",
    "<b>tag</b> & &amp; &lt; [link](http://a.b) ![image](c)",
    "back\\slash \\| \\\\| $x$ \\( # -",
)


def table_of(prompts: PromptSet) -> tuple[str, list[list[str]]]:
    """The text before the table of prompts, and its rows, as TensorBoard renders them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard brings along
        render = importlib.import_module("tensorboard.plugin_util").markdown_to_safe_html
        about, table = render(describe_prompts(prompts)).split("<table>")
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.S) for row in table.split("<tr>")[1:]]
    return html.unescape(about), [[html.unescape(cell) for cell in row] for row in rows]


def test_the_table_holds_the_pairs_and_tells_their_source() -> None:
    prompts = replace(PROMPTS, source="a <corpus> | of_mine_", seed=3)
    about, rows = table_of(prompts)
    assert "6 pairs of prompts of 3 tokens each, from a <corpus> | of_mine_;" in about
    assert f"fingerprint {prompts.fingerprint}. These are all:" in about
    assert rows[0] == ["pair", "A", "B"]
    assert rows[1:] == [[f"{pair}", f"prompt {pair}", f"prompt {pair + 1}"] for pair in range(6)]
    about, rows = table_of(replace(make_prompts(500), texts=None))
    assert re.search("499 pairs.*The first 32 are:", about)
    assert (len(rows), rows[2]) == (33, ["1", "3 4 5", "6 7 8"])
    labels = ("a", "b|", "", "d")
    _, rows = table_of(replace(make_prompts(8), pairing="explicit", labels=labels))
    assert rows[0] == ["pair", "label", "A", "B"]
    assert rows[2:4] == [["1", "b|", "prompt 2", "prompt 3"], ["2", "", "prompt 4", "prompt 5"]]
    assert len(rows) == 5


def test_prompts_are_shown_as_they_are_on_one_line() -> None:
    """A long one keeps its end."""
    odd = "two\nlines\r\n\tand a bell \x07 and half a pair \udc80"
    texts = (*NASTY, odd, "word " * 400 + "end", "")
    _, rows = table_of(replace(make_prompts(len(texts)), texts=texts))
    *plain, odd, long = [row[1] for row in rows[1:]]
    assert plain == list(NASTY)
    assert odd == "two↵lines ↵ and a bell □ and half a pair □"
    assert re.fullmatch(r"….{150,155}word end", long)


class Moved(Rise):
    """Tells how far each measurement is from the one before."""

    STEPS: ClassVar = Key.scalar("rise/moved", "Steps since the one before.")

    def changes(self, page: Page, before: Page) -> dict[Key, float]:
        return {self.STEPS: float(page.title.split()[1]) - float(before.title.split()[1])}


def test_changes_are_since_the_record_before_whether_shown_or_kept() -> None:
    album = Album([writer := MemoryWriter()])
    album.keep(small_record(2, probe=Moved()), prompts=PROMPTS)
    for step, last in ((3, False), (9, False), (9, True)):
        album.show(small_record(step, probe=Moved()), prompts=PROMPTS, last=last)
    album.show(small_record(10, has_part=False, probe=Moved()), prompts=PROMPTS)
    assert writer.scalars["stable_regions_rise/moved"] == [(3, 1.0), (9, 6.0)]
