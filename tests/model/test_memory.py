"""Memory is bounded: chunks keep to the budget, and running out of memory halves them.

A pre-hook on every block plays a device whose memory holds a certain number of tokens.
"""

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sr_monitor import measure_paths, measure_slices
from sr_monitor.errors import is_out_of_memory
from sr_monitor.model.memory import TokenBudget, in_chunks
from sr_monitor.probes.paths import Paths
from tests import zoo

Engine = Literal["auto", "shared", "rows", "plain"]

WAYS: list[tuple[str, Engine]] = [("llama", "shared"), ("gpt2", "rows"), ("nano_gpt", "plain")]
LENGTH = 7
NUM_PAIRS = 9
NUM_STEPS = 5
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """Takes what is imported out of the garbage collector's sight: each halving runs it."""
    gc.freeze()
    yield
    gc.unfreeze()


def _pairs(specimen: zoo.Specimen) -> tuple[Int[Tensor, "pair token"], Int[Tensor, "pair token"]]:
    prompts = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    return prompts[:-1], prompts[1:]


def _measure(specimen: zoo.Specimen, engine: Engine, max_tokens: int | None = None) -> Paths:
    return measure_paths(
        specimen.model,
        *_pairs(specimen),
        num_steps=NUM_STEPS,
        engine=engine,
        max_tokens=max_tokens,
    )


def _assert_same(measured: Paths, undisturbed: Paths) -> None:
    gap = (measured.distance - undisturbed.distance).abs() / undisturbed.end_distance[:, None]
    assert gap.max() <= TOLERANCE
    assert measured.num_points == undisturbed.num_points == NUM_PAIRS * NUM_STEPS
    assert torch.equal(measured.kept, undisturbed.kept)


