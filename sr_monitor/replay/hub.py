"""What the hub holds: the revisions of a repository, and the files that a measurement needs.

Sizes and hashes come with the listing, so equal weights are known before a byte is downloaded.

    found = list_files("allenai/OLMo-1B-hf", list_revisions("allenai/OLMo-1B-hf"))
"""

import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sr_monitor.display.writers.base import import_or_refuse
from sr_monitor.errors import InputError

_SECONDS = 10.0  # the timeout of a listing
_AT_ONCE = 8  # an answer takes a fifth of a second, and there may be a thousand to get
_HASH = re.compile(r"[0-9a-f]{40,64}")
_CONFIG = "config.json"
_WEIGHTS = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model(-\d+-of-\d+\.bin|\.bin\.index\.json)"),
)
"""In the order in which transformers looks for them: one file, or shards and their index."""
_TRIES = 5
_FIRST_PAUSE = 1.0  # seconds; each later one is twice as long
_BUDGET = 30.0  # seconds, not counting what the hub asks to wait
_LONGEST_WAIT = 300.0  # the hub counts requests in windows of five minutes
_LOG_IN = "log in with an account that may see it (hf auth login)"
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
}
_BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file at the top of a revision, as the hub lists it."""

    name: str
    size: int
    hash: str
    """The sha256 of weights, git's hash of small files; the client's cache keeps it under that."""


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
        """A hash of weights, config and code; None unless the hub lists all of theirs."""
        hashes = [file.hash for file in self.files]
        if self.problem or not all(hashes):
            return None
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def cached(self, file: File) -> Path | None:
        """Return where the client's cache holds a file, for this revision or for another one."""
        from huggingface_hub import constants

        repo = Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"
        places = (repo / "snapshots" / self.commit / file.name, repo / "blobs" / file.hash)
        whole = (path for path in places if path.is_file() and path.stat().st_size == file.size)
        return next(whole, None)


def list_revisions(repo: str) -> dict[str, str]:
    """Return the commit of each branch and tag of a repository."""
    refs: Any = retry(lambda: _api().list_repo_refs(repo), repo)
    return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}


def list_files(repo: str, commits: Mapping[str, str]) -> list[HubCheckpoint]:
    """Look up the files of some revisions, given by name; download nothing.

    A revision that cannot be measured, or that the hub does not list, is returned with a `problem`;
    if the hub lists none of them, that is an `InputError`.
    """
    errors: list[InputError] = []

    def look_up(revision: str) -> HubCheckpoint:
        checkpoint = HubCheckpoint(repo=repo, revision=revision, commit=commits[revision])
        try:
            files = retry(partial(_files, repo, checkpoint.commit), checkpoint.label)
        except InputError as error:
            errors.append(error)
            return replace(checkpoint, problem=str(error))
        return replace(checkpoint, files=files, problem=_problem(files))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(look_up, commits))
    if errors and len(errors) == len(found):
        raise errors[0]
    return found


def _api() -> Any:
    missing = "checkpoints from the hub need its client: pip install 'sr-monitor[replay]'"
    return import_or_refuse("huggingface_hub", missing).HfApi()


def _files(repo: str, commit: str) -> tuple[File, ...]:
    info = _api().model_info(repo, revision=commit, files_metadata=True, timeout=_SECONDS)
    named = {sibling.rfilename: sibling for sibling in info.siblings or []}
    # Code is small, and needed with --trust-remote-code; it is not run by being here.
    code = (name for name in named if name.endswith(".py") and "/" not in name)
    weights = ([name for name in named if pattern.fullmatch(name)] for pattern in _WEIGHTS)
    chosen = {*code, *({_CONFIG} & named.keys()), *next(filter(None, weights), ())}
    files = []
    for name in sorted(chosen):
        found = named[name].lfs.sha256 if named[name].lfs else named[name].blob_id
        # NOTE: it becomes the name of a file here, and comes from somebody else's server.
        known = found if _HASH.fullmatch(found or "") else ""
        files.append(File(name=name, size=named[name].size or 0, hash=known))
    return tuple(files)


def _problem(files: tuple[File, ...]) -> str | None:
    names = [file.name for file in files]
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        return "it holds no weights (model.safetensors or pytorch_model.bin)"
    return None if _CONFIG in names else "it holds no config.json"


class Stopped(Exception):
    """The caller no longer wants the result."""


class HubGone(InputError):
    """The hub as a whole is unreachable."""


def retry(
    request: Callable[[], T], what: str, *, wait: Callable[[float], object] = time.sleep
) -> T:
    """Return the result of a request for `what`, made up to five times with growing pauses."""
    started, tries = time.monotonic(), 0
    while True:
        try:
            return request()
        except (InputError, Stopped, *_BUGS):
            raise
        except Exception as error:  # the client's HTTP library has no common base across versions
            if reason := next(filter(None, map(_refusal, _chain(error))), None):
                raise InputError(f"{what} cannot be downloaded: {reason}") from error
            tries += 1
            if tries == _TRIES or time.monotonic() - started > _BUDGET:
                raise (InputError if _is_reachable() else HubGone)(
                    f"{what} could not be downloaded ({_first_line(error)}; tries: {tries}); "
                    "check the connection and run the same again"
                ) from error
            asked = _asked_wait(error)
        started += asked
        wait(max(_FIRST_PAUSE * 2 ** (tries - 1), asked))


def _is_reachable() -> bool:
    """Whether the hub answers a public request."""
    from huggingface_hub import constants, get_session

    try:  # by the client's own session, which knows proxies and certificates
        answer = get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=_SECONDS)
    except Exception:  # of the client's HTTP library, which differs across versions
        return False
    return bool(answer.status_code < 500)


def _refusal(error: BaseException) -> str | None:
    """Return why a retry cannot help, and what to do; None if it may help."""
    from huggingface_hub import errors

    said = _first_line(error)
    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a folder"
        case errors.HFValidationError():
            return f"this is no name of a repository ({said}); it looks like owner/name"
        case errors.GatedRepoError():
            return f"the repository is gated; accept its terms on its page, then {_LOG_IN}"
        case errors.RepositoryNotFoundError():
            return f"the hub has no such repository, or hides it; check the name, or {_LOG_IN}"
        case errors.RevisionNotFoundError():
            return "the repository has no such revision"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return f"the hub does not give it out ({said}); {_LOG_IN}"
            if 400 <= status < 500 and status not in (408, 416, 429):
                return f"the hub refuses it ({said}); check the name"
        case OSError() if error.errno in _DISK_ERRORS:
            return f"it cannot be written ({said}); make room there, or write elsewhere"
    return None


def _asked_wait(error: BaseException) -> float:
    """Return the seconds that the hub asks to wait, or 0."""
    response = getattr(error, "response", None)
    headers: Any = getattr(response, "headers", {})
    limit = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    is_limited = limit is not None and getattr(response, "status_code", None) == 429
    seconds = limit.group(1) if limit and is_limited else headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_WAIT) if seconds.isdigit() else 0.0


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _first_line(error: BaseException) -> str:
    """Return the cause in one line, without the advice that the client wraps it in."""
    *_, cause = _chain(error)
    lines = (str(cause).strip() or str(error).strip() or type(cause).__name__).splitlines()
    return lines[0].strip().rstrip(".")
