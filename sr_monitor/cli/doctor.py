"""`sr-monitor doctor`: what is installed here, and whether this machine measures exactly.

sr-monitor doctor
"""

import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

import typer
from packaging.requirements import Requirement

from sr_monitor.cli.terminal import print_table, say

_ALLOWED = 1e-5
_NOT_FOR_USERS = ("all", "dev")


def doctor() -> None:
    """Say versions, devices and extras, and compare the fast way with the plain one.

    Paste its lines into a bug report. The exit status is 1 if the comparison fails.
    """
    print_table([*_machine(), *_extras()], "<<", title=f"sr-monitor {version('sr-monitor')}")
    gap, seconds = _self_check()
    line = f"the fast ways differ from the plain one by {gap:.1e} of d(1), in {seconds:.1f} s"
    if gap <= _ALLOWED:
        say(f"self-check passed: {line} ({_ALLOWED:.0e} is allowed)")
        return
    say(
        f"self-check FAILED: {line}, where {_ALLOWED:.0e} is allowed",
        "next: install torch anew; if that does not help, report these lines, and measure with "
        "--way plain until then",
    )
    raise typer.Exit(1)


def _machine() -> Iterator[tuple[str, str]]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    others = ["MPS"] if torch.backends.mps.is_available() else []
    threads = torch.get_num_threads()
    yield "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield "torch", torch.__version__
    yield "devices", ", ".join([f"CPU ({threads} threads)", *gpus, *others])


def _extras() -> Iterator[tuple[str, str]]:
    """Say what each extra has here, or the command that installs it."""
    needed = [Requirement(line) for line in requires("sr-monitor") or ()]
    for extra in metadata("sr-monitor").get_all("Provides-Extra", []):
        of_extra = [
            each for each in needed if each.marker and each.marker.evaluate({"extra": extra})
        ]
        if extra in _NOT_FOR_USERS or not of_extra:
            continue
        found = {each: _version(each.name) for each in of_extra}
        lacking = [
            each
            for each, number in found.items()
            if not (number and each.specifier.contains(number))
        ]
        has = ", ".join(f"{each.name} {found[each] or 'missing'}" for each in of_extra)
        fix = f"; needs {', '.join(f'{each.name}{each.specifier}' for each in lacking)}: "
        yield extra, has + (f"{fix}pip install 'sr-monitor[{extra}]'" if lacking else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _self_check() -> tuple[float, float]:
    """Return the largest gap between ways on a small random model, and the seconds it took."""
    import torch

    from sr_monitor.model.loading import quiet, require_transformers
    from sr_monitor.probes.paths import measure_paths

    began = time.perf_counter()
    transformers = require_transformers("the self-check")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}
    with quiet(transformers), torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.2)
        model = transformers.LlamaForCausalLM(config).to(device)
        prompts_a, prompts_b = torch.randint(64, (2, 8, 10))
    plain = measure_paths(model, prompts_a, prompts_b, engine="plain")
    gaps = [
        (measure_paths(model, prompts_a, prompts_b, engine=way).relative - plain.relative).abs()
        for way in ("shared", "rows")
    ]
    return float(torch.stack(gaps).max()), time.perf_counter() - began
