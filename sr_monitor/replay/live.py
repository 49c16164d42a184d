"""What a live run left beside its checkpoints: its prompts, and the ways it ran points.

A replay reuses both, so that its records equal those of the live run, bit for bit.

    prompts = live_prompts(planned)
    way = slowest_way(live_ways(planned, prompts, config), planned.name.step)
"""

from pathlib import Path
from typing import TypeAlias, get_args

from sr_monitor.model.engine import Way
from sr_monitor.probes.keys import PREFIX
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import MonitorConfig

RECORDS = PREFIX.rstrip("/")
"""The folder of records in that of a run."""
Ways: TypeAlias = list[tuple[int, str]]
"""The way each step of a curve was measured in, `record.paths.engine`."""


def live_prompts(planned: PlannedCheckpoint) -> PromptSet | None:
    """Load the prompts that a live run left beside its checkpoints or beside their folder."""
    store = _live_store(planned)
    return None if store is None else store.load_prompts()


def live_ways(planned: PlannedCheckpoint, prompts: PromptSet, config: MonitorConfig) -> Ways:
    """Return the ways of the live run's records, those that were measured as `config` says."""
    wanted = {"prompts": prompts.fingerprint} | config.recorded("curve")
    wanted.pop("probes", None)
    store = _live_store(planned)
    ways: Ways = []
    for record in () if store is None else store.records():
        found = record.metadata | record.metadata.get("config", {})
        if all(found.get(name) == value for name, value in wanted.items()):
            ways.append((record.step, record.paths.engine))
    return ways


def slowest_way(ways: Ways, step: int) -> Way | None:
    """Return the slowest way up to a step: a curve takes no faster one from there on."""
    earlier = {way for at, way in ways if at <= step}
    found: list[Way] = [way for way in get_args(Way) if way in earlier]
    return found[-1] if found else None


def _live_store(planned: PlannedCheckpoint) -> RecordStore | None:
    """Return the records of the live run, if there was one."""
    folder = Path(planned.training)
    places = [folder, folder.parent] if folder.name == "checkpoints" else [folder]
    stores = [RecordStore.at(place / RECORDS) for place in places]
    is_local = isinstance(planned.source, LocalCheckpoint)
    return next((s for s in stores if is_local and s.prompts_path().is_file()), None)
