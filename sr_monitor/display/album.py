"""Decide what of a measurement is shown at which step, and which earlier ones lie behind it.

Numbers go to the writers at every step. Pictures belong to *picture steps*: the first one, then
each that is at least twice the last one before, and the end of the run. So even a long run has few,
close together where the model changes fast, and TensorBoard keeps nearly all: ten under a name.

    album = Album([TensorBoardWriter("runs/1")])
    album.show(record, prompts=prompts)
"""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from sr_monitor.display.writers.base import Writer, WriterError
from sr_monitor.probes.base import Page
from sr_monitor.probes.drawing import load_drawing
from sr_monitor.probes.keys import NAME, PROMPTS, Key, Kind, of_run
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record

_MOST_PAGES = 16
_MOST_PAIRS, _MOST_CHARACTERS = 32, 160  # of the table of prompts

_Entry: TypeAlias = tuple[Kind, str, Any]  # how, under which name, what


class Album:
    """Shows the records of one run, in the order of their steps, on all writers.

    A writer that fails is left out for the rest of that call; the others get everything before a
    `WriterError` is raised.
    """

    def __init__(self, writers: Sequence[Writer], *, name: str = NAME) -> None:
        """Start empty. Another `name` tells two runs in one log apart: "stable_regions-2"."""
        self._writers = tuple(writers)
        self.name = name
        self._pages: dict[int, dict[str, Page]] = {}  # of the picture steps: by step, by probe
        self._before: dict[str, Page] = {}  # of the last record, by probe
        self._numbered: int | None = None  # the step whose numbers were written last
        self._drawn: set[int] = set()  # the steps whose pictures were

    def prepare(self) -> None:
        """Load what draws, if there is anybody to draw for."""
        if self._writers:
            load_drawing()

    def introduce(self, prompts: PromptSet, step: int) -> None:
        """Show which prompts are measured: the first pairs, how many there are, their source."""
        self._write([(PROMPTS.kind, PROMPTS.name, describe_prompts(prompts))], step)

    def needed(self, steps: Iterable[int]) -> list[int]:
        """Return the steps whose records `keep` has to see, of those shown so far, in order.

        With these alone, what comes next is shown as if all had been kept.
        """
        found: list[int] = []
        last = None
        for step in sorted(steps):
            if not found or step >= 2 * found[-1]:  # a picture step
                found.append(step)
            last = step
        return found if last is None or last in found else [*found, last]

    def keep(self, record: Record, *, prompts: PromptSet) -> None:
        """Remember a record that was shown before the run was resumed; write nothing."""
        self._before = make_pages(record, prompts)
        if self._is_picture_step(record.step):
            self._pages[record.step] = self._before

    def repeat(self, record: Record, *, prompts: PromptSet) -> None:
        """Show the numbers of a record again, to writers that joined later."""
        self._write(self._numbers(record, make_pages(record, prompts)), record.step)

    def show(self, record: Record, *, prompts: PromptSet, last: bool = False) -> None:
        """Show the numbers of a record, and its pictures at a picture step or if it is the last.

        Called for the same step again, it adds the pictures if there were none.
        """
        entries: list[Iterable[_Entry]] = []
        pages = make_pages(record, prompts)
        if record.step != self._numbered:
            self._numbered = record.step
            entries.append(self._numbers(record, pages))
        if record.step not in self._drawn and (last or self._is_picture_step(record.step)):
            self._drawn.add(record.step)
            self._pages[record.step] = pages
            entries.append(self._pictures(record))
        self._write(chain.from_iterable(entries), record.step)

    def _is_picture_step(self, step: int) -> bool:
        before = max(self._pages, default=None)
        return before is None or step in self._pages or step >= 2 * before

    def _numbers(self, record: Record, pages: dict[str, Page]) -> Iterator[_Entry]:
        """Yield what is written at every step, changes since the record before included."""
        before, self._before = self._before, pages
        for name, number in record.scalars.items():
            yield "scalar", name, number
        for probe, part in record.known():
            for key, values in probe.histograms(part).items():
                yield key.kind, key.name, values
        for name, number in changes(record, pages, before).items():
            yield "scalar", name, number

    def _pictures(self, record: Record) -> Iterator[_Entry]:
        so_far = [step for step in sorted(self._pages) if step <= record.step]
        shown = _thinned(so_far)
        for step in {*so_far} - {*shown}:
            self._pages[step] = {}  # no later picture shows it
        for probe, _ in record.known():
            pages = [self._pages[step] for step in shown]
            *earlier, page = [each[probe.name] for each in pages if probe.name in each]
            for key, picture in probe.pictures(page, earlier):
                yield key.kind, key.name, picture

    def _write(self, entries: Iterable[_Entry], step: int) -> None:
        """Write entries while any writer works, each drawn only then, and flush."""
        left, failures = list(self._writers), list[tuple[Writer, Exception]]()

        def call(method: str, *arguments: Any) -> None:
            for writer in tuple(left):
                try:
                    getattr(writer, method)(*arguments)
                except Exception as error:  # whatever it is, the others must be served
                    left.remove(writer)
                    failures.append((writer, error))

        try:
            coming = iter(entries)
            while left and (entry := next(coming, None)):
                kind, name, value = entry  # a kind is the name of the writers' method for it
                call(kind, of_run(name, self.name), value, step)
        finally:
            call("flush")
        if failures:
            raise WriterError.of(failures) from failures[0][1]


def make_pages(record: Record, prompts: PromptSet | None) -> dict[str, Page]:
    """Return what pictures and changes see of a record, by probe: nothing without prompts."""
    title = f"step {record.step}"
    return (
        {}
        if prompts is None
        else {
            probe.name: Page(
                title=title, part=part, parts=record.parts, prompts=record.prompts_in(prompts)
            )
            for probe, part in record.known()
        }
    )


def changes(
    record: Record, pages: Mapping[str, Page], before: Mapping[str, Page]
) -> dict[str, float]:
    """Return the numbers that compare a record with the one before it, by name."""
    found: dict[Key, float] = {}
    for probe, _ in record.known():
        if probe.name in pages and probe.name in before:
            page, earlier = pages[probe.name], before[probe.name]
            # Pairs that are drawn anew cannot be compared one by one.
            if page.prompts.fingerprint == earlier.prompts.fingerprint:
                found |= probe.changes(page, earlier)
    return {key.name: number for key, number in found.items()}


def describe_prompts(prompts: PromptSet) -> str:
    """Say in Markdown where the prompts are from and how many there are; list the first pairs."""
    shown = min(prompts.num_pairs, _MOST_PAIRS)
    which = "These are all" if shown == prompts.num_pairs else f"The first {shown} are"
    about = (
        f"{prompts.num_pairs} pairs of prompts of {prompts.num_tokens} tokens each, from "
        f"{_escape(prompts.source)}; fingerprint {prompts.fingerprint}. {which}:"
    )
    every = 1 if prompts.pairing == "chain" else 2
    ids = prompts.token_ids[: 2 * shown].tolist()
    words = prompts.texts or [" ".join(map(str, prompt)) for prompt in ids]
    labels = {"label": prompts.labels} if prompts.labels else {}
    columns = {"pair": range(shown), **labels, "A": words[::every], "B": words[1::every]}
    cells = ([_escape(str(value)) for value in column[:shown]] for column in columns.values())
    rows = [columns, ["---"] * len(columns), *zip(*cells, strict=True)]
    return "\n".join([about, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _escape(text: str) -> str:
    """Put a text on one line that Markdown shows literally; keep the end of a long one."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"…{text[-_MOST_CHARACTERS:]}"
    spaced = ("↵" if char == "\n" else " " if char.isspace() else char for char in cut)
    printable = "".join(char if char.isprintable() else "□" for char in spaced)
    return re.sub(r"[\\`*_|\[\]]", r"\\\g<0>", html.escape(printable, quote=False))


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    """Drop every second step, never the first or last, until the rest fits one picture."""
    while len(steps) > _MOST_PAGES:
        steps = [steps[0], *steps[2:-1:2], steps[-1]]
    return steps
