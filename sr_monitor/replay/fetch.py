"""Revisions of the hub on this machine, each in a private folder that is deleted as a whole.

Files that are in the hub's shared cache are linked from there, and stay there.

    with temporary_folder(out / ".downloads") as folder:
        fetch(checkpoint, folder)
"""

import logging
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread, get_ident
from typing import Any, TypeVar

from sr_monitor.errors import InputError, unsigned_logs
from sr_monitor.probes.base import Progress, no_progress
from sr_monitor.replay.hashes import has_hash
from sr_monitor.replay.hub import File, HubCheckpoint
from sr_monitor.replay.retry import Stopped, raise_if_stopped, retry
from sr_monitor.replay.xet import end_session, own_session

_PARTING_SECONDS = 2.0
_XET = ".cache/xet"  # beside what the client keeps there itself
_log = logging.getLogger("sr_monitor")

Key = TypeVar("Key")
Value = TypeVar("Value")


def fetch(
    checkpoint: HubCheckpoint,
    folder: Path,
    *,
    keep: bool = False,
    progress: Progress = no_progress,
    stop: Event | None = None,
) -> None:
    """Put the files that a measurement needs into a folder, replacing what is there.

    The folder is private to the caller, who deletes it; with `keep`, it holds links to downloads
    that stay in the hub's cache. `progress` is called with the bytes done and to do. Once `stop` is
    set, the download ends soon, with `Stopped`.
    """
    if checkpoint.problem:
        raise InputError(checkpoint.problem)
    stop = stop or Event()
    cached = _cached(checkpoint, stop)
    before, total = 0, sum(file.size for file in checkpoint.files if file not in cached)
    _check_disk(checkpoint.label, total, folder, keep=keep)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def tell(num_bytes: int) -> None:
        raise_if_stopped(stop)
        progress(min(before + num_bytes, total), total)

    with own_session(folder / _XET), unsigned_logs():
        for file in checkpoint.files:
            size, path = (0, cached[file]) if file in cached else (file.size, None)
            if keep or path is None:
                path = _download(checkpoint, file, None if keep else folder, tell, stop)
            tell(size)
            before += size
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(path.resolve())


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Delete a folder at the end, and first what a killed process left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def one_ahead(
    keys: Iterable[Key], fetch: Callable[[Key, Event], Value]
) -> Generator[tuple[Key, Future[Value]], None, None]:
    """Yield each key with the future of its fetch, while the next one is being fetched.

    Closing the generator sets the event that `fetch` was given, which should then give up.
    """
    stop, ahead = Event(), deque[tuple[Key, Future[Value]]]()
    try:
        for key in keys:
            wait([future for _, future in ahead])
            ahead.append((key, _in_thread(fetch, key, stop)))
            if len(ahead) == 2:
                yield ahead.popleft()
        yield from ahead
    finally:
        stop.set()
        wait([future for _, future in ahead], _PARTING_SECONDS)


def _in_thread(fetch: Callable[[Key, Event], Value], key: Key, stop: Event) -> Future[Value]:
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(fetch(key, stop))
        except BaseException as error:
            future.set_exception(error)

    # NOTE: a daemon, since Python waits for an executor's threads before it exits, and the client
    # may need a minute to notice a dead connection.
    Thread(target=run, name="sr-monitor-download", daemon=True).start()
    return future


def _cached(checkpoint: HubCheckpoint, stop: Event) -> dict[File, Path]:
    """Return where the client's cache holds files as the hub lists them; name damaged ones."""
    found: dict[File, Path] = {}
    for file in checkpoint.files:
        if (path := checkpoint.cached(file)) is None:
            continue
        if has_hash(path, file.hash, partial(raise_if_stopped, stop)):
            found[file] = path
        else:
            _log.warning(f"{path} is damaged (its hash differs): it is downloaded anew; delete it")
    return found


def _download(
    checkpoint: HubCheckpoint,
    file: File,
    folder: Path | None,
    tell: Callable[[int], None],
    stop: Event,
) -> Path:
    """Download a file into a folder, or into the hub's cache; `tell` the bytes that have come."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    is_damaged, caller = False, get_ident()

    def attempt() -> Path:
        nonlocal is_damaged
        done = 0

        class Bar(tqdm):  # shows nothing; Xet has two, one for what is written
            def __init__(self, **_: Any) -> None:
                super().__init__(disable=True)  # type: ignore[no-untyped-call]

            def update(self, n: int | float | None = 1) -> None:
                nonlocal done
                self.n += n or 0
                done = min(max(done, int(self.n)), file.size)  # chunks have headers
                try:
                    tell(done)
                except Stopped:
                    if get_ident() == caller:
                        raise
                    end_session()  # Xet asks from a thread of its own, where nobody catches

        tell(0)
        path = Path(
            hf_hub_download(
                checkpoint.repo,
                file.name,
                revision=checkpoint.commit,
                local_dir=folder,
                force_download=is_damaged,
                tqdm_class=Bar,
            )
        )
        if (size := path.stat().st_size) != file.size:
            is_damaged = True
            raise OSError(f"{file.name} has {size} bytes, and the hub lists {file.size}")
        if not has_hash(path, file.hash, lambda: tell(done)):
            is_damaged = True
            raise OSError(f"{file.name} holds other bytes than the hub lists: its hash differs")
        return path

    return retry(attempt, checkpoint.label, wait=stop.wait)


def _check_disk(label: str, missing: int, folder: Path, *, keep: bool) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) if keep else folder
    fix = "set HF_HOME to a larger disk" if keep else "name an --out on a larger disk"
    place = next(path for path in (place, *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise InputError(
            f"{label} needs {missing / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are "
            f"free at {str(place)!r}; make room there, or {fix}"
        )
