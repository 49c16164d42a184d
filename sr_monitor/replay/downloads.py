"""Checkpoints into the hub's cache, and out again: weights and config, nothing that was there.

The cache is the one that all libraries share (HF_HOME), filled by the hub's own client. What was in
it before stays in it: a checkpoint is taken out by the entries that this run made, and a blob goes
when no revision refers to it any more.

    fetched = fetch("allenai/OLMo-1B-0724-hf", revision, progress=print)
    model = load(fetched.folder);  discard(fetched)
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.replay.cache import Entries, Journal, check_disk, locked, repo_folder, take_out
from sr_monitor.replay.hub import File, Item, Revision, look_up
from sr_monitor.replay.patience import Stopped, patiently

_PROOF_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """A checkpoint in the hub's cache."""

    item: Item
    """What it consists of."""
    folder: Path
    """Holds its config and weights, as `from_pretrained` wants them."""
    downloaded_bytes: int
    """What came over the line for it."""
    was_there: bool
    """Whether all of it was in the cache before, so that `discard` leaves it alone."""
    added: Entries = field(default_factory=dict)
    """What this run put into the cache for it."""
    journal: Journal | None = None
    """Where that is written down."""

    @property
    def is_whole(self) -> bool:
        """Whether nobody else has taken any of it out of the cache."""
        return not _gone(self.item, self.folder)


def fetch(
    repo: str,
    revision: Revision,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
    stop: Event | None = None,
    sleep: Callable[[float], object] | None = None,
    journal: Journal | None = None,
) -> Fetched:
    """Downloads what a measurement needs of a revision, unless it is in the cache.

    All of it is there afterwards, or nothing new is: what a failed download left is taken out.

    Args:
        repo: `owner/name` on the hub.
        revision: one of those that `list_revisions` gave.
        progress: called with the bytes done and the bytes to do, from this thread or the client's.
        stop: when set, the download ends soon with `Stopped`.
        sleep: waits that many seconds before the hub is asked again; waits for `stop`, too, unless
            given.
        journal: where to write down what is put into the cache, before it is.
    """
    stop = stop or Event()
    sleep = sleep or stop.wait
    item = look_up(repo, revision, sleep=sleep)
    if item.problem:
        raise InputError(f"{repo}@{revision.name} cannot be measured: {item.problem}")
    check_disk(repo, f"{repo}@{revision.name}", item.missing_bytes)
    _keep_from_converting(item.files)
    job = _Job(item, _Meter(item.missing_bytes, progress, stop), sleep)
    added = job.added(journal)
    if added or item.missing:
        with _undone_on_error(added, journal):
            job.run()
    return Fetched(
        item=item,
        folder=job.folder,
        downloaded_bytes=item.missing_bytes,
        was_there=not added,
        added=added,
        journal=journal,
    )


def fetch_again(
    fetched: Fetched, progress: Callable[[int, int], object] = lambda done, total: None
) -> Fetched:
    """The same, after another replay that had put it into the cache has taken it out."""
    item = fetched.item
    again = fetch(item.repo, item.revision, progress=progress, journal=fetched.journal)
    return replace(again, added={**fetched.added, **again.added})


def discard(fetched: Fetched) -> None:
    """Takes out of the cache what was put in for this checkpoint; a second call does nothing."""
    take_out(fetched.added)
    if fetched.journal is not None:
        fetched.journal.remove(fetched.added)


class _Meter:
    """Counts bytes over the files of a checkpoint; takes the place of the client's own bars."""

    def __init__(self, total: int, progress: Callable[[int, int], object], stop: Event) -> None:
        self._total, self._progress, self._stop = total, progress, stop
        self._finished = self._done = 0

    def check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def start(self) -> None:
        self.check()
        self._show(self._finished)

    def finish(self, size: int) -> None:
        self._finished += size
        self._show(self._finished)

    def add(self, size: int | float) -> None:
        self.check()
        self._show(self._done + int(size))

    def _show(self, done: int) -> None:
        self._done = done
        self._progress(min(done, self._total), self._total)


def _bar_class(meter: _Meter) -> type:
    """What the client takes for a class of progress bars."""

    class Bar:
        total: int | float | None = None
        n = 0

        def __init__(self, **_: Any) -> None: ...

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, size: int | float = 1) -> None:
            meter.add(size)

        def update_transfer(self, size: int | float) -> None: ...

        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def refresh(self) -> None: ...

        def close(self) -> None: ...

    return Bar


class _Job:
    """The download of one checkpoint."""

    def __init__(self, item: Item, meter: _Meter, sleep: Callable[[float], object]) -> None:
        self.folder = repo_folder(item.repo) / "snapshots" / item.revision.commit
        self._item, self._meter, self._sleep = item, meter, sleep

    def added(self, journal: Journal | None) -> Entries:
        """What the download will put in; what a killed run with this journal has, too."""
        ours = journal.entries if journal else {}
        listed = {self.folder / file.name: file.hash for file in self._item.files}
        return {
            entry: digest for entry, digest in listed.items() if not entry.exists() or entry in ours
        }

    def run(self) -> None:
        for file in self._item.files:
            self._download(file)
            self._meter.finish(file.size if file in self._item.missing else 0)
        for _ in range(_PROOF_ROUNDS):
            if not (gone := self._gone()):
                return
            for file in gone:
                self._download(file)
        raise InputError(f"{self._name} does not stay in the cache; does another program clear it?")

    @property
    def _name(self) -> str:
        return f"{self._item.repo}@{self._item.revision.name}"

    def _download(self, file: File) -> None:
        patiently(partial(self._try, file), self._name, sleep=self._sleep)

    def _try(self, file: File) -> None:
        self._meter.start()
        from huggingface_hub import hf_hub_download

        path = self.folder / file.name
        hf_hub_download(
            self._item.repo,
            file.name,
            revision=self._item.revision.commit,
            tqdm_class=_bar_class(self._meter),
            force_download=path.is_file() and path.stat().st_size != file.size,
        )
        if path.is_file() and path.stat().st_size != file.size:
            found = path.stat().st_size
            raise OSError(f"{file.name} has {found} bytes, and the hub lists {file.size}")

    def _gone(self) -> list[File]:
        # NOTE: a blob shared with a revision that is discarded meanwhile may go just before this
        # one refers to it. Under the lock nothing goes, and what is there then stays.
        with locked(repo_folder(self._item.repo)):
            return _gone(self._item, self.folder)


def _gone(item: Item, folder: Path) -> list[File]:
    return [file for file in item.files if not (folder / file.name).is_file()]


@contextmanager
def _undone_on_error(added: Entries, journal: Journal | None) -> Iterator[None]:
    if journal is not None and added:
        journal.add(added)
    try:
        yield
    except BaseException:
        take_out(added)
        if journal is not None:
            journal.remove(added)
        raise


def _keep_from_converting(files: tuple[File, ...]) -> None:
    if any(file.name.endswith(".bin") for file in files):
        # NOTE: otherwise transformers asks the hub, in a thread, to convert each such revision.
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
