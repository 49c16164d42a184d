"""`Stream.unembed` against the model's own next-token logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import peft
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from sr_monitor import InputError
from sr_monitor.model.anatomy import dissect
from sr_monitor.model.stream import Output, Stream
from sr_monitor.model.undisturbed import undisturbed
from tests import zoo
from tests.model.helpers import LENGTH, needs_fsdp2
from tests.oracle import run

BEYOND_THE_HEAD = ("gemma2_window", "granite", "cohere", "lit_gpt")
"""Models that cap or scale what their head puts out."""


@contextmanager
def _stream(specimen: zoo.Specimen, model: nn.Module, output: Output) -> Iterator[Stream]:
    with undisturbed(model):
        sample = specimen.prompts(1, LENGTH)
        yield Stream(dissect(model), layer=1, output=output, sample=sample)


def _finals(specimen: zoo.Specimen, stream: Stream) -> Float[Tensor, "prompt d_output"]:
    prompts = specimen.prompts(4, LENGTH)
    return stream.continue_plain(prompts, stream.read(prompts)).final


def _own_logits(specimen: zoo.Specimen) -> Float[Tensor, "prompt vocab"]:
    prompts = specimen.prompts(4, LENGTH)
    return torch.stack([run(specimen, prompt, 1, "logits")[1] for prompt in prompts])


def _traces(model: nn.Module) -> list[Any]:
    """What hooks and patches leave behind."""
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), vars(module).get("forward"))
        for module in model.modules()
    ]


def _assert_equal(logits: Tensor, expected: Tensor) -> None:
    assert (logits - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("name", [*zoo.ARCHITECTURES, *zoo.HAND_MADE])
def test_final_vectors_give_the_models_own_logits(name: str) -> None:
    specimen = zoo.build(name)
    model = specimen.model
    before = _traces(model)
    with _stream(specimen, model, "final_norm") as stream:
        finals = _finals(specimen, stream)
        logits, expected = stream.unembed(finals), _own_logits(specimen)
        bare = model.get_submodule(specimen.unembedding)(finals)
        assert _traces(model) == before
    _assert_equal(logits, expected)
    assert ((bare - expected).abs().max() > 0.01) == (name in BEYOND_THE_HEAD)


@pytest.mark.parametrize("name", ["gemma2_window", "lit_gpt", "row_gpt"])
def test_logits_are_what_they_are_and_what_precedes_the_final_norm_gives_none(name: str) -> None:
    specimen = zoo.build(name)
    with _stream(specimen, specimen.model, "logits") as stream:
        logits = _finals(specimen, stream)
        assert stream.unembed(logits) is logits
        _assert_equal(logits, _own_logits(specimen))
    with (
        _stream(specimen, specimen.model, "resid_final") as stream,
        pytest.raises(InputError, match=r"resid_final.*output='final_norm'"),
    ):
        stream.unembed(_finals(specimen, stream))


def test_a_model_without_a_head_is_refused() -> None:
    specimen = zoo.build("llama")
    headless = specimen.model.get_submodule("model")
    with (
        _stream(specimen, headless, "final_norm") as stream,
        pytest.raises(InputError, match="next-token logits: LlamaModel has no unembedding"),
    ):
        stream.unembed(_finals(specimen, stream))


@pytest.mark.parametrize("name", ["llama", "lit_gpt"])
def test_nothing_is_left_behind_when_the_head_fails(name: str) -> None:
    specimen = zoo.build(name)
    model = specimen.model
    with _stream(specimen, model, "final_norm") as stream:
        finals = _finals(specimen, stream)
        head: Any = model.get_submodule(specimen.unembedding)
        head.register_forward_hook(lambda *_: 1 / 0)
        before = _traces(model)
        with pytest.raises(ZeroDivisionError):
            stream.unembed(finals)
        assert _traces(model) == before


def _sharded(model: nn.Module) -> nn.Module:
    needs_fsdp2()
    for block in model.get_submodule("model.layers").children():
        fully_shard(block)
    fully_shard(model)
    return model


def _adapted(model: Any) -> nn.Module:
    config = peft.LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    adapted: nn.Module = peft.get_peft_model(model, config).eval()
    return adapted


@pytest.mark.usefixtures("_one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [_sharded, partial(torch.compile, backend="eager"), _adapted])
def test_wrapped_models_are_called_through_their_wrapper(wrap: Any) -> None:
    specimen = zoo.build("llama")
    model = wrap(specimen.model)
    with _stream(specimen, model, "final_norm") as stream:
        finals = _finals(specimen, stream)
        logits = stream.unembed(finals)
        expected = model(specimen.prompts(4, LENGTH)).logits[:, -1]
    _assert_equal(logits, expected)
