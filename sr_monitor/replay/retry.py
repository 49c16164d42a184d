"""Requests to the hub, repeated while that may help and refused in words where it cannot.

The hub's client retries what it streams and what it asks about single files; listings, and server
errors in place of a file, it does not. `retry` does, and both share one budget of time: what the
client has already repeated for that long is not repeated again.

    info = retry(lambda: api.model_info(repo), "allenai/OLMo-1B-hf@main")
"""

import errno
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sr_monitor.errors import InputError

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


class Stopped(Exception):
    """The caller no longer wants the result."""


def retry(
    request: Callable[[], T], what: str, *, wait: Callable[[float], object] = time.sleep
) -> T:
    """Return the result of a request to the hub, made up to five times.

    Args:
        request: Asks the hub.
        what: What is asked for, `owner/name@revision`, for the error.
        wait: Waits that many seconds before the next try.
    """
    started, tries = time.monotonic(), 0
    while True:
        try:
            return request()
        except (InputError, Stopped, *_BUGS):
            raise
        except Exception as error:  # the client's HTTP library has no common base across versions
            if (reason := _refusal(error)) is not None:
                raise InputError(f"{what} cannot be downloaded: {reason}") from error
            tries += 1
            if tries == _TRIES or time.monotonic() - started > _BUDGET:
                raise InputError(
                    f"{what} could not be downloaded ({_first_line(error)}; tries: {tries}); "
                    "check the connection and run the same again"
                ) from error
            asked = _asked_wait(error)
        started += asked
        wait(max(_FIRST_PAUSE * 2 ** (tries - 1), asked))


def _refusal(error: BaseException) -> str | None:
    """Return why it is no use to try again, and what to do; None where it may help."""
    reasons = (_reason(link) for link in _chain(error))
    return next((reason for reason in reasons if reason is not None), None)


def _reason(error: BaseException) -> str | None:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a folder"
    if isinstance(error, errors.HFValidationError):
        return f"this is no name of a repository ({_first_line(error)}); it looks like owner/name"
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated; accept its terms on its page, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no such repository, or does not show it; check the name, or {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.HfHubHTTPError):
        return _reason_of_status(error.response.status_code, error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"it cannot be written ({_first_line(error)}); make room there, or write elsewhere"
    return None


def _reason_of_status(status: int, error: BaseException) -> str | None:
    if status in (401, 403):
        return f"the hub does not give it out ({_first_line(error)}); {_LOG_IN}"
    if 400 <= status < 500 and status not in (408, 416, 429):
        return f"the hub refuses it ({_first_line(error)}); check the name"
    return None


def _asked_wait(error: BaseException) -> float:
    """Return the seconds after which the hub wants to be asked again, if it says so; else 0."""
    response = getattr(error, "response", None)
    headers: Any = getattr(response, "headers", {})
    limit = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    is_limited = limit is not None and getattr(response, "status_code", None) == 429
    seconds = limit.group(1) if limit and is_limited else headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_WAIT) if seconds.isdigit() else 0.0


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _first_line(error: BaseException) -> str:
    """Return the cause in one line: the client wraps what happened in advice of its own."""
    *_, cause = _chain(error)
    lines = (str(cause).strip() or str(error).strip() or type(cause).__name__).splitlines()
    return lines[0].strip().rstrip(".")
