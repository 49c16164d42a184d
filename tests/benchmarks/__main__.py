"""Prints what a measurement costs on this machine; `make bench`.

Figures are ratios against the plain way in the same run wherever there is one: absolute times of
a shared machine say little. On a machine with a GPU, milliseconds beside one real training step.

    python -m tests.benchmarks            # everything
    python -m tests.benchmarks ratios     # one part: ratios, growth, memory, gpu
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sr_monitor import Paths, measure_paths, measure_slices
from tests.benchmarks.memory import peak_tensor_bytes
from tests.benchmarks.models import block_parameters, olmo, smollm2
from tests.benchmarks.plain import plain_paths

_CONSOLE = Console(width=110)
# The plain way's time is linear in the alphas; this many are timed and the rest computed.
_PLAIN_ALPHAS = 3


def main(parts: list[str]) -> None:
    """Runs the parts named, or all that this machine can run."""
    on_gpu = torch.cuda.is_available()
    known: dict[str, Callable[[], None]] = (
        {"gpu": gpu} if on_gpu else {"ratios": ratios, "growth": growth, "memory": memory}
    )
    for part in parts or list(known):
        known[part]()


def prompts(count: int, num_tokens: int, vocabulary: int = 49152) -> tuple[Tensor, Tensor]:
    """Pairs (i, i + 1) of random prompts; time does not depend on the words."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (count + 1, num_tokens), generator=generator)
    return ids[:-1], ids[1:]


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of some runs, a device's queue included."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """What the machine reaches in a large matrix product, in operations a second."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / seconds(lambda: a @ a, repeats=5)


def ratios() -> None:
    """How many times faster than the plain way, and how near to the machine's limit."""
    name, model = smollm2()
    table = Table(
        title=f"{name}, float32, {torch.get_num_threads()} threads: times faster than the plain way"
    )
    for column in ("tokens", "alphas", "sampling", "points a pair", "s a pair"):
        table.add_column(column, justify="right")
    table.add_column("x plain", justify="right")
    table.add_column("x plain without logits", justify="right")
    table.add_column("share of matmul rate", justify="right")
    rate = matmul_rate(torch.float32, torch.device("cpu"))
    for num_tokens, num_pairs in ((10, 40), (256, 24)):
        a, b = prompts(num_pairs, num_tokens)
        few = slice(0, num_pairs // 4)
        slow = _plain_seconds(model, a[few], b[few], logits=True)
        lean = _plain_seconds(model, a[few], b[few], logits=False)
        for num_steps, sampling in ((51, "grid"), (101, "grid"), (101, "adaptive")):
            took, paths = _timed(model, a, b, num_steps=num_steps, sampling=sampling)
            each = took / num_pairs
            table.add_row(
                str(num_tokens),
                str(num_steps),
                sampling,
                f"{paths.num_points / num_pairs:.1f}",
                f"{each:.4f}",
                f"{(slow[0] * num_steps + slow[1]) / each:.1f}",
                f"{(lean[0] * num_steps + lean[1]) / each:.1f}",
                f"{_operations(model, paths, num_tokens) / took / rate:.2f}",
            )
    _CONSOLE.print(table)


def _plain_seconds(model: nn.Module, a: Tensor, b: Tensor, *, logits: bool) -> tuple[float, float]:
    """Seconds a pair, for each alpha and for the clean runs."""
    one, more = (
        seconds(partial(plain_paths, model, a, b, torch.linspace(0, 1, n), logits=logits), 2)
        for n in (1, _PLAIN_ALPHAS)
    )
    step = (more - one) / (_PLAIN_ALPHAS - 1)
    return step / len(a), (one - step) / len(a)


def _timed(model: nn.Module, a: Tensor, b: Tensor, **options: Any) -> tuple[float, Paths]:
    found: list[Paths] = []
    # The first run checks the engine; what is timed is every later one, as in a training run.
    measure_paths(model, a[:2], b[:2], **options)
    took = seconds(lambda: found.append(measure_paths(model, a, b, **options)), 1)
    return took, found[-1]


def _operations(model: Any, paths: Paths, num_tokens: int) -> float:
    """Operations of the blocks' matrix products: the contexts, the points and the two reads."""
    num_pairs, num_blocks = len(paths.distance), len(model.model.layers)
    per_block = 2 * block_parameters(model) / num_blocks
    context = num_pairs * (num_tokens - 1) * num_blocks
    read = (num_pairs + 1) * num_tokens
    return per_block * (context + read + paths.num_points * (num_blocks - 1))


def growth() -> None:
    """How the cost grows with pairs, steps, tokens, layers and resolution."""
    _, model = smollm2()
    table = Table(title="how the cost grows (float32, seconds and the factor to the row above)")
    for column in ("what", "value", "s", "factor", "s a point, clean runs aside"):
        table.add_column(column, justify="right")

    def row(what: str, values: tuple[int, ...], work: Callable[[int], tuple[float, float]]) -> None:
        before = None
        for value in values:
            took, point = work(value)
            factor = "" if before is None else f"{took / before:.2f}"
            table.add_row(what, str(value), f"{took:.3f}", factor, f"{point:.5f}" if point else "")
            before = took
        table.add_section()

    def paths(num_pairs: int, num_tokens: int, num_steps: int, layer: int) -> tuple[float, float]:
        a, b = prompts(num_pairs, num_tokens)
        took, _ = _timed(model, a, b, num_steps=num_steps, layer=layer)
        ends, _ = _timed(model, a, b, num_steps=2, layer=layer)
        points = num_pairs * (num_steps - 2)
        return took, (took - ends) / points if num_steps > 2 else 0.0

    row("pairs", (8, 32, 128), lambda n: paths(n, 10, 51, 1))
    row("steps", (11, 51, 201), lambda n: paths(32, 10, n, 1))
    row("tokens", (10, 64, 256), lambda n: paths(8, n, 51, 1))
    row("layer", (0, 1, 15, 29, 30), lambda n: paths(32, 10, 51, n))

    def slices(resolution: int) -> tuple[float, float]:
        ids = torch.cat(prompts(2, 10))[:3, None]
        took = seconds(lambda: measure_slices(model, *ids, resolution=resolution), 1)
        return took, took / (3 * resolution**2)

    measure_slices(model, *torch.cat(prompts(2, 10))[:3, None], resolution=2)
    row("resolution", (11, 21, 41), slices)
    _CONSOLE.print(table)


def memory() -> None:
    """Peak memory beyond the weights, against what docs/2-measuring.md states."""
    _, model = smollm2()
    table = Table(title="peak memory beyond the weights (float32, live tensors)")
    for column in ("tokens", "pairs", "max_tokens", "MB", "stated bound, MB"):
        table.add_column(column, justify="right")
    for num_tokens, num_pairs, max_tokens in ((10, 64, 256), (10, 64, 1024), (256, 8, 1024)):
        a, b = prompts(num_pairs, num_tokens)
        measure_paths(model, a[:2], b[:2], max_tokens=max_tokens)
        peak = peak_tensor_bytes(partial(measure_paths, model, a, b, max_tokens=max_tokens))
        bound = stated_bound(model, num_tokens, num_pairs, 51, max_tokens)
        table.add_row(
            str(num_tokens),
            str(num_pairs),
            str(max_tokens),
            f"{peak / 1e6:.0f}",
            f"{bound / 1e6:.0f}",
        )
        assert peak <= bound, f"peak memory {peak / 1e6:.0f} MB is above the stated bound"
    _CONSOLE.print(table)


def stated_bound(
    model: Any, num_tokens: int, num_pairs: int, num_steps: int, max_tokens: int
) -> float:
    """The formula of docs/2-measuring.md, in bytes.

    Four things live at once: one forward over the token budget, the keys and values of the
    contexts that are open (again for the rows that grow), their points, and two activations a pair.
    """
    config = model.config
    size = next(model.parameters()).element_size()
    tokens = max(max_tokens, num_tokens)
    forward = tokens * (8 * config.hidden_size + 4 * config.intermediate_size) * 4
    width = config.num_key_value_heads * config.head_dim
    keys_values = 2 * size * width * config.num_hidden_layers
    contexts = max(1, max_tokens // num_tokens)
    cached = keys_values * (2 * contexts * num_tokens + tokens)
    points = 3 * contexts * num_steps * config.hidden_size * 4
    return float(forward + cached + points + 3 * num_pairs * config.hidden_size * 4)


def gpu() -> None:
    """Milliseconds of a measurement beside one training step of the same model."""
    device = torch.device("cuda")
    table = Table(title=f"{torch.cuda.get_device_name(device)}: milliseconds")
    columns = ("model", "dtype", "engine", "256 pairs x 51", "adaptive", "4 slices 41²", "tokens")
    for column in (*columns, "training step (8 x 2048 tokens)", "share of matmul rate", "peak GB"):
        table.add_column(column, justify="right")
    for name in ("OLMo-1B", "OLMo-7B"):
        for dtype in (torch.bfloat16, torch.float32):
            for num_tokens in (10, 256):
                table.add_row(*_gpu_row(name, dtype, device, num_tokens))
                torch.cuda.empty_cache()
    _CONSOLE.print(table)


def _gpu_row(name: str, dtype: torch.dtype, device: torch.device, num_tokens: int) -> list[str]:
    model = olmo(name, dtype, device)
    a, b = prompts(256, num_tokens)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    grid, paths = _timed(model, a, b, num_steps=51)
    peak = torch.cuda.max_memory_allocated() - held
    adaptive, _ = _timed(model, a, b, num_steps=51, sampling="adaptive")
    triples = (a[:4], b[:4], b[1:5])
    sliced = seconds(lambda: measure_slices(model, *triples), 2)
    share = _operations(model, paths, num_tokens) / grid / matmul_rate(dtype, device)
    step = _training_step(model)
    return [
        name,
        str(dtype).removeprefix("torch."),
        paths.engine,
        *(f"{1000 * took:.0f}" for took in (grid, adaptive, sliced)),
        str(num_tokens),
        f"{1000 * step:.0f}",
        f"{share:.2f}",
        f"{peak / 1e9:.2f}",
    ]


def _training_step(model: Any) -> float:
    """Forward, backward and a plain SGD update, with activation checkpointing."""
    model.train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    ids = torch.randint(0, 50304, (8, 2048), device=model.device)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return seconds(step, 3)


if __name__ == "__main__":
    main(sys.argv[1:])
