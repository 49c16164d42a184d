"""Asking the hub again: what helps against a bad line, and what no repetition can help.

A task is tried, and tried again after 1, 2, 4 and 8 seconds (or as long as the hub asks for),
unless the hub's answer is final: no such repository, no access, no such revision. What cannot be
had is one `InputError` that names the repository, the revision, the reason and the fix.

    files = patiently(lambda: api.model_info(repo), "allenai/OLMo-1B-hf@main", sleep=time.sleep)
"""

import errno
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sr_monitor.errors import InputError

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before the second, third, fourth and fifth try."""
_LONGEST = 300.0  # the hub counts requests in windows of five minutes
_LOG_IN = "log in with an account that may see it (hf auth login)"
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
}
_BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError)

T = TypeVar("T")


class Stopped(Exception):
    """The caller left while this was going on."""


def patiently(task: Callable[[], T], what: str, *, sleep: Callable[[float], object]) -> T:
    """The result of a task that asks the hub, tried up to five times.

    Args:
        task: asks the hub.
        what: what is asked for, `owner/name@revision`, for the error.
        sleep: waits that many seconds.
    """
    for pause in (*PAUSES, None):
        try:
            return task()
        except (InputError, Stopped, *_BUGS):
            raise
        except Exception as error:  # the client's HTTP library has no common base across versions
            if (reason := refusal(error)) is not None:
                raise InputError(f"{what} cannot be downloaded: {reason}") from error
            if pause is None:
                raise InputError(
                    f"{what} could not be downloaded in {len(PAUSES) + 1} tries "
                    f"({_first_line(error)}); check the connection and run the same again"
                ) from error
            sleep(max(pause, _asked_for(error)))
    raise AssertionError("the last try returns or raises")


def refusal(error: BaseException) -> str | None:
    """Why it is of no use to try again, and what to do; None where it may help."""
    reasons = (_refusal(link) for link in _chain(error))
    return next((reason for reason in reasons if reason is not None), None)


def is_missing_revision(error: BaseException | None) -> bool:
    """Whether the hub has the repository, and not the revision."""
    from huggingface_hub.errors import RevisionNotFoundError

    return error is not None and any(
        isinstance(link, RevisionNotFoundError) for link in _chain(error)
    )


def _refusal(error: BaseException) -> str | None:
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
        return _refusal_of_status(error.response.status_code, error)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return f"it cannot be written ({_first_line(error)}); set HF_HOME to a place with room"
    return None


def _refusal_of_status(status: int, error: BaseException) -> str | None:
    if status in (401, 403):
        return f"the hub does not give it out ({_first_line(error)}); {_LOG_IN}"
    if 400 <= status < 500 and status not in (408, 416, 429):
        return f"the hub refuses it ({_first_line(error)}); check the name"
    return None


def _asked_for(error: BaseException) -> float:
    """Seconds after which the hub wants to be asked again, when it says so; else 0."""
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    said = re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) if _is_limited(error) else None
    seconds = said.group(1) if said else headers.get("retry-after", "")
    return min(float(seconds), _LONGEST) if seconds.isdigit() else 0.0


def _is_limited(error: BaseException) -> bool:
    return getattr(getattr(error, "response", None), "status_code", None) == 429


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _first_line(error: BaseException) -> str:
    """The cause in one line: the client wraps what happened in advice of its own."""
    *_, cause = _chain(error)
    lines = (str(cause).strip() or str(error).strip() or type(cause).__name__).splitlines()
    return lines[0].strip().rstrip(".")
