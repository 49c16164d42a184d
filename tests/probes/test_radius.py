"""Plateau radii: equal to the definition, to closed forms, and to norms whose exponent is known."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import PromptSet
from sr_monitor.errors import InputError
from sr_monitor.model.session import SessionOptions
from sr_monitor.model.stream import Output
from sr_monitor.probes.base import Page
from sr_monitor.probes.crossing import first_crossing
from sr_monitor.probes.directions import KINDS
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.radius import CENSORED, CLOSED_FORM, EXPONENT, RADIUS, Radii, Radius
from sr_monitor.results.record import Record
from tests import zoo
from tests.made import PROMPTS
from tests.oracle import run

LENGTH = 5
RESOLUTION = 0.002


def measured(
    model: nn.Module, prompts: PromptSet, output: Output = "final_norm", **options: Any
) -> Radii:
    probes = [PathsProbe(num_pairs=2, num_steps=2), Radius(**options)]
    part: Radii = measure_probes(model, prompts, probes, SessionOptions(output=output))["radius"]
    return part


def prompts_of(specimen: zoo.Specimen, num: int = 9) -> PromptSet:
    return PromptSet.from_token_ids(specimen.prompts(num, LENGTH))


def kl(own: Float[Tensor, " token"], other: Float[Tensor, " token"]) -> float:
    """By torch's own divergence."""
    p, q = (torch.distributions.Categorical(logits=each.double()) for each in (own, other))
    return float(torch.distributions.kl_divergence(p, q))


# The definition ---------------------------------------------------------------------------------


def test_radii_toward_other_prompts_are_where_plain_forwards_cross() -> None:
    """Pushed by the radius, less two percent and more, a whole forward is below and above eps."""
    specimen = zoo.build("llama")
    prompts = prompts_of(specimen, num=4)
    found = measured(specimen.model, prompts, num_prompts=2, num_directions=2, threshold=0.05)
    assert found.radius.shape == (2, 4, 2)
    ids, kind = prompts.token_ids, KINDS.index("activations")
    activations = [run(specimen, prompt, 1, "logits")[0] for prompt in ids]
    for index in range(2):
        a, clean = run(specimen, ids[index], 1, "logits")
        # Which other prompt a direction leads to is not told: one of them has to fit.
        for radius in found.radius[index, kind].tolist():
            fits = []
            for b in activations:
                if not torch.equal(a, b):
                    u = (b - a) / (b - a).norm()
                    ends = (a + radius * (1 + sign * 0.02) * u for sign in (-1, 1))
                    below, above = (
                        kl(clean, run(specimen, ids[index], 1, "logits", end)[1]) for end in ends
                    )
                    fits.append(below < 0.05 < above)
            assert any(fits)


def test_the_scale_is_the_distance_between_activations() -> None:
    specimen = zoo.build("llama")
    prompts = prompts_of(specimen, num=3)
    found = measured(specimen.model, prompts, num_prompts=1, num_directions=2)
    a, b, c = (run(specimen, prompt, 1, "final_norm")[0] for prompt in prompts.token_ids)
    assert found.scale == pytest.approx(float(min((b - a).norm(), (c - a).norm())), rel=1e-4)


# A network whose output is linear in the activation ---------------------------------------------


