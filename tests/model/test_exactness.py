"""`measure_paths` and `measure_slices` against the oracle, on every architecture of the zoo.

The oracle makes one plain forward pass per point; the zoo says by hand where each model's parts
are. Agreement is asked to 1e-5 of d(1), about ten times the float32 noise of these models.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor import measure_paths, measure_slices
from sr_monitor.errors import InputError
from sr_monitor.probes.paths import Paths
from tests import zoo
from tests.oracle import Output, oracle_paths, oracle_slices, run

Engine = Literal["auto", "shared", "rows", "plain"]
ENGINES: tuple[Engine, ...] = ("auto", "shared", "rows", "plain")
OUTPUTS: tuple[Output, ...] = ("final_norm", "resid_final", "logits")

TOLERANCE = 1e-5
NUM_STEPS = 5
LENGTH = 7
"""Longer than the zoo's sliding window."""

CASES = [
    *(pytest.param(name, None, id=name) for name in zoo.ARCHITECTURES),
    *(pytest.param(name, "eager", id=f"{name}-eager") for name in zoo.ALSO_EAGER),
]
WINDOWED = [name for name in zoo.ARCHITECTURES if name.endswith("_window")]
NO_CACHE = ["mamba", "qwen3_next", "nano_gpt", "lit_gpt", "linear"]
HARD_TO_READ = ["gpt2", "opt", "opt_post_norm", "bloom", "gemma2_window", "gptj", "mixtral"]


def _pairs(
    specimen: zoo.Specimen, length: int = LENGTH
) -> tuple[Int[Tensor, "pair token"], Int[Tensor, "pair token"]]:
    prompts = specimen.prompts(4, length)
    return prompts[:-1], prompts[1:]


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


def _must_work(name: str, engine: Engine) -> bool:
    species = zoo.SPECIES[name]
    return {"shared": species.shared, "rows": species.rows}.get(engine, True)


def _measure_or_refuse(
    name: str,
    engine: Engine,
    specimen: zoo.Specimen,
    a: Int[Tensor, "pair token"],
    b: Int[Tensor, "pair token"],
    layer: int = 1,
) -> Paths | None:
    """The measurement, or None where the engine rightly says that it cannot do this model."""
    try:
        return measure_paths(specimen.model, a, b, layer=layer, num_steps=NUM_STEPS, engine=engine)
    except InputError as error:
        refusal = str(error)
    assert not _must_work(name, engine), refusal
    assert engine in refusal
    return None


def _allowed_engines(name: str, engine: Engine) -> tuple[str, ...]:
    """What "auto" may choose: not the plain way where one row a point must work."""
    if engine != "auto":
        return (engine,)
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
    specimen = zoo.build(name)
    a, b = _last_token_swaps(specimen)
    for layer in (0, 1, specimen.num_layers):
        distance = oracle_paths(specimen, a, b, layer=layer, num_steps=2)
        assert (distance[:, 0] == 0).all()
        torch.testing.assert_close(
            distance[:, 1], _clean_distance(specimen, a, b), rtol=1e-5, atol=0
        )


