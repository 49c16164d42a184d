"""The hub's cache: what is in it, what a run puts in, and how exactly that is taken out again.

The hub's client keeps a repository as `snapshots/<commit>/<name>`, links to `blobs/<hash>`. A run
takes out the links that it made, and then each blob that no link points to any more; so what was
there before stays, and blobs that revisions share stay until the last of them goes.

    journal = Journal(out / "downloads.json");  journal.add({entry: digest})
    take_out(journal.entries)
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Lock

from sr_monitor.errors import InputError
from sr_monitor.files import write_whole

Entries = Mapping[Path, str]
"""Files in the cache's snapshots, and the hash that each one's blob is named after."""


def repo_folder(repo: str) -> Path:
    """Where the hub's client keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def is_in_cache(entry: Path, digest: str, size: int) -> bool:
    """Whether a file needs no download: it is there, or its blob is, for another revision."""
    blob = _blob(entry, digest)
    return any(path.is_file() and path.stat().st_size == size for path in (entry, blob))


def check_disk(repo: str, what: str, num_bytes: int) -> None:
    """Refuses a download that the disk cannot hold."""
    place = repo_folder(repo)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise InputError(
            f"{what} needs {num_bytes / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free at "
            f"{str(place)!r}; make room there, or set HF_HOME to a larger disk"
        )


class Journal:
    """What a run has put into the cache and not taken out yet, in a file that survives a kill.

    A run that goes on with the journal of the killed one knows that one's downloads as its own.
    """

    def __init__(self, path: Path) -> None:
        """Reads the journal of an earlier run, if there is one."""
        self._path = path
        self._lock = Lock()
        self._entries = _read_journal(path) if path.exists() else {}

    @property
    def entries(self) -> Entries:
        """What is written in it now."""
        with self._lock:
            return dict(self._entries)

    def add(self, entries: Entries) -> None:
        """Writes down what is about to be made."""
        with self._lock:
            self._entries.update(entries)
            self._save()

    def remove(self, entries: Collection[Path]) -> None:
        """Strikes out what is gone."""
        with self._lock:
            for entry in entries:
                self._entries.pop(entry, None)
            self._save()

    def _save(self) -> None:
        listed = {str(entry): digest for entry, digest in self._entries.items()}
        try:
            write_whole(self._path, json.dumps(listed, indent=1).encode())
        except OSError as error:
            raise InputError(
                f"{str(self._path)!r}, where a replay notes its downloads, cannot be written to "
                f"({error}); make room there and run the same again, or name another --out"
            ) from error


def _read_journal(path: Path) -> dict[Path, str]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return {Path(name): str(digest) for name, digest in read.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r}, where a replay notes its downloads, cannot be read ({error!r}); "
            "delete it (what a killed replay had downloaded then stays in the hub's cache)"
        ) from error


def take_out_leftovers(journal: Journal) -> None:
    """Takes out of the cache all that a journal still names, unfinished downloads included."""
    entries = journal.entries
    take_out(entries)
    for entry, digest in entries.items():
        for unfinished in _blob(entry, digest).parent.glob(f"{digest}.*incomplete"):
            unfinished.unlink(missing_ok=True)
    journal.remove(entries)


def _blob(entry: Path, digest: str) -> Path:
    return entry.parents[2] / "blobs" / digest


def take_out(entries: Entries) -> None:
    """Deletes entries, and the blobs that no other one refers to; what is gone already is fine."""
    for repo in {entry.parents[2] for entry in entries}:
        if repo.is_dir():
            with locked(repo):
                _take_out_of(repo, {e: h for e, h in entries.items() if e.parents[2] == repo})


def _take_out_of(repo: Path, entries: Entries) -> None:
    for entry in entries:
        entry.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            entry.parent.rmdir()
    links = [path for path in (repo / "snapshots").rglob("*") if path.is_symlink()]
    kept = {path.readlink().name for path in links}
    for entry, digest in entries.items():
        if digest and digest not in kept:
            _delete(_blob(entry, digest))


def _delete(blob: Path) -> None:
    if not blob.is_symlink():
        blob.unlink(missing_ok=True)
        return
    # NOTE: a link into the store that repositories share since huggingface_hub 2; only the client
    # knows who else refers to what it points at.
    utils = import_module("huggingface_hub.utils")
    nothing: frozenset[Path] = frozenset()
    utils.DeleteCacheStrategy(
        expected_freed_size=0,
        blobs=frozenset({blob}),
        refs=nothing,
        repos=nothing,
        snapshots=nothing,
        cache_dir=blob.parents[2],
    ).execute()


@contextmanager
def locked(repo: Path) -> Iterator[None]:
    """Alone, among the threads and processes that take checkpoints out of this repository."""
    path = repo.parent / ".locks" / repo.name / "sr-monitor.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with import_module("huggingface_hub.utils").WeakFileLock(path):
        yield