@contextmanager
def _watched(specimen: zoo.Specimen, watch: Callable[[int, int], None]) -> Iterator[None]:
    """Calls `watch(rows, tokens)` whenever a block is about to run."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        watch(*stream.shape[:2])

    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True) for block in specimen.stack
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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

    with _watched(specimen, watch):
        yield failures


# The budget ------------------------------------------------------------------------------------


def test_a_budget_counts_items_and_never_fewer_than_one() -> None:
    budget = TokenBudget(20)
    assert [budget.items(tokens) for tokens in (1, 7, 10, 20, 21, 1000)] == [20, 2, 2, 1, 1, 1]
    sizes = []
    for _ in range(6):
        budget.halve()
        sizes.append(budget.tokens)
    assert sizes == [10, 5, 2, 1, 1, 1]


def test_chunks_cover_everything_once_and_in_order() -> None:
    for count in (1, 2, 9, 10, 11):
        done: list[int] = []
        sizes: list[int] = []

        def work(chunk: slice, done: list[int] = done, sizes: list[int] = sizes) -> None:
            done.extend(range(chunk.start, chunk.stop))
            sizes.append(chunk.stop - chunk.start)

        in_chunks(count, tokens_each=7, budget=TokenBudget(36), work=work)
        assert done == list(range(count))
        assert max(sizes) == min(count, 5)


def test_out_of_memory_does_the_piece_again_in_smaller_ones() -> None:
    done: list[int] = []
    budget = TokenBudget(64)

    def work(chunk: slice) -> None:
        if chunk.stop - chunk.start > 5:
            raise torch.OutOfMemoryError
        done.extend(range(chunk.start, chunk.stop))

    in_chunks(50, tokens_each=2, budget=budget, work=work)
    assert done == list(range(50))
    assert budget.tokens == 8


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


def test_out_of_memory_with_one_token_left_comes_through() -> None:
    error = torch.OutOfMemoryError("still too much")
    tried: list[slice] = []

    def work(chunk: slice) -> None:
        tried.append(chunk)
        raise error

    with pytest.raises(torch.OutOfMemoryError) as caught:
        in_chunks(8, tokens_each=1, budget=TokenBudget(8), work=work)
    assert caught.value is error
    assert [chunk.stop for chunk in tried] == [8, 4, 2, 1]


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("no"), KeyboardInterrupt()]
)
def test_any_other_error_comes_through_at_once(error: BaseException) -> None:
    tried: list[slice] = []

    def work(chunk: slice) -> None:
        tried.append(chunk)
        raise error

    with pytest.raises(type(error)) as caught:
        in_chunks(8, tokens_each=1, budget=TokenBudget(8), work=work)
    assert caught.value is error
    assert len(tried) == 1


def test_the_cpu_allocator_s_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)",
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 4096 bytes.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)",
    ],
    ids=["cpu", "windows", "cuda", "cublas", "mps"],
)
def test_other_ways_of_running_out_of_memory_are_recognised(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")):
        assert not is_out_of_memory(error)


# Whole measurements ----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [35, 2 * LENGTH])
@pytest.mark.parametrize(("name", "engine"), WAYS)
def test_running_out_of_memory_halves_and_goes_on(name: str, engine: Engine, most: int) -> None:
    """Down to 2 prompts, which the one look at the model takes to see that it is causal."""
    undisturbed = _measure(zoo.build(name), engine)
    specimen = zoo.build(name)
    with _memory_for(specimen, most) as failures:
        measured = _measure(specimen, engine)
    assert failures
    assert measured.engine == engine
    _assert_same(measured, undisturbed)


@pytest.mark.parametrize("most", [30, 2 * LENGTH])
@pytest.mark.parametrize(("name", "engine"), WAYS)
def test_slices_halve_and_go_on(name: str, engine: Engine, most: int) -> None:
    specimen = zoo.build(name)
    prompts = specimen.prompts(4, LENGTH)
    corners = prompts[:2], prompts[1:3], prompts[2:]
    undisturbed = measure_slices(zoo.build(name).model, *corners, resolution=4, engine=engine)
    with _memory_for(specimen, most) as failures:
        measured = measure_slices(specimen.model, *corners, resolution=4, engine=engine)
    assert failures
    gap = (measured.distance - undisturbed.distance).abs() / undisturbed.distance.amax()
    assert gap.max() <= TOLERANCE
    assert measured.num_points == undisturbed.num_points


def test_adaptive_sampling_counts_the_points_of_a_piece_done_again_once() -> None:
    specimen = zoo.build("llama")
    seen = 0

    def watch(_: int, tokens: int) -> None:
        nonlocal seen
        seen += tokens == 4
        if tokens == 4 and seen == 1:
            raise torch.OutOfMemoryError

    with _watched(specimen, watch):
        paths = measure_paths(
            specimen.model,
            *_pairs(specimen),
            num_steps=101,
            sampling="adaptive",
            engine="shared",
        )
    assert seen > 1
    assert paths.num_points == paths.distance.isfinite().sum()


@pytest.mark.parametrize(("name", "engine"), WAYS)
def test_where_not_even_one_point_fits_the_error_comes_through(name: str, engine: Engine) -> None:
    """From the very start, and from the first whole measurement on."""
    specimen = zoo.build(name)
    with (
        _memory_for(specimen, 0) as failures,
        pytest.raises(torch.OutOfMemoryError, match="do not fit"),
    ):
        _measure(specimen, engine)
    assert len(failures) < 20
    _measure(specimen, engine)


@pytest.mark.parametrize(("name", "engine"), WAYS)
def test_another_error_inside_is_not_swallowed(name: str, engine: Engine) -> None:
    specimen = zoo.build(name)
    _measure(specimen, engine)
    with (
        _memory_for(specimen, 40, RuntimeError) as failures,
        pytest.raises(RuntimeError, match="do not fit"),
    ):
        _measure(specimen, engine)
    assert len(failures) == 1


@pytest.mark.parametrize("max_tokens", [1, 10, 100])
@pytest.mark.parametrize(("name", "engine"), [*WAYS, ("mistral_window", "auto")])
def test_no_forward_is_larger_than_max_tokens(name: str, engine: Engine, max_tokens: int) -> None:
    """Only a single item may be: a prompt, its earlier tokens, or one point."""
    specimen = zoo.build(name)
    forwards: set[tuple[int, int]] = set()
    with _watched(specimen, lambda rows, tokens: forwards.add((rows, tokens))):
        measured = _measure(specimen, engine, max_tokens)
    single_items = {(1, LENGTH), (1, LENGTH - 1), (1, 1)}
    too_large = {shape for shape in forwards - single_items if math.prod(shape) > max_tokens}
    assert too_large <= {(2, LENGTH)}  # the one look at the model takes 2 prompts
    _assert_same(measured, _measure(zoo.build(name), engine))


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most numbers that any tensor made inside holds."""

    numbers: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().nbytes() > 0:
            self.numbers = max(self.numbers, out.untyped_storage().nbytes() // 4)
        return out


def _largest(measure: Callable[[], Any]) -> int:
    with _LargestTensor() as largest:
        measure()
    numbers: int = largest.numbers
    return numbers


def test_no_tensor_grows_with_steps_times_pairs_times_width() -> None:
    """The points of many paths are not built all at once: at R = 201 or S = 501 they would be
    gigabytes on a real model. Distances are one number a point and may be held together.
    """
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    num_steps = 1001
    largest = _largest(
        lambda: measure_paths(
            specimen.model, a, b, num_steps=num_steps, engine="shared", max_tokens=140
        )
    )
    assert largest <= 2 * num_steps * max(NUM_PAIRS, zoo.WIDTH)


# What the model's forward hands over is on the CPU's own allocator, so a real failure is real too.


class _Greedy(nn.Module):
    """A block that asks the CPU for an impossible amount of memory when many rows come at once."""

    def __init__(self, block: nn.Module, most: int) -> None:
        super().__init__()
        self.block, self.most = block, most

    def forward(self, x: Tensor) -> Float[Tensor, "row token d_model"]:
        if x.shape[0] * x.shape[1] > self.most:
            torch.empty(2**60, dtype=torch.uint8)
        out: Tensor = self.block(x)
        return out


def test_a_real_failure_of_the_cpu_allocator_is_survived() -> None:
    specimen = zoo.build("nano_gpt")
    undisturbed = _measure(specimen, "plain")
    specimen.stack[1] = _Greedy(specimen.stack[1], most=100)
    _assert_same(_measure(specimen, "plain"), undisturbed)