# Exactness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_paths_equal_the_oracle_at_every_layer(
    name: str, attention: str | None, engine: Engine
) -> None:
    """An engine that cannot do an architecture says so; it never gives wrong numbers."""
    specimen = zoo.build(name, attention=attention)
    a, b = _pairs(specimen)
    errors = {}
    for layer in range(specimen.num_layers + 1):
        paths = _measure_or_refuse(name, engine, specimen, a, b, layer=layer)
        if paths is None:
            continue
        assert paths.engine in _allowed_engines(name, engine)
        assert (paths.distance[:, 0] == 0).all()
        assert paths.noise_floor < TOLERANCE
        errors[layer] = _error(paths.distance, _truth(name, attention, layer))
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("length", [2, zoo.WINDOW, zoo.WINDOW + 1, 19])
@pytest.mark.parametrize("engine", ENGINES[:-1])
@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", *WINDOWED])
def test_paths_equal_the_oracle_at_other_lengths(name: str, engine: Engine, length: int) -> None:
    """One earlier token, a prompt that just fills the window, one more, and many windows."""
    specimen = zoo.build(name)
    a, b = _pairs(specimen, length)
    paths = _measure_or_refuse(name, engine, specimen, a, b)
    if paths is None:
        return
    assert _error(paths.distance, _truth(name, None, 1, length=length)) <= TOLERANCE


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", [*HARD_TO_READ, *NO_CACHE])
def test_every_output_equals_the_oracle(name: str, output: Output) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    ways: list[tuple[int, Engine]] = [(1, "plain"), (1, "rows"), (specimen.num_layers, "auto")]
    for layer, engine in ways:
        if not _must_work(name, engine):
            continue
        paths = measure_paths(
            specimen.model, a, b, layer=layer, num_steps=NUM_STEPS, output=output, engine=engine
        )
        truth = _truth(name, None, layer, output=output)
        assert _error(paths.distance, truth) <= TOLERANCE, (layer, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mixtral", "olmoe"])
def test_every_way_works_where_experts_are_balanced_in_training(name: str, engine: Engine) -> None:
    """The model reckons how balanced they are in each forward, but cannot where rows are shared."""
    specimen = zoo.build(name)
    config: Any = specimen.model.config
    config.output_router_logits = True
    a, b = _pairs(specimen)
    paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS, engine=engine)
    assert paths.engine in _allowed_engines(name, engine)
    assert _error(paths.distance, _truth(name, None, 1)) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["gpt2", "bloom", "mistral_window", "olmo2", "olmoe", "mamba", "nano_gpt"]
)
def test_every_point_that_adaptive_sampling_looked_at_equals_the_oracle(name: str) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    paths = measure_paths(specimen.model, a, b, num_steps=31, sampling="adaptive")
    truth = _truth(name, None, 1, num_steps=31)
    looked = paths.distance.isfinite()
    assert looked[:, [0, -1]].all()
    assert paths.num_points == looked.sum() < looked.numel()
    assert _error(torch.where(looked, paths.distance, truth), truth) <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "falcon_alibi", "mistral_window", "olmo2", *NO_CACHE])
def test_slices_equal_the_oracle(name: str) -> None:
    specimen = zoo.build(name)
    prompts = specimen.prompts(4, LENGTH)
    corners = prompts[:2], prompts[1:3], prompts[2:]
    slices = measure_slices(specimen.model, *corners, layer=1, resolution=5)
    distance, foot = oracle_slices(specimen, corners, layer=1, resolution=5)
    torch.testing.assert_close(slices.coordinates, torch.linspace(-0.25, 1.25, 5))
    torch.testing.assert_close(slices.foot, foot, rtol=1e-5, atol=1e-6)
    assert slices.distance.shape == distance.shape == (2, 3, 5, 5)
    error = (slices.distance - distance).abs() / distance.amax((-2, -1), keepdim=True)
    assert error.max() <= TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_slices_equal_the_oracle_with_other_arguments(output: Output, engine: Engine) -> None:
    """Another layer, an odd span, every output and engine."""
    specimen = zoo.build("llama")
    prompts = specimen.prompts(3, LENGTH)
    corners = prompts[:1], prompts[1:2], prompts[2:]
    slices = measure_slices(
        specimen.model,
        *corners,
        layer=2,
        resolution=4,
        span=(-1.0, 0.5),
        output=output,
        engine=engine,
        max_tokens=11,
    )
    distance, _ = oracle_slices(
        specimen, corners, layer=2, resolution=4, span=(-1.0, 0.5), output=output
    )
    torch.testing.assert_close(slices.coordinates, torch.linspace(-1, 0.5, 4))
    error = (slices.distance - distance).abs() / distance.amax((-2, -1), keepdim=True)
    assert error.max() <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mistral_window", "mamba"])
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


# Identities and analytic truths ----------------------------------------------------------------


def _last_token_swaps(
    specimen: zoo.Specimen,
) -> tuple[Int[Tensor, "pair token"], Int[Tensor, "pair token"]]:
    a = specimen.prompts(3, LENGTH)
    b = a.clone()
    b[:, -1] = (a[:, -1] + 7) % specimen.vocab
    return a, b


def _clean_distance(
    specimen: zoo.Specimen, a: Int[Tensor, "pair token"], b: Int[Tensor, "pair token"]
) -> Float[Tensor, " pair"]:
    outputs = [
        torch.stack([run(specimen, prompt, 0, "final_norm")[1] for prompt in prompts])
        for prompts in (a, b)
    ]
    distance: Tensor = torch.linalg.vector_norm(outputs[0] - outputs[1], dim=-1)
    return distance


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_last_token_swaps_end_at_the_clean_run_of_b(name: str) -> None:
    """With the same earlier tokens, putting b into A's context is running B, at any layer."""
    specimen = zoo.build(name)
    a, b = _last_token_swaps(specimen)
    expected = _clean_distance(specimen, a, b)
    for layer in (1, specimen.num_layers):
        paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=2)
        assert (paths.distance[:, 0] == 0).all()
        assert ((paths.end_distance - expected).abs() <= TOLERANCE * expected).all(), layer


@pytest.mark.parametrize("name", ["gpt2", "opt_post_norm", "gemma2_window", "olmo2", "mamba"])
def test_the_last_block_s_output_moves_in_a_straight_line(name: str) -> None:
    """Replaced after the last block and read there: d(alpha) is alpha times ||a - b||."""
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    paths = measure_paths(
        specimen.model, a, b, layer=specimen.num_layers, num_steps=9, output="resid_final"
    )
    line = paths.alphas * paths.input_distance[:, None]
    torch.testing.assert_close(paths.distance, line, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(paths.max_slope, torch.ones(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sampling", ["grid", "adaptive"])
@pytest.mark.parametrize("layer", range(4))
def test_a_linear_network_has_slope_one(layer: int, sampling: Literal["grid", "adaptive"]) -> None:
    specimen = zoo.build("linear")
    a, b = _pairs(specimen)
    paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=51, sampling=sampling)
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


def test_pairs_of_equal_prompts_are_left_out_and_counted() -> None:
    specimen = zoo.build("llama")
    a, b = _pairs(specimen)
    b = b.clone()
    b[1] = a[1]
    paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert paths.kept.tolist() == [True, False, True]
    assert paths.num_left_out == 1
    assert paths.max_slope.isnan().tolist() == [False, True, False]
    assert _error(paths.distance[[0, 2]], _truth("llama", None, 1)[[0, 2]]) <= TOLERANCE


# What the result must not depend on ------------------------------------------------------------


def _able_engines(name: str) -> list[Engine]:
    return [engine for engine in ENGINES[1:] if _must_work(name, engine)]


@pytest.mark.parametrize("name", ["llama", "gemma2_window", "mamba"])
@pytest.mark.parametrize("max_tokens", [1, 7, 23, None])
def test_the_chunk_size_does_not_matter(name: str, max_tokens: int | None) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    for engine in _able_engines(name):
        paths = measure_paths(
            specimen.model, a, b, num_steps=NUM_STEPS, engine=engine, max_tokens=max_tokens
        )
        assert _error(paths.distance, _truth(name, None, 1)) <= TOLERANCE, engine


@pytest.mark.parametrize("sampling", ["grid", "adaptive"])
@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 1, 0, 2, 0], [2]])
@pytest.mark.parametrize("name", ["llama", "gemma2_window", "mamba"])
def test_order_and_company_in_the_batch_do_not_matter(
    name: str, order: Sequence[int], sampling: Literal["grid", "adaptive"]
) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    for engine in _able_engines(name):
        paths = measure_paths(
            specimen.model, a[order], b[order], num_steps=31, sampling=sampling, engine=engine
        )
        truth = _truth(name, None, 1, num_steps=31)[order]
        looked = paths.distance.isfinite()
        assert looked.all() or sampling == "adaptive"
        assert _error(torch.where(looked, paths.distance, truth), truth) <= TOLERANCE, engine


def test_a_model_in_training_mode_is_measured_without_dropout_and_left_in_it() -> None:
    specimen = zoo.build("gpt2")
    a, b = _pairs(specimen)
    specimen.model.train()
    specimen.stack[0].eval()
    modes = [module.training for module in specimen.model.modules()]
    paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert _error(paths.distance, _truth("gpt2", None, 1)) <= TOLERANCE
    assert [module.training for module in specimen.model.modules()] == modes


# Engines, blocks, refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_CACHE)
def test_models_without_a_cache_are_measured_the_plain_way(name: str) -> None:
    specimen = zoo.build(name)
    assert measure_paths(specimen.model, *_pairs(specimen), num_steps=3).engine == "plain"


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


@pytest.mark.parametrize("name", ["gpt2", "llama", "nano_gpt", "lit_gpt", "linear"])
def test_the_blocks_may_be_named(name: str) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    paths = measure_paths(
        specimen.model, a, b, num_steps=NUM_STEPS, layer_path=zoo.SPECIES[name].blocks
    )
    assert _error(paths.distance, _truth(name, None, 1)) <= TOLERANCE


def test_two_equal_stacks_are_told_apart_by_name_only() -> None:
    """A model with adapters beside its blocks is refused until the blocks are named."""
    specimen = zoo.build("linear")
    a, b = _pairs(specimen)
    specimen.model.adapters = nn.ModuleList(nn.Identity() for _ in specimen.stack)
    with pytest.raises(InputError, match="layer_path"):
        measure_paths(specimen.model, a, b)
    named = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS, layer_path="blocks")
    assert _error(named.distance, _truth("linear", None, 1)) <= TOLERANCE


def test_the_only_list_of_blocks_is_found_though_the_blocks_differ() -> None:
    specimen = zoo.build("linear")
    specimen.stack[1] = nn.Sequential(specimen.stack[1], nn.Tanh())
    a, b = _pairs(specimen)
    truth = oracle_paths(specimen, a, b, layer=1, num_steps=NUM_STEPS)
    paths = measure_paths(specimen.model, a, b, num_steps=NUM_STEPS)
    assert _error(paths.distance, truth) <= TOLERANCE


@pytest.mark.parametrize("layer_path", ["transformer.blocks", "lm_head", "transformer.wte"])
def test_a_wrong_name_for_the_blocks_is_refused(layer_path: str) -> None:
    specimen = zoo.build("nano_gpt")
    with pytest.raises(InputError, match=f"layer_path.*{layer_path}"):
        measure_paths(specimen.model, *_pairs(specimen), layer_path=layer_path)


def test_gemma_3n_is_refused_for_its_four_dimensional_stream() -> None:
    specimen = zoo.build("gemma3n")
    a, b = _pairs(specimen)
    with pytest.raises(InputError, match=r"4-D|\(4, ") as caught:
        measure_paths(specimen.model, a, b)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"4-D|\(4, "):
        measure_slices(specimen.model, a[:1], b[:1], b[1:2], resolution=3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_logits_of_a_model_without_a_head_are_refused(name: str) -> None:
    specimen = zoo.build(name)
    headless = getattr(specimen.model, specimen.blocks.split(".")[0])
    expected = f"output='logits': {type(headless).__name__} .*AutoModelForCausalLM.*final_norm"
    with pytest.raises(InputError, match=expected) as caught:
        measure_paths(headless, *_pairs(specimen), output="logits")
    assert "\n" not in str(caught.value)
    measure_paths(headless, *_pairs(specimen), output="final_norm", num_steps=2)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_models_without_a_causal_decoder_are_refused(name: str) -> None:
    specimen = zoo.build(name)
    with pytest.raises(InputError, match=r"(?i)decoder|causal|earlier") as caught:
        measure_paths(specimen.model, *_pairs(specimen))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 4}, r"layer=4.*\b3\b"),
        ({"layer": -1}, r"layer=-1.*\b0\b"),
        ({"num_steps": 1}, r"num_steps=1.*\b2\b"),
        ({"sampling": "random"}, r"random.*grid.*adaptive"),
        ({"output": "probabilities"}, r"probabilities.*final_norm.*resid_final.*logits"),
        ({"engine": "fast"}, r"fast.*auto.*shared.*rows.*plain"),
        ({"max_tokens": 0}, r"max_tokens=0.*\b1\b"),
    ],
)
def test_bad_arguments_are_refused_with_the_fix(arguments: dict[str, Any], message: str) -> None:
    specimen = zoo.build("llama")
    with pytest.raises(InputError, match=message) as caught:
        measure_paths(specimen.model, *_pairs(specimen), **arguments)
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
    specimen = zoo.build("llama")
    with pytest.raises(InputError, match=message) as caught:
        measure_paths(specimen.model, prompts_a, prompts_b)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mamba", "nano_gpt"])
def test_ids_beyond_the_vocabulary_are_refused_by_every_kind_of_model(name: str) -> None:
    specimen = zoo.build(name)
    a, b = _pairs(specimen)
    with pytest.raises(InputError, match=r"\b6[01]\b"):
        measure_paths(specimen.model, a, b + specimen.vocab)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 4}, r"layer=4.*\b3\b"),
        ({"layer": -1}, r"layer=-1.*\b0\b"),
        ({"resolution": 1}, r"resolution=1.*\b2\b"),
        ({"span": (1.0, -1.0)}, r"span"),
        ({"output": "probabilities"}, r"probabilities.*final_norm.*resid_final.*logits"),
        ({"engine": "fast"}, r"fast.*auto.*shared.*rows.*plain"),
    ],
)
def test_bad_arguments_of_slices_are_refused_with_the_fix(
    arguments: dict[str, Any], message: str
) -> None:
    specimen = zoo.build("llama")
    prompts = specimen.prompts(3, LENGTH)
    with pytest.raises(InputError, match=message) as caught:
        measure_slices(specimen.model, prompts[:1], prompts[1:2], prompts[2:], **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_as_users_run_it")
def test_slices_of_unequal_prompts_are_refused() -> None:
    specimen = zoo.build("llama")
    prompts = specimen.prompts(3, LENGTH)
    with pytest.raises(InputError, match=r"7.*5"):
        measure_slices(specimen.model, prompts[:1], prompts[1:2], prompts[2:, :5])
