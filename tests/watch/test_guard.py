"""Errors that end at the guard: told once with cause and fix, counted, and three are enough."""

import errno
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from sr_monitor.display.writers.base import WriterError
from sr_monitor.errors import InputError, PeerError, PeerInputError, describe
from sr_monitor.watch.guard import ErrorGuard

MOON, SUN = RuntimeError("the moon\n is full"), LookupError("the sun")


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of a block, as text."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    assert all(warning.category is RuntimeWarning for warning in caught)
    texts += [str(warning.message) for warning in caught]


def fail(guard: ErrorGuard, *errors: BaseException, final: bool = False) -> list[str]:
    with told() as texts:
        for error in errors:
            with guard.catching("measuring at step 5", final=final):
                raise error
    return texts


def test_each_cause_is_told_once_with_what_was_tried() -> None:
    guard = ErrorGuard("warn")
    first, second = fail(guard, MOON, MOON) + fail(ErrorGuard("warn"), SUN)
    assert first == (
        "measuring at step 5 failed: RuntimeError: the moon is full. Training goes on, and "
        "sr-monitor tries again"
    )
    assert "the sun" in second
    assert (guard.failures, guard.is_off) == (2, False)


def test_three_in_a_row_are_enough_and_that_is_said_once() -> None:
    guard = ErrorGuard("warn")
    _, last = fail(guard, MOON, MOON, MOON)
    assert last == (
        "measuring at step 5 failed, 3 times in a row: RuntimeError: the moon is full. sr-monitor "
        "is off now; training goes on"
    )
    assert (guard.failures, guard.is_off) == (3, True)
    guard.reset()
    assert fail(guard, SUN, MOON, SUN) == [  # closing, drawing
        "measuring at step 5 failed: LookupError: the sun. Training goes on"
    ]
    assert guard.is_off


def test_a_success_in_between_begins_a_new_row_and_counts_on() -> None:
    guard = ErrorGuard("warn")
    for _ in range(4):
        fail(guard, MOON, MOON)
        guard.reset()
    assert (guard.failures, guard.is_off) == (8, False)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (InputError("layer=9: pass 2"), False),
        (PeerInputError("layer=9: pass 2"), False),
        (MOON, True),
    ],
)
def test_what_would_fail_again_is_the_last_one(error: Exception, final: bool) -> None:
    guard = ErrorGuard("warn")
    (text,) = fail(guard, error, final=final)
    assert text.startswith("measuring at step 5 failed, it cannot work here: ")
    assert text.endswith("sr-monitor is off now; training goes on")
    assert (guard.failures, guard.is_off) == (1, True)


@pytest.mark.parametrize(
    "error",
    [WriterError("gone"), OSError(errno.ENOSPC, "No space"), PeerError("rank 1"), ValueError("x")],
)
def test_other_errors_can_pass(error: Exception) -> None:
    guard = ErrorGuard("warn")
    (text,) = fail(guard, error)
    assert text.endswith("Training goes on, and sr-monitor tries again")
    assert not guard.is_off


_A_TRAINING = """
from sr_monitor.watch.guard import ErrorGuard

guard = ErrorGuard("warn")
for _ in range(3):
    with guard.catching("measuring"):
        raise RuntimeError("the moon")
assert (guard.failures, guard.is_off) == (3, True)
"""


@pytest.mark.parametrize(
    ("action", "where"), [("always", "<string>:6: RuntimeWarning: "), ("error", "")]
)
def test_a_user_reads_it_where_warnings_are_errors_too(action: str, where: str) -> None:
    """In a process without the type checks of these tests: they are callers, too."""
    command = [sys.executable, "-W", f"{action}::RuntimeWarning", "-c", _A_TRAINING]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, last = done.stderr.splitlines()
    assert first.startswith(f"{where}measuring failed: RuntimeError: the moon. Training goes on")
    assert last.startswith(f"{where}measuring failed, 3 times in a row: ")


def test_the_original_error_comes_through_if_asked_for() -> None:
    guard = ErrorGuard("raise")
    with pytest.raises(RuntimeError) as caught:
        fail(guard, MOON)
    assert caught.value is MOON
    assert (guard.failures, guard.is_off) == (0, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_whoever_wants_to_stop_the_training_can(error: BaseException) -> None:
    guard = ErrorGuard("warn")
    with pytest.raises(type(error)):
        fail(guard, error)
    assert guard.failures == 0


@pytest.mark.usefixtures("_as_users_run_it")
def test_anything_else_to_do_is_refused() -> None:
    with pytest.raises(InputError, match=r"^on_error='ignore': pass one of warn, raise$"):
        ErrorGuard("ignore")  # type: ignore[arg-type]


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
