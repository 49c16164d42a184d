"""Meaning against sharpness: similarities of whole forwards, labels with a known effect."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sr_monitor import PromptSet
from sr_monitor.errors import InputError
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page, Part
from sr_monitor.probes.meaning import Meaning
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import run

NUM_PAIRS, LENGTH = 6, 5


def _prompts(specimen: zoo.Specimen, pairing: str) -> PromptSet:
    count = NUM_PAIRS + 1 if pairing == "chain" else 2 * NUM_PAIRS
    return PromptSet(
        token_ids=specimen.prompts(count, LENGTH),
        texts=tuple(f"prompt {number}" for number in range(count)),
        labels=("similar", "dissimilar", "other") * 2,
        pairing=pairing,
    )


def _measured(specimen: zoo.Specimen, prompts: PromptSet, probe: Meaning) -> dict[str, Part]:
    probes = [PathsProbe(num_steps=9), probe]
    return measure_probes(specimen.model, prompts, probes, SessionOptions(max_tokens=30))


def _embed(texts: Sequence[str]) -> Tensor:
    numbers = torch.tensor([float(text.split()[1]) for text in texts])
    return torch.stack([numbers.cos(), numbers.sin()], dim=1)


@pytest.mark.parametrize("pairing", ["chain", "explicit"])
def test_similarities_are_those_of_whole_forwards(pairing: str) -> None:
    specimen = zoo.build("llama")
    prompts = _prompts(specimen, pairing)
    parts = _measured(specimen, prompts, Meaning(embed=_embed))
    found = parts["meaning"]
    for pair, (a, b) in enumerate(zip(*prompts.pairs(), strict=True)):
        (x, f), (y, g) = (run(specimen, each, 1, "final_norm") for each in (a, b))
        p, q = (run(specimen, each, 1, "logits")[1].double().softmax(dim=-1) for each in (a, b))
        mean = torch.distributions.Categorical((p + q) / 2)
        divergence = sum(
            torch.distributions.kl_divergence(torch.distributions.Categorical(each), mean) / 2
            for each in (p, q)
        )
        assert float(found["divergence"][pair]) == pytest.approx(float(divergence), rel=1e-3)
        for name, one, other in (("activations", x, y), ("finals", f, g)):
            expected = float(cosine_similarity(one, other, dim=0))
            assert float(found[name][pair]) == pytest.approx(expected, abs=1e-4)
    # Neighbours are an angle of 1 apart.
    assert found["embeddings"].tolist() == pytest.approx([math.cos(1)] * NUM_PAIRS, abs=1e-5)
    assert found["label"].tolist() == [1, 0, -1] * 2
    torch.testing.assert_close(found["sharpness"], parts["paths"].max_slope)


def _part(sharpness: Tensor, **given: Any) -> Part:
    nothing = torch.full_like(sharpness, torch.nan)
    names = ("divergence", "activations", "finals", "embeddings")
    label = torch.arange(len(sharpness)) % 2
    return {"sharpness": sharpness, "label": label} | dict.fromkeys(names, nothing) | given


def test_known_effects() -> None:
    sharpness = torch.arange(20.0)
    sharpness[0::2] += 100  # the dissimilar ones
    sharpness[[3, 8]] = torch.nan  # pairs that do not count
    part = _part(sharpness, divergence=sharpness.square(), finals=-sharpness)
    scalars = {key.label: value for key, value in Meaning().scalars(part).items()}
    assert scalars["meaning labels value"] == scalars["meaning labels low"] == 1.0
    assert scalars["meaning divergence value"] == pytest.approx(1.0)
    assert scalars["meaning finals high"] == pytest.approx(-1.0)
    assert not any("activations" in name or "embeddings" in name for name in scalars)
    assert Meaning().facts(part)["meaning labels"] == "+1.00 (95% interval +1.00 to +1.00)"
    prompts = PromptSet.from_token_ids(torch.zeros(2, 2, dtype=torch.long))
    page = Page(title="step 0", part=part, parts={}, prompts=prompts)
    assert [key.label for key, _ in Meaning().pictures(page, ())] == ["meaning pairs"]
    empty = Page(title="step 0", part=_part(torch.full((4,), torch.nan)), parts={}, prompts=prompts)
    assert [*Meaning().pictures(empty, ())] == []


def test_whether_a_path_has_a_step_can_be_compared_instead() -> None:
    specimen = zoo.build("step")
    ids = specimen.prompts(NUM_PAIRS + 1, 3)
    ids[:, -1] = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    found = _measured(specimen, PromptSet.from_token_ids(ids), Meaning(of="crossing"))["meaning"]
    # Of pairs that share a side of the threshold, nothing moves: they do not count.
    assert found["sharpness"].nan_to_num(-1).tolist() == [1, 1, -1, 1, -1, 1]
    assert found["label"].tolist() == [-1] * NUM_PAIRS


def test_embeddings_that_do_not_fit_are_refused() -> None:
    specimen = zoo.build("step")
    prompts = _prompts(specimen, "chain")
    with pytest.raises(InputError, match=r"embed=.* of 7 texts it returned \(2,\), not \(text, wi"):
        _measured(specimen, prompts, Meaning(embed=lambda _: torch.zeros(2)))
    untold = PromptSet.from_token_ids(prompts.token_ids)
    with pytest.warns(UserWarning, match="the prompts have no texts to embed"):
        assert "meaning" not in _measured(specimen, untold, Meaning(embed=_embed))
