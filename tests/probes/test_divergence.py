"""The Kullback-Leibler curve: equal to the definition, and read off the points of paths."""

from itertools import pairwise
from typing import Literal

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.model.stream import Output
from sr_monitor.probes.base import Part
from sr_monitor.probes.divergence import END, MAX_SLOPE, Divergence
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import run

LENGTH, NUM_PAIRS, NUM_STEPS = 6, 3, 7
Sampling = Literal["grid", "adaptive"]


def _measured(
    specimen: zoo.Specimen,
    sampling: Sampling = "grid",
    num_steps: int = NUM_STEPS,
    output: Output = "final_norm",
) -> dict[str, Part]:
    prompts = PromptSet.from_token_ids(specimen.prompts(NUM_PAIRS + 1, LENGTH))
    probes = [PathsProbe(num_steps=num_steps, sampling=sampling), Divergence()]
    return measure_probes(specimen.model, prompts, probes, SessionOptions(output=output))


def _oracle(specimen: zoo.Specimen) -> Float[Tensor, "pair step"]:
    """KL(p_A || p(alpha)) from one plain forward pass a point, by torch's own divergence."""
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    rows = []
    for own, other in pairwise(ids):
        (a, clean), (b, _) = (run(specimen, prompt, 1, "logits") for prompt in (own, other))
        p = torch.distributions.Categorical(logits=clean.double())
        for alpha in torch.linspace(0, 1, NUM_STEPS).tolist():
            _, logits = run(specimen, own, 1, "logits", (1 - alpha) * a + alpha * b)
            q = torch.distributions.Categorical(logits=logits.double())
            rows.append(torch.distributions.kl_divergence(p, q))
    return torch.stack(rows).view(NUM_PAIRS, NUM_STEPS).float()


@pytest.mark.parametrize(
    ("name", "output"),
    [
        *(("llama", "logits"), ("gpt2", "final_norm"), ("gemma2_window", "final_norm")),
        *(("gemma2_window", "logits"), ("nano_gpt", "final_norm"), ("mamba", "final_norm")),
    ],
)
def test_the_curve_is_the_definition(name: str, output: Output) -> None:
    specimen = zoo.build(name)
    found, expected = _measured(specimen, output=output), _oracle(specimen)
    torch.testing.assert_close(found["divergence"]["kl"], expected, rtol=2e-4, atol=1e-6)
    scalars = Divergence().scalars(found["divergence"])
    assert scalars[END] == pytest.approx(float(expected[:, -1].median()), rel=1e-3)
    rises = (expected / expected[:, -1:]).diff(dim=1).amax(dim=1) * (NUM_STEPS - 1)
    assert scalars[MAX_SLOPE] == pytest.approx(float(rises.median()), rel=1e-3)


def test_it_reads_the_points_of_the_paths() -> None:
    specimen = zoo.build("llama")
    found = _measured(specimen, "adaptive", num_steps=51)
    looked = ~found["paths"].distance.isnan()
    assert not looked.all()
    assert torch.equal(~found["divergence"]["kl"].isnan(), looked)


def test_logits_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo.build("llama")
    whole = _measured(specimen)["divergence"]["kl"]
    monkeypatch.setattr("sr_monitor.probes.divergence._MOST_LOGITS", 5 * zoo.VOCAB)
    torch.testing.assert_close(_measured(specimen)["divergence"]["kl"], whole, rtol=1e-4, atol=1e-6)
