"""What a default measurement costs on a device, beside training steps of the same model.

Models are random, of OLMo's shapes and in bfloat16: time does not depend on the numbers.

    for figures in costs(SHAPES["OLMo-1B"], deadline=time.monotonic() + 80):
        print(figures["measurements"][-1]["ms"])
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor

from sr_monitor import MonitorConfig, PromptSet
from sr_monitor.errors import describe, is_out_of_memory
from sr_monitor.model.precision import Precision
from sr_monitor.probes.sampling import Sampling
from sr_monitor.results.record import Record
from sr_monitor.watch.measure import take_record
from tests.benchmarks.models import block_parameters
from tests.gpu.report import Found

_PRECISIONS: tuple[Precision, ...] = ("auto", "run")
_VOCABULARY, _NUM_TOKENS = 50304, 10


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of OLMo's architecture, and what is timed on it."""

    device: str = "cuda"
    width: int
    inner: int
    blocks: int
    heads: int
    sequence: int = 2048
    most_sequences: int = 512
    matrix: int = 8192
    """The side of the matrices that show the device's rate."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the measurement; none for a default one."""


_LITTLE: dict[str, Any] = {"num_pairs": 4, "num_slices": 1, "slice_resolution": 5}
SHAPES = {
    "OLMo-1B": Shape(width=2048, inner=8192, blocks=16, heads=16),
    "OLMo-7B": Shape(width=4096, inner=11008, blocks=32, heads=32),
    "tiny": Shape(
        device="cpu", width=32, inner=64, blocks=2, heads=2, sequence=16, most_sequences=2,
        matrix=64, options=_LITTLE,
    ),
}  # fmt: skip


def costs(shape: Shape, *, deadline: float) -> Iterator[Found]:
    """Yield all figures whenever there is one more; start no other step after the deadline."""
    device = torch.device(shape.device)
    model = random_olmo(shape, device)
    figures: Found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "rates": matmul_rates(shape.matrix, device),
        "measurements": [],
        "step": None,
    }
    for precision, sampling in product(_PRECISIONS, get_args(Sampling)):
        row: Found = {"sampling": sampling, "precision": precision}
        try:
            row |= measurement(model, shape, sampling, precision)
        except Exception as error:  # the other rows may still be had
            row["error"] = describe(error)
        figures["measurements"].append(row)
        yield figures
    for step in training_steps(model, shape, deadline):
        figures["step"] = step
        yield figures


def random_olmo(shape: Shape, device: torch.device) -> Any:
    """Return a randomly initialised model in bfloat16, made on the device."""
    from transformers import AutoModelForCausalLM, OlmoConfig

    config = OlmoConfig(
        vocab_size=_VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return model.eval()


def measurement(model: Any, shape: Shape, sampling: Sampling, precision: Precision) -> Found:
    """Time a measurement without its pictures: the quickest of three, or fewer slow ones."""

    def take(**options: Any) -> Record:
        config = MonitorConfig(sampling=sampling, precision=precision, **options)
        ids = torch.randint(
            _VOCABULARY,
            (config.num_prompts, _NUM_TOKENS),
            generator=torch.Generator().manual_seed(0),
        )
        return take_record(model, PromptSet.from_token_ids(ids), config, step=0)

    take(**_LITTLE)  # loads and allocates
    on_gpu = model.device.type == "cuda"
    held = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    record = take(**shape.options)
    took = [record.metadata["seconds"]]
    while len(took) < 3 and sum(took) < 3:
        took.append(take(**shape.options).metadata["seconds"])
    return {
        "ms": 1000 * min(took),
        "engine": record.paths.engine,
        "operations": operations(model, record),
        "peak_gb": (torch.cuda.max_memory_allocated() - held) / 1e9 if on_gpu else 0.0,
    }


def operations(model: Any, record: Record) -> dict[str, float]:
    """Count operations of the blocks' matrix products by arithmetic: of contexts and of points."""
    paths, slices, num_blocks = record.paths, record.parts["slices"], len(model.model.layers)
    found: dict[str, float] = {}
    for part, num_contexts in ((paths, len(paths.distance)), (slices, 3 * len(slices.foot))):
        # A context is read in the first block, and its earlier tokens run through all of them.
        tokens = num_contexts * (_NUM_TOKENS + (_NUM_TOKENS - 1) * num_blocks)
        tokens += part.num_points * (num_blocks - 1)
        count = 2 * block_parameters(model) / num_blocks * tokens
        found[part.arithmetic] = found.get(part.arithmetic, 0.0) + count
    return found


def training_steps(model: Any, shape: Shape, deadline: float) -> Iterator[Found]:
    """Time steps of AdamW with gradient checkpointing, in batches that double until memory ends."""
    model.train()
    checkpoint_activations(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=model.device.type == "cuda")

    def step(ids: Tensor) -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    done: Found | None = None
    sequences, took = 1, 0.0
    # Two steps of twice the batch take four times as long as this one.
    while sequences <= shape.most_sequences and time.monotonic() + 4 * took < deadline:
        ids = torch.randint(_VOCABULARY, (sequences, shape.sequence), device=model.device)
        try:
            took = seconds(partial(step, ids), model.device, repeats=2)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if done is not None:
                yield {**done, "fills_memory": True}
            return
        done = {"sequences": sequences, "ms": 1000 * took, "fills_memory": False}
        yield done
        sequences *= 2


def checkpoint_activations(model: Any) -> None:
    """Have training steps compute activations again; its name depends on the version."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


def matmul_rates(size: int, device: torch.device) -> dict[str, float]:
    """Return the operations a second of a large matrix product in each arithmetic."""
    rates = {}
    for name in ("float32", "tf32", "bfloat16"):
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        a = torch.randn(size, size, dtype=dtype, device=device)
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        rates[name] = 2 * size**3 / seconds(partial(torch.mm, a, a), device, repeats=5)
    torch.set_float32_matmul_precision("highest")
    return rates


def seconds(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Return the least wall time of some runs, with the device's queue."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
