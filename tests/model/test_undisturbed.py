"""Whatever a measurement touches is put back, bit for bit, also after an exception."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from sr_monitor import InputError, measure_paths, measure_slices
from sr_monitor.model.undisturbed import undisturbed
from tests import zoo
from tests.model.helpers import LENGTH, Prompts, assert_exact, truth
from tests.oracle import Output

NUM_STEPS = 15


def _paths(model: nn.Module, prompts: Prompts, **options: Any) -> Any:
    return measure_paths(model, prompts[:-1], prompts[1:], num_steps=NUM_STEPS, **options)


def _slices(model: nn.Module, prompts: Prompts, **options: Any) -> Any:
    corners = prompts[:-2], prompts[1:-1], prompts[2:]
    return measure_slices(model, *corners, resolution=3, **options)


MEASUREMENTS: dict[str, Callable[[nn.Module, Prompts], Any]] = {
    "shared": partial(_paths, engine="shared"),
    "rows": partial(_paths, engine="rows", layer=2),
    "plain": partial(_paths, engine="plain", output="resid_final"),
    "adaptive": partial(_paths, sampling="adaptive", layer=0),
    "logits": partial(_paths, output="logits", layer=3),
    "slices": _slices,
}


def _bits(tensor: Tensor | None) -> bytes | None:
    """NaN included, and -0.0 told from 0.0."""
    if tensor is None:
        return None
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _process_state() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "torch": _bits(torch.get_rng_state()),
        "numpy": (numpy["state"]["key"].tolist(), numpy["state"]["pos"]),
        "gradients on": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast type": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def _module_state(module: nn.Module) -> tuple[Any, ...]:
    own = vars(module)
    hooks = {name: len(value) for name, value in own.items() if name.endswith("_hooks")}
    patches = [id(own.get(name)) for name in ("forward", "_compiled_call_impl")]
    plain = {
        name: _bits(value) if isinstance(value, Tensor) else value
        for name, value in own.items()
        if isinstance(value, int | float | Tensor)
    }
    return type(module), set(own), plain, hooks, patches


def _state(model: nn.Module) -> dict[str, Any]:
    state = _process_state()
    state |= {f"{path} module": _module_state(module) for path, module in model.named_modules()}
    for name, weight in model.named_parameters():
        facts = weight.requires_grad, weight._version
        state[name] = _bits(weight), _bits(weight.grad), *facts
    for name, buffer in model.named_buffers():
        state[name] = _bits(buffer)
    if isinstance(model, hf.PreTrainedModel):
        state["config"] = model.config.to_dict(), model.config._attn_implementation
        state["generation config"] = model.generation_config and model.generation_config.to_dict()
    return state


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {**before, **after} if before.get(key) != after.get(key))


def _worn(name: str) -> zoo.Specimen:
    """A model in the middle of a life: modes mixed, hooks, patches, gradients, frozen weights."""
    specimen = _counting() if name == "gpt2" else zoo.build(name)
    model: Any = specimen.model
    model.train()
    specimen.layers[1].eval()
    next(iter(specimen.layers[2].children())).eval()
    for module in (model, specimen.layers[0], specimen.layers[2]):
        module.forward = partial(module.forward)  # an instance's own, as accelerate leaves behind
    specimen.layers[1].register_forward_hook(lambda *_: None)
    specimen.layers[2].register_forward_pre_hook(lambda *_: None)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
        if number % 3 == 1:
            parameter.grad = torch.randn(parameter.shape)
    if isinstance(model, hf.PreTrainedModel):
        model.config.use_cache = False
    return specimen


class _Interruption(BaseException):
    """As a KeyboardInterrupt: no `except Exception` may stop it."""


def _raise(*_: Any) -> None:
    raise _Interruption


@pytest.mark.parametrize(
    ("name", "measurement"),
    [
        *(("gpt2", measurement) for measurement in MEASUREMENTS),
        ("nano_gpt", "logits"),
        ("packed_gpt", "slices"),
        ("sequence_gpt", "plain"),
        ("mamba", "plain"),
    ],
)
def test_nothing_is_changed_also_when_it_fails_anywhere(name: str, measurement: str) -> None:
    """An interruption at calls of the last block from first to last; an error at the last."""
    specimen = _worn(name)
    prompts = specimen.prompts(3, LENGTH)
    model = specimen.model
    calls, fatal = 0, -1
    error: type[BaseException] = _Interruption

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise error("here")

    specimen.layers[-1].register_forward_pre_hook(fail)
    before = _state(model)
    MEASUREMENTS[measurement](model, prompts)
    assert _changed(before, _state(model)) == []
    total = calls
    assert total > 2
    interruptions = sorted({1, 2, 3, total // 2, total})
    for fatal, error in [*((call, _Interruption) for call in interruptions), (total, RuntimeError)]:
        calls = 0
        with pytest.raises(error, match="here"):
            MEASUREMENTS[measurement](model, prompts)
        assert calls == fatal
        assert _changed(before, _state(model)) == [], fatal


@pytest.mark.parametrize("measure", [_paths, _slices])
def test_the_callers_modes_are_kept_and_do_not_matter(measure: Callable[..., Any]) -> None:
    specimen = _worn("gpt2")
    prompts = specimen.prompts(4, LENGTH)
    expected = measure(specimen.model, prompts).distance
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            before = _state(specimen.model)
            distance = measure(specimen.model, prompts).distance
            assert _changed(before, _state(specimen.model)) == []
        assert torch.equal(distance, expected)
        assert not distance.requires_grad


def test_inside_there_is_no_dropout_no_gradient_and_outside_everything_is_back() -> None:
    specimen = _worn("gpt2")
    before, python = _state(specimen.model), random.getstate()
    with undisturbed(specimen.model):
        assert not any(module.training for module in specimen.model.modules())
        assert not torch.is_grad_enabled()
        _ = torch.rand(3) + random.random() + np.random.rand()  # noqa: NPY002
        assert {"numpy", "torch"} <= {*_changed(before, _process_state())}
        assert random.getstate() != python
    assert random.getstate() == python
    assert _changed(before, _state(specimen.model)) == []


def test_buffers_that_follow_the_length_of_the_input_are_given_back() -> None:
    """Dynamic rotary embeddings rescale their frequencies for the longest input so far."""
    config: Any = zoo.build("llama").model.config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config.max_position_embeddings = LENGTH + 1
    model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        model(torch.randint(61, (2, 3 * LENGTH)))
    prompts = torch.randint(61, (4, LENGTH))
    before = _state(model)
    _paths(model, prompts)
    assert _changed(before, _state(model)) == []


def _counting() -> zoo.Specimen:
    """GPT-2 with an MLP that counts what it is given, even in eval mode, as some experts do.

    What the last forwards counted goes into the next one of a training.
    """
    specimen = zoo.build("gpt2")
    mlp = specimen.stack[1].mlp
    mlp.register_buffer("bias", torch.zeros(zoo.WIDTH))
    mlp.register_buffer("tokens", torch.zeros(zoo.WIDTH))

    def count(_: nn.Module, args: Any, output: Tensor) -> Any:
        with torch.no_grad():
            if mlp.training:
                mlp.bias.add_(1e-3 * mlp.tokens)
                mlp.tokens.zero_()
            mlp.tokens.add_((args[0] > 0).sum((0, 1)))
        return output + mlp.bias

    mlp.register_forward_hook(count)
    return specimen


def test_buffers_are_given_back_whatever_they_are() -> None:
    """Shared by two modules, a part of another one, written to and then exchanged, and the like.

    Not large ones: packed weights are buffers, too, and there may be no room for two of them.
    """
    model, inner = nn.Module(), nn.Module()
    model.add_module("inner", inner)
    written = torch.arange(4.0)
    with torch.inference_mode():
        inference = torch.ones(2)
    for module, name, buffer in [
        (model, "written", written),
        (inner, "shared", written),
        (inner, "part", written[1:]),
        (model, "exchanged", torch.ones(2, dtype=torch.bfloat16)),
        (model, "nothing", None),
        (model, "elsewhere", torch.ones(2, device="meta")),
        (model, "left", torch.full((1,), torch.nan).expand(3)),
        (model, "inference", inference),
        (model, "packed", packed := torch.zeros(2**20 + 1, dtype=torch.int8)),
    ]:
        module.register_buffer(name, buffer)
    own = dict(model.named_buffers(remove_duplicate=False))
    values = {name: _bits(own[name]) for name in own.keys() - {"elsewhere", "packed"}}
    with undisturbed(model):
        written.add_(1)
        inner.get_buffer("part").mul_(3)
        model.get_buffer("exchanged").add_(1)
        model.exchanged = torch.zeros(1)
        packed[0] = 1
        assert own["written"].tolist() == [1, 6, 9, 12]
    after = dict(model.named_buffers(remove_duplicate=False))
    assert all(after[name] is buffer for name, buffer in own.items())
    assert after.keys() == own.keys()
    assert {name: _bits(own[name]) for name in values} == values
    assert packed[0] == 1


def test_buffers_that_a_backward_waits_for_are_left_alone() -> None:
    """Autograd takes no value again that was written to, even if it was to the same value."""
    specimen = _counting()
    counting = specimen.model.get_submodule("transformer.h.1.mlp")
    counting.register_buffer("factor", torch.full((zoo.WIDTH,), 2.0))
    weight = torch.ones(zoo.WIDTH, requires_grad=True)
    waiting = (weight * counting.get_buffer("factor")).sum()
    _paths(specimen.model, specimen.prompts(4, LENGTH))
    (gradient,) = torch.autograd.grad(waiting, weight)
    assert torch.equal(gradient, counting.get_buffer("factor"))


def _train(measure: Callable[[nn.Module], Any] | None, setup: str) -> tuple[Any, ...]:
    """4 steps of a tiny GPT-2 with dropout, measured before or after each forward, if at all.

    Return losses, weights, and random states.
    """
    torch.manual_seed(1)
    specimen = _counting() if setup == "counting" else zoo.build("gpt2")
    model: Any = specimen.model.train()
    if setup == "checkpointed":
        # its name since transformers 5.1, or before
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    run: Any = torch.compile(model, backend="eager") if setup == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(4):
        batch = torch.randint(specimen.vocab, (4, 12))
        with torch.autocast("cpu", torch.bfloat16, enabled=setup == "autocast"):
            if measure is not None and step % 2 == 0:
                measure(run)
            logits = run(input_ids=batch, use_cache=False).logits[:, :-1]
            # (row, token, vocab) -> (row·token, vocab)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if measure is not None and step % 2 == 1:
            measure(run)
        optimizer.step()
        losses.append(loss.item())
    assert len(set(losses)) > 1
    weights = {name: _bits(value) for name, value in model.state_dict().items()}
    return losses, weights, _process_state()


@pytest.mark.parametrize("setup", ["counting", "checkpointed", "autocast", "compiled"])
def test_a_measured_training_run_is_bit_for_bit_the_unmeasured_one(setup: str) -> None:
    prompts = zoo.build("gpt2").prompts(3, LENGTH)
    engines = []

    def measure(model: nn.Module) -> None:
        engines.append(_paths(model, prompts, sampling="adaptive").engine)
        _slices(model, prompts)

    assert _train(measure, setup) == _train(None, setup)
    assert len(engines) == 4
    assert "plain" not in engines


class _Compiler:
    """A `torch.compile` backend that counts graphs compiled and graphs run."""

    compiled = runs = 0

    def __call__(self, graph: torch.fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


def _compile(specimen: zoo.Specimen, how: str, backend: _Compiler) -> Any:
    if how == "wrapped":
        return torch.compile(specimen.model, backend=backend)
    if how == "in place":
        specimen.model.compile(backend=backend)
    for index, block in enumerate(specimen.layers):
        if how == "blocks in place":
            block.compile(backend=backend)
        if how == "blocks":
            specimen.stack[index] = torch.compile(block, backend=backend)
    return specimen.model


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("how", ["wrapped", "in place", "blocks in place", "blocks"])
def test_a_compiled_model_is_measured_and_stays_compiled(how: str) -> None:
    specimen = zoo.build("nano_gpt")
    prompts = specimen.prompts(4, LENGTH)
    true = truth(zoo.build("nano_gpt"), NUM_STEPS)
    backend = _Compiler()
    model = _compile(specimen, how, backend)
    with torch.no_grad():
        expected = model(prompts)
        model(prompts)
    compiled, runs = backend.compiled, backend.runs
    assert compiled > 0
    before = _state(model)
    paths = _paths(model, prompts)
    assert_exact(paths.distance, true)
    assert (backend.compiled, backend.runs) == (compiled, runs)
    assert _changed(before, _state(model)) == []
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        again = model(prompts)
    assert torch.equal(again[0], expected[0])
    assert backend.compiled == compiled
    assert backend.runs > runs


@pytest.mark.usefixtures("_fresh_compiler")
def test_the_callers_compile_stance_is_kept_also_after_an_error() -> None:
    specimen = zoo.build("nano_gpt")
    prompts = specimen.prompts(4, LENGTH)
    backend = _Compiler()
    model: Any = torch.compile(specimen.model, backend=backend)
    with torch.compiler.set_stance("force_eager"):
        _paths(model, prompts)
        model(prompts)
    assert backend.compiled == 0
    handle = specimen.layers[1].register_forward_hook(_raise)
    with pytest.raises(_Interruption):
        _paths(model, prompts)
    handle.remove()
    model(prompts)
    assert backend.compiled > 0


class _Deaf(zoo.NanoGPT):
    """From its n-th forward on, it calls its blocks past their hooks."""

    calls, deaf_from = 0, 10**9

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        self.calls += 1
        block: Any = zoo._Block
        deaf = patch.object(block, "__call__", block.forward)
        with deaf if self.calls > self.deaf_from else nullcontext():
            return super().forward(idx, targets)


@pytest.mark.parametrize(
    ("layer", "output"), [(0, "final_norm"), (1, "resid_final"), (3, "logits")]
)
def test_a_hook_that_does_not_fire_is_an_error_whenever_it_happens(
    layer: int, output: Output
) -> None:
    """A clean run taken for a patched one would give distance 0 and look like a flat region."""
    model = _Deaf().eval()
    prompts = torch.randint(zoo.VOCAB, (4, LENGTH))
    _paths(model, prompts, layer=layer, output=output)
    total = model.calls
    assert total >= 4
    for model.deaf_from in range(total):
        model.calls = 0
        with pytest.raises(InputError, match=r"(?i)hook|block"):
            _paths(model, prompts, layer=layer, output=output)


def test_a_decoder_that_is_called_past_its_hooks_is_an_error_that_says_so() -> None:
    specimen = zoo.build("llama")
    decoder: Any = specimen.model.get_submodule("model")
    kind = type(decoder)
    decoder.__class__ = type("Deaf", (kind,), {"__call__": kind.forward})
    with pytest.raises(InputError, match="Deaf did not fire"):
        _paths(specimen.model, specimen.prompts(3, LENGTH))


def test_traced_and_exported_models_are_refused() -> None:
    specimen = zoo.build("nano_gpt")
    prompts = specimen.prompts(4, LENGTH)
    with torch.no_grad():
        exported = torch.export.export(specimen.model, (prompts,)).module()
    for options in ({}, {"layer_path": "transformer.h"}):
        with pytest.raises((InputError, RuntimeError), match=r"layer_path|hook|compiled"):
            _paths(exported, prompts, **options)
