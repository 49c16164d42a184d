"""Whether a file still holds the bytes that the hub lists, by its hash.

is_whole = has_hash(path, listed_hash(path))
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sr_monitor.errors import InputError

HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""The sha256 of weights, and git's sha1 of small files."""

_PART = 2**22  # bytes read at once
_NOTES = Path(".cache/huggingface/download")
_NOTE = re.compile(rf"\S+\n(?P<hash>{HASH.pattern})\n(?P<time>\d+(\.\d+)?)\s*")
_seen: set[tuple[str, int, int, str]] = set()
"""What was compared in this process: each file is read once, unless it changes."""


def has_hash(path: Path, wanted: str, between: Callable[[], None] = lambda: None) -> bool:
    """Return whether a file has this hash; True if there is none to compare with.

    `between` is called between parts of the file, and may raise to give up.
    """
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns, wanted)
    if not wanted or key in _seen:
        return True
    of_git = hashlib.sha1(b"blob %d\0" % status.st_size, usedforsecurity=False)
    digest = hashlib.sha256() if len(wanted) == 64 else of_git
    with path.open("rb") as stream:
        while part := stream.read(_PART):
            digest.update(part)
            between()
    if digest.hexdigest() != wanted:
        return False
    _seen.add(key)
    return True


def listed_hash(path: Path) -> str:
    """Return the hash that the hub's client has kept of a download; "" if there is none.

    It names files in its cache by their hashes, and may keep Xet's behind another link; `hf
    download --local-dir` writes a note for each, which no longer holds if the file was written
    later.
    """
    for link in _links(path):
        if link.parent.name == "blobs" and HASH.fullmatch(link.name):
            return link.name
    for folder in path.absolute().parents:
        note = folder / _NOTES / f"{path.absolute().relative_to(folder)}.metadata"
        if note.is_file():
            found = _NOTE.fullmatch(note.read_text(errors="replace"))
            # A second later, since some file systems round.
            is_same = found is not None and path.stat().st_mtime - 1 <= float(found["time"])
            return found["hash"] if found and is_same else ""
    return ""


def _links(path: Path) -> Iterator[Path]:
    """Yield the path of a file that exists, then what each link in turn points to."""
    yield path
    while path.is_symlink():
        path = path.parent / path.readlink()
        yield path


def check_downloads(files: Iterable[Path], between: Callable[[], None]) -> None:
    """Refuse local files that have changed since the hub's client downloaded them."""
    for path in files:
        if path.is_file() and not has_hash(path, listed_hash(path), between):
            raise InputError(
                f"{str(path)!r} holds other bytes than the hub listed when it was downloaded: its "
                "hash differs; delete it and download it again"
            )
