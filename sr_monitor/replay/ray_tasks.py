"""Checkpoints as Ray tasks: one GPU each where there are GPUs, else one CPU.

A worker fetches, loads and measures a checkpoint, and takes its download out again; the records
come back in the order of the checkpoints. A worker that dies is started again by Ray.

    for stop, found in on_ray(stops, prompts, job, address=None):
        ...
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.fuse import describe
from sr_monitor.measurement import MonitorConfig
from sr_monitor.prompts import PromptSet
from sr_monitor.records import Record
from sr_monitor.replay.loading import Loading, fetch_stop, measure_stop
from sr_monitor.replay.plan import Stop

_RETRIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every task does."""

    config: MonitorConfig
    loading: Loading
    keep_downloads: bool
    sweep: bool


def on_ray(
    stops: Sequence[Stop], prompts: Mapping[str, PromptSet], job: Job, *, address: str | None
) -> Iterator[tuple[Stop, Record | str]]:
    """The record of each checkpoint, or why there is none.

    Args:
        stops: The checkpoints.
        prompts: Theirs, by their label.
        job: What is done with each.
        address: A cluster; None is the one that is there, or one on this machine.
    """
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
    try:
        task, at_once = _task(ray)
        waiting: deque[tuple[Stop, Any]] = deque()
        todo = deque(stops)
        while todo or waiting:
            # Two for each worker: one runs, one is ready, and the disk is not filled.
            while todo and len(waiting) < 2 * at_once:
                stop = todo.popleft()
                waiting.append((stop, task.remote(stop, prompts[stop.label], job)))
            stop, answer = waiting.popleft()
            try:
                yield stop, ray.get(answer)
            except ray.exceptions.RayError as error:
                yield stop, f"its Ray task was lost after {_RETRIES} retries: {describe(error)}"
    finally:
        if is_ours:
            ray.shutdown()


def _task(ray: Any) -> tuple[Any, int]:
    """The task, and how many run at once."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    workers = gpus or int(resources.get("CPU", 1))
    return ray.remote(max_retries=_RETRIES, **options)(_measure), max(1, workers)


def _measure(stop: Stop, prompts: PromptSet, job: Job) -> Record | str:
    """One task; what goes wrong with the checkpoint is its answer, in words."""
    try:
        with fetch_stop(stop, keep=job.keep_downloads) as checkpoint:
            model = job.loading.keeper().load(checkpoint)
            return measure_stop(stop, model, prompts, job.config, sweep=job.sweep)
    except Exception as error:
        return describe(error)


def _import_ray() -> Any:
    # Ray asks the network whether it is a cloud, and phones home, unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise InputError(
            "replay with engine='ray': Ray is not installed; run: pip install 'sr-monitor[ray]'"
        ) from error
    return ray
