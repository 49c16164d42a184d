"""Functions run by several processes that form a gloo group, as in a distributed training.

The function travels between processes, so it is one at the top of a module. A process that hangs is
a failure that shows where.

    assert in_processes(work) == [0, 1]  # def work(rank: int) -> int
"""

import faulthandler
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import multiprocessing as mp

T = TypeVar("T")

_STACK_SECONDS = 3  # before the end, to write down where a process hangs


def in_processes(work: Callable[[int], T], *, size: int = 2, timeout: float = 120) -> list[T]:
    """What `work(rank)` returns, by rank."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        end = time.time() + timeout
        arguments = [(work, rank, size, folder, end) for rank in range(size)]
        processes = [context.Process(target=_run, args=each, daemon=True) for each in arguments]
        for process in processes:
            process.start()
        try:
            _wait(processes, end, Path(folder))
        finally:
            for process in processes:
                process.kill()
                process.join()
        files = [Path(folder, f"result-{rank}") for rank in range(size)]
        missing = [rank for rank, file in enumerate(files) if not file.exists()]
        if missing:
            raise AssertionError(f"processes {missing} failed or hang:\n{_said(Path(folder))}")
        return [pickle.loads(file.read_bytes()) for file in files]


def _wait(processes: list[SpawnProcess], end: float, folder: Path) -> None:
    while time.time() < end and any(process.is_alive() for process in processes):
        if list(folder.glob("error-*")):
            end = min(end, time.time() + 2)  # time for the others to fail too
        time.sleep(0.05)


def _said(folder: Path) -> str:
    files = sorted([*folder.glob("error-*"), *folder.glob("stack-*")])
    return "\n".join(f"{file.name}: {text}" for file in files if (text := file.read_text()))


def _run(work: Callable[[int], T], rank: int, size: int, folder: str, end: float) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    with Path(folder, f"stack-{rank}").open("w") as stack:
        faulthandler.dump_traceback_later(max(1, end - time.time() - _STACK_SECONDS), file=stack)
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=size,
                timeout=timedelta(minutes=30),  # the usual one: a hang is to be seen as one
            )
            result = pickle.dumps(work(rank))
            dist.destroy_process_group()
            Path(folder, f"result-{rank}").write_bytes(result)
        except BaseException:
            Path(folder, f"error-{rank}").write_text(traceback.format_exc())
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
