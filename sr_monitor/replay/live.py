"""What a live run left beside its checkpoints: its prompts, and the ways it ran points.

A replay takes them over, so that its records equal those of the live run, bit for bit.

    prompts = live_prompts(planned)
    way = slowest_way(live_ways(planned, prompts, config), planned.name.step)
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, get_args

from sr_monitor.errors import InputError
from sr_monitor.model.engine import Way
from sr_monitor.probes.keys import PREFIX
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.results.record import Record, list_records
from sr_monitor.watch.config import MonitorConfig

Ways: TypeAlias = list[tuple[int, str]]
"""The way each step of a curve was measured in, `record.paths.engine`."""


def live_prompts(planned: PlannedCheckpoint) -> PromptSet | None:
    """Load the prompts that a live run left beside its checkpoints or beside their folder."""
    folder = _folder_of(planned)
    return None if folder is None else PromptSet.load(folder / "prompts.json")


def live_ways(planned: PlannedCheckpoint, prompts: PromptSet, config: MonitorConfig) -> Ways:
    """Return the ways of the live run's records, those that were measured as `config` says."""
    wanted = {"prompts": prompts.fingerprint} | config.recorded("curve")
    wanted.pop("probes", None)
    ways: Ways = []
    for path in list_records(_folder_of(planned) or Path(planned.training, "no records")):
        with suppress(InputError):
            record = Record.load(path)
            found = record.metadata | record.metadata.get("config", {})
            if all(found.get(name) == value for name, value in wanted.items()):
                ways.append((record.step, record.paths.engine))
    return ways


def slowest_way(ways: Ways, step: int) -> Way | None:
    """Return the slowest way up to a step: a curve takes no faster one from there on."""
    earlier = {way for at, way in ways if at <= step}
    slowest_first: Iterator[Way] = reversed(get_args(Way))
    return next((way for way in slowest_first if way in earlier), None)


def _folder_of(planned: PlannedCheckpoint) -> Path | None:
    """Return where a live run kept its records, if it did."""
    if not isinstance(planned.source, LocalCheckpoint):
        return None
    folder = Path(planned.training)
    places = [folder, folder.parent] if folder.name == "checkpoints" else [folder]
    found = (place / PREFIX.rstrip("/") for place in places)
    return next((place for place in found if (place / "prompts.json").is_file()), None)
