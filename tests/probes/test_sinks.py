"""Attention sinks: known for attention built by hand, and equal to what models put out."""

from contextlib import suppress
from typing import Any

import pytest
import torch

from sr_monitor import PromptSet
from sr_monitor.model.anatomy import dissect
from sr_monitor.model.attention import Attended, eager_attention
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.sinks import Sinks, _written
from tests import zoo

LENGTH, NUM_PROMPTS = 6, 3


def _measured(name: str) -> tuple[zoo.Specimen, PromptSet, Any]:
    specimen = zoo.build(name)
    prompts = PromptSet.from_token_ids(specimen.prompts(NUM_PROMPTS + 1, LENGTH))
    probes = [PathsProbe(num_steps=3), Sinks()]
    parts = measure_probes(specimen.model, prompts, probes, SessionOptions())
    return specimen, prompts, parts.get("sinks")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "mistral_window", "gemma3_window"])
def test_attention_is_what_the_model_puts_out(name: str) -> None:
    specimen, prompts, found = _measured(name)
    reference: Any = zoo.build(name, attention="eager").model
    ids = prompts.pairs()[0]
    with torch.no_grad():
        result = reference(ids, output_attentions=True, use_cache=True)
    assert found["block"].tolist() == list(range(1, specimen.num_layers + 1))
    layers = result.past_key_values.layers
    for place, (weights, layer) in enumerate(zip(result.attentions, layers, strict=True)):
        paid = weights[:, :, -1, 0]
        torch.testing.assert_close(found["attention"][place], paid.mean(dim=0))
        # Windows shorter than the prompt keep no values of the first token.
        assert bool(found["written"].isfinite()[place]) == (layer.values.shape[-2] == LENGTH)


def test_what_is_written_is_the_sum_by_hand() -> None:
    specimen, prompts, found = _measured("llama")
    reference: Any = zoo.build("llama", attention="eager").model
    with torch.no_grad():
        result = reference(prompts.pairs()[0], output_attentions=True, use_cache=True)
    rows = []
    for weights, layer in zip(result.attentions, result.past_key_values.layers, strict=True):
        groups = weights.shape[1] // layer.values.shape[1]
        for prompt in range(NUM_PROMPTS):
            first, everything, norms = [], [], torch.zeros(LENGTH)
            for head in range(weights.shape[1]):
                paid, values = weights[prompt, head, -1], layer.values[prompt, head // groups]
                first.append(paid[0] * values[0])
                everything.append(sum(a * v for a, v in zip(paid, values, strict=True)))
                norms += values.square().sum(dim=1)
            share = torch.cat(first).norm() / torch.cat(everything).norm()
            rows.append(torch.stack([share, norms.sqrt()[0] / norms.sqrt()[1:].mean()]))
    expected = torch.stack(rows).view(-1, NUM_PROMPTS, 2).mean(dim=1)
    torch.testing.assert_close(found["written"], expected[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["value"], expected[:, 1], rtol=1e-4, atol=1e-6)
    scalars = Sinks().scalars(found)
    assert scalars[Sinks.ATTENTION] == pytest.approx(float(found["attention"].mean()))
    page = Page(title="step 0", part=found, parts={}, prompts=prompts)
    assert [key for key, _ in Sinks().pictures(page, ())] == [Sinks.BY_HEAD]
    assert not any(module._forward_hooks for module in specimen.model.modules())


def test_a_prompt_that_is_not_finite_says_nothing() -> None:
    specimen = zoo.build("llama")
    ids = specimen.prompts(NUM_PROMPTS + 1, LENGTH)
    probes = [PathsProbe(num_steps=3), Sinks()]

    def measured(ids: torch.Tensor) -> Any:
        prompts = PromptSet.from_token_ids(ids)
        return measure_probes(specimen.model, prompts, probes, SessionOptions())["sinks"]

    broken = min({*range(zoo.VOCAB)} - {*ids.flatten().tolist()})
    ids[1, 0] = broken
    expected = measured(ids[[0, 2, 3]])
    model: Any = specimen.model
    model.model.embed_tokens.weight.data[broken] = torch.nan
    found = measured(ids)
    for name in ("attention", "written", "value"):
        torch.testing.assert_close(found[name], expected[name])


def test_a_perfect_sink_is_paid_all_and_writes_what_little_it_has() -> None:
    weights, values = torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 4)
    weights[..., 0] = 0.9
    weights[..., 1] = 0.1
    values[:, :, 0] = 0.01
    share, value = _written(Attended(weights, values))[0].tolist()
    assert share == pytest.approx(0.009 / 0.109)
    assert value == pytest.approx(0.01)


def test_the_model_comes_back_with_the_attention_it_had() -> None:
    model: Any = zoo.build("llama").model
    before = model.config._attn_implementation
    assert before == "sdpa"
    attention = model.model.layers[0].self_attn
    with suppress(ZeroDivisionError), eager_attention(dissect(model)):
        assert attention.config._attn_implementation == "eager"
        _ = 1 / 0
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("name", ["nano_gpt", "mamba"])
def test_a_model_without_attention_weights_is_refused_by_name(name: str) -> None:
    with pytest.warns(UserWarning, match="probes='sinks': .* gives out no attention weights"):
        assert _measured(name)[2] is None
