"""What of a measurement is shown, and what of earlier ones is kept to show change.

Numbers go to the writers at every step. Pictures belong to *picture steps*: the first one, then
each that is at least twice the last one before, and the end of the run. So a run of any length has
few pictures, close together where the model changes fast, and TensorBoard, which keeps ten images
under a name, keeps nearly all of them.

    album = Album([TensorBoardWriter("runs/1")])
    album.show(record, prompts=prompts)
"""

import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from sr_monitor.display.writers.base import RGB, Writer, WriterError
from sr_monitor.probes import keys
from sr_monitor.probes.drawing import draw_curves, draw_film, draw_slice, join_frames, rasterise
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record

_MOST_FRAMES = 16
_MOST_PAIRS = 32
_MOST_CHARACTERS = 160

_T = TypeVar("_T")
_Entry = tuple[keys.Kind, str, Any]  # how, under which name, what


class Album:
    """Shows records of one run, in the order of their steps, on all writers.

    A writer that fails is passed over until the end of that call, the others get everything; then
    a `WriterError` says so. With the next call it gets another chance.
    """

    def __init__(self, writers: Sequence[Writer], *, prefix: str = keys.PREFIX) -> None:
        """Starts empty.

        Args:
            writers: Where everything goes.
            prefix: What every logged name begins with, for two runs of measurements in one log:
                "stable_regions-2/".
        """
        self._writers = tuple(writers)
        self.prefix = prefix
        self._pages: dict[int, _Page] = {}  # of the picture steps, by step
        self._numbered: int | None = None  # the step whose numbers were written last
        self._drawn: set[int] = set()  # the steps whose pictures were

    def introduce(self, prompts: PromptSet, step: int) -> None:
        """Shows which prompts are measured: the first pairs, how many there are, their source."""
        with self._everyone() as everyone:
            text = (keys.PROMPTS.kind, keys.PROMPTS.name, _describe(prompts))
            everyone.write(iter([text]), step)

    def keep(self, record: Record) -> None:
        """Remembers a record that was shown before the run was resumed; writes nothing."""
        if self._is_picture_step(record.step):
            self._pages[record.step] = _Page(record)

    def repeat(self, record: Record) -> None:
        """Shows the numbers of a record once more: its writers were not there at the time."""
        with self._everyone() as everyone:
            everyone.write(_numbers(record), record.step)

    def show(self, record: Record, *, prompts: PromptSet, last: bool = False) -> None:
        """Shows a record: its numbers, and pictures if it is their turn or this is the `last` one.

        The same step once more adds the pictures, if it had none.
        """
        with self._everyone() as everyone:
            if record.step != self._numbered:
                self._numbered = record.step
                everyone.write(_numbers(record), record.step)
            if record.step not in self._drawn and (last or self._is_picture_step(record.step)):
                self._pages[record.step] = _Page(record)
                self._drawn.add(record.step)
                everyone.write(self._pictures(record, prompts), record.step)

    def _is_picture_step(self, step: int) -> bool:
        before = max(self._pages, default=None)
        return before is None or step in self._pages or step >= 2 * before

    def _pictures(self, record: Record, prompts: PromptSet) -> Iterator[_Entry]:
        """Everything that is drawn of a record, with what was kept up to it."""
        so_far = [self._pages[step] for step in sorted(self._pages) if step <= record.step]
        yield keys.CURVES.kind, keys.CURVES.name, _draw_curves(_thinned(so_far))
        for index in range(_num_slices(record)):
            assert record.slices is not None
            having = [page for page in so_far if index < _num_slices(page.record)]
            frames = [page.frame(index) for page in _thinned(having)]
            slices = draw_slice(record.slices, index, prompts=prompts.texts_of_triple(index))
            yield keys.SLICE.kind, keys.SLICE.of(index), rasterise(slices)
            yield keys.FILM.kind, keys.FILM.of(index), join_frames(frames)
            yield keys.ANIMATION.kind, keys.ANIMATION.of(index), np.stack(frames)

    @contextmanager
    def _everyone(self) -> Iterator["_Everyone"]:
        """All writers; flushed at the end, whatever happens, and then who failed is told."""
        everyone = _Everyone(self._writers, self.prefix)
        try:
            yield everyone
        finally:
            everyone.call("flush")
        if everyone.failures:
            raise WriterError.of(everyone.failures) from everyone.failures[0][1]


