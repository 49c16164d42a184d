"""Errors inside somebody's training: told once, counted, and after three in a row we stop.

guard = ErrorGuard("warn")
with guard.catching("measuring at step 500"):
...                     # whatever is raised here ends here
guard.failures, guard.is_off
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from sr_monitor.errors import InputError, describe, warn

OnError = Literal["warn", "raise"]

_LIMIT = 3


class ErrorGuard:
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
        self.is_off = False
        self._in_a_row = 0
        self._told: set[str] = set()

    @contextmanager
    def catching(self, what: str, *, final: bool = False) -> Iterator[None]:
        """Ends errors of the block here, in one warning.

        An `InputError`, and any error of a `final` block, turns measuring off at once, because it
        would fail again.
        """
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.failures += 1
            self._in_a_row += 1
            was_off, lasts = self.is_off, final or isinstance(error, InputError)
            self.is_off = was_off or lasts or self._in_a_row >= _LIMIT
            self._tell(what, describe(error), was_off=was_off, lasts=lasts)

    def reset(self) -> None:
        """All went well: the next failure is the first in a row."""
        self._in_a_row = 0

    def _tell(self, what: str, cause: str, *, was_off: bool, lasts: bool) -> None:
        """One warning of each cause, and one when measuring is turned off."""
        turns_off = self.is_off and not was_off
        is_news = turns_off or cause not in self._told
        if was_off:
            text = f"{what} failed: {cause}. Training goes on"
        elif turns_off:
            why = "it cannot work here" if lasts else f"{_LIMIT} times in a row"
            text = f"{what} failed, {why}: {cause}. sr-monitor is off now; training goes on"
        else:
            text = f"{what} failed: {cause}. Training goes on, and sr-monitor tries again"
        self._told.add(cause)
        if self.tells and is_news:
            warn(text, stacklevel=4)
