"""The noise floor is measured, and pairs that say nothing are left out and counted.

A pair says nothing when its prompts move the output less than rounding does, or when an output is
not finite.
"""

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor import InputError, measure_paths, measure_slices
from sr_monitor.probes.paths import Paths
from tests import zoo
from tests.oracle import oracle_paths

Engine = Literal["auto", "shared", "rows", "plain"]
Prompts = Int[Tensor, "pair token"]

LENGTH = 7
NUM_STEPS = 11
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("llama", "gemma2_window", "nano_gpt")


def _pairs(specimen: zoo.Specimen, count: int = 6) -> tuple[Prompts, Prompts]:
    prompts = specimen.prompts(count + 1, LENGTH)
    return prompts[:-1], prompts[1:]


def _paths(
    model: nn.Module, a: Prompts, b: Prompts, engine: Engine = "auto", num_steps: int = NUM_STEPS
) -> Paths:
    return measure_paths(model, a, b, num_steps=num_steps, engine=engine)


def _assert_only_left_out(paths: Paths, truth: Paths, left_out: Sequence[int]) -> None:
    """The others are what they are without the pairs that are left out, noise included."""
    others = [pair for pair in range(len(paths.kept)) if pair not in left_out]
    assert paths.kept.tolist() == [pair in others for pair in range(len(paths.kept))]
    assert paths.num_left_out == len(left_out)
    for values in (paths.max_slope, paths.location, paths.width):
        assert values[list(left_out)].isnan().all()
    gap = (paths.distance - truth.distance)[others].abs() / truth.end_distance[others, None]
    assert gap.max() <= 1e-5
    torch.testing.assert_close(
        paths.max_slope[others], truth.max_slope[others], rtol=1e-4, atol=1e-4
    )
    assert 0 < paths.noise_floor < 30 * truth.noise_floor


# Pairs that say nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("same", [[0], [0, 1], [5], [0, 1, 2, 4, 5]])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "nano_gpt"])
@pytest.mark.filterwarnings("error")
def test_pairs_of_identical_prompts_are_left_out_and_counted(name: str, same: list[int]) -> None:
    """Wherever they are: the fast way is checked on the first two pairs."""
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    truth = _paths(zoo.build(name).model, a, b)
    b = b.clone()
    b[same] = a[same]
    paths = _paths(specimen.model, a, b)
    _assert_only_left_out(paths, truth, same)
    assert (paths.engine == "plain") == (truth.engine == "plain")


def test_identical_prompts_alone_give_no_number_at_all() -> None:
    specimen = zoo.build("llama")
    a, _ = _pairs(specimen)
    paths = _paths(specimen.model, a, a)
    assert paths.num_left_out == len(a)
    assert paths.max_slope.isnan().all()
    assert math.isnan(paths.noise_floor)
    assert paths.noise_distance > 0


@pytest.mark.parametrize("layer", [0, 1])
def test_different_tokens_of_one_embedding_are_left_out(layer: int) -> None:
    """Other prompts, but no more movement than rounding makes: too little to be a path."""
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    b = b.clone()
    b[2] = a[2]
    b[2, -1] = (a[2, -1] + 1) % specimen.vocab
    embedding = specimen.model.get_submodule("model.embed_tokens").weight
    assert isinstance(embedding, Tensor)
    with torch.no_grad():
        embedding[b[2, -1]] = embedding[a[2, -1]]
    paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=NUM_STEPS)
    assert paths.kept.tolist() == [True, True, False, True, True, True]


class _Bursting(nn.Module):
    """A final norm whose output is no number anywhere near one vector."""

    def __init__(self, norm: nn.Module, near: Float[Tensor, " d_model"], value: float) -> None:
        super().__init__()
        self.norm, self.near, self.value = norm, near, value

    def forward(self, x: Tensor) -> Float[Tensor, "row token d_model"]:
        out: Tensor = self.norm(x)
        likeness = torch.cosine_similarity(out, self.near, dim=-1)
        return torch.where(likeness[..., None] > 0.95, self.value, out)


