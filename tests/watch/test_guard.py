"""Errors that end at the guard: told once with cause and fix, counted, and three are enough."""

import errno
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


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of a block, as text."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    assert all(warning.category is RuntimeWarning for warning in caught)
    texts += [str(warning.message) for warning in caught]


def fail(guard: ErrorGuard, error: BaseException, *, final: bool = False) -> None:
    with guard.catching("measuring at step 5", final=final):
        raise error


def test_an_error_ends_in_one_warning_with_its_cause() -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        fail(guard, RuntimeError("the moon\n is full"))
        fail(guard, RuntimeError("the moon\n is full"))
    assert texts == [
        "measuring at step 5 failed: RuntimeError: the moon is full. Training goes on, and "
        "sr-monitor tries again"
    ]
    assert (guard.failures, guard.is_off) == (2, False)


def test_another_cause_is_told_too() -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        fail(guard, RuntimeError("the moon"))
        fail(guard, RuntimeError("the sun"))
    assert [("moon" in text, "sun" in text) for text in texts] == [(True, False), (False, True)]


def test_three_in_a_row_are_enough_and_it_says_so() -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        for _ in range(3):
            assert not guard.is_off
            fail(guard, RuntimeError("the moon"))
    assert guard.is_off
    assert guard.failures == 3
    assert texts[1:] == [
        "measuring at step 5 failed, 3 times in a row: RuntimeError: the moon. sr-monitor is off "
        "now; training goes on"
    ]


def test_a_success_in_between_begins_a_new_row_and_counts_on() -> None:
    guard = ErrorGuard("warn")
    with told():
        for _ in range(4):
            fail(guard, RuntimeError("the moon"))
            fail(guard, RuntimeError("the moon"))
            guard.reset()
    assert (guard.failures, guard.is_off) == (8, False)


def test_a_final_error_is_the_last_one() -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        fail(guard, InputError("layer=9: there are 3; pass 2"), final=True)
    assert guard.is_off
    assert texts == [
        "measuring at step 5 failed, it cannot work here: layer=9: there are 3; pass 2. "
        "sr-monitor is off now; training goes on"
    ]


@pytest.mark.parametrize("kind", [InputError, PeerInputError])
def test_what_was_asked_for_wrongly_cannot_pass(kind: type[Exception]) -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        fail(guard, kind("num_steps=1: pass 2 or more"))
    assert (guard.failures, guard.is_off) == (1, True)
    assert texts == [
        "measuring at step 5 failed, it cannot work here: num_steps=1: pass 2 or more. "
        "sr-monitor is off now; training goes on"
    ]


@pytest.mark.parametrize(
    "error",
    [
        WriterError("TensorBoardWriter could not write"),
        OSError(errno.ENOSPC, "No space left on device", "runs/1"),
        PeerError("process 1 of 2: memory ran out"),
        ValueError("too bad"),
    ],
)
def test_other_errors_can_pass(error: Exception) -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        fail(guard, error)
    assert not guard.is_off
    assert texts[0].endswith("Training goes on, and sr-monitor tries again")


@pytest.mark.parametrize("lasts", [True, False])
def test_that_it_is_off_is_said_once(lasts: bool) -> None:
    guard = ErrorGuard("warn")
    with told() as texts:
        for _ in range(1 if lasts else 3):
            fail(guard, InputError("the moon") if lasts else RuntimeError("the moon"))
        guard.reset()
        for _ in range(4):  # closing, drawing
            with guard.catching("closing JSONLWriter"):
                raise RuntimeError("the moon" if not lasts else "the sun")
            with guard.catching("drawing"):
                raise LookupError("the sun")
    assert guard.is_off
    assert sum("is off now" in text for text in texts) == 1
    assert sum("tries again" in text for text in texts) == (0 if lasts else 1)
    assert texts[-1] == "drawing failed: LookupError: the sun. Training goes on"


_A_TRAINING = """
from sr_monitor.watch.guard import ErrorGuard

guard = ErrorGuard("warn")
for _ in range(3):
    with guard.catching("measuring"):
        raise RuntimeError("the moon")
assert (guard.failures, guard.is_off) == (3, True)
"""


@pytest.mark.parametrize(
    ("action", "where"), [("always", "<string>:6: RuntimeWarning: "), ("error", "sr-monitor: ")]
)
def test_where_warnings_are_errors_the_training_goes_on_and_reads_it(
    action: str, where: str
) -> None:
    """Without the type checks that these tests run under: they are callers, too."""
    done = subprocess.run(
        [sys.executable, "-W", f"{action}::RuntimeWarning", "-c", _A_TRAINING],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stderr.splitlines()
    assert first.startswith(f"{where}measuring failed: RuntimeError: the moon. Training goes on")
    assert last.startswith(f"{where}measuring failed, 3 times in a row: ")


def test_the_original_error_comes_through_if_asked_for() -> None:
    guard = ErrorGuard("raise")
    error = RuntimeError("the moon")
    with pytest.raises(RuntimeError) as caught:
        fail(guard, error)
    assert caught.value is error
    assert (guard.failures, guard.is_off) == (0, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_whoever_wants_to_stop_the_training_can(error: BaseException) -> None:
    guard = ErrorGuard("warn")
    with pytest.raises(type(error)):
        fail(guard, error)
    assert guard.failures == 0


def test_of_several_processes_one_tells_and_all_count() -> None:
    guard = ErrorGuard("warn", tells=False)
    with told() as texts:
        for _ in range(3):
            fail(guard, RuntimeError("the moon"))
    assert texts == []
    assert (guard.failures, guard.is_off) == (3, True)


def test_anything_else_to_do_is_refused() -> None:
    """Without the type checks that these tests run under."""
    code = "from sr_monitor.watch.guard import ErrorGuard; ErrorGuard('ignore')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("InputError: on_error='ignore': pass 'warn' or 'raise'")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("layer=9: pass\n less"), "layer=9: pass less"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
            "memory ran out (CUDA out of memory. Tried to allocate 20 MiB); pass a smaller "
            "max_tokens= (tokens in one forward) or slice_resolution=",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/1"),
            "No space left on device (runs/1); free some, or pass another log_dir=",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/1"),
            "Permission denied (runs/1); see to it, or pass another log_dir=",
        ),
        (OSError("it is gone"), "it is gone; see to it, or pass another log_dir="),
        (KeyError(), "KeyError: KeyError"),
        (PeerError("process 1 of 2: out of memory"), "process 1 of 2: out of memory"),
        (ValueError(1000 * "x"), "ValueError: " + 500 * "x"),
    ],
)
def test_cause_and_fix_are_one_line(error: Exception, expected: str) -> None:
    assert describe(error) == expected
