"""Measurements are in float32 on CUDA, whatever the precision of the weights and of the run."""

from collections.abc import Callable

import pytest
import torch

from sr_monitor import measure_paths, measure_slices
from tests.gpu.checks.helpers import TOLERANCE, gap, llama, on_device, prompts
from tests.model.helpers import measure


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["gpt2", "bloom", "llama", "olmo2", "gemma2_window", "olmoe", "mamba"]
)
def test_auto_gives_the_distances_of_the_same_weights_in_float32(
    name: str, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    specimen = on_device(name, dtype)
    found, in_run = measure(specimen), measure(specimen, precision="run")
    assert {weight.dtype for weight in specimen.model.parameters()} == {dtype}
    specimen.model.float()
    exact = measure(specimen, precision="run")
    record_property("largest gap between auto and float32 weights", gap(found, exact))
    assert found.arithmetic == "float32"
    assert gap(found, exact) <= TOLERANCE < gap(in_run, exact)


def test_autocast_around_a_measurement_rounds_nothing() -> None:
    specimen = on_device("llama")
    exact = measure(specimen, precision="run")
    with torch.autocast("cuda", torch.bfloat16):
        found, in_run = measure(specimen), measure(specimen, precision="run")
        assert torch.is_autocast_enabled("cuda")
    assert gap(found, exact) <= TOLERANCE < gap(in_run, exact)


SWITCHES = [
    (torch.backends.cuda.matmul, "allow_tf32", True),
    (torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    (torch.backends, "fp32_precision", "tf32"),  # what `TrainingArguments(tf32=True)` sets
]


@pytest.mark.parametrize(("owner", "switch", "on"), SWITCHES)
def test_tf32_is_off_along_paths_and_on_again_afterwards(
    owner: object, switch: str, on: object
) -> None:
    if not hasattr(owner, switch):
        pytest.skip(f"this torch has no {switch}")
    model = llama(512)
    exact, before = measure_paths(model, *prompts(8), precision="run"), getattr(owner, switch)
    setattr(owner, switch, on)
    try:
        found, after = measure_paths(model, *prompts(8)), getattr(owner, switch)
        in_run = measure_paths(model, *prompts(8), precision="run")
    finally:
        setattr(owner, switch, before)
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.distance, exact.distance)
    assert after == on
    assert gap(in_run, exact) > 10 * TOLERANCE


def test_pictures_in_tf32_keep_their_colours() -> None:
    model, (a, b) = llama(512), prompts(5)
    corners = a[:3], b[:3], b[1:4]
    found = measure_slices(model, *corners)
    exact = measure_slices(model, *corners, precision="float32")
    assert (found.arithmetic, exact.arithmetic) == ("tf32", "float32")
    assert 0 < (found.rgb - exact.rgb).abs().max() < 1 / 255
    assert torch.get_float32_matmul_precision() == "highest"


def test_flash_attention_is_measured_and_says_what_it_rounds_to() -> None:
    pytest.importorskip("flash_attn")
    specimen = on_device("llama", torch.bfloat16, attention="flash_attention_2")
    for precision in ("run", "auto"):
        found = measure(specimen, precision=precision)
        assert found.engine in ("rows", "plain")
        assert found.arithmetic == "bfloat16"
        assert found.noise_floor > 100 * TOLERANCE
