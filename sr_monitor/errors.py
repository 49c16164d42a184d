"""What a user or another rank gets wrong, in words; the one error a user can cause: `InputError`.

Everything the library refuses because of what it was given is an `InputError`: a `ValueError`
whose message restates the call, shows both sides of the mismatch and names the fix. The command
line prints it in one line and exits with status 2; any other exception is a bug of ours.

    num_steps = whole("num_steps", num_steps, least=2)
    raise InputError("measure_paths(num_steps=1): `num_steps` must be at least 2")
"""

import errno
import logging
import operator
import sys
import warnings
from pathlib import Path
from types import UnionType
from typing import Any, get_args

# Not every allocator has an error class of its own.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_MOST_CHARACTERS = 60
_log = logging.getLogger("sr_monitor")


class InputError(ValueError):
    """What was asked for cannot be done; the message says why and names the fix."""


class PeerError(RuntimeError):
    """Another process of the training could not do its part; the message says why."""


class PeerInputError(PeerError, InputError):
    """Another process refused what was asked for; it would do so again."""


def refused(name: str, value: Any, fix: str, *, call: str | None = None) -> InputError:
    """The error to raise for a value that is of no use; of a long one, the beginning is shown."""
    text = " ".join(repr(value).split())
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
    what = f"{name}={shown}:" if call is None else f"{call}: {name} is {shown};"
    return InputError(f"{what} {fix}")


def whole(name: str, value: Any, *, least: int | None = None, call: str | None = None) -> int:
    """The value as an int, whatever kind of whole number it is; or refused, as part of a `call`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise refused(name, value, "pass a whole number", call=call) from None
    if least is not None and number < least:
        raise refused(name, number, f"pass {least} or more", call=call)
    return number


def check_word(name: str, value: Any, words: Any) -> None:
    """Refuses what is none of the words of a `Literal`."""
    if value not in get_args(words):
        raise refused(name, value, f"pass one of {', '.join(get_args(words))}")


def check_kind(name: str, value: Any, kind: type | UnionType, fix: str) -> None:
    """Refuses what is not of this kind."""
    if not isinstance(value, kind):
        raise refused(name, value, fix)


def check_folder_name(name: str, value: Any) -> None:
    """Refuses what is not the name of one folder: a path, or nothing at all."""
    if not isinstance(value, str) or value in ("", "..") or Path(value).name != value:
        raise refused(name, value, "pass the name of one folder, such as 'stable_regions'")


def tell(line: str) -> None:
    """Log a line that is no warning; where logging would not show it, print it to stderr.

    Logging that nobody has configured shows warnings alone, and a user has to know where results
    are.
    """
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info(line)
    else:
        print(f"sr-monitor: {line}", file=sys.stderr)  # noqa: T201


def warn(text: str, *, category: type[Warning] = RuntimeWarning, stacklevel: int = 1) -> None:
    """Warn; where the user has turned warnings into errors, log the warning instead.

    `stacklevel` counts as it does in `warnings.warn`, from the caller.
    """
    try:
        warnings.warn(text, category, stacklevel=stacklevel + 1)
    except category:
        _log.warning(text)


def describe(error: BaseException) -> str:
    """What is wrong and what helps, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, InputError | PeerError):
        return reason
    if is_out_of_memory(error):
        return (
            f"memory ran out ({reason[:200]}); pass a smaller max_tokens= (tokens in one forward) "
            "or slice_resolution="
        )
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        fix = "free some" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to it"
        return f"{error.strerror or reason}{place}; {fix}, or pass another log_dir="
    return f"{type(error).__name__}: {reason[:500]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or in the CPU's allocator."""
    import torch  # here, so that the command line can refuse something without it

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )
