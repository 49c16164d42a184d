"""Prints what a measurement costs on this machine; `make bench`.

Figures are ratios of the CPU seconds of one thread, against the plain way or a whole measurement
in the same run: wall time on a shared machine says little. `make gpu` measures GPUs.

    python -m tests.benchmarks            # everything
    python -m tests.benchmarks ratios     # one part, by the name of its function below
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sr_monitor import Paths, PromptSet, measure_paths, measure_slices
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.session import SessionOptions, open_session
from sr_monitor.probes.base import Probe
from sr_monitor.probes.divergence import Divergence
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from tests.benchmarks.archive import costs, make_archive
from tests.benchmarks.loading import SHARD_MEGABYTES, peak_beside_the_model, save
from tests.benchmarks.memory import peak_tensor_bytes
from tests.benchmarks.models import block_parameters, smollm2
from tests.benchmarks.plain import plain_paths
from tests.benchmarks.ranks import cost_of_slices

# The plain way's time is linear in the alphas; this many are timed and the rest computed.
_PLAIN_ALPHAS = 3


def prompts(count: int, num_tokens: int, vocabulary: int = 49152) -> tuple[Tensor, Tensor]:
    """Return pairs (i, i + 1) of random prompts; time does not depend on the words."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (count + 1, num_tokens), generator=generator)
    return ids[:-1], ids[1:]


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the least CPU time of some runs, on one thread."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def show(title: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
    table = Table(title=title)
    for column in columns.split(" | "):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (f"{each:.3g}" if isinstance(each, float) else str(each) for each in row)
        table.add_row(*cells)
    Console(width=110).print(table)


def matmul_rate(size: int = 2048) -> float:
    """Return what the machine reaches in a large matrix product, in operations a second."""
    a = torch.randn(size, size)
    return 2 * size**3 / seconds(lambda: a @ a, repeats=5)


def ratios() -> None:
    """How many times faster than the plain way, and how near to the machine's limit."""
    name, model = smollm2()
    rate = matmul_rate()
    rows = []
    for num_tokens, num_pairs in ((10, 40), (256, 24)):
        a, b = prompts(num_pairs, num_tokens)
        few = slice(0, num_pairs // 4)
        plain = [_plain_seconds(model, a[few], b[few], logits=logits) for logits in (True, False)]
        for num_steps, sampling in ((51, "grid"), (101, "grid"), (101, "adaptive")):
            took, paths = _timed(model, a, b, num_steps=num_steps, sampling=sampling)
            each = took / num_pairs
            times = [(step * num_steps + clean) / each for step, clean in plain]
            share = _operations(model, paths, num_tokens) / took / rate
            points = paths.num_points / num_pairs
            rows.append((num_tokens, num_steps, sampling, points, each, *times, share))
    show(
        f"{name}, float32, one thread: times faster than the plain way",
        "tokens | alphas | sampling | points a pair | CPU s a pair | x plain | "
        "x plain without logits | share of matmul rate",
        rows,
    )


def _plain_seconds(model: nn.Module, a: Tensor, b: Tensor, *, logits: bool) -> tuple[float, float]:
    """Return seconds a pair, for each alpha and for the clean runs."""
    one, more = (
        seconds(partial(plain_paths, model, a, b, torch.linspace(0, 1, n), logits=logits), 2)
        for n in (1, _PLAIN_ALPHAS)
    )
    step = (more - one) / (_PLAIN_ALPHAS - 1)
    return step / len(a), (one - step) / len(a)


def _timed(model: nn.Module, a: Tensor, b: Tensor, **options: Any) -> tuple[float, Paths]:
    found: list[Paths] = []
    measure_paths(model, a[:2], b[:2], **options)  # the first one loads and allocates
    took = seconds(lambda: found.append(measure_paths(model, a, b, **options)), 1)
    return took, found[-1]


def _operations(model: Any, paths: Paths, num_tokens: int) -> float:
    """Count operations of the blocks' matrix products: contexts, points and the two reads."""
    num_pairs, num_blocks = len(paths.distance), len(model.model.layers)
    per_block = 2 * block_parameters(model) / num_blocks
    context = num_pairs * (num_tokens - 1) * num_blocks
    read = (num_pairs + 1) * num_tokens
    return per_block * (context + read + paths.num_points * (num_blocks - 1))


def shares() -> None:
    """What goes into a default measurement: the self-check of every session, a slice, a rider."""
    name, model = smollm2()
    pairs, slices = PathsProbe(num_pairs=64), SlicesProbe(num_slices=1)
    chosen = PromptSet.from_token_ids(torch.cat(prompts(65, 10)))

    def measured(*probes: Probe) -> float:
        return seconds(lambda: measure_probes(model, chosen, probes, SessionOptions()), 1)

    def opened(engine: EngineName) -> float:
        def work() -> None:
            with open_session(model, chosen.pairs(2), SessionOptions(engine=engine)):
                pass

        return seconds(work)

    check, paths = opened("auto") - opened("plain"), measured(pairs)
    whole = 4 * (measured(pairs, slices) - check) + check
    all_paths = 4 * (paths - check) + check
    ridden = 4 * (measured(pairs, Divergence()) - paths)
    parts = {"self-check": check, "paths": all_paths, "slices": whole - all_paths}
    show(
        f"{name}, float32, one thread: shares of a default measurement; a quarter is timed",
        "what | CPU s | share of the whole",
        [(what, took, took / whole) for what, took in {**parts, "divergence": ridden}.items()],
    )


def growth() -> None:
    """How the cost grows with pairs, steps, tokens, layers and resolution."""
    _, model = smollm2()
    rows: list[tuple[Any, ...]] = []

    def grow(what: str, values: tuple[int, ...], work: Callable[[int], tuple[float, Any]]) -> None:
        before = None
        for value in values:
            took, point = work(value)
            rows.append((what, value, took, "" if before is None else took / before, point))
            before = took

    def paths(num_pairs: int, num_tokens: int, num_steps: int, layer: int) -> tuple[float, Any]:
        a, b = prompts(num_pairs, num_tokens)
        took, _ = _timed(model, a, b, num_steps=num_steps, layer=layer)
        ends, _ = _timed(model, a, b, num_steps=2, layer=layer)
        return took, (took - ends) / (num_pairs * (num_steps - 2))

    def slices(resolution: int) -> tuple[float, Any]:
        ids = torch.cat(prompts(2, 10))[:3, None]
        took = seconds(lambda: measure_slices(model, *ids, resolution=resolution), 1)
        return took, took / (3 * resolution**2)

    grow("pairs", (8, 32, 128), lambda n: paths(n, 10, 51, 1))
    grow("steps", (11, 51, 201), lambda n: paths(32, 10, n, 1))
    grow("tokens", (10, 64, 256), lambda n: paths(8, n, 51, 1))
    grow("layer", (0, 1, 15, 29, 30), lambda n: paths(32, 10, 51, n))
    slices(2)
    grow("resolution", (11, 21, 41), slices)
    show(
        "how the cost grows (float32, one thread)",
        "what | value | CPU s | factor to the row above | s a point, clean runs aside",
        rows,
    )


def ranks() -> None:
    """What four slices cost on more and more ranks, all of them together."""
    _, model = smollm2()
    ids = torch.cat(prompts(3, 10))  # six prompts, four triples
    cost_of_slices(model, ids, 64, 2)  # loads and allocates
    rows = []
    for size in (4, 16, 64):
        # The self-check of every session is as dear without slices.
        check, least = cost_of_slices(model, ids, size, 2)
        took, points = cost_of_slices(model, ids, size, 41)
        own, more = took - check, points - least
        rows.append((size, check, own, more, size * own, size * more))
    show(
        "four slices, float32, one thread a rank",
        "ranks | CPU s of the check | of slices, a rank | points | CPU s of all | points of all",
        rows,
    )


def archives() -> None:
    """What an --out of many records costs: opened, and for each record more."""
    rows = []
    for num in (50, 500, 5000):
        with tempfile.TemporaryDirectory() as folder:
            found = costs(make_archive(Path(folder), num), num)
        rows.append((num, found["opened"], found["added"], found["closed"], found["megabytes"]))
    show(
        "an --out of many records, of 256 pairs and a slice each",
        "records | CPU s to open | CPU s a record more | CPU s to finish | peak MB beyond imports",
        rows,
    )


def loading() -> None:
    """What memory a checkpoint takes beside its model while it is loaded."""
    rows = []
    for shards in ("safetensors", "dcp"):
        for num_blocks in (2, 8, 32):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(
                    (shards, *peak_beside_the_model(save(Path(folder), num_blocks, shards)))
                )
    show(
        f"host memory of a load (safetensors in files of {SHARD_MEGABYTES} MB)",
        "format | MB of the model | peak MB beside it",
        rows,
    )


def memory() -> None:
    """Peak memory beyond the weights, against what docs/2-measuring.md states."""
    _, model = smollm2()
    rows = []
    for num_tokens, num_pairs, max_tokens in ((10, 64, 256), (10, 64, 1024), (256, 8, 1024)):
        a, b = prompts(num_pairs, num_tokens)
        measure_paths(model, a[:2], b[:2], max_tokens=max_tokens)
        peak = peak_tensor_bytes(partial(measure_paths, model, a, b, max_tokens=max_tokens))
        bound = stated_bound(model, num_tokens, num_pairs, 51, max_tokens)
        rows.append((num_tokens, num_pairs, max_tokens, peak / 1e6, bound / 1e6))
        assert peak <= bound, f"peak memory {peak / 1e6:.0f} MB is above the stated bound"
    show(
        "peak memory beyond the weights (float32, live tensors)",
        "tokens | pairs | max_tokens | MB | stated bound, MB",
        rows,
    )


def stated_bound(
    model: Any, num_tokens: int, num_pairs: int, num_steps: int, max_tokens: int
) -> float:
    """Return the formula of docs/2-measuring.md, in bytes.

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in (ratios, shares, growth, ranks, archives, loading, memory):
        if part.__name__ in (sys.argv[1:] or [part.__name__]):
            part()
