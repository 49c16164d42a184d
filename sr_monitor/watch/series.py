"""One curve of a monitor: a sample of prompts, its records, and what shows them.

series = Series(sample, config, RecordStore("runs/1", "stable_regions"))
series.open(writers, step)
record = series.take(model, step, ranks=ranks)
series.keep(record)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from torch import nn

from sr_monitor.display.album import Album
from sr_monitor.display.writers.base import Writer
from sr_monitor.model.engine import Way
from sr_monitor.model.ranks import RankGroup
from sr_monitor.results.record import Record
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measure import take_record
from sr_monitor.watch.samples import Sample


class Series:
    """Measures one sample at each step that it is told, and keeps and shows the records."""

    def __init__(self, sample: Sample, config: MonitorConfig, store: RecordStore) -> None:
        """Measure nothing yet; `store` is that of the whole run."""
        self.sample, self.config = sample, sample.measured_as(config)
        self.store = store.of_set(sample.name) if sample.name else store
        self.last_step = -1
        self.way: Way | None = None
        """The way to run points that this curve keeps to, once it was measured."""
        self.latest: Record | None = None
        """What was measured last."""
        self._album = Album([])

    def open(
        self, writers: Sequence[Writer], step: int, *, new: Sequence[Writer]
    ) -> Iterator[Record]:
        """Take up the records of the run that this one continues; yield them if a writer is new.

        Of thousands, those are loaded that later pictures show.
        """
        self._album = Album(writers, name=self.store.name)
        config, prompts = self.config.recorded("curve"), self.sample.prompts
        described = {"config": config, "prompts": prompts.fingerprint}
        outlines = list(self.store.open(step, described))
        if outlines:
            self.last_step, self.way = outlines[-1].step, _as_way(outlines[-1].way)
        steps = [outline.step for outline in outlines]
        for record in self._load(self._album.needed(steps)):
            self._album.keep(record, prompts=prompts)
        self.store.save_prompts(prompts)
        return self._load(steps if new else [])

    def _load(self, steps: Iterable[int]) -> Iterator[Record]:
        return (record for step in steps if (record := self.store.load(step)) is not None)

    def introduce(self, step: int, earlier: Iterable[Record], new: Sequence[Writer]) -> None:
        """Load what draws, and show the prompts; writers of a run resumed elsewhere get all."""
        self._album.prepare()
        self._album.introduce(self.sample.prompts, step)
        late = Album(new, name=self.store.name)
        for record in earlier:
            late.repeat(record, prompts=self.sample.prompts)

    def take(self, model: nn.Module, step: int, *, ranks: RankGroup, **about: Any) -> Record:
        """Measure now; each of the ranks makes this call."""
        record = take_record(
            model, self.sample, self.config, step=step, ranks=ranks, way=self.way, **about
        )
        self.way, self.latest = way_of(record), record
        return record

    def keep(self, record: Record, *, last: bool = False) -> None:
        """Save a record, and show it even if that fails."""
        try:
            self.store.save(record)
        finally:
            self._album.show(record, prompts=self.sample.prompts, last=last)

    def finish(self) -> None:
        """Draw what was measured last, if it was not drawn."""
        if self.latest is not None:
            self._album.show(self.latest, prompts=self.sample.prompts, last=True)


def way_of(record: Record) -> Way | None:
    """Return how the points of a record were run; None where an old record does not say."""
    return _as_way(record.paths.engine)


def _as_way(word: str) -> Way | None:
    return next((way for way in get_args(Way) if way == word), None)