class _Everyone:
    """Several writers as one; whoever fails is not called again."""

    def __init__(self, writers: Sequence[Writer], prefix: str) -> None:
        self._writers, self._prefix = list(writers), prefix
        self.failures: list[tuple[Writer, Exception]] = []

    def write(self, entries: Iterator[_Entry], step: int) -> None:
        """Each entry; what nobody is left for is not even drawn."""
        while self._writers and (entry := next(entries, None)):
            kind, name, value = entry  # a kind is the name of the writers' method for it
            self.call(kind, self._prefix + name.removeprefix(keys.PREFIX), value, step)

    def call(self, method: str, *arguments: Any) -> None:
        """The method of each writer that has not failed."""
        for writer in tuple(self._writers):
            try:
                getattr(writer, method)(*arguments)
            except Exception as error:  # whatever it is, the others are to be served
                self._writers = [other for other in self._writers if other is not writer]
                self.failures.append((writer, error))


class _Page:
    """A record at a picture step, and its slices as they appear in films."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.title = f"step {record.step}"
        self._frames: dict[int, RGB] = {}

    def frame(self, index: int) -> RGB:
        """The slice under its title, drawn once."""
        if index not in self._frames:
            assert self.record.slices is not None
            frame = draw_film([(self.title, self.record.slices)], index)
            self._frames[index] = rasterise(frame)
        return self._frames[index]


def _num_slices(record: Record) -> int:
    return 0 if record.slices is None else len(record.slices.foot)


def _numbers(record: Record) -> Iterator[_Entry]:
    for name, value in record.scalars.items():
        yield "scalar", name, value
    slopes = record.paths.max_slope[record.paths.kept]
    yield keys.MAX_SLOPE.kind, keys.MAX_SLOPE.name, slopes


def _draw_curves(pages: Sequence[_Page]) -> RGB:
    """The curves of the last page, those of the others behind."""
    *earlier, (title, paths) = [(page.title, page.record.paths) for page in pages]
    return rasterise(draw_curves(paths, title=title, earlier=earlier))


def _thinned(entries: Sequence[_T]) -> Sequence[_T]:
    """At most as many as a film may have: every second is dropped, never the first or last."""
    while len(entries) > _MOST_FRAMES:
        entries = [entries[0], *entries[2:-1:2], entries[-1]]
    return entries


def _describe(prompts: PromptSet) -> str:
    """Where the prompts are from, and a table of the first pairs, in Markdown."""
    shown = min(prompts.num_pairs, _MOST_PAIRS)
    which = "These are all" if shown == prompts.num_pairs else f"The first {shown} are"
    about = (
        f"{prompts.num_pairs} pairs of prompts of {prompts.num_tokens} tokens each, from "
        f"{_escape(prompts.source)}; fingerprint {prompts.fingerprint}. {which}:"
    )
    columns = _columns(prompts, shown)
    rows = [columns, ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join([about, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _columns(prompts: PromptSet, num_pairs: int) -> dict[str, list[str]]:
    """What is told of the first pairs: texts where they are known, else token ids."""
    every = 1 if prompts.pairing == "chain" else 2
    ids = prompts.token_ids[: 2 * num_pairs].tolist()
    words = prompts.texts or [" ".join(map(str, prompt)) for prompt in ids]
    labels = {"label": prompts.labels} if prompts.labels else {}
    columns = {"pair": range(num_pairs), **labels, "A": words[::every], "B": words[1::every]}
    return {
        name: [_escape(str(value)) for value in values[:num_pairs]]
        for name, values in columns.items()
    }


def _escape(text: str) -> str:
    """A text on one line that Markdown shows as it is; of a long one the end, as on a slice."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"…{text[-_MOST_CHARACTERS:]}"
    spaced = ("↵" if char == "\n" else " " if char.isspace() else char for char in cut)
    printable = "".join(char if char.isprintable() else "□" for char in spaced)
    return re.sub(r"[\\`*_|\[\]]", r"\\\g<0>", html.escape(printable, quote=False))
