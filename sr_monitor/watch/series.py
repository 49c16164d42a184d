"""One curve of a monitor: a sample of prompts, its records, and what shows them.

series = Series(sample, config, RecordStore("runs/1", "stable_regions"))
series.open(writers, step)
record = series.take(model, step, ranks=ranks)
series.keep(record)
"""

from collections.abc import Sequence
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

    def open(self, writers: Sequence[Writer], step: int, *, new: Sequence[Writer]) -> list[Record]:
        """Take up the records of the run that this one continues, and return them if any is new."""
        self._album = Album(writers, name=self.store.name)
        config, prompts = self.config.recorded("curve"), self.sample.prompts
        earlier: list[Record] = []
        for record in self.store.open(step, {"config": config, "prompts": prompts.fingerprint}):
            self._album.keep(record, prompts=prompts)
            earlier += [record] if new else []
            self.last_step, self.way = record.step, way_of(record)
        self.store.save_prompts(prompts)
        return earlier

    def introduce(self, step: int, earlier: Sequence[Record], new: Sequence[Writer]) -> None:
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
    return next((way for way in get_args(Way) if way == record.paths.engine), None)