def _bursting_at_the_end_of(
    specimen: zoo.Specimen, pair: tuple[Prompts, Prompts], value: float
) -> nn.Module:
    """The model, with the output of B's activation in A's context replaced by `value`."""
    norm = specimen.model.get_submodule("model.norm")
    seen: list[Tensor] = []
    with norm.register_forward_hook(lambda _, __, out: seen.append(out[0, -1].clone())):
        measure_paths(specimen.model, *pair, num_steps=2, engine="plain", max_tokens=LENGTH)
    # The reference, the end, and their repeats come last, one forward each.
    core = specimen.model.get_submodule("model")
    core.norm = _Bursting(norm, seen[-3], value)
    return specimen.model


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
@pytest.mark.parametrize("bad", [0, 4])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_a_pair_that_is_not_finite_is_left_out_and_the_others_are_untouched(
    engine: Engine, bad: int, value: float
) -> None:
    """Infinity, NaN, and a number whose distance overflows."""
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    truth = _paths(specimen.model, a, b, "plain")
    model = _bursting_at_the_end_of(zoo.build("llama"), (a[bad : bad + 1], b[bad : bad + 1]), value)
    paths = _paths(model, a, b, engine)
    assert not paths.distance[bad].isfinite().all()
    _assert_only_left_out(paths, truth, [bad])
    assert engine == "plain" or paths.engine != "plain"


def _with_large_tokens(scale: float) -> tuple[zoo.Specimen, Prompts, Prompts]:
    """The zoo's linear network with 5 tokens far larger than the rest, one of them in a pair."""
    specimen = zoo.build("linear")
    embedding = specimen.model.get_submodule("embedding").weight
    assert isinstance(embedding, Tensor)
    with torch.no_grad():
        embedding[:5] *= scale
        for block in specimen.stack:
            for weight in block.parameters():
                weight.mul_(4)
    a = 5 + specimen.prompts(6, LENGTH) % 50
    b = a.roll(1, 0)
    b[3, -1] = 2
    return specimen, a, b


def test_overflow_in_float16_leaves_out_only_the_pair_it_happens_in() -> None:
    specimen, a, b = _with_large_tokens(1.5e4)
    truth = _paths(specimen.model, a, b)
    paths = _paths(specimen.model.half(), a, b)
    assert truth.kept.all()
    assert paths.kept.tolist() == [True, True, True, False, True, True]
    assert not paths.distance[3].isfinite().all()
    torch.testing.assert_close(
        paths.max_slope[paths.kept], truth.max_slope[paths.kept], rtol=0.1, atol=0
    )
    assert 0 < paths.noise_floor < 0.05


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_the_rounding_of_a_pair_that_moves_far_does_not_drown_the_others(
    dtype: torch.dtype,
) -> None:
    """It moves, and is rounded, 1000 times as far as they; each counts against its own."""
    specimen, a, b = _with_large_tokens(1e3)
    paths = _paths(specimen.model.to(dtype), a, b)
    assert paths.end_distance[3] > 300 * paths.end_distance[0]
    assert paths.kept.all()
    assert 0 < paths.noise_floor < 0.05


def test_adaptive_sampling_leaves_the_same_pairs_out() -> None:
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    b = b.clone()
    b[1] = a[1]
    model = _bursting_at_the_end_of(specimen, (a[4:5], b[4:5]), math.inf)
    grid = measure_paths(model, a, b, num_steps=51)
    adaptive = measure_paths(model, a, b, num_steps=51, sampling="adaptive")
    assert grid.kept.tolist() == adaptive.kept.tolist() == [True, False, True, True, False, True]
    assert adaptive.num_points == (~adaptive.distance.isnan()).sum()
    assert adaptive.num_points < 0.6 * grid.num_points
    torch.testing.assert_close(
        grid.max_slope, adaptive.max_slope, rtol=0.01, atol=0, equal_nan=True
    )


def test_weights_of_nan_leave_every_pair_out() -> None:
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    with torch.no_grad():
        for parameter in specimen.model.parameters():
            parameter.fill_(math.nan)
    paths = _paths(specimen.model, a, b)
    assert paths.num_left_out == len(a)
    assert paths.max_slope.isnan().all()
    assert math.isnan(paths.noise_floor)
    slices = measure_slices(specimen.model, a[:2], b[:2], b[2:4], resolution=3)
    assert slices.distance.isposinf().all()
    assert ((slices.rgb >= 0) & (slices.rgb <= 1)).all()


# The floor itself ------------------------------------------------------------------------------


def _in(name: str, dtype: torch.dtype) -> nn.Module:
    return zoo.build(name).model.to(dtype)


@pytest.mark.parametrize("name", KINDS)
def test_the_noise_floor_is_above_zero_and_grows_as_the_type_gets_coarser(name: str) -> None:
    a, b = _pairs(zoo.build(name))
    floors = [_paths(_in(name, dtype), a, b).noise_floor for dtype in PRECISIONS]
    assert 0 < 10 * floors[0] < floors[1] < floors[2] < 1


@pytest.mark.parametrize("name", [*KINDS, "mamba"])  # its stream stays float32
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_the_noise_floor_is_about_what_rounding_does_to_the_curves(
    name: str, dtype: torch.dtype
) -> None:
    """The truth in float64, of the weights as they are after rounding."""
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    paths = _paths(specimen.model.to(dtype), a, b)
    specimen.model.double()
    truth = oracle_paths(specimen, a, b, layer=1, num_steps=NUM_STEPS).float()
    deviation = ((paths.distance - truth).abs() / truth[:, -1:]).max().item()
    assert deviation / 10 < paths.noise_floor < deviation * 10


def test_packed_weights_say_nothing_of_how_finely_a_block_reckons() -> None:
    """Types of one byte are unpacked before they are used."""
    specimen = zoo.build("llama")
    expected = _paths(specimen.model, *_pairs(specimen))
    packed = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    specimen.stack[0].register_parameter("packed", packed)
    assert _paths(specimen.model, *_pairs(specimen)).noise_floor == expected.noise_floor


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_full_precision_is_refused_where_the_weights_are_coarser(name: str) -> None:
    a, b = _pairs(zoo.build(name))
    with pytest.raises(InputError, match=r"precision='float32'.*torch.bfloat16.*precision='run'"):
        measure_paths(_in(name, torch.bfloat16), a, b, precision="float32")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_noticed_around_the_measurement_and_inside_the_model(
    name: str, inside: bool
) -> None:
    """As in a plain loop, and as accelerate and the Trainer wrap a model's forward."""
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    expected = _paths(specimen.model, a, b)
    autocast = torch.autocast("cpu", torch.bfloat16)
    if inside:
        specimen.model.forward = autocast(specimen.model.forward)
        paths = _paths(specimen.model, a, b)
    else:
        with autocast:
            paths = _paths(specimen.model, a, b)
    deviation = (paths.relative - expected.relative).abs().max().item()
    assert deviation > 1e-3
    assert deviation / 10 < paths.noise_floor < deviation * 10
    with autocast:
        assert paths.noise_floor > 0.5 * _paths(zoo.build(name).model, a, b).noise_floor


def test_the_points_of_a_plane_are_as_fine_in_autocast_as_those_of_a_path() -> None:
    """They are made in float32, whatever the model runs in: read where F gives them back."""
    specimen = zoo.build("llama")
    a, b, c = specimen.prompts(3, LENGTH)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        slices = measure_slices(
            specimen.model, a, b, c, layer=3, output="resid_final", resolution=7
        )
        path = measure_paths(specimen.model, a, b, layer=3, output="resid_final", num_steps=5)
    assert slices.coordinates[1:6].tolist() == path.alphas.tolist()
    torch.testing.assert_close(slices.distance[0, 0, 1, 1:6], path.distance[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("sampling", ["grid", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_default_type_makes_no_difference(
    dtype: torch.dtype, sampling: Literal["grid", "adaptive"]
) -> None:
    model = zoo.build("llama").model.to(dtype)
    ids = torch.arange(40).reshape(8, 5) % 23
    expected = measure_paths(model, ids[:-1], ids[1:], num_steps=31, sampling=sampling)
    torch.set_default_dtype(dtype)
    try:
        found = measure_paths(model, ids[:-1], ids[1:], num_steps=31, sampling=sampling)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.distance.nan_to_num(-1), expected.distance.nan_to_num(-1))
    assert found.noise_distance == expected.noise_distance
