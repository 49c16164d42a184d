"""Errors inside somebody's training: told once, counted, and after three in a row we stop.

fuse = Fuse("warn")
with fuse.guarding("measuring at step 500"):
...                     # whatever is raised here ends here
fuse.failures, fuse.blown
"""

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from sr_monitor.errors import InputError
from sr_monitor.memory import is_out_of_memory

OnError = Literal["warn", "raise"]

_LIMIT = 3


class PeerError(RuntimeError):
    """Another process of the training could not do its part; the message says why."""


class PeerInputError(PeerError, InputError):
    """Another process refused what was asked for; it would do so again."""


class Fuse:
    """Stands between our errors and a training that must not see them."""

    def __init__(self, on_error: OnError, *, tells: bool = True) -> None:
        """Counts from 0.

        Args:
            on_error: "warn" ends errors here; "raise" lets them through.
            tells: Whether warnings are shown; of several processes, one is enough.
        """
        if on_error not in get_args(OnError):
            raise InputError(f"on_error={on_error!r}: pass 'warn' or 'raise'")
        self.on_error: OnError = on_error
        self.tells = tells
        self.failures = 0
        self.blown = False
        self._in_a_row = 0
        self._told: set[str] = set()

    @contextmanager
    def guarding(self, what: str, *, final: bool = False) -> Iterator[None]:
        """Ends errors of the block here, in one warning.

        An `InputError`, and any error of a `final` block, blows the fuse at once: it cannot pass.
        """
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.failures += 1
            self._in_a_row += 1
            was_blown, lasts = self.blown, final or isinstance(error, InputError)
            self.blown = was_blown or lasts or self._in_a_row >= _LIMIT
            self._tell(what, describe(error), was_blown=was_blown, lasts=lasts)

    def reset(self) -> None:
        """All went well: the next failure is the first in a row."""
        self._in_a_row = 0

    def _tell(self, what: str, cause: str, *, was_blown: bool, lasts: bool) -> None:
        """One warning of each cause, and one when the fuse blows."""
        blows = self.blown and not was_blown
        is_news = blows or cause not in self._told
        if was_blown:
            text = f"{what} failed: {cause}. Training goes on"
        elif blows:
            why = "it cannot work here" if lasts else f"{_LIMIT} times in a row"
            text = f"{what} failed, {why}: {cause}. sr-monitor is off now; training goes on"
        else:
            text = f"{what} failed: {cause}. Training goes on, and sr-monitor tries again"
        self._told.add(cause)
        if self.tells and is_news:
            warn(text, stacklevel=4)


def warn(text: str, *, category: type[Warning] = RuntimeWarning, stacklevel: int = 1) -> None:
    """A warning; where the user has turned warnings into errors, a line on stderr instead.

    `stacklevel` counts as it does in `warnings.warn`, from the caller.
    """
    try:
        warnings.warn(text, category, stacklevel=stacklevel + 1)
    except category:
        _print(f"sr-monitor: {text}")


def _print(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


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
