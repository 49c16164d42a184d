"""What of a measurement is shown at which step, and which earlier ones are drawn beside it.

Numbers go to the writers at every step. Pictures belong to *picture steps*: the first one, then
each that is at least twice the last one before, and the end of the run. So a run of any length has
few pictures, close together where the model changes fast, and TensorBoard, which keeps ten images
under a name, keeps nearly all of them. What is logged and drawn is up to the probes.

    album = Album([TensorBoardWriter("runs/1")])
    album.show(record, prompts=prompts)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from sr_monitor.display.prompts_table import describe_prompts
from sr_monitor.display.writers.base import Writer, WriterError
from sr_monitor.probes.base import Page
from sr_monitor.probes.keys import PREFIX, Kind
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record
from sr_monitor.results.run_keys import PROMPTS

_MOST_PAGES = 16

_Entry: TypeAlias = tuple[Kind, str, Any]  # how, under which name, what


class Album:
    """Shows the records of one run, in the order of their steps, on all writers.

    A writer that fails is left out for the rest of that call, the others get everything, and then
    a `WriterError` is raised. With the next call it gets another chance.
    """

    def __init__(self, writers: Sequence[Writer], *, prefix: str = PREFIX) -> None:
        """Start empty.

        Args:
            writers: Where everything goes.
            prefix: What every logged name begins with, for two runs of measurements in one log:
                "stable_regions-2/".
        """
        self._writers = tuple(writers)
        self.prefix = prefix
        self._pages: dict[int, dict[str, Page]] = {}  # of the picture steps: by step, by probe
        self._numbered: int | None = None  # the step whose numbers were written last
        self._drawn: set[int] = set()  # the steps whose pictures were

    def introduce(self, prompts: PromptSet, step: int) -> None:
        """Show which prompts are measured: the first pairs, how many there are, their source."""
        with self._all_writers() as writers:
            entry: _Entry = PROMPTS.kind, PROMPTS.name, describe_prompts(prompts)
            writers.write(iter([entry]), step)

    def keep(self, record: Record, *, prompts: PromptSet) -> None:
        """Remember a record that was shown before the run was resumed; write nothing."""
        if self._is_picture_step(record.step):
            self._pages[record.step] = _pages(record, prompts)

    def repeat(self, record: Record) -> None:
        """Show the numbers of a record again, to writers that were not there at the time."""
        with self._all_writers() as writers:
            writers.write(_numbers(record), record.step)

    def show(self, record: Record, *, prompts: PromptSet, last: bool = False) -> None:
        """Show the numbers of a record, and its pictures at a picture step or if it is the last.

        Called for the same step again, it adds the pictures if there were none.
        """
        with self._all_writers() as writers:
            if record.step != self._numbered:
                self._numbered = record.step
                writers.write(_numbers(record), record.step)
            if record.step not in self._drawn and (last or self._is_picture_step(record.step)):
                self._pages[record.step] = _pages(record, prompts)
                self._drawn.add(record.step)
                writers.write(self._pictures(record), record.step)

    def _is_picture_step(self, step: int) -> bool:
        before = max(self._pages, default=None)
        return before is None or step in self._pages or step >= 2 * before

    def _pictures(self, record: Record) -> Iterator[_Entry]:
        """Draw all parts of a record, with what was kept of earlier steps."""
        so_far = [self._pages[step] for step in sorted(self._pages) if step <= record.step]
        for probe, _ in record.known():
            pages = [pages[probe.name] for pages in so_far if probe.name in pages]
            *earlier, page = _thinned(pages)
            for key, picture in probe.pictures(page, earlier):
                yield key.kind, key.name, picture

    @contextmanager
    def _all_writers(self) -> Iterator["_Writers"]:
        """Lend all writers; flush them in any case, and raise an error if some have failed."""
        writers = _Writers(self._writers, self.prefix)
        try:
            yield writers
        finally:
            writers.call("flush")
        if writers.failures:
            raise WriterError.of(writers.failures) from writers.failures[0][1]


class _Writers:
    """Several writers as one; one that has failed is not called again."""

    def __init__(self, writers: Sequence[Writer], prefix: str) -> None:
        self._left, self._prefix = list(writers), prefix
        self.failures: list[tuple[Writer, Exception]] = []

    def write(self, entries: Iterator[_Entry], step: int) -> None:
        """Write entries until none remain or every writer has failed: the rest is not drawn."""
        while self._left and (entry := next(entries, None)):
            kind, name, value = entry  # a kind is the name of the writers' method for it
            self.call(kind, self._prefix + name.removeprefix(PREFIX), value, step)

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of each writer that has not failed."""
        for writer in tuple(self._left):
            try:
                getattr(writer, method)(*arguments)
            except Exception as error:  # whatever it is, the others must be served
                self._left = [other for other in self._left if other is not writer]
                self.failures.append((writer, error))


def _pages(record: Record, prompts: PromptSet) -> dict[str, Page]:
    """Return the pages of a record by probe."""
    title = f"step {record.step}"
    return {
        probe.name: Page(title=title, part=part, parts=record.parts, prompts=prompts)
        for probe, part in record.known()
    }


def _numbers(record: Record) -> Iterator[_Entry]:
    """Yield what is written at every step."""
    for name, number in record.scalars.items():
        yield "scalar", name, number
    for probe, part in record.known():
        for key, values in probe.histograms(part).items():
            yield key.kind, key.name, values


def _thinned(pages: Sequence[Page]) -> Sequence[Page]:
    """Drop every second page, never the first or last, until the rest fits one picture."""
    while len(pages) > _MOST_PAGES:
        pages = [pages[0], *pages[2:-1:2], pages[-1]]
    return pages
