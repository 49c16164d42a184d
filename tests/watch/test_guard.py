"""Errors that end at the guard: told once with cause and fix, counted, and three are enough."""

import errno
import re
import subprocess
import sys
import warnings

import pytest
import torch

from sr_monitor.display.writers.base import WriterError
from sr_monitor.errors import InputError, PeerError, PeerInputError, describe
from sr_monitor.watch.guard import ErrorGuard

MOON, SUN = RuntimeError("the moon\n is full"), LookupError("the sun")


def fail(guard: ErrorGuard, *errors: BaseException, final: bool = False) -> list[str]:
    """The warnings that errors lead to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for error in errors:
            with guard.catching("measuring at step 5", final=final):
                raise error
    assert all(warning.category is RuntimeWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_each_cause_is_told_once_with_what_was_tried() -> None:
    first, second = fail(ErrorGuard("warn"), MOON, MOON) + fail(ErrorGuard("warn"), SUN)
    assert first.startswith("measuring at step 5 failed: RuntimeError: the moon is full. Training")
    assert "the sun" in second


def test_three_in_a_row_are_enough_and_that_is_said_once() -> None:
    guard = ErrorGuard("warn")
    for _ in range(4):  # a success in between begins a new row, and the count goes on
        fail(guard, MOON, MOON)
        guard.reset()
    assert (guard.failures, guard.is_off) == (8, False)
    (last,) = fail(guard, MOON, MOON, MOON)
    assert "3 times in a row: RuntimeError: the moon is full. sr-monitor is off now" in last
    assert (guard.failures, guard.is_off) == (11, True)
    guard.reset()
    (closing,) = fail(guard, SUN, MOON, SUN)
    assert closing.endswith("LookupError: the sun. Training goes on")
    assert guard.is_off


@pytest.mark.parametrize(
    ("error", "final", "is_off"),
    [
        (InputError("layer=9: pass 2"), False, True),
        (PeerInputError("layer=9: pass 2"), False, True),
        (MOON, True, True),
        (WriterError("gone"), False, False),
        (OSError(errno.ENOSPC, "No space"), False, False),
        (PeerError("rank 1"), False, False),
        (ValueError("x"), False, False),
    ],
)
def test_what_would_fail_again_is_the_last_one(error: Exception, final: bool, is_off: bool) -> None:
    guard = ErrorGuard("warn")
    (text,) = fail(guard, error, final=final)
    assert ("failed, it cannot work here: " in text) == is_off
    assert text.endswith("off now; training goes on" if is_off else "sr-monitor tries again")
    assert (guard.failures, guard.is_off) == (1, is_off)


_A_TRAINING = """
from sr_monitor.watch.guard import ErrorGuard

guard = ErrorGuard("warn")
for _ in range(3):
    with guard.catching("measuring"):
        raise RuntimeError("the moon")
"""


def test_the_warning_points_to_the_line_that_failed() -> None:
    """In a process without the type checks of these tests, whose frames are callers, too."""
    command = [sys.executable, "-W", "always::RuntimeWarning", "-c", _A_TRAINING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, last = done.stderr.splitlines()
    assert first.startswith("<string>:6: RuntimeWarning: measuring failed: RuntimeError: the moon.")
    assert last.startswith("<string>:6: RuntimeWarning: measuring failed, 3 times in a row: ")


@pytest.mark.parametrize(
    ("on_error", "error"), [("raise", MOON), ("warn", KeyboardInterrupt()), ("warn", SystemExit(1))]
)
def test_what_is_to_end_the_training_comes_through(on_error: str, error: BaseException) -> None:
    guard = ErrorGuard("raise" if on_error == "raise" else "warn")
    with pytest.raises(type(error)) as caught:
        fail(guard, error)
    assert caught.value is error
    assert (guard.failures, guard.is_off) == (0, False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("layer=9: pass\n less"), "layer=9: pass less"),
        (PeerError("rank 1 of 2: out of memory"), "rank 1 of 2: out of memory"),
        (torch.OutOfMemoryError("CUDA is full"), r"memory ran out \(CUDA is full\); .*max_tokens="),
        (
            OSError(errno.ENOSPC, "No space", "runs/1"),
            r"No space \(runs/1\); free some, .*log_dir=",
        ),
        (OSError(errno.EACCES, "Denied", "runs/1"), r"Denied \(runs/1\); .*another log_dir="),
        (OSError("it is gone"), "it is gone; .*another log_dir="),
        (KeyError(), "KeyError: KeyError"),
        (ValueError(1000 * "x"), f"ValueError: {500 * 'x'}$"),
    ],
)
def test_cause_and_fix_are_one_line(error: Exception, expected: str) -> None:
    assert re.match(expected, describe(error))
    assert "\n" not in describe(error)