def linear_network() -> Any:
    """F(x) = x: embedding, blocks that do nothing, unembedding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return zoo.HandMade([nn.Identity(), nn.Identity()]).eval()


def root(model: Any, a: Tensor, u: Tensor, eps: float) -> float:
    """Where KL(softmax(W a) || softmax(W (a + r u))) is eps, by bisection in double precision."""
    weight = model.unembedding.weight.detach().double()
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        is_above = kl(weight @ a, weight @ (a + middle * u)) > eps
        low, high = (low, middle) if is_above else (middle, high)
    return low


@pytest.mark.parametrize("eps", [0.1, 1e-4])
def test_in_a_linear_network_radii_are_known(eps: float) -> None:
    """Toward the only other prompt there is; for a small eps the closed form is the same."""
    model = linear_network()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = measured(
        model, PromptSet.from_token_ids(ids), num_prompts=1, num_directions=60, threshold=eps
    )
    a, b = model.embedding.weight.detach()[[3, 6]].double()
    u = (b - a) / (b - a).norm()
    expected = root(model, a, u, eps)
    toward = [found.radius[0, KINDS.index(kind)] for kind in ("activations", "swaps")]
    for radius in torch.cat(toward).tolist():
        assert radius == pytest.approx(expected, rel=RESOLUTION)
    weight = model.unembedding.weight.detach().double()
    p = (weight @ a).softmax(dim=0)
    fisher = weight.T @ (torch.diag(p) - torch.outer(p, p)) @ weight
    if eps < 0.01:
        closed = math.sqrt(2 * eps / float(u @ fisher @ u))
        assert expected == pytest.approx(closed, rel=0.01)
        torch.testing.assert_close(found.output_radius, found.closed_form, rtol=0.02, atol=0)
        # Which directions were drawn is not told; over many, the mean of u'Gu is trace(G) / d.
        mean = (2 * eps / found.closed_form.square()).mean()
        assert float(mean) == pytest.approx(float(fisher.trace()) / len(a), rel=0.1)


# Norms with a known exponent --------------------------------------------------------------------


class Norm(nn.Module):
    """Writes sum |x_i|^q into the first coordinate, or a steep power of the largest |x_i|."""

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = q

    def forward(self, x: Tensor) -> Tensor:
        size = x.abs().amax(dim=-1) ** 4 if self.q == math.inf else (x.abs() ** self.q).sum(dim=-1)
        return torch.nn.functional.pad(size[..., None], (0, x.shape[-1] - 1))


def norm_network(q: float) -> tuple[Any, PromptSet]:
    """Token 0 lies at the origin, every other one on an axis of its own."""
    model = zoo.HandMade([nn.Identity(), Norm(q)]).eval()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(zoo.VOCAB)[:, : zoo.WIDTH].roll(1, dims=0))
        model.embedding.weight[0] = 0
        model.unembedding.weight.zero_()
        model.unembedding.weight[0, 0] = 1
    lasts = [0, 0, 0, 0, *range(1, 21)]
    ids = torch.tensor([[40 + place % 3, 50, last] for place, last in enumerate(lasts)])
    return model, PromptSet.from_token_ids(ids)


@pytest.mark.parametrize(("q", "expected"), [(2.0, 2.0), (4.0, 4.0), (1.0, 1.0), (math.inf, 50.0)])
def test_the_exponent_is_that_of_the_norm(q: float, expected: float) -> None:
    found = measured(*norm_network(q), num_prompts=3, num_directions=6, reach=50.0)
    for kind in ("activations", "swaps"):
        p = found.exponent(kind)
        if q == math.inf:
            assert p.median > expected  # the cube's is infinite
        else:
            assert p.median == pytest.approx(expected, rel=0.01)
    scalars = Radius().scalars(found)
    assert scalars[EXPONENT["swaps", "median"]] == found.exponent("swaps").median
    if q == 2:  # in whichever directions
        for kind in ("random", "mixtures"):
            assert found.exponent(kind).median == pytest.approx(2, rel=0.01)
        assert scalars[CENSORED] == 0
        radii = found.radius[~found.radius.isnan()]
        torch.testing.assert_close(radii, radii[0].expand_as(radii), rtol=RESOLUTION, atol=0)


# What never gets there, and what is not there ---------------------------------------------------


def test_directions_that_never_pass_are_counted_and_count_as_the_longest() -> None:
    model, prompts = norm_network(2.0)
    found = measured(model, prompts, num_prompts=2, num_directions=2, reach=0.01)
    assert (found.radius.isinf() | found.radius.isnan()).all()
    assert found.censored.tolist() == [1, 1, 1, 1]
    scalars = Radius().scalars(found)
    assert scalars[CENSORED] == 1
    assert scalars[RADIUS["random", "median"]] == pytest.approx(0.01)
    assert math.isnan(scalars[EXPONENT["random", "median"]])
    assert Radius().facts(found)["radius beyond reach"].startswith("random 100%, activations 100%")


def test_where_there_is_no_direction_there_is_no_radius() -> None:
    """All prompts are one: no other activation, no other last token, no covariance."""
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(1, LENGTH).expand(4, -1))
    found = measured(specimen.model, prompts, num_prompts=2, num_directions=3)
    assert found.radius[:, 0].isfinite().all()
    assert found.radius[:, 1:].isnan().all()
    assert Radius().scalars(found)[CENSORED] == 0


def test_outputs_that_are_not_finite_have_no_radius() -> None:
    specimen = zoo.build("llama")
    with torch.no_grad():
        specimen.model.get_parameter("model.norm.weight").fill_(torch.nan)
    found = measured(specimen.model, prompts_of(specimen), num_prompts=2, num_directions=2)
    assert found.radius.isnan().all()
    assert math.isnan(Radius().scalars(found)[CLOSED_FORM])


def test_a_model_without_an_unembedding_is_told_and_the_rest_measured() -> None:
    specimen = zoo.build("llama")
    probes = [PathsProbe(num_pairs=2, num_steps=2), Radius()]
    options = SessionOptions(output="resid_final")
    with pytest.warns(UserWarning, match=r"probes='radius': .*resid_final.* are measured"):
        parts = measure_probes(specimen.model, prompts_of(specimen), probes, options)
    assert list(parts) == ["paths"]


def test_a_record_keeps_the_radii(tmp_path: Path) -> None:
    found = measured(*norm_network(2.0), num_prompts=3, num_directions=2)
    record = Record(step=1, parts={"radius": found})
    record.save(tmp_path / "record")
    kept = Record.load(tmp_path / "record")
    assert kept.scalars == pytest.approx(record.scalars, nan_ok=True)
    assert isinstance(kept.parts["radius"], Radii)
    (key, picture), *others = Radius().pictures(
        Page(title="step 1", part=kept.parts["radius"], parts={}, prompts=PROMPTS), ()
    )
    assert (key.kind, others) == ("image", [])
    assert picture.std() > 10


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"threshold=0.0: pass a positive number"):
        Radius(threshold=0.0)


def test_the_first_crossing_counts() -> None:
    """Past 0.3 up to 0.6, and from 2 on; never; at once; and where nothing is a number."""

    def value_at(length: Tensor) -> Tensor:
        hill = ((length > 0.3) & (length < 0.6)) | (length > 2)
        rows = [hill, length > 100, length > 0.001, hill]
        values = torch.stack([row[i] for i, row in enumerate(rows)]).float()
        values[3] = torch.nan
        return values

    found = first_crossing(value_at, torch.full((4,), 8.0), threshold=0.5)
    assert found[0] == pytest.approx(0.3, rel=0.03)  # a step is known to an interval
    assert found[1] == math.inf
    assert found[2:].tolist() == pytest.approx([0.001, 0.0], abs=8 / 128 / 2**5)
