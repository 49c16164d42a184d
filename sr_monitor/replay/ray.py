"""Checkpoints as Ray tasks: one GPU each where there are GPUs, else one CPU.

Outcomes come back in the order of the checkpoints; a worker that dies is started again by Ray.

    for planned, outcome in on_ray(checkpoints, find_samples, find_ways, job):
        ...
"""

import logging
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from sr_monitor.display.writers.base import import_or_refuse
from sr_monitor.errors import InputError, first_line
from sr_monitor.model.engine import Way
from sr_monitor.replay.job import Failure, Job, WayOf
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.results.record import Record
from sr_monitor.watch.samples import Sample

_RETRIES = 3
_PARTING_SECONDS = 10
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)")


def on_ray(
    checkpoints: Sequence[PlannedCheckpoint],
    find_samples: Callable[[PlannedCheckpoint], Sequence[Sample]],
    find_ways: Callable[[PlannedCheckpoint], WayOf],
    job: Job,
) -> Generator[tuple[PlannedCheckpoint, list[Record] | Failure], None, None]:
    """Yield the records of each checkpoint, or why there are none.

    `find_ways` says how the earlier steps of a checkpoint's curve, as far as they are known, ran
    points.
    """
    ray = import_ray()
    with _running(ray, job.options.ray_address):
        task, at_once = _task(ray)

        def begin(planned: PlannedCheckpoint, ways: WayOf) -> Any:
            try:
                return task.remote(planned, find_samples(planned), ways, job)
            except InputError as error:
                return Failure(reason=str(error))

        waiting: deque[tuple[PlannedCheckpoint, WayOf, Any]] = deque()
        todo = deque(checkpoints)
        try:
            while todo or waiting:
                # Two for each worker: one runs, one is ready, and the disk is not filled.
                while todo and len(waiting) < 2 * at_once:
                    planned = todo.popleft()
                    ways = find_ways(planned)
                    waiting.append((planned, ways, begin(planned, ways)))
                planned, ways, begun = waiting[0]
                outcome = _answer(ray, begun)
                slowest = find_ways(planned)
                if slowest != ways and _is_faster(outcome, slowest):
                    # Since it was begun, an earlier step has fallen back to a slower way.
                    waiting[0] = planned, slowest, begin(planned, slowest)
                    outcome = _answer(ray, waiting[0][-1])
                yield planned, outcome
                waiting.popleft()
        finally:
            # NOTE: tasks are not cancelled: in Ray 2.60, cancelling one that is just ending can
            # abort this process. They delete their downloads, and end with a Ray of our own.
            if left := [each for *_, each in waiting if isinstance(each, ray.ObjectRef)]:
                ray.wait(left, num_returns=len(left), timeout=_PARTING_SECONDS)


def import_ray() -> Any:
    """Import Ray, or say how to install it."""
    # Ray asks the network whether it is a cloud, and phones home, unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    missing = "replay with engine='ray': Ray is not installed; run: pip install 'sr-monitor[ray]'"
    import_or_refuse("ray.exceptions", missing)
    return import_or_refuse("ray", missing)


@contextmanager
def _running(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        if place := _ADDRESS.fullmatch(address or os.environ.get("RAY_ADDRESS", "")):
            # Where nobody listens, Ray itself would try for minutes.
            socket.create_connection((place["host"], int(place["port"])), timeout=10).close()
        quiet = {"include_dashboard": False, "log_to_driver": False}
        ray.init(address=address, logging_level=logging.ERROR, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"replay with engine='ray', ray_address={address!r}: no Ray there ({_line(error)}); "
            "give the address that `ray start --head` told, or none"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _task(ray: Any) -> tuple[Any, int]:
    """Return the task, and how many run at once."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    workers = gpus or int(resources.get("CPU", 1))
    return ray.remote(max_retries=_RETRIES, **options)(_measure), max(1, workers)


def _answer(ray: Any, begun: Any) -> list[Record] | Failure:
    """Wait for a task's outcome; a failure to begin it is one already."""
    if isinstance(begun, Failure):
        return begun
    try:
        answer: list[Record] | Failure = ray.get(begun)
    except ray.exceptions.RayError as error:
        reason = f"its Ray task was lost ({type(error).__name__}: {_line(error)})"
        return Failure(reason=reason)
    return answer


def _line(error: Exception) -> str:
    """Leave out what is said of Ray's own processes and its logs."""
    return first_line(getattr(error, "cause", None) or error).split(". ")[0][:300]


def _is_faster(outcome: list[Record] | Failure, slowest: WayOf) -> bool:
    ways: tuple[str, ...] = get_args(Way)
    for record in [] if isinstance(outcome, Failure) else outcome:
        way = slowest[record.set_name]
        if way is not None and ways.index(record.paths.engine) < ways.index(way):
            return True
    return False


def _measure(
    planned: PlannedCheckpoint, samples: Sequence[Sample], ways: WayOf, job: Job
) -> list[Record] | Failure:
    job = replace(job, downloads=_on_this_machine(job.downloads))
    find_local = partial(job.fetch, planned)
    return job.outcome(planned, find_local, lambda: samples, ModelKeeper(job.options), ways=ways)


def _on_this_machine(downloads: Path) -> Path:
    """Return a folder beside the worker's hub cache, which may be on a local disk."""
    from huggingface_hub import constants

    own = sha256(str(downloads).encode()).hexdigest()[:16]
    return Path(constants.HF_HOME) / "sr-monitor" / own
