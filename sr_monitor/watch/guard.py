"""Errors inside somebody's training: told once, counted, and after three in a row we stop.

guard = ErrorGuard("warn")
with guard.catching("measuring at step 500"):
...                     # whatever is raised here ends here
guard.failures, guard.is_off
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from sr_monitor.errors import InputError, check_word, describe, warn
from sr_monitor.model.ranks import RankGroup

OnError = Literal["warn", "raise"]

_LIMIT = 3


class ErrorGuard:
    """Keeps our errors from a training that must not see them."""

    def __init__(self, on_error: OnError) -> None:
        """Start without failures; "warn" ends errors here, "raise" lets them through."""
        check_word("on_error", on_error, OnError)
        self.on_error: OnError = on_error
        self.failures = 0
        self.is_off = False
        self._in_a_row = 0
        self._told: set[str] = set()

    @contextmanager
    def catching(self, what: str, *, final: bool = False) -> Iterator[None]:
        """End errors of the block here, in one warning by the leading rank.

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
        """Count the next failure as the first in a row, because all went well."""
        self._in_a_row = 0

    def _tell(self, what: str, cause: str, *, was_off: bool, lasts: bool) -> None:
        """Warn once of each cause, and once when measuring is turned off."""
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
        if is_news and RankGroup.present().is_leader:
            warn(text, stacklevel=4)
