"""The spectrum of final vectors: of matrices whose rank and decay are known, and of a model."""

import math

import pytest
import torch

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page
from sr_monitor.probes.geometry import Geometry, decay, effective_rank
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import run


def test_equal_directions_count_once_each() -> None:
    assert effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3.0)
    assert effective_rank(torch.tensor([5.0])) == pytest.approx(1.0)
    assert math.isnan(effective_rank(torch.zeros(4)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_a_power_law_has_its_exponent(alpha: float) -> None:
    values = torch.arange(1, 41).double() ** (-alpha / 2)
    values[0] *= 30  # the first direction is left out
    values[30:] *= 0.1  # and the tail
    assert decay(values) == pytest.approx(alpha)
    assert math.isnan(decay(values[:5]))


def test_it_is_that_of_the_clean_vectors_of_a_model() -> None:
    specimen = zoo.build("llama")
    ids = specimen.prompts(13, 6)
    prompts = PromptSet.from_token_ids(ids)
    probes = [PathsProbe(num_steps=3), Geometry()]
    part = measure_probes(specimen.model, prompts, probes, SessionOptions())["geometry"]
    vectors = torch.stack([run(specimen, prompt, 1, "final_norm")[1] for prompt in ids[:-1]])
    # Their covariance has the squares as eigenvalues.
    eigenvalues = torch.linalg.eigvalsh(torch.cov(vectors.double().T) * 11).flip(0)[:11]
    torch.testing.assert_close(
        part["singular_values"].double(), eigenvalues.sqrt(), rtol=1e-4, atol=1e-5
    )
    shares = eigenvalues.sqrt() / eigenvalues.sqrt().sum()
    rank = math.exp(-sum(p * math.log(p) for p in shares.tolist()))
    assert Geometry().scalars(part)[Geometry.RANK] == pytest.approx(rank, rel=1e-4)
    page = Page(title="step 0", part=part, parts={}, prompts=prompts)
    assert [key for key, _ in Geometry().pictures(page, [page])] == [Geometry.SPECTRUM]


def test_vectors_that_are_not_finite_are_left_out() -> None:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    broken = torch.cat([vectors, torch.full((1, 4), torch.nan)])
    clean, found = (Geometry().settle(each, {}) for each in (vectors, broken))
    assert torch.equal(clean["singular_values"], found["singular_values"])
    for nothing in (vectors[:0], vectors[:1]):
        part = Geometry().settle(nothing, {})
        assert all(map(math.isnan, Geometry().scalars(part).values()))
