"""Divergences and top tokens: equal to their definitions, and read off the points of paths."""

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.model.stream import Output
from sr_monitor.probes.base import Page, Part
from sr_monitor.probes.divergence import (
    CURVES,
    FLIPS,
    JS_END,
    JS_MAX_SLOPE,
    LOGIT_MAX_SLOPE,
    MAX_SLOPE,
    TOP_CHANGES,
    Divergence,
    divergences,
)
from sr_monitor.probes.divergence_pictures import draw_divergence
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.made import make_paths
from tests.oracle import run
from tests.pictures import assert_tidy, words

LENGTH, NUM_PAIRS, NUM_STEPS = 6, 3, 7
Sampling = Literal["grid", "adaptive"]


def _measured(
    specimen: zoo.Specimen,
    sampling: Sampling = "grid",
    num_steps: int = NUM_STEPS,
    output: Output = "final_norm",
    max_tokens: int | None = None,
    ids: Int[Tensor, "prompt token"] | None = None,
    every: int = 1,
) -> dict[str, Part]:
    given = specimen.prompts(NUM_PAIRS + 1, LENGTH) if ids is None else ids
    prompts = PromptSet.from_token_ids(given)
    probes = [PathsProbe(num_steps=num_steps, sampling=sampling), Divergence(every=every)]
    return measure_probes(
        specimen.model, prompts, probes, SessionOptions(output=output, max_tokens=max_tokens)
    )


def _oracle(specimen: zoo.Specimen) -> dict[str, Float[Tensor, "pair step"]]:
    """Divergences, logit differences and top tokens, from one plain forward pass a point."""
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    found: dict[str, list[Tensor]] = {"kl": [], "js": [], "logit_difference": [], "top_token": []}
    for own, other in pairwise(ids):
        (a, _), (b, _) = (run(specimen, prompt, 1, "logits") for prompt in (own, other))
        alphas = torch.linspace(0, 1, NUM_STEPS).tolist()
        points = [run(specimen, own, 1, "logits", (1 - x) * a + x * b)[1].double() for x in alphas]
        tops = points[0].argmax(), points[-1].argmax()
        for logits in points:
            p, q = (Categorical(logits=each) for each in (points[0], logits))
            middle = Categorical(probs=(p.probs + q.probs) / 2)
            found["kl"].append(kl_divergence(p, q))
            found["js"].append((kl_divergence(p, middle) + kl_divergence(q, middle)) / 2)
            found["logit_difference"].append(logits[tops[0]] - logits[tops[1]])
            found["top_token"].append(logits.argmax())
    return {name: torch.stack(rows).view(NUM_PAIRS, NUM_STEPS) for name, rows in found.items()}


@pytest.mark.parametrize(
    ("name", "output"),
    [
        *(("llama", "logits"), ("gpt2", "final_norm"), ("gemma2_window", "final_norm")),
        *(("gemma2_window", "logits"), ("nano_gpt", "final_norm"), ("mamba", "final_norm")),
    ],
)
def test_the_curves_are_the_definition(name: str, output: Output) -> None:
    specimen = zoo.build(name)
    parts, expected = _measured(specimen, output=output), _oracle(specimen)
    found = parts["divergence"]
    for curve, atol in (("kl", 1e-6), ("js", 1e-6), ("logit_difference", 1e-4)):
        torch.testing.assert_close(found[curve].double(), expected[curve], rtol=2e-4, atol=atol)
    assert torch.equal(found["top_token"].long(), expected["top_token"])
    assert torch.equal(found["kept"], parts["paths"].kept)
    logits = expected["logit_difference"]
    rising = {"kl": expected["kl"], "js": expected["js"], "logits": logits[:, :1] - logits}
    slopes = {
        name: float((curve / curve[:, -1:]).diff(dim=1).amax(dim=1).nanmedian()) * (NUM_STEPS - 1)
        for name, curve in rising.items()
    }
    scalars = {key.label: value for key, value in Divergence().scalars(found).items()}
    assert scalars["divergence end"] == pytest.approx(float(expected["kl"][:, -1].median()), 1e-3)
    assert scalars["divergence js end"] == pytest.approx(
        float(expected["js"][:, -1].median()), 1e-3
    )
    assert scalars["divergence max slope"] == pytest.approx(slopes["kl"], 1e-3)
    assert scalars["divergence js max slope"] == pytest.approx(slopes["js"], 1e-3)
    top = expected["top_token"]
    assert scalars["divergence top changes"] == pytest.approx(
        float((top[:, 0] != top[:, -1]).float().mean())
    )
    if bool((top[:, 0] != top[:, -1]).all()):
        assert scalars["divergence logit max slope"] == pytest.approx(slopes["logits"], 1e-3)


def test_in_a_network_with_one_jump_all_jump_there_and_pairs_without_one_do_not_count() -> None:
    """Between even and odd last tokens; the outputs of two even ones are equal."""
    specimen = zoo.build("step")
    ids = specimen.prompts(5, LENGTH)
    ids[:, -1] = torch.tensor([4, 7, 10, 10, 30])
    part = _measured(specimen, num_steps=51, ids=ids)["divergence"]
    assert part["kept"].tolist() == [True, True, False, False]
    assert part["flips_at_slope"].tolist() == [True, True, False, False]
    assert (part["top_token"][:2] != part["top_token"][:2, :1]).sum(dim=1).tolist() == [17, 34]
    scalars = Divergence().scalars(part)
    for key in (MAX_SLOPE, JS_MAX_SLOPE, LOGIT_MAX_SLOPE):
        assert scalars[key] == pytest.approx(50)
    assert (scalars[TOP_CHANGES], scalars[FLIPS]) == (1, 1)
    assert 0 < scalars[JS_END] < math.log(2)


def test_every_other_pair_is_looked_at_and_the_others_do_not_count() -> None:
    """By default; what is found of a pair does not hang on the others."""
    specimen = zoo.build("llama")
    whole = _measured(specimen)["divergence"]
    assert Divergence().every == 2
    half = _measured(specimen, every=2)["divergence"]
    assert whole["kept"].all()
    assert half["kept"].tolist() == [True, False, True]
    assert torch.equal(half["top_token"], whole["top_token"].where(half["kept"][:, None], -1))
    for curve in ("kl", "js", "logit_difference"):
        seen = whole[curve].where(half["kept"][:, None], math.nan)
        torch.testing.assert_close(half[curve], seen, rtol=1e-4, atol=2e-6, equal_nan=True)
    assert Divergence().scalars(half)[JS_END] == pytest.approx(
        float(whole["js"][::2, -1].mean()), rel=1e-3
    )


def test_known_distributions_have_their_known_divergences() -> None:
    """In nats; a token without probability adds nothing, and an output that is lost is NaN."""
    own = torch.tensor([0.5, 0.5, 0.0]).log()
    others = torch.tensor([[0.5, 0.5, 0], [0.25, 0.75, 0], [0, 0, 1], [1, 0, 0]]).log()
    kl, js = divergences(own, torch.cat([others, torch.full((1, 3), math.nan)]))
    half = math.log(2) / 2
    expected = [0, half + math.log(2 / 3) / 2, math.inf, math.inf, math.nan]
    assert kl.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    one_sided = (math.log(2 / 3) / 2 + half + math.log(4 / 3)) / 2
    assert js[[0, 2, 3, 4]].tolist() == pytest.approx(
        [0, math.log(2), one_sided, math.nan], abs=1e-6, nan_ok=True
    )


def test_it_reads_the_points_of_the_paths() -> None:
    specimen = zoo.build("llama")
    found = _measured(specimen, "adaptive", num_steps=51)
    looked = ~found["paths"].distance.isnan()
    assert not looked.all()
    assert torch.equal(~found["divergence"]["kl"].isnan(), looked)


def test_logits_come_in_pieces_and_paths_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token at the end of a path is waited for, where a forward ends within the path."""
    specimen = zoo.build("llama")
    whole = _measured(specimen)["divergence"]
    monkeypatch.setattr("sr_monitor.probes.next_tokens._MOST_LOGITS", 5 * zoo.VOCAB)
    for sampling in ("grid", "adaptive"):
        found = _measured(specimen, sampling, max_tokens=5)["divergence"]
        assert torch.equal(found["top_token"], whole["top_token"])
        for curve in ("kl", "js", "logit_difference"):
            torch.testing.assert_close(found[curve], whole[curve], rtol=1e-4, atol=2e-6)


def test_the_picture_shows_each_curve_around_the_steepest_rise() -> None:
    """At the right, the jump of each pair is where the distance jumps, whatever its alpha."""
    specimen = zoo.build("step")
    ids = specimen.prompts(5, LENGTH)
    ids[:, -1] = torch.tensor([4, 7, 10, 11, 30])
    parts = _measured(specimen, num_steps=51, ids=ids)
    prompts = PromptSet.from_token_ids(ids)
    page = Page(title="step 5", part=parts["divergence"], parts=parts, prompts=prompts)
    ((key, image),) = Divergence().pictures(page, ())
    assert key == CURVES
    assert image.std() > 10
    figure = draw_divergence(parts["divergence"], parts["paths"], "step 5")
    assert_tidy(figure)
    assert "top token flips at the steepest rise: 100% of 4 pairs" in words(figure)
    _, right = figure.axes
    assert len(right.lines) == 6
    for line in right.lines[:5]:
        across, up = (np.asarray(each) for each in line.get_data())
        shown = abs(across) < 0.3
        np.testing.assert_allclose(up[shown], across[shown] > 0, atol=1e-6)


def test_chance_pairs_and_lost_outputs_leave_the_picture_whole() -> None:
    part = {
        **{name: torch.full((2, 5), torch.nan) for name in ("kl", "js", "logit_difference")},
        "top_token": torch.zeros(2, 5, dtype=torch.int32),
        "kept": torch.tensor([False, False]),
        "flips_at_slope": torch.tensor([False, False]),
    }
    assert all(math.isnan(value) for value in Divergence().scalars(part).values())
    figure = draw_divergence(part, make_paths(num_pairs=2, num_steps=5), "step 0")
    assert_tidy(figure)
    assert "no pair counts" in words(figure)


def test_it_is_left_out_where_outputs_give_no_logits() -> None:
    specimen = zoo.build("llama")
    with pytest.warns(UserWarning, match=r"probes='divergence': output='resid_final'"):
        assert list(_measured(specimen, output="resid_final")) == ["paths"]
