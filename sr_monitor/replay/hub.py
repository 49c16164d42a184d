"""What the hub has: the revisions of a repository, and what each of them would cost.

Revisions are listed, never made up from a naming scheme. For each, the files that a measurement
needs are the config and the weights (safetensors where there are any), no tokenizer; their sizes
and hashes come with the listing, so equal weights are known before a byte is downloaded.

    items = bill("allenai/OLMo-1B-hf", list_revisions("allenai/OLMo-1B-hf"))
    total = sum(item.missing_bytes for item in items)
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import takewhile
from operator import eq
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.replay.cache import is_in_cache, repo_folder
from sr_monitor.replay.patience import is_missing_revision, patiently

_SECONDS = 10.0
_AT_ONCE = 8  # questions; an answer takes a fifth of a second, and there may be a thousand
_HASH = re.compile(r"[0-9a-f]{40,64}")
_CONFIG = "config.json"
_WEIGHTS = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model(-\d+-of-\d+\.bin|\.bin\.index\.json)"),
)
"""In the order in which transformers looks for them: one file, or shards and their index."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A branch or a tag, and the commit it stands for."""

    name: str
    """As the hub lists it, such as "step1000-tokens2B"."""
    commit: str
    """The commit's hash: what is downloaded, whatever becomes of the name meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of a revision, as the hub lists it."""

    name: str
    """Its name; it lies at the top of the repository."""
    size: int
    """Bytes."""
    hash: str
    """The sha256 of weights, git's hash of small files: the name of its blob in the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What one revision needs, and what of it is here already."""

    repo: str
    """The repository, `owner/name`."""
    revision: Revision
    """Which of its revisions."""
    files: tuple[File, ...] = ()
    """The config and the weights, by name."""
    missing: tuple[File, ...] = ()
    """Those of them that are not in the cache."""
    problem: str = ""
    """Why it cannot be measured, such as that it holds no weights; empty when it can."""

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What is still to be downloaded."""
        return sum(file.size for file in self.missing)

    @property
    def weights(self) -> str:
        """A hash of the weights: two revisions with the same one hold the same numbers."""
        return self._joined(file for file in self.files if _is_weights(file.name))

    @property
    def config(self) -> str:
        """A hash of the config and of the model's own code, if it has any."""
        return self._joined(file for file in self.files if not _is_weights(file.name))

    def _joined(self, files: Iterable[File]) -> str:
        hashes = [file.hash for file in files]
        if not all(hashes):  # nothing is known to equal what the hub gives no hash for
            return self.revision.commit
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def list_revisions(repo: str, *, sleep: Callable[[float], object] = time.sleep) -> list[Revision]:
    """All branches and tags of a repository, in the order of the hub.

    Args:
        repo: `owner/name` on the hub.
        sleep: waits that many seconds before the hub is asked again.
    """
    refs: Any = patiently(lambda: _api().list_repo_refs(repo), repo, sleep=sleep)
    named = {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}
    order = dict.fromkeys(ref.name for ref in (*refs.branches, *refs.tags))
    return [Revision(name, named[name]) for name in order]


def bill(
    repo: str,
    revisions: Sequence[Revision],
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Item]:
    """What each revision needs, how large it is, and what is in the cache; nothing is downloaded.

    A revision without a config or weights gets an item with a `problem`. One that the hub does not
    have is an `InputError`.

    Args:
        repo: `owner/name` on the hub.
        revisions: some of those that `list_revisions` gave; one question to the hub for each.
        sleep: waits that many seconds before the hub is asked again.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda revision: look_up(repo, revision, sleep=sleep), revisions))


def look_up(
    repo: str, revision: Revision, *, sleep: Callable[[float], object] = time.sleep
) -> Item:
    """The item of one revision."""
    ask = partial(_info, repo, revision.commit)
    try:
        info = patiently(ask, f"{repo}@{revision.name}", sleep=sleep)
    except InputError as error:
        if not is_missing_revision(error):
            raise
        raise InputError(f"{error}; {_closest(repo, revision.name, sleep)}") from error
    files = needed([_file(sibling) for sibling in info.siblings or []])
    folder = repo_folder(repo) / "snapshots" / revision.commit
    missing = tuple(f for f in files if not is_in_cache(folder / f.name, f.hash, f.size))
    problem = _problem(files)
    return Item(repo=repo, revision=revision, files=files, missing=missing, problem=problem)


def needed(files: Iterable[File]) -> tuple[File, ...]:
    """Those of a revision's files that a measurement needs, by name."""
    named = {file.name: file for file in files}
    chosen = [name for name in named if name == _CONFIG or _is_code(name)]
    for pattern in _WEIGHTS:
        if weights := [name for name in named if pattern.fullmatch(name)]:
            chosen += weights
            break
    return tuple(named[name] for name in sorted(chosen))


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError(
            "checkpoints from the hub need its client: pip install 'sr-monitor[replay]'"
        ) from error
    return HfApi()


def _info(repo: str, commit: str) -> Any:
    return _api().model_info(repo, revision=commit, files_metadata=True, timeout=_SECONDS)


def _file(sibling: Any) -> File:
    found = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    # NOTE: it becomes the name of a file here, and comes from somebody else's server.
    known = found if _HASH.fullmatch(found or "") else ""
    return File(name=sibling.rfilename, size=sibling.size or 0, hash=known)


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _is_code(name: str) -> bool:
    # NOTE: small, and needed by who asks for a model's own code; it is not run by being here.
    return name.endswith(".py") and "/" not in name


def _problem(files: tuple[File, ...]) -> str:
    names = [file.name for file in files]
    if not any(map(_is_weights, names)):
        return "it holds no weights (model.safetensors or pytorch_model.bin)"
    return "" if _CONFIG in names else "it holds no config.json"


def _closest(repo: str, name: str, sleep: Callable[[float], object]) -> str:
    names = [revision.name for revision in list_revisions(repo, sleep=sleep)]
    near = sorted(names, key=partial(_likeness, name), reverse=True)[:3]
    return f"of its {len(names)} the closest are {', '.join(near)}"


def _likeness(wanted: str, name: str) -> tuple[int, float]:
    # The step comes first in a name, and is what is meant when the rest is wrong.
    alike = sum(takewhile(bool, map(eq, wanted, name)))
    return alike, SequenceMatcher(None, wanted, name).ratio()
