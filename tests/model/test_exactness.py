"""`measure_paths` and `measure_slices` against the oracle, on every architecture of the zoo.

The oracle makes one plain forward pass per point; the zoo says by hand where each model's parts
are. Agreement is asked to 1e-5 of d(1), about ten times the float32 noise of these models.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Literal, get_args

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import measure_paths, measure_slices
from sr_monitor.errors import InputError
from sr_monitor.model.selfcheck import EngineName as Engine
from sr_monitor.probes.paths import Paths
from tests import zoo
from tests.model.helpers import LENGTH, NUM_STEPS, TOLERANCE, Prompts
from tests.oracle import Output, oracle_paths, oracle_slices, run

OUTPUTS: tuple[Output, ...] = get_args(Output)
ENGINES: tuple[Engine, ...] = get_args(Engine)
FORCED: tuple[Engine, ...] = ("shared", "rows", "plain")

CASES = [
    *(pytest.param(name, None, id=name) for name in zoo.ARCHITECTURES),
    *(pytest.param(name, "eager", id=f"{name}-eager") for name in zoo.ALSO_EAGER),
]
WINDOWED = [name for name in zoo.ARCHITECTURES if name.endswith("_window")]
NO_CACHE = ["mamba", "qwen3_next", *zoo.OWN, "linear"]
HARD_TO_READ = ["gpt2", "opt", "opt_post_norm", "bloom", "gemma2_window", "gptj", "mixtral"]
READ = ["granite", "cohere", "llama4_chunked", *HARD_TO_READ, *NO_CACHE]


def _pairs(specimen: zoo.Specimen, length: int = LENGTH) -> tuple[Prompts, Prompts]:
    prompts = specimen.prompts(4, length)
    return prompts[:-1], prompts[1:]


def _corners(specimen: zoo.Specimen) -> tuple[Prompts, Prompts, Prompts]:
    prompts = specimen.prompts(4, LENGTH)
    return prompts[:2], prompts[1:3], prompts[2:]


@cache
def _truth(
    name: str,
    attention: str | None,
    layer: int,
    *,
    num_steps: int = NUM_STEPS,
    output: Output = "final_norm",
    length: int = LENGTH,
) -> Float[Tensor, "pair step"]:
    specimen = zoo.build(name, attention=attention)
    a, b = _pairs(specimen, length)
    return oracle_paths(specimen, a, b, layer=layer, num_steps=num_steps, output=output)


def _error(measured: Float[Tensor, "pair step"], truth: Float[Tensor, "pair step"]) -> float:
    """The largest difference, as a share of the pair's d(1)."""
    assert measured.dtype == torch.float32
    assert measured.shape == truth.shape
    return ((measured - truth).abs() / truth[:, -1:]).max().item()


def _map_error(measured: Tensor, truth: Tensor) -> float:
    """The largest difference in any map, as a share of the map's largest distance."""
    assert measured.shape == truth.shape
    return ((measured - truth).abs() / truth.amax((-2, -1), keepdim=True)).max().item()


def _must_work(name: str, engine: Engine) -> bool:
    species = zoo.SPECIES[name]
    return {"shared": species.shared, "rows": species.rows}.get(engine, True)


def _measure_or_refuse(
    name: str, engine: Engine, specimen: zoo.Specimen, *pair: Prompts, layer: int = 1
) -> Paths | None:
    """The measurement, or None where the engine rightly says that it cannot do this model."""
    try:
        paths = measure_paths(
            specimen.model, *pair, layer=layer, num_steps=NUM_STEPS, engine=engine
        )
    except InputError as error:
        refusal = str(error)
    else:
        assert paths.engine in _allowed_engines(name, engine)
        return paths
    assert not _must_work(name, engine), refusal
    assert engine in refusal
    return None


def _allowed_engines(name: str, engine: Engine) -> tuple[str, ...]:
    """What "auto" may choose: not the plain way where one row a point must work."""
    if engine != "auto":
        return (engine,)
    if name in NO_CACHE:
        return ("plain",)
    return ("shared", "rows") if zoo.SPECIES[name].rows else ENGINES


# The zoo and the oracle themselves -------------------------------------------------------------


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_the_zoo_is_worth_measuring(name: str, attention: str | None) -> None:
    """d(1) far above float32 noise, curves that bend, and outputs that depend on the context."""
    specimen = zoo.build(name, attention=attention)
    a, b = _pairs(specimen)
    elsewhere = a.clone()
    elsewhere[:, -2] = (a[:, -2] + 1) % specimen.vocab
    straight = torch.linspace(0, 1, NUM_STEPS)
    for layer in range(specimen.num_layers):
        distance = _truth(name, attention, layer)
        assert distance[:, -1].min() > 0.5
        assert (distance / distance[:, -1:] - straight).abs().max() > 0.01
        moved = oracle_paths(specimen, elsewhere[:1], b[:1], layer=layer, num_steps=NUM_STEPS)
        assert _error(moved, distance[:1]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_the_oracle_starts_at_zero_and_ends_at_the_run_it_stands_for(name: str) -> None:
    """With the same earlier tokens, putting b into A's context is running B, at any layer."""
    specimen = zoo.build(name)
    a, _ = _pairs(specimen)
    b = a.clone()
    b[:, -1] = (a[:, -1] + 7) % specimen.vocab
    clean_a, clean_b = (
        torch.stack([run(specimen, prompt, 0, "final_norm")[1] for prompt in prompts])
        for prompts in (a, b)
    )
    # What A's token gives to later blocks past the cut stays A's.
    first = specimen.num_layers if name == "mixing_gpt" else 0
    for layer in range(first, specimen.num_layers + 1):
        distance = oracle_paths(specimen, a, b, layer=layer, num_steps=2)
        assert (distance[:, 0] == 0).all()
        expected = (clean_a - clean_b).norm(dim=-1)
        torch.testing.assert_close(distance[:, 1], expected, rtol=1e-5, atol=0)


# Exactness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_paths_equal_the_oracle_at_every_layer(
    name: str, attention: str | None, engine: Engine
) -> None:
    """An engine that cannot do an architecture says so; it never gives wrong numbers."""
    specimen = zoo.build(name, attention=attention)
    errors = {}
    for layer in range(specimen.num_layers + 1):
        paths = _measure_or_refuse(name, engine, specimen, *_pairs(specimen), layer=layer)
        if paths is None:
            continue
        assert (paths.distance[:, 0] == 0).all()
        assert paths.noise_floor < TOLERANCE
        errors[layer] = _error(paths.distance, _truth(name, attention, layer))
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("length", [2, zoo.WINDOW, zoo.WINDOW + 1, 19])
@pytest.mark.parametrize("engine", ["auto", "shared", "rows"])
@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", "packed_gpt", *WINDOWED])
def test_paths_equal_the_oracle_at_other_lengths(name: str, engine: Engine, length: int) -> None:
    """One earlier token, a prompt that just fills the window, one more, and many windows."""
    specimen = zoo.build(name)
    paths = _measure_or_refuse(name, engine, specimen, *_pairs(specimen, length))
    if paths is not None:
        assert _error(paths.distance, _truth(name, None, 1, length=length)) <= TOLERANCE


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", READ)
def test_every_output_equals_the_oracle(name: str, output: Output) -> None:
    specimen = zoo.build(name)
    ways: list[tuple[int, Engine]] = [(1, "plain"), (1, "rows"), (specimen.num_layers, "auto")]
    for layer, engine in ways:
        if not _must_work(name, engine):
            continue
        options: dict[str, Any] = {"layer": layer, "num_steps": NUM_STEPS, "output": output}
        paths = measure_paths(specimen.model, *_pairs(specimen), **options, engine=engine)
        truth = _truth(name, None, layer, output=output)
        assert _error(paths.distance, truth) <= TOLERANCE, (layer, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_every_way_works_where_experts_are_balanced_in_training(name: str, engine: Engine) -> None:
    """The model reckons how balanced they are in each forward, but cannot where rows are shared."""
    specimen = zoo.build(name)
    config: Any = specimen.model.config
    config.output_router_logits = True
    paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS, engine=engine)
    assert paths.engine in _allowed_engines(name, engine)
    assert _error(paths.distance, _truth(name, None, 1)) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["gpt2", "bloom", "mistral_window", "olmo2", "olmoe", "mamba", "nano_gpt", "row_gpt"]
)
def test_every_point_that_adaptive_sampling_looked_at_equals_the_oracle(name: str) -> None:
    specimen = zoo.build(name)
    paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=31, sampling="adaptive")
    truth = _truth(name, None, 1, num_steps=31)
    looked = paths.distance.isfinite()
    assert looked[:, [0, -1]].all()
    assert paths.num_points == looked.sum() < looked.numel()
    assert _error(torch.where(looked, paths.distance, truth), truth) <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "falcon_alibi", "mistral_window", "olmo2", *NO_CACHE])
def test_slices_equal_the_oracle(name: str) -> None:
    specimen = zoo.build(name)
    corners = _corners(specimen)
    slices = measure_slices(specimen.model, *corners, layer=1, resolution=5)
    distance, foot = oracle_slices(specimen, corners, layer=1, resolution=5)
    torch.testing.assert_close(slices.coordinates, torch.linspace(-0.25, 1.25, 5))
    torch.testing.assert_close(slices.foot, foot, rtol=1e-5, atol=1e-6)
    assert distance.shape == (2, 3, 5, 5)
    assert _map_error(slices.distance, distance) <= TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_slices_equal_the_oracle_with_other_arguments(output: Output, engine: Engine) -> None:
    """Another layer, an odd span, every output and engine."""
    specimen = zoo.build("llama")
    corners = _corners(specimen)
    options: dict[str, Any] = {"layer": 2, "resolution": 4, "span": (-1.0, 0.5), "output": output}
    slices = measure_slices(specimen.model, *corners, **options, engine=engine, max_tokens=11)
    distance, _ = oracle_slices(specimen, corners, **options)
    torch.testing.assert_close(slices.coordinates, torch.linspace(-1, 0.5, 4))
    assert _map_error(slices.distance, distance) <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mistral_window", "mamba", "packed_gpt"])
def test_input_distance_is_the_distance_between_the_activations(name: str) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    for layer in (0, 1, specimen.num_layers):
        paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=2)
        expected = [
            torch.dist(run(specimen, x, layer, "logits")[0], run(specimen, y, layer, "logits")[0])
            for x, y in zip(a, b, strict=True)
        ]
        torch.testing.assert_close(paths.input_distance, torch.stack(expected))


# Analytic truths -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["grid", "adaptive"])
@pytest.mark.parametrize("layer", range(4))
def test_a_linear_network_has_slope_one(layer: int, sampling: Literal["grid", "adaptive"]) -> None:
    specimen = zoo.build("linear")
    paths = measure_paths(
        specimen.model, *_pairs(specimen), layer=layer, num_steps=51, sampling=sampling
    )
    torch.testing.assert_close(paths.max_slope, torch.ones(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sampling", ["grid", "adaptive"])
@pytest.mark.parametrize("layer", range(3))
def test_a_step_network_has_slope_steps_minus_one(
    layer: int, sampling: Literal["grid", "adaptive"]
) -> None:
    """The jump from an even last token to an odd one is known: at alpha 0.665."""
    specimen = zoo.build("step")
    a, b = torch.tensor([[5, 3, 2], [1, 2, 40]]), torch.tensor([[9, 9, 7], [2, 2, 11]])
    paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=51, sampling=sampling)
    assert paths.max_slope.tolist() == [50.0, 50.0]
    looked = paths.distance.isfinite()
    step = (paths.alphas > 0.665).float().expand(2, -1)
    torch.testing.assert_close(paths.relative[looked], step[looked])
    assert ((paths.location - 0.665).abs() <= 0.02).all()


# What the result must not depend on ------------------------------------------------------------


@pytest.mark.parametrize("engine", FORCED)
@pytest.mark.parametrize("name", ["llama", "gemma2_window", "mamba", "packed_gpt"])
@pytest.mark.parametrize("max_tokens", [1, 7, 23, None])
def test_the_chunk_size_does_not_matter(name: str, max_tokens: int | None, engine: Engine) -> None:
    if not _must_work(name, engine):
        return
    specimen = zoo.build(name)
    options: dict[str, Any] = {"num_steps": NUM_STEPS, "max_tokens": max_tokens}
    paths = measure_paths(specimen.model, *_pairs(specimen), **options, engine=engine)
    assert _error(paths.distance, _truth(name, None, 1)) <= TOLERANCE


@pytest.mark.parametrize("sampling", ["grid", "adaptive"])
@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 1, 0, 2, 0], [2]])
@pytest.mark.parametrize("engine", FORCED)
@pytest.mark.parametrize("name", ["llama", "gemma2_window", "mamba", "packed_gpt"])
def test_order_and_company_in_the_batch_do_not_matter(
    name: str, engine: Engine, order: Sequence[int], sampling: Literal["grid", "adaptive"]
) -> None:
    if not _must_work(name, engine):
        return
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    options: dict[str, Any] = {"num_steps": 31, "sampling": sampling, "engine": engine}
    paths = measure_paths(specimen.model, a[order], b[order], **options)
    truth = _truth(name, None, 1, num_steps=31)[order]
    looked = paths.distance.isfinite()
    assert looked.all() or sampling == "adaptive"
    assert _error(torch.where(looked, paths.distance, truth), truth) <= TOLERANCE


def test_a_model_in_training_mode_is_measured_without_dropout() -> None:
    specimen = zoo.build("gpt2")
    specimen.model.train()
    paths = measure_paths(specimen.model, *_pairs(specimen), num_steps=NUM_STEPS)
    assert _error(paths.distance, _truth("gpt2", None, 1)) <= TOLERANCE


# Engines, blocks, refusals ---------------------------------------------------------------------


def test_a_fast_way_that_is_wrong_is_caught_and_not_used() -> None:
    """GPT-Neo's local attention is a mask of its own that a given mask does not replace."""
    specimen = zoo.build("gpt_neo_local")
    a, b = _pairs(specimen)
    with pytest.warns(UserWarning, match=r"'shared'.*disagrees.*\d\.\d+ against \d\.\d+"):
        paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert paths.engine in ("rows", "plain")
    assert _error(paths.distance, _truth("gpt_neo_local", None, 1)) <= TOLERANCE
    with pytest.raises(InputError, match=r"engine='shared'.*disagrees"):
        measure_paths(specimen.model, a, b, num_steps=NUM_STEPS, engine="shared")


@pytest.mark.parametrize("layer", range(4))
def test_a_skip_around_blocks_that_stand_aside_is_caught(layer: int) -> None:
    """Cut between the ends of a skip, the fast ways lack what the first block puts out."""
    specimen = zoo.build("skipping_llama")
    warned = (
        pytest.warns(UserWarning, match="'rows' way.*disagrees") if layer == 2 else nullcontext()
    )
    with warned:
        paths = measure_paths(specimen.model, *_pairs(specimen), layer=layer, num_steps=NUM_STEPS)
    assert paths.engine == ("plain" if layer == 2 else "shared")
    assert _error(paths.distance, _truth("skipping_llama", None, layer)) <= TOLERANCE


def test_two_equal_stacks_are_told_apart_by_name_or_as_a_list() -> None:
    """A model with adapters beside its blocks is refused until it is told."""
    specimen = zoo.build("linear")
    a, b = _pairs(specimen)
    specimen.model.adapters = nn.ModuleList(nn.Identity() for _ in specimen.stack)
    with pytest.raises(InputError, match="layer_path"):
        measure_paths(specimen.model, a, b)
    for layer_path in ("blocks", specimen.layers):
        paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS, layer_path=layer_path)
        assert _error(paths.distance, _truth("linear", None, 1)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma3n", r"4-D|\(4, "),  # four streams at once
        ("t5", r"encoder-decoder"),
        ("bert", r"not causal"),
    ],
)
def test_models_without_a_causal_stream_are_refused(name: str, said: str) -> None:
    specimen = zoo.build(name)
    corners = _corners(specimen)
    with pytest.raises(InputError, match=said) as caught:
        measure_paths(specimen.model, *corners[:2])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=said):
        measure_slices(specimen.model, *corners, resolution=3)


def test_packed_prompts_that_all_see_one_another_are_refused() -> None:
    """Side by side they look causal: each position of both sees the same."""
    specimen = zoo.build("packed_gpt")
    for block in specimen.layers:
        block.forward = partial(_seeing_all, block.forward)
    with pytest.raises(InputError, match="PackedGPT is not causal"):
        measure_paths(specimen.model, *_pairs(specimen))


def _seeing_all(forward: Any, x: Tensor, mask: Tensor) -> Any:
    return forward(x, torch.ones_like(mask))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_logits_of_a_model_without_a_head_are_refused(name: str) -> None:
    specimen = zoo.build(name)
    headless = getattr(specimen.model, specimen.blocks.split(".")[0])
    expected = f"output='logits': {type(headless).__name__} .*AutoModelForCausalLM.*final_norm"
    with pytest.raises(InputError, match=expected) as caught:
        measure_paths(headless, *_pairs(specimen), output="logits")
    assert "\n" not in str(caught.value)
    measure_paths(headless, *_pairs(specimen), output="final_norm", num_steps=2)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 4}, r"layer=4.*\b3\b"),
        ({"layer": -1}, r"layer=-1.*\b0\b"),
        ({"output": "probabilities"}, r"probabilities.*final_norm.*resid_final.*logits"),
        ({"engine": "fast"}, r"fast.*auto.*shared.*rows.*plain"),
        ({"max_tokens": 0}, r"max_tokens=0.*\b1\b"),
        ({"num_steps": 1}, r"num_steps=1.*\b2\b"),
        ({"sampling": "random"}, r"random.*grid.*adaptive"),
        ({"resolution": 1}, r"resolution=1.*\b2\b"),
        ({"span": (1.0, -1.0)}, r"span"),
    ],
)
def test_bad_arguments_are_refused_with_the_fix(arguments: dict[str, Any], message: str) -> None:
    specimen = zoo.build("llama")
    corners = _corners(specimen)
    (name,) = arguments
    if name not in ("resolution", "span"):
        with pytest.raises(InputError, match=message) as caught:
            measure_paths(specimen.model, *corners[:2], **arguments)
        assert "\n" not in str(caught.value)
    if name not in ("num_steps", "sampling"):
        with pytest.raises(InputError, match=message) as caught:
            measure_slices(specimen.model, *corners, **arguments)
        assert "\n" not in str(caught.value)


_GOOD = torch.arange(21).reshape(3, 7)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("prompts_a", "prompts_b", "message"),
    [
        (_GOOD, _GOOD[:, :6], r"7.*6"),
        (_GOOD, _GOOD[:2], r"3.*2"),
        (_GOOD[:, :1], _GOOD[:, :1] + 1, r"(?i)\btwo\b|\b2\b"),
        (_GOOD, _GOOD + 41, r"\b6[01]\b"),
        (_GOOD - 1, _GOOD, r"-1"),
        (_GOOD.float(), _GOOD, r"(?i)float"),
        (_GOOD, _GOOD.float(), r"(?i)float"),
        (_GOOD[0], _GOOD[1], r"\(7,\)"),
        (_GOOD[:0], _GOOD[:0], r"(?i)at least 1"),
    ],
    ids=["lengths", "pairs", "one-token", "beyond", "negative", "float", "b-float", "1-d", "none"],
)
def test_bad_prompts_are_refused_with_the_fix(
    prompts_a: Tensor, prompts_b: Tensor, message: str
) -> None:
    for name in ("llama", "nano_gpt"):
        model = zoo.build(name).model
        with pytest.raises(InputError, match=message) as caught:
            measure_paths(model, prompts_a, prompts_b)
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match=message):
            measure_slices(model, prompts_a, prompts_a, prompts_b)
