"""What the hub holds: the revisions of a repository, and the files that a measurement needs.

Sizes and hashes come with the listing, so equal weights are known before a byte is downloaded.

    commit = list_revisions("allenai/OLMo-1B-hf")["main"]
    found = list_files([HubCheckpoint(repo="allenai/OLMo-1B-hf", revision="main", commit=commit)])
"""

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

from sr_monitor.display.writers.base import import_or_refuse
from sr_monitor.errors import InputError, explained
from sr_monitor.probes.base import Progress, no_progress
from sr_monitor.replay.hashes import HASH
from sr_monitor.replay.names import read_titles
from sr_monitor.replay.retry import HubGone, Limit, Stopped, retry

_SECONDS = 10.0  # the timeout of a listing
_AT_ONCE = 8  # an answer takes a fifth of a second, and there may be a thousand to get
_SILENCE = 10.0  # seconds after which a line says how far a listing is
_CONFIG = "config.json"
_WEIGHTS = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model(-\d+-of-\d+\.bin|\.bin\.index\.json)"),
)
"""In the order in which transformers looks for them: one file, or shards and their index."""
_log = logging.getLogger("sr_monitor")


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file at the top of a revision, as the hub lists it."""

    name: str
    size: int
    hash: str
    """Its sha256 or git's hash; the client's cache keeps it under that name. "" if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubCheckpoint:
    """One saved state of a model, as a revision on the hub."""

    repo: str
    revision: str
    commit: str
    """What is downloaded, even if the revision moves meanwhile."""
    files: tuple[File, ...] = ()
    problem: str | None = None
    """Why it cannot be measured, if so."""
    needs_base: ClassVar[bool] = False  # without a config.json there is a problem

    @property
    def label(self) -> str:
        """The repository and the revision."""
        return f"{self.repo}@{self.revision}"

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """The size of the files that are not in the client's cache on this machine."""
        return sum(file.size for file in self.files if self.cached(file) is None)

    @property
    def fingerprint(self) -> str | None:
        """A hash of weights, config and code; None unless the hub has listed all of theirs."""
        hashes = [file.hash for file in self.files]
        if self.problem or not hashes or not all(hashes):
            return None
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def cached(self, file: File) -> Path | None:
        """Return where the client's cache holds a file of that size, for any revision."""
        from huggingface_hub import constants

        repo = Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"
        places = (repo / "snapshots" / self.commit / file.name, repo / "blobs" / file.hash)
        whole = (path for path in places if path.is_file() and path.stat().st_size == file.size)
        return next(whole, None)


def list_revisions(repo: str) -> dict[str, str]:
    """Return the commit of each branch and tag of a repository."""
    with _understood(repo):
        refs: Any = retry(lambda: _hub().HfApi().list_repo_refs(repo), repo)
        found = {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}
        if not all(isinstance(word, str) for pair in found.items() for word in pair):
            raise ValueError("a name or a commit is no text")
        return found


def list_commits(repo: str) -> dict[str, str]:
    """Return the commit of each step that a training pushed, by a name such as "step500"."""
    with _understood(repo):
        found: Any = retry(lambda: _hub().HfApi().list_repo_commits(repo), repo)
        return read_titles((commit.title, commit.commit_id) for commit in found)


def list_files(
    checkpoints: Sequence[HubCheckpoint], progress: Progress = no_progress
) -> list[HubCheckpoint]:
    """Look up the files of some revisions, by one request for each; download nothing.

    A revision that cannot be measured, or that the hub does not list, is returned with a `problem`;
    if the hub lists none of them, that is an `InputError`. `progress` counts them.
    """
    errors: list[InputError] = []
    gone: list[HubGone] = []
    stop = Event()
    limit, gated = Limit(_AT_ONCE, stop), set[str]()

    def look_up(checkpoint: HubCheckpoint) -> HubCheckpoint:
        try:
            files = retry(
                partial(_files, checkpoint, limit, gated), checkpoint.label, wait=stop.wait
            )
        except HubGone as error:
            gone.append(error)
            stop.set()
            raise
        except InputError as error:
            errors.append(error)
            return replace(checkpoint, problem=str(error))
        return replace(checkpoint, files=files, problem=_problem(files))

    found: list[HubCheckpoint] = []
    total, told = len(checkpoints), time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for each in pool.map(look_up, checkpoints):
                found.append(each)
                progress(len(found), total)
                if time.monotonic() - told > _SILENCE:
                    told = time.monotonic()
                    _log.info("listing: %d of %d revisions", len(found), total)
        except Stopped:
            raise gone[0] from None
        finally:
            stop.set()
    if errors and len(errors) == total:
        raise errors[0]
    locked = {repo: problem for repo in gated if (problem := _locked(repo))}
    if found and locked.keys() >= {each.repo for each in found}:
        raise InputError(next(iter(locked.values())))
    return [replace(each, problem=locked.get(each.repo, each.problem)) for each in found]


def _locked(repo: str) -> str | None:
    """Return why files of a gated repository, whose listing is public, are not given out."""
    try:
        retry(lambda: _hub().HfApi().auth_check(repo), repo)
    except HubGone:
        raise
    except InputError as error:
        return str(error)
    return None


def _understood(what: str) -> AbstractContextManager[None]:
    """Turn whatever an answer of another form causes into one line."""
    told = f"{what}: the hub's answer is not understood"
    return explained(told, "check HF_ENDPOINT, or update huggingface_hub")


def _hub() -> Any:
    missing = "checkpoints from the hub need its client: pip install 'sr-monitor[replay]'"
    return import_or_refuse("huggingface_hub", missing)


def _files(checkpoint: HubCheckpoint, limit: Limit, gated: set[str]) -> tuple[File, ...]:
    """Look up the files of a revision; add its repository to `gated` if it is."""
    limit.wait()
    # NOTE: what `HfApi.model_info` does, which does not show the headers of the answer.
    hub = _hub()
    answer = hub.get_session().get(
        f"{hub.constants.ENDPOINT}/api/models/{checkpoint.repo}/revision/{checkpoint.commit}",
        params={"blobs": True},
        headers=hub.utils.build_hf_headers(),
        timeout=_SECONDS,
    )
    limit.note(answer.headers)
    hub.hf_raise_for_status(answer)
    listed = answer.json()
    with _understood(checkpoint.label):
        info = hub.ModelInfo(**listed)
        gated |= {checkpoint.repo} if info.gated else set()
        return _chosen(info)


def _chosen(info: Any) -> tuple[File, ...]:
    named = {sibling.rfilename: sibling for sibling in info.siblings or []}
    # Code is small, and needed with --trust-remote-code; it is not run by being here.
    code = (name for name in named if name.endswith(".py") and "/" not in name)
    weights = ([name for name in named if pattern.fullmatch(name)] for pattern in _WEIGHTS)
    chosen = {*code, *({_CONFIG} & named.keys()), *next(filter(None, weights), ())}
    files = []
    for name in sorted(chosen):
        found = named[name].lfs.sha256 if named[name].lfs else named[name].blob_id
        # NOTE: it becomes the name of a file here, and comes from somebody else's server.
        known = found if HASH.fullmatch(found or "") else ""
        files.append(File(name=name, size=int(named[name].size or 0), hash=known))
    return tuple(files)


def _problem(files: tuple[File, ...]) -> str | None:
    names = [file.name for file in files]
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        return "it holds no weights (model.safetensors or pytorch_model.bin)"
    return None if _CONFIG in names else "it holds no config.json"
