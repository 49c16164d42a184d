"""Ask the hub with patience: try again, keep to its limits, say why it refuses.

listing = retry(lambda: api.list_repo_refs("allenai/OLMo-1B-hf"), "allenai/OLMo-1B-hf")
"""

import errno
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from threading import Event
from typing import Any, TypeVar

from sr_monitor.errors import InputError, first_line

_SECONDS = 10.0  # the timeout of the question whether the hub answers at all
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
_log = logging.getLogger("sr_monitor")


class Stopped(Exception):
    """The caller no longer wants the result."""


def raise_if_stopped(stop: Event) -> None:
    """Raise `Stopped` once `stop` is set."""
    if stop.is_set():
        raise Stopped


class HubGone(InputError):
    """The hub as a whole is unreachable."""


class Limit:
    """Hold requests back while the hub's own limit, told by its answers, leaves none.

    It counts requests in windows: `RateLimit: "api";r=3;t=55` leaves 3 for the next 55 seconds.
    """

    def __init__(self, at_once: int, stop: Event) -> None:
        """Leave room for `at_once` requests that are under way; end all waiting with `stop`."""
        self._at_once, self._stop, self._until = at_once, stop, 0.0

    def wait(self) -> None:
        """Wait until a request may be made; raise `Stopped` if it is no longer wanted."""
        while not self._stop.is_set() and (pause := self._until - time.monotonic()) > 0:
            self._stop.wait(pause)
        raise_if_stopped(self._stop)

    def note(self, headers: Mapping[str, str]) -> None:
        """Read the headers of an answer, whatever its status is."""
        from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

        limit, now = parse_ratelimit_headers(headers), time.monotonic()
        if limit is None or limit.remaining >= self._at_once:
            return
        seconds = min(limit.reset_in_seconds, _LONGEST_WAIT) + 1  # they are rounded
        if now > self._until:
            _log.warning(f"the hub takes no more requests for {seconds:.0f} s: waiting")
        self._until = max(self._until, now + seconds)


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
            if reason := next(filter(None, (_refusal(link, what) for link in _chain(error))), None):
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


def _refusal(error: BaseException, what: str) -> str | None:
    """Return why a retry cannot help, and what to do; None if it may help."""
    from huggingface_hub import constants, errors

    said = _first_line(error)
    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a folder"
        case errors.HFValidationError():
            return f"this is no name of a repository ({said}); it looks like owner/name"
        case errors.GatedRepoError():
            page = f"{constants.ENDPOINT}/{what.partition('@')[0]}"
            return f"the repository is gated; accept its terms at {page}, then {_LOG_IN}"
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
    return first_line(cause if str(cause).strip() else error).rstrip(".")
