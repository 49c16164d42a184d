"""Errors, warnings, and checks of arguments.

Bad input is an `InputError`: a `ValueError` whose message restates the call, shows both sides of a
mismatch and names the fix. The command line prints it in one line and exits with status 2; any
other exception is a bug of ours.

    num_steps = whole("num_steps", num_steps, least=2)
    raise refused("span", span, "pass the lowest coordinate, then a higher one")
"""

import errno
import logging
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, get_args

# Messages of allocators that have no error class of their own.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_MOST_CHARACTERS = 60
_MOST_SAID = 200
_QUERY = re.compile(r"\?[\w.~%-]+=(?:[^\s'\")\]]*[\w~%=/-])?")
_OF_THE_HUB = ("huggingface_hub.file_download", "huggingface_hub.utils._http")
_log = logging.getLogger("sr_monitor")


class InputError(ValueError):
    """A request that cannot be met; the message says why and names the fix."""


class MissingPartError(InputError):
    """The model lacks what a probe looks at; the other probes can go on, on every rank alike."""


class PeerError(RuntimeError):
    """Another rank failed; the message says why."""


class PeerInputError(PeerError, InputError):
    """Another rank refused its input, and would do so again."""


class NothingFitsError(RuntimeError):
    """Even the smallest forward is out of memory."""


def refused(name: str, value: Any, fix: str, *, call: str | None = None) -> InputError:
    """Return the error to raise for a value; show only the beginning of a long one."""
    text = " ".join(repr(value).split())
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
    what = f"{name}={shown}:" if call is None else f"{call}: {name} is {shown};"
    return InputError(f"{what} {fix}")


def whole(name: str, value: Any, *, least: int | None = None, call: str | None = None) -> int:
    """Convert a whole number of any kind to int; refuse anything else, as part of `call`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise refused(name, value, "pass a whole number", call=call) from None
    if least is not None and number < least:
        raise refused(name, number, f"pass {least} or more", call=call)
    return number


def check_word(name: str, value: Any, words: Any) -> None:
    """Refuse a value that is not in a `Literal`."""
    if value not in get_args(words):
        raise refused(name, value, f"pass one of {', '.join(map(str, get_args(words)))}")


def check_kind(
    name: str, value: Any, kind: type | UnionType, fix: str, *, call: str | None = None
) -> None:
    """Refuse a value of another type, as part of `call`."""
    if not isinstance(value, kind):
        raise refused(name, value, fix, call=call)


def check_folder_name(name: str, value: Any) -> None:
    """Refuse a value that is not the name of one folder, such as a path."""
    if not isinstance(value, str) or value in ("", "..") or Path(value).name != value:
        raise refused(name, value, "pass the name of one folder, such as 'stable_regions'")


def tell(line: str) -> None:
    """Log a line at level INFO; print it to stderr where logging is not set up to show it.

    Never raise: a closed stderr or a broken log handler must not end a training.
    """
    with suppress(Exception):
        if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
            _log.info(line)
        else:
            print(f"sr-monitor: {line}", file=sys.stderr)  # noqa: T201


def warn(text: str, *, category: type[Warning] = RuntimeWarning, stacklevel: int = 1) -> None:
    """Warn as `warnings.warn` does; log where warnings are errors or cannot be shown.

    Never raise, for the reason that `tell` does not.
    """
    try:
        warnings.warn(text, category, stacklevel=stacklevel + 1)
    except Exception:
        with suppress(Exception):
            _log.warning(text)


def level_of_caller() -> int:
    """Return the `stacklevel` of the line that called the outermost of our frames."""
    frame, level, caller = sys._getframe(1), 1, 1
    while frame.f_back:
        is_ours = str(frame.f_globals.get("__name__")).startswith("sr_monitor")
        frame, level = frame.f_back, level + 1
        caller = level if is_ours else caller
    return caller


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or else its kind."""
    return unsigned(str(error).strip().split("\n")[0].strip()) or type(error).__name__


def unsigned(text: str) -> str:
    """Strip the queries of URLs: anyone who has a signed one can download the file."""
    return _QUERY.sub("", text)


@contextmanager
def unsigned_logs() -> Iterator[None]:
    """Strip the queries of URLs from what the hub's client logs."""

    def clean(record: logging.LogRecord) -> bool:
        record.msg, record.args = unsigned(record.getMessage()), None
        return True

    loggers = [logging.getLogger(name) for name in _OF_THE_HUB]
    for logger in loggers:
        logger.addFilter(clean)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(clean)


def reason_of(error: BaseException) -> str:
    """Return the kind of an error and the beginning of what it says, in one line."""
    said = ""
    with suppress(Exception):  # a stranger's class may have no text
        lines = [line.strip() for line in unsigned(str(error)).splitlines()]
        said = next(filter(None, lines), "")
        if said.endswith(":"):  # it goes on in the next line
            said = " ".join(lines)
    return f"{type(error).__name__}: {said[:_MOST_SAID]}".rstrip(": ")


@contextmanager
def explained(
    what: str, fix: str = "", *, reason: Callable[[BaseException], str] = reason_of
) -> Iterator[None]:
    """Turn whatever a stranger's file causes while it is read into one line, an `InputError`.

        with explained(f"{str(path)!r} is damaged", "download it again"):
            step = json.loads(path.read_text())["step"]

    Damaged files raise nearly anything; `reason` says what happened.
    """
    try:
        yield
    except (InputError, PeerError):
        raise
    except Exception as error:
        said = reason(error)
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            told = f"{what}: memory ran out ({said}); pass dtype='bfloat16' or another device, "
            raise InputError(f"{told}unless its files are damaged") from error
        told = f"{what} ({said}); {fix}" if fix else f"{what}: {said}"
        raise InputError(told) from error


def describe(error: BaseException) -> str:
    """Say in one line what is wrong and what helps."""
    reason = ""
    with suppress(Exception):  # a stranger's class may have no text
        reason = " ".join(str(error).split())
    reason = reason or type(error).__name__
    if isinstance(error, InputError | PeerError):
        return reason
    if is_out_of_memory(error):
        fix = "pass a smaller max_tokens= (tokens in one forward) or slice_resolution="
        if isinstance(error, NothingFitsError):
            fix = (
                "not even the smallest forward fits beside what is there: leave more memory free, "
                "use a larger device, or measure saved checkpoints"
            )
        return f"memory ran out ({reason[:_MOST_SAID]}); {fix}"
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some" if is_full else "check its permissions"
        return f"{error.strerror or reason}{place}; {fix}, or pass another log_dir="
    return f"{type(error).__name__}: {reason[:500]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a device or in the CPU's allocator."""
    import torch  # here, so that the command line can refuse bad input without waiting for it

    return isinstance(error, torch.OutOfMemoryError | NothingFitsError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )
