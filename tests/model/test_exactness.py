"""`measure_paths` and `measure_slices` against the oracle, on every architecture of the zoo.

Agreement is asked to 1e-5 of d(1), about ten times the float32 noise of these models.
"""

from contextlib import nullcontext
from functools import cache
from typing import Any, get_args

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import measure_paths, measure_slices
from sr_monitor.errors import InputError
from sr_monitor.model.selfcheck import EngineName as Engine
from sr_monitor.probes.sampling import Sampling
from tests import zoo
from tests.model.helpers import (
    LENGTH,
    NUM_STEPS,
    TOLERANCE,
    Prompts,
    assert_exact,
    error_of,
    measure,
    pairs,
    truth,
)
from tests.oracle import Output, oracle_paths, oracle_slices, run

ENGINES: tuple[Engine, ...] = get_args(Engine)

# Built as one of the others in all that matters here: `make test-all` takes them, too.
ALIKE = {
    "gptj",
    "opt",
    "xglm",
    "mpt",
    "falcon_rope",
    "mistral",
    "granite",
    "cohere",
    "olmo",
    "olmoe",
}
ALIKE |= {"qwen2", "qwen3", "smollm3", "lecture_gpt", "lit_gpt", "gpt_neo_local", "gpt_neox"}
ALIKE |= {"phi3", "gemma2_window", "olmo3_window", "qwen3_next"}


def _slow(name: str, *rest: Any, id: str | None = None) -> Any:
    marks = [pytest.mark.slow] if name in ALIKE or rest == ("eager",) else []
    return pytest.param(name, *rest, id=id or name, marks=marks)


NAMES = [_slow(name) for name in zoo.ARCHITECTURES]
CASES = [
    *(_slow(name, None) for name in zoo.ARCHITECTURES),
    *(_slow(name, "eager", id=f"{name}-eager") for name in zoo.ALSO_EAGER),
]
WINDOWED = [name for name in zoo.ARCHITECTURES if name.endswith("_window")]
NO_CACHE = ["mamba", "qwen3_next", *zoo.OWN, "linear"]
HARD_TO_READ = ["gpt2", "opt_post_norm", "gemma2_window", "gptj"]
READ = ["granite", "cohere", "llama4_chunked", *HARD_TO_READ, *NO_CACHE]
EACH_WAY: list[tuple[str, Engine]] = [
    ("llama", "shared"),
    ("gemma2_window", "rows"),
    ("packed_gpt", "plain"),
]


def _corners(specimen: zoo.Specimen) -> tuple[Prompts, Prompts, Prompts]:
    prompts = specimen.prompts(4, LENGTH)
    return prompts[:2], prompts[1:3], prompts[2:]


@cache
def _truth(
    name: str, attention: str | None = None, num_steps: int = NUM_STEPS, **cut: Any
) -> Float[Tensor, "pair step"]:
    return truth(zoo.build(name, attention=attention), num_steps, **cut)


def _assert_exact_maps(measured: Tensor, true: Tensor) -> None:
    assert measured.shape == true.shape
    gap = (measured - true).abs() / true.amax((-2, -1), keepdim=True)
    assert gap.max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_is_worth_measuring(name: str) -> None:
    """d(1) far above float32 noise, curves that bend, and outputs that depend on the context."""
    specimen = zoo.build(name)
    a, b = pairs(specimen)
    elsewhere = a.clone()
    elsewhere[:, -2] = (a[:, -2] + 1) % specimen.vocab
    straight = torch.linspace(0, 1, NUM_STEPS)
    for layer in range(specimen.num_layers):
        distance = _truth(name, None, layer=layer)
        assert distance[:, -1].min() > 0.5
        assert (distance / distance[:, -1:] - straight).abs().max() > 0.01
        moved = oracle_paths(specimen, elsewhere[:1], b[:1], layer=layer, num_steps=3)
        assert error_of(moved, distance[:1, ::2]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_starts_at_zero_and_ends_at_the_run_it_stands_for(name: str) -> None:
    """With the same earlier tokens, putting b into A's context is running B, at any layer."""
    specimen = zoo.build(name)
    a = specimen.prompts(1, LENGTH)
    b = a.clone()
    b[:, -1] = (a[:, -1] + 7) % specimen.vocab
    clean_a, clean_b = (run(specimen, prompts[0], 0, "final_norm")[1] for prompts in (a, b))
    # What A's token gives to later blocks past the cut stays A's.
    first = specimen.num_layers if name == "mixing_gpt" else 0
    for layer in range(first, specimen.num_layers + 1):
        ((start, end),) = oracle_paths(specimen, a, b, layer=layer, num_steps=2)
        assert start == 0
        torch.testing.assert_close(end, (clean_a - clean_b).norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_paths_equal_the_oracle_at_every_layer(name: str, attention: str | None) -> None:
    """An engine that cannot do an architecture says so; it never gives wrong numbers."""
    specimen, species = zoo.build(name, attention=attention), zoo.SPECIES[name]
    works: dict[Engine, bool] = {"shared": species.shared, "rows": species.rows, "plain": True}
    fastest = next(way for way, does in works.items() if does)
    for layer in range(specimen.num_layers + 1):
        paths = measure(specimen, layer=layer)
        assert paths.engine == fastest
        assert (paths.distance[:, 0] == 0).all()
        assert paths.noise_floor < TOLERANCE
        assert_exact(paths.distance, _truth(name, attention, layer=layer))
    for engine, does in works.items():
        if engine == fastest:
            continue
        with nullcontext() if does else pytest.raises(InputError, match=engine):
            paths = measure(specimen, engine=engine)
            assert paths.engine == engine
            assert_exact(paths.distance, _truth(name, attention, layer=1))


@pytest.mark.parametrize("length", [2, zoo.WINDOW, zoo.WINDOW + 1, 19])
@pytest.mark.parametrize("name", [*map(_slow, ["bloom", "packed_gpt", *WINDOWED])])
def test_paths_equal_the_oracle_at_other_lengths(name: str, length: int) -> None:
    """One earlier token, a prompt that just fills the window, one more, and many windows."""
    specimen = zoo.build(name)
    for engine in ("auto", "rows") if zoo.SPECIES[name].rows else ("auto",):
        paths = measure(specimen, length=length, engine=engine)
        assert_exact(paths.distance, _truth(name, length=length))


@pytest.mark.parametrize("output", ["resid_final", "logits"])
@pytest.mark.parametrize("name", [*map(_slow, READ)])
def test_every_output_equals_the_oracle(name: str, output: Output) -> None:
    specimen = zoo.build(name)
    first: Engine = "rows" if zoo.SPECIES[name].rows else "plain"
    ways: list[tuple[int, Engine]] = [(1, first), (specimen.num_layers, "auto")]
    for layer, engine in ways:
        paths = measure(specimen, layer=layer, output=output, engine=engine)
        assert_exact(paths.distance, _truth(name, layer=layer, output=output))


def test_every_way_works_where_experts_are_balanced_in_training() -> None:
    """The model reckons how balanced they are in each forward, but cannot where rows are shared."""
    specimen = zoo.build("mixtral")
    specimen.model.config.output_router_logits = True  # type: ignore[union-attr]
    for engine in ENGINES:
        paths = measure(specimen, engine=engine)
        assert paths.engine == ("shared" if engine == "auto" else engine)
        assert_exact(paths.distance, _truth("mixtral"))


@pytest.mark.parametrize("name", ["gpt2", "mistral_window", "row_gpt"])
def test_every_point_that_adaptive_sampling_looked_at_equals_the_oracle(name: str) -> None:
    paths = measure(zoo.build(name), num_steps=31, sampling="adaptive")
    true = _truth(name, num_steps=31)
    looked = paths.distance.isfinite()
    assert looked[:, [0, -1]].all()
    assert paths.num_points == looked.sum() < looked.numel()
    assert_exact(torch.where(looked, paths.distance, true), true)


@pytest.mark.parametrize(
    "name", ["gpt2", "falcon_alibi", "mistral_window", "mamba", "packed_gpt", "sequence_gpt"]
)
def test_slices_equal_the_oracle(name: str) -> None:
    specimen = zoo.build(name)
    corners = _corners(specimen)
    slices = measure_slices(specimen.model, *corners, layer=1, resolution=4)
    distance, foot = oracle_slices(specimen, corners, layer=1, resolution=4)
    torch.testing.assert_close(slices.coordinates, torch.linspace(-0.25, 1.25, 4))
    torch.testing.assert_close(slices.foot, foot, rtol=1e-5, atol=1e-6)
    assert distance.shape == (2, 3, 4, 4)
    _assert_exact_maps(slices.distance, distance)


@pytest.mark.parametrize(
    ("output", "engine"), [("final_norm", "plain"), ("resid_final", "rows"), ("logits", "shared")]
)
def test_slices_equal_the_oracle_with_other_arguments(output: Output, engine: Engine) -> None:
    """Another layer, an odd span, every output and engine."""
    specimen = zoo.build("llama")
    corners = _corners(specimen)
    options: dict[str, Any] = {"layer": 2, "resolution": 3, "span": (-1.0, 0.5), "output": output}
    distance, _ = oracle_slices(specimen, corners, **options)
    slices = measure_slices(specimen.model, *corners, **options, engine=engine, max_tokens=11)
    torch.testing.assert_close(slices.coordinates, torch.linspace(-1, 0.5, 3))
    _assert_exact_maps(slices.distance, distance)


@pytest.mark.parametrize("name", ["gpt2", "mamba", "packed_gpt"])
def test_input_distance_is_the_distance_between_the_activations(name: str) -> None:
    specimen = zoo.build(name)
    for layer in (0, 1, specimen.num_layers):
        paths = measure(specimen, layer=layer, num_steps=2)
        expected = [
            torch.dist(run(specimen, x, layer, "logits")[0], run(specimen, y, layer, "logits")[0])
            for x, y in zip(*pairs(specimen), strict=True)
        ]
        torch.testing.assert_close(paths.input_distance, torch.stack(expected))


@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_a_linear_network_has_slope_one(sampling: Sampling) -> None:
    specimen = zoo.build("linear")
    for layer in range(4):
        paths = measure(specimen, layer=layer, num_steps=51, sampling=sampling)
        torch.testing.assert_close(paths.max_slope, torch.ones(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_a_step_network_has_slope_steps_minus_one(sampling: Sampling) -> None:
    """The jump from an even last token to an odd one is known: at alpha 0.665."""
    specimen = zoo.build("step")
    a, b = torch.tensor([[5, 3, 2], [1, 2, 40]]), torch.tensor([[9, 9, 7], [2, 2, 11]])
    for layer in range(3):
        paths = measure_paths(specimen.model, a, b, layer=layer, num_steps=51, sampling=sampling)
        assert paths.max_slope.tolist() == [50.0, 50.0]
        looked = paths.distance.isfinite()
        step = (paths.alphas > 0.665).float().expand(2, -1)
        torch.testing.assert_close(paths.relative[looked], step[looked])
        assert ((paths.location - 0.665).abs() <= 0.02).all()


@pytest.mark.parametrize("sampling", get_args(Sampling))
@pytest.mark.parametrize(("name", "engine"), EACH_WAY)
def test_order_and_company_in_the_batch_do_not_matter(
    name: str, engine: Engine, sampling: Sampling
) -> None:
    specimen = zoo.build(name)
    a, b = pairs(specimen)
    options: dict[str, Any] = {"num_steps": 21, "sampling": sampling, "engine": engine}
    for order in ([2, 0, 1], [1, 1, 1, 0, 2, 0], [2]):
        paths = measure_paths(specimen.model, a[order], b[order], **options)
        true = _truth(name, num_steps=21)[order]
        looked = paths.distance.isfinite()
        assert looked.all() or sampling == "adaptive"
        assert_exact(torch.where(looked, paths.distance, true), true)


def test_a_model_in_training_mode_is_measured_without_dropout() -> None:
    specimen = zoo.build("gpt2")
    specimen.model.train()
    assert_exact(measure(specimen).distance, _truth("gpt2"))


@pytest.mark.parametrize("layer", range(4))
def test_a_skip_around_blocks_that_stand_aside_is_caught(layer: int) -> None:
    """Cut between the ends of a skip, the fast ways lack what the first block puts out."""
    specimen = zoo.build("skipping_llama")
    warned = (
        pytest.warns(UserWarning, match="'rows' way.*disagrees") if layer == 2 else nullcontext()
    )
    with warned:
        paths = measure(specimen, layer=layer)
    assert paths.engine == ("plain" if layer == 2 else "shared")
    assert_exact(paths.distance, _truth("skipping_llama", layer=layer))


def test_blocks_are_told_by_name_or_as_a_list() -> None:
    specimen = zoo.build("linear")
    specimen.model.adapters = nn.ModuleList(nn.Identity() for _ in specimen.stack)
    for layer_path in ("blocks", specimen.layers):
        assert_exact(measure(specimen, layer_path=layer_path).distance, _truth("linear"))


def _assert_refused(model: nn.Module, said: str, *prompts: Tensor, **options: Any) -> None:
    """Expect one line from paths, and from slices where there are three prompts."""
    work: Any = measure_paths if len(prompts) == 2 else measure_slices
    with pytest.raises(InputError, match=said) as caught:
        work(model, *prompts, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),  # Gemma 3n has four streams at once
    [("gemma3n", r"4-D|\(4, "), ("t5", "encoder-decoder"), ("bert", "not causal")],
)
def test_models_without_a_causal_stream_are_refused(name: str, said: str) -> None:
    specimen = zoo.build(name)
    corners = _corners(specimen)
    _assert_refused(specimen.model, said, *corners[:2])
    _assert_refused(specimen.model, said, *corners, resolution=3)


def test_packed_prompts_that_all_see_one_another_are_refused() -> None:
    """Side by side they look causal: each position of both sees the same."""
    specimen = zoo.build("packed_gpt")
    for block in specimen.layers:
        block.register_forward_pre_hook(lambda _, args: (args[0], torch.ones_like(args[1])))
    with pytest.raises(InputError, match="PackedGPT is not causal"):
        measure(specimen)


def test_logits_of_a_model_without_a_head_are_refused() -> None:
    specimen = zoo.build("gpt2")
    headless = specimen.model.get_submodule("transformer")
    said = "output='logits': GPT2Model .*AutoModelForCausalLM.*final_norm"
    _assert_refused(headless, said, *pairs(specimen), output="logits")
    measure_paths(headless, *pairs(specimen), output="final_norm", num_steps=2)


@pytest.mark.usefixtures("_as_users_run_it")
def test_bad_arguments_are_refused_with_the_fix() -> None:
    specimen = zoo.build("llama")
    corners = _corners(specimen)
    of_both: list[tuple[dict[str, Any], str]] = [
        ({"layer": 4}, r"layer=4.*\b3\b"),
        ({"layer": -1}, r"layer=-1.*\b0\b"),
        ({"output": "probabilities"}, r"probabilities.*final_norm.*resid_final.*logits"),
        ({"engine": "fast"}, r"fast.*auto.*shared.*rows.*plain"),
        ({"max_tokens": 0}, r"max_tokens=0.*\b1\b"),
    ]
    of_paths: list[tuple[dict[str, Any], str]] = [
        ({"num_steps": 1}, r"num_steps=1.*\b2\b"),
        ({"sampling": "random"}, r"random.*grid.*adaptive"),
    ]
    of_slices: list[tuple[dict[str, Any], str]] = [
        ({"resolution": 1}, r"resolution=1.*\b2\b"),
        ({"span": (1.0, -1.0)}, r"span"),
    ]
    for options, said in [*of_both, *of_paths]:
        _assert_refused(specimen.model, said, *corners[:2], **options)
    for options, said in [*of_both, *of_slices]:
        _assert_refused(specimen.model, said, *corners, **options)


_GOOD = torch.arange(21).reshape(3, 7)


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("prompts_a", "prompts_b", "said"),
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
    prompts_a: Tensor, prompts_b: Tensor, said: str
) -> None:
    for name in ("llama", "nano_gpt"):
        model = zoo.build(name).model
        _assert_refused(model, said, prompts_a, prompts_b)
        _assert_refused(model, said, prompts_a, prompts_a, prompts_b)
