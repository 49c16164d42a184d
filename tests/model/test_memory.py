"""Memory is bounded: chunks keep to the budget, and running out of memory halves them.

A pre-hook on every block plays a device whose memory holds a certain number of tokens.
"""

import gc
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_monitor import measure_slices
from sr_monitor.errors import NothingFitsError, describe, is_out_of_memory
from sr_monitor.model.memory import TokenBudget, in_chunks
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.probes.paths import Paths
from tests import zoo
from tests.model.helpers import (
    LENGTH,
    NUM_STEPS,
    TOLERANCE,
    assert_exact,
    largest,
    measure,
    watched,
)

WAYS: list[tuple[str, EngineName]] = [("llama", "shared"), ("gpt2", "rows"), ("nano_gpt", "plain")]
NUM_PAIRS = 6


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """Take what is imported out of the garbage collector's sight: each halving runs it."""
    for way in WAYS:
        _undisturbed(*way)
    gc.freeze()
    yield
    gc.unfreeze()


def _measure(specimen: zoo.Specimen, engine: EngineName, max_tokens: int | None = None) -> Paths:
    return measure(specimen, count=NUM_PAIRS, engine=engine, max_tokens=max_tokens)


@cache
def _undisturbed(name: str, engine: EngineName) -> Paths:
    return _measure(zoo.build(name), engine)


def _assert_same(measured: Paths, undisturbed: Paths) -> None:
    assert_exact(measured.distance, undisturbed.distance)
    assert measured.num_points == undisturbed.num_points == NUM_PAIRS * NUM_STEPS
    assert torch.equal(measured.kept, undisturbed.kept)
    assert measured.engine == undisturbed.engine


@contextmanager
def _memory_for(
    specimen: zoo.Specimen, most: int, error: type[RuntimeError] = torch.OutOfMemoryError
) -> Iterator[list[int]]:
    """A device on which a forward of more than `most` tokens fails; yields the failures."""
    failures: list[int] = []

    def watch(rows: int, tokens: int) -> None:
        if rows * tokens > most:
            failures.append(rows * tokens)
            raise error(f"{rows} x {tokens} tokens do not fit")

    with watched(specimen.stack, watch):
        yield failures


def test_what_the_failed_piece_held_is_freed_before_it_is_done_again() -> None:
    held: list[weakref.ref[Tensor]] = []

    def work(chunk: slice) -> None:
        assert all(reference() is None for reference in held)
        if chunk.stop - chunk.start > 1:
            big = torch.zeros(100)
            big.keep_me = big  # type: ignore[attr-defined]  # a cycle, as hooks make them
            held.append(weakref.ref(big))
            raise torch.OutOfMemoryError

    gc.disable()
    try:
        in_chunks(8, tokens_each=1, budget=TokenBudget(8), work=lambda chunk: work(chunk))
    finally:
        gc.enable()
    assert len(held) == 3


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 4096 bytes.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)",
    ],
    ids=["windows", "cuda", "cublas", "mps"],
)
def test_only_running_out_of_memory_is_recognised_as_such(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError(message))


@pytest.mark.parametrize(("name", "engine"), WAYS)
def test_running_out_of_memory_halves_and_goes_on(name: str, engine: EngineName) -> None:
    """Down to 2 prompts, which the one look at the model takes to see that it is causal."""
    specimen = zoo.build(name)
    prompts = specimen.prompts(4, LENGTH)
    corners = prompts[:2], prompts[1:3], prompts[2:]
    slices = partial(measure_slices, specimen.model, *corners, resolution=4, engine=engine)
    expected = slices()
    with _memory_for(specimen, 2 * LENGTH) as failures:
        _assert_same(_measure(specimen, engine), _undisturbed(name, engine))
        assert failures
        failures.clear()
        found = slices()
        assert failures
    assert found.num_points == 2 * 3 * (4 * 4 + 1)
    assert (found.distance - expected.distance).abs().max() <= TOLERANCE * expected.distance.max()


def test_adaptive_sampling_counts_the_points_of_a_piece_done_again_once() -> None:
    specimen = zoo.build("llama")
    seen = 0

    def watch(_: int, tokens: int) -> None:
        nonlocal seen
        seen += tokens == 4  # points in a row: not the first look at a path, which takes 11
        if tokens == 4 and seen == 1:
            raise torch.OutOfMemoryError

    with watched(specimen.stack, watch):
        paths = measure(specimen, num_steps=101, sampling="adaptive", engine="shared")
    assert seen > 1
    assert paths.num_points == paths.distance.isfinite().sum()


@pytest.mark.parametrize(("name", "engine"), WAYS)
def test_what_halving_cannot_help_comes_through(name: str, engine: EngineName) -> None:
    """Where not even one point fits, and any other error, at once."""
    specimen = zoo.build(name)
    for most, error, comes, most_failures in (
        (0, torch.OutOfMemoryError, NothingFitsError, 20),
        (40, RuntimeError, RuntimeError, 1),
    ):
        with (
            _memory_for(specimen, most, error) as failures,
            pytest.raises(comes, match="do not fit") as caught,
        ):
            _measure(specimen, engine)
        assert 1 <= len(failures) <= most_failures
        assert "max_tokens" not in describe(caught.value)
        assert most or "use a larger device" in describe(caught.value)
    _measure(specimen, engine)


@pytest.mark.parametrize(("name", "engine"), [*WAYS, ("mistral_window", "auto")])
def test_no_forward_is_larger_than_max_tokens(name: str, engine: EngineName) -> None:
    """Only a single item may be: a prompt, its earlier tokens, or one point."""
    specimen = zoo.build(name)
    # The one look at the model takes 2 prompts.
    items = {(2, LENGTH), (1, LENGTH), (1, LENGTH - 1), (1, 1)}
    for max_tokens in (1, 10, 100):
        forwards: set[tuple[int, int]] = set()
        with watched(specimen.stack, lambda *shape: forwards.add(shape)):  # noqa: B023
            measured = _measure(specimen, engine, max_tokens)
        assert all(math.prod(shape) <= max_tokens for shape in forwards - items)
        _assert_same(measured, _undisturbed(name, engine))


def test_no_tensor_grows_with_steps_times_pairs_times_width() -> None:
    """The points of many paths are not built all at once: they would be gigabytes on a real model.

    Distances are one number a point and may be held together.
    """
    num_steps = 1001
    options: Any = {"engine": "shared", "max_tokens": 140}
    work = partial(measure, zoo.build("llama"), count=NUM_PAIRS, num_steps=num_steps, **options)
    numbers = largest(work, lambda out: out.untyped_storage().nbytes() // 4)
    assert numbers <= 2 * num_steps * max(NUM_PAIRS, zoo.WIDTH)


def test_a_real_failure_of_the_cpu_allocator_is_survived() -> None:
    specimen, failures = zoo.build("nano_gpt"), []

    def watch(rows: int, tokens: int) -> None:
        if rows * tokens > 100:
            failures.append((rows, tokens))
            torch.empty(2**60, dtype=torch.uint8)

    with watched(specimen.layers, watch):
        _assert_same(_measure(specimen, "plain"), _undisturbed("nano_gpt", "plain"))
    assert failures
