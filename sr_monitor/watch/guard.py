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
from sr_monitor.model.undisturbed import preserving_global_state

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
            self._tell(what, describe(error), lasts=final or isinstance(error, InputError))

    def reset(self) -> None:
        """Count the next failure as the first in a row, because all went well."""
        self._in_a_row = 0

    def _tell(self, what: str, cause: str, *, lasts: bool) -> None:
        """Warn once of each cause, and once when measuring is turned off."""
        turns_off = not self.is_off and (lasts or self._in_a_row >= _LIMIT)
        is_news = turns_off or cause not in self._told
        if turns_off:
            why = "it cannot work here" if lasts else f"{_LIMIT} times in a row"
            text = f"{what} failed, {why}: {cause}. sr-monitor is off now; training goes on"
        else:
            again = "" if self.is_off else ", and sr-monitor tries again"
            text = f"{what} failed: {cause}. Training goes on{again}"
        self.is_off |= turns_off
        self._told.add(cause)
        if is_news and RankGroup.present().is_leader:
            with preserving_global_state():  # whoever shows warnings may draw
                warn(text, stacklevel=4)
