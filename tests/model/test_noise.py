"""The noise floor is measured, and pairs that say nothing are left out and counted.

A pair says nothing when its prompts move the output less than rounding does, or when an output is
not finite.
"""

import math
from functools import cache
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import measure_paths, measure_slices
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.sampling import Sampling
from tests import zoo
from tests.model.helpers import LENGTH, TOLERANCE, Prompts, measure, pairs, truth

COUNT = 6
NUM_STEPS = 11
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("llama", "gemma2_window", "nano_gpt")


def _measure(specimen: zoo.Specimen, **options: Any) -> Paths:
    return measure(specimen, count=COUNT, **{"num_steps": NUM_STEPS, **options})


@cache
def _undisturbed(name: str) -> Paths:
    return _measure(zoo.build(name))


def _assert_only_left_out(paths: Paths, left_out: list[int], name: str = "llama") -> None:
    """The others are what they are without the pairs that are left out, noise included."""
    undisturbed = _undisturbed(name)
    others = [pair for pair in range(COUNT) if pair not in left_out]
    assert paths.kept.tolist() == [pair in others for pair in range(COUNT)]
    assert paths.num_left_out == len(left_out)
    for values in (paths.max_slope, paths.location, paths.width):
        assert values[left_out].isnan().all()
    gap = (paths.distance - undisturbed.distance)[others].abs()
    assert (gap / undisturbed.end_distance[others, None]).max() <= TOLERANCE
    torch.testing.assert_close(
        paths.max_slope[others], undisturbed.max_slope[others], rtol=1e-4, atol=1e-4
    )
    assert 0 < paths.noise_floor < 30 * undisturbed.noise_floor


@pytest.mark.parametrize("same", [[0], [5], [0, 1, 2, 4, 5]])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "nano_gpt"])
@pytest.mark.filterwarnings("error")
def test_pairs_of_identical_prompts_are_left_out_and_counted(name: str, same: list[int]) -> None:
    """Wherever they are: the fast way is checked on the first two pairs."""
    specimen = zoo.build(name)
    a, b = pairs(specimen, COUNT)
    b = b.index_copy(0, torch.tensor(same), a[same])
    paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    _assert_only_left_out(paths, same, name)
    assert paths.engine == _undisturbed(name).engine


@pytest.mark.parametrize("bad", ["identical prompts", "weights of NaN"])
def test_where_no_pair_says_anything_there_is_no_number_at_all(bad: str) -> None:
    specimen = zoo.build("llama")
    a, b = pairs(specimen, COUNT)
    if bad == "weights of NaN":
        for parameter in specimen.model.parameters():
            parameter.data.fill_(math.nan)
        slices = measure_slices(specimen.model, a[:2], b[:2], b[2:4], resolution=3)
        assert slices.distance.isposinf().all()
        assert ((slices.rgb >= 0) & (slices.rgb <= 1)).all()
    paths = measure_paths(
        specimen.model, a, a if bad == "identical prompts" else b, num_steps=NUM_STEPS
    )
    assert paths.num_left_out == COUNT
    assert paths.max_slope.isnan().all()
    assert math.isnan(paths.noise_floor)
    assert paths.noise_distance > 0 or bad == "weights of NaN"


def test_different_tokens_of_one_embedding_are_left_out() -> None:
    """Other prompts, but no more movement than rounding makes: too little to be a path."""
    specimen = zoo.build("llama")
    a, b = pairs(specimen, COUNT)
    b = b.clone()
    b[2] = a[2]
    b[2, -1] = (a[2, -1] + 1) % specimen.vocab
    embedding: Any = specimen.model.get_submodule("model.embed_tokens").weight
    embedding.data[b[2, -1]] = embedding.data[a[2, -1]]
    for layer in (0, 1):
        paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=NUM_STEPS)
        assert paths.kept.tolist() == [True, True, False, True, True, True]


def _bursting_at_the_end_of(pair: int, value: float) -> zoo.Specimen:
    """A model whose final norm gives `value` near the output of B's activation in A's context."""
    specimen = zoo.build("llama")
    norm = specimen.model.get_submodule("model.norm")
    seen: list[Tensor] = []
    a, b = (ids[pair : pair + 1] for ids in pairs(specimen, COUNT))
    with norm.register_forward_hook(lambda _, __, out: seen.append(out[0, -1].clone())):
        measure_paths(specimen.model, a, b, num_steps=2, engine="plain", max_tokens=LENGTH)
    near = seen[-3]  # the reference, the end, and their repeats come last, one forward each

    def burst(_: nn.Module, __: Any, out: Tensor) -> Float[Tensor, "row token d_model"]:
        likeness = torch.cosine_similarity(out, near, dim=-1)
        return torch.where(likeness[..., None] > 0.95, value, out)

    norm.register_forward_hook(burst)
    return specimen


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
@pytest.mark.parametrize(("bad", "engine"), [(0, "auto"), (4, "auto"), (4, "plain")])
def test_a_pair_that_is_not_finite_is_left_out_and_the_others_are_untouched(
    bad: int, engine: EngineName, value: float
) -> None:
    """Infinity, NaN, and a number whose distance overflows."""
    paths = _measure(_bursting_at_the_end_of(bad, value), engine=engine)
    assert not paths.distance[bad].isfinite().all()
    _assert_only_left_out(paths, [bad])
    assert (paths.engine == "plain") == (engine == "plain")


