"""What tests of a measurement share: a specimen's short prompts, and how far off is wrong.

specimen = zoo.build("llama")
assert_exact(measure(specimen, engine="rows").distance, truth(specimen))
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils._python_dispatch import TorchDispatchMode

from sr_monitor import measure_paths
from sr_monitor.probes.paths import Paths
from tests import zoo
from tests.oracle import oracle_paths

Prompts = Int[Tensor, "pair token"]

LENGTH = 7
NUM_STEPS = 5
TOLERANCE = 1e-5


def pairs(specimen: zoo.Specimen, count: int = 3, length: int = LENGTH) -> tuple[Prompts, Prompts]:
    prompts = specimen.prompts(count + 1, length)
    return prompts[:-1], prompts[1:]


def measure(
    specimen: zoo.Specimen,
    *,
    count: int = 3,
    length: int = LENGTH,
    num_steps: int = NUM_STEPS,
    **options: Any,
) -> Paths:
    a, b = pairs(specimen, count, length)
    return measure_paths(specimen.model, a, b, num_steps=num_steps, **options)


def truth(
    specimen: zoo.Specimen, num_steps: int = NUM_STEPS, *, length: int = LENGTH, **cut: Any
) -> Float[Tensor, "pair step"]:
    a, b = pairs(specimen, length=length)
    return oracle_paths(specimen, a, b, num_steps=num_steps, **{"layer": 1, **cut})


def error_of(distance: Tensor, true: Tensor) -> float:
    """The largest difference, as a share of the pair's d(1)."""
    assert distance.dtype == torch.float32
    assert distance.shape == true.shape
    return ((distance - true).abs() / true[:, -1:]).max().item()


def assert_exact(distance: Tensor, true: Tensor) -> None:
    assert error_of(distance, true) <= TOLERANCE


@contextmanager
def watched(modules: Iterable[nn.Module], watch: Callable[[int, int], None]) -> Iterator[None]:
    """Call `watch(rows, tokens)` whenever one of the modules is about to run."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch(*(args[0] if args else next(iter(kwargs.values()))).shape[:2])

    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        yield


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows what every operation inside puts out to `note(name, tensor)`."""

    def __init__(self, note: Callable[[str, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.note(func.overloadpacket.__name__, out)
        return out


def largest(work: Callable[[], Any], size: Callable[[Tensor], int] = Tensor.numel) -> int:
    """Return the size of the largest tensor that is made inside."""
    sizes: list[int] = []
    with Operations(lambda _, out: sizes.append(size(out))):
        work()
    return max(sizes)


def trained(
    model: Any, ids: Tensor, measure: Callable[[Any], Paths] | None
) -> tuple[list[float], list[Paths]]:
    """Train a Hugging Face model for three steps, measured before each; return losses and paths."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, found = [], []
    for _ in range(3):
        if measured := measure and measure(model):
            found.append(measured)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, found


def needs_fsdp2() -> None:
    """Skip a test where torch runs FSDP2 on GPUs only, as torch 2.6 does."""
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP2 on a CPU needs a newer torch")


def sharded(model: Any, kind: str) -> nn.Module:
    """Put a Hugging Face model into FSDP of one process: "fsdp1..." or "fsdp2...".

    It gathers weights in bfloat16, unless it is to be FSDP2 of bfloat16 weights.
    """
    layers = list(model.model.layers)
    if kind == "fsdp1":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*NO_SHARD")
            return FullyShardedDataParallel(
                model,
                auto_wrap_policy=ModuleWrapPolicy({type(layers[0])}),
                mixed_precision=MixedPrecision(torch.bfloat16, buffer_dtype=torch.bfloat16),
                device_id=torch.device("cpu"),
                use_orig_params=True,
            )
    needs_fsdp2()
    policy = MixedPrecisionPolicy(torch.bfloat16 if kind == "fsdp2" else None)
    for module in (*layers, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    sharded: nn.Module = model
    return sharded
