"""Revisions of the hub on this machine, each in a private folder that is deleted as a whole.

Files that are in the hub's shared cache are linked from there, and stay there. `one_ahead` fetches
the next checkpoint while the caller works on the current one.

    for checkpoint, download in one_ahead(found, lambda each, stop: fetch(each, folder, stop=stop)):
        measure(download.result())
"""

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

from sr_monitor.errors import InputError
from sr_monitor.replay.hub import File, HubCheckpoint
from sr_monitor.replay.retry import Stopped, retry

_PARTING_SECONDS = 5.0

Progress = Callable[[int, int], object]
Key = TypeVar("Key")
Value = TypeVar("Value")


def fetch(
    checkpoint: HubCheckpoint,
    folder: Path | None,
    *,
    progress: Progress = lambda done, total: None,
    stop: Event | None = None,
) -> Path:
    """Download what a measurement needs of a revision, and return the folder that holds it.

    Args:
        checkpoint: From `list_files`.
        folder: A private folder, which is emptied first; None downloads into the hub's cache.
        progress: Called with the bytes done and to do, from this thread or one of the client's.
        stop: Once it is set, the download ends soon, with `Stopped`.
    """
    if checkpoint.problem:
        raise InputError(checkpoint.problem)
    _check_disk(checkpoint, folder)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    download = _Download(checkpoint, folder, progress, stop or Event())
    places = [download.get(file) for file in checkpoint.files]
    return places[0].parent


@contextmanager
def temporary_folder(folder: Path) -> Iterator[None]:
    """Delete a folder at the end, and at the beginning what a killed process left there."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def one_ahead(
    keys: Iterable[Key], fetch: Callable[[Key, Event], Value]
) -> Generator[tuple[Key, Future[Value]], None, None]:
    """Yield each key with what was fetched for it, while the next one is being fetched.

    An error of `fetch` is raised by the future's `result`. When the generator is closed, a fetch
    that is under way is told to stop.

    Args:
        keys: What to fetch, such as checkpoints.
        fetch: Fetches one; it should give up soon after the event that it is given is set.
    """
    stop = Event()
    ahead: tuple[Key, Future[Value]] | None = None
    try:
        for key in keys:
            if ahead is not None:
                wait([ahead[1]])
            ready, ahead = ahead, (key, _in_thread(fetch, key, stop))
            if ready is not None:
                yield ready
        if ahead is not None:
            yield ahead
    finally:
        stop.set()
        if ahead is not None:
            wait([ahead[1]], _PARTING_SECONDS)


def _in_thread(fetch: Callable[[Key, Event], Value], key: Key, stop: Event) -> Future[Value]:
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(fetch(key, stop))
        except BaseException as error:
            future.set_exception(error)

    # NOTE: a daemon: Python waits for an executor's threads before it exits, and the client
    # notices for a minute or more that a line is dead.
    Thread(target=run, name="sr-monitor-download", daemon=True).start()
    return future


class _Download:
    """The files of one revision, one after the other."""

    def __init__(
        self, checkpoint: HubCheckpoint, folder: Path | None, progress: Progress, stop: Event
    ) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        self._progress, self._stop = progress, stop
        self._done, self._total = 0, checkpoint.missing_bytes

    def get(self, file: File) -> Path:
        """Return where a file lies, once it does."""
        cached = self._checkpoint.cached(file)
        if self._folder is None or cached is None:
            return self._download(file, is_cached=cached is not None)
        link = self._folder / file.name
        link.symlink_to(cached.resolve())
        return link

    def _download(self, file: File, *, is_cached: bool) -> Path:
        from huggingface_hub import hf_hub_download

        begun, is_damaged = self._done, False

        def attempt() -> Path:
            nonlocal is_damaged
            self._count(begun - self._done)
            path = Path(
                hf_hub_download(
                    self._checkpoint.repo,
                    file.name,
                    revision=self._checkpoint.commit,
                    local_dir=self._folder,
                    cache_dir=self._folder,  # no other, or what it holds damaged would be copied
                    force_download=is_damaged,
                    tqdm_class=_bar_class(self._count),
                )
            )
            if (size := path.stat().st_size) != file.size:
                is_damaged = True
                raise OSError(f"{file.name} has {size} bytes, and the hub lists {file.size}")
            return path

        path = retry(attempt, self._checkpoint.label, wait=self._stop.wait)
        self._count(begun - self._done + (0 if is_cached else file.size))
        return path

    def _count(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done += num_bytes
        self._progress(min(self._done, self._total), self._total)


def _bar_class(count: Callable[[int], None]) -> Any:
    """Return what the client takes for a class of progress bars."""

    class Bar(AbstractContextManager["Bar"]):
        def __init__(self, **_: Any) -> None: ...

        def __exit__(self, *_: object) -> None: ...

        def update(self, num_bytes: int | float = 1) -> None:
            count(int(num_bytes))

        def update_transfer(self, num_bytes: int | float) -> None:
            """Ignore what came over the line: `update` is told what was written of it."""

        def set_postfix_str(self, *_: object, **__: object) -> None: ...

        def set_transfer_postfix_str(self, *_: object, **__: object) -> None: ...

    return Bar


def _check_disk(checkpoint: HubCheckpoint, folder: Path | None) -> None:
    """Refuse a download that the disk cannot hold."""
    from huggingface_hub import constants

    place, fix = Path(constants.HF_HUB_CACHE), "set HF_HOME to a larger disk"
    if folder is not None:
        place, fix = folder, "name an --out on a larger disk"
    place = next(path for path in (place, *place.absolute().parents) if path.exists())
    free, missing = shutil.disk_usage(place).free, checkpoint.missing_bytes
    if missing > free:
        raise InputError(
            f"{checkpoint.label} needs {missing / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are "
            f"free at {str(place)!r}; make room there, or {fix}"
        )