def test_adaptive_sampling_leaves_the_same_pairs_out() -> None:
    specimen = _bursting_at_the_end_of(4, math.inf)
    a, b = pairs(specimen, COUNT)
    b = torch.cat([b[:1], a[1:2], b[2:]])
    grid = measure_paths(specimen.model, a, b, num_steps=51)
    adaptive = measure_paths(specimen.model, a, b, num_steps=51, sampling="adaptive")
    assert grid.kept.tolist() == adaptive.kept.tolist() == [True, False, True, True, False, True]
    assert adaptive.num_points == (~adaptive.distance.isnan()).sum()
    assert adaptive.num_points < 0.6 * grid.num_points
    torch.testing.assert_close(
        grid.max_slope, adaptive.max_slope, rtol=0.01, atol=0, equal_nan=True
    )


def _with_large_tokens(scale: float) -> tuple[nn.Module, Prompts, Prompts]:
    """The zoo's linear network with 5 tokens far larger than the rest, one of them in a pair."""
    specimen = zoo.build("linear")
    embedding: Any = specimen.model.get_submodule("embedding").weight
    embedding.data[:5] *= scale
    for weight in specimen.stack.parameters():
        weight.data *= 4
    a = 5 + specimen.prompts(6, LENGTH) % 50
    b = a.roll(1, 0)
    b[3, -1] = 2
    return specimen.model, a, b


def test_overflow_in_float16_leaves_out_only_the_pair_it_happens_in() -> None:
    model, a, b = _with_large_tokens(1.5e4)
    expected = measure_paths(model, a, b, num_steps=NUM_STEPS)
    paths = measure_paths(model.half(), a, b, num_steps=NUM_STEPS, precision="run")
    assert expected.kept.all()
    assert paths.kept.tolist() == [True, True, True, False, True, True]
    assert not paths.distance[3].isfinite().all()
    torch.testing.assert_close(
        paths.max_slope[paths.kept], expected.max_slope[paths.kept], rtol=0.1, atol=0
    )
    assert 0 < paths.noise_floor < 0.05


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_the_rounding_of_a_pair_that_moves_far_does_not_drown_the_others(
    dtype: torch.dtype,
) -> None:
    """It moves, and is rounded, 1000 times as far as they; each counts against its own."""
    model, a, b = _with_large_tokens(1e3)
    paths = measure_paths(model.to(dtype), a, b, num_steps=NUM_STEPS, precision="run")
    assert paths.end_distance[3] > 300 * paths.end_distance[0]
    assert paths.kept.all()
    assert 0 < paths.noise_floor < 0.05


@pytest.mark.parametrize("name", [*KINDS, "mamba"])  # its stream stays float32
def test_the_noise_floor_is_about_what_rounding_does_to_the_curves(name: str) -> None:
    """The truth in float64, of the rounded weights. Coarser types have a higher floor."""
    floors = []
    for dtype in PRECISIONS:
        specimen = zoo.build(name)
        specimen.model.to(dtype)
        paths = measure(specimen, precision="run")
        specimen.model.double()
        true = truth(specimen).float()
        deviation = ((paths.distance - true).abs() / true[:, -1:]).max().item()
        assert deviation / 10 < paths.noise_floor < deviation * 10
        floors.append(paths.noise_floor)
    assert 0 < 10 * floors[0] < floors[1] < floors[2] < 1


def test_packed_weights_say_nothing_of_how_finely_a_block_reckons() -> None:
    """Types of one byte are unpacked before they are used."""
    specimen = zoo.build("llama")
    packed = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    specimen.stack[0].register_parameter("packed", packed)
    assert _measure(specimen).noise_floor == _undisturbed("llama").noise_floor


@pytest.mark.parametrize("name", KINDS)
def test_autocast_is_noticed_around_the_measurement_and_inside_the_model(name: str) -> None:
    """As in a plain loop, and as accelerate and the Trainer wrap a model's forward."""
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast:
        around = _measure(zoo.build(name), precision="run")
    specimen = zoo.build(name)
    specimen.model.forward = autocast(specimen.model.forward)
    inside = _measure(specimen, precision="run")
    for paths in (around, inside):
        deviation = (paths.relative - _undisturbed(name).relative).abs().max().item()
        assert deviation > 1e-3
        assert deviation / 10 < paths.noise_floor < deviation * 10
    assert inside.noise_floor > 0.5 * around.noise_floor


def test_the_points_of_a_plane_are_as_fine_in_autocast_as_those_of_a_path() -> None:
    """They are made in float32, whatever the model runs in: read where F gives them back."""
    specimen = zoo.build("llama")
    a, b, c = specimen.prompts(3, LENGTH)[:, None]
    cut: Any = {"layer": 3, "output": "resid_final", "precision": "run"}
    with torch.autocast("cpu", torch.bfloat16):
        slices = measure_slices(specimen.model, a, b, c, resolution=7, **cut)
        path = measure_paths(specimen.model, a, b, num_steps=5, **cut)
    assert slices.coordinates[1:6].tolist() == path.alphas.tolist()
    torch.testing.assert_close(slices.distance[0, 0, 1, 1:6], path.distance[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("dtype", "sampling"), [(torch.bfloat16, "grid"), (torch.float64, "adaptive")]
)
def test_torchs_default_type_makes_no_difference(dtype: torch.dtype, sampling: Sampling) -> None:
    specimen = zoo.build("llama")
    specimen.model.to(dtype)
    expected = _measure(specimen, num_steps=31, sampling=sampling)
    torch.set_default_dtype(dtype)
    try:
        found = _measure(specimen, num_steps=31, sampling=sampling)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.distance.nan_to_num(-1), expected.distance.nan_to_num(-1))
    assert found.noise_distance == expected.noise_distance
