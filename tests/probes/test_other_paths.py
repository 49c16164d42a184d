"""Arcs, planes toward the mean and both contexts: single forwards, and geometry known by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.arc import Arc, draw_arcs
from sr_monitor.probes.base import Page, Part, Probe, Run
from sr_monitor.probes.contexts import Contexts, draw_contexts
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import Paths, PathsProbe
from sr_monitor.probes.points import counted
from sr_monitor.probes.toward_mean import TowardMean, draw_maps
from tests import zoo
from tests.made import make_paths
from tests.oracle import run
from tests.pictures import assert_tidy, words

LENGTH, NUM_STEPS = 6, 9
ALL = Arc(num_pairs=2), Contexts(num_pairs=2), TowardMean(num_pairs=2, resolution=5)


def _measured(
    model: nn.Module, prompts: PromptSet, *probes: Probe, max_tokens: int | None = None
) -> dict[str, Part]:
    paths = PathsProbe(num_steps=NUM_STEPS)
    options = SessionOptions(max_tokens=max_tokens)
    return measure_probes(model, prompts, [paths, *(probes or ALL)], options)


def _scalars(probe: Probe, parts: dict[str, Part]) -> dict[str, float]:
    found = probe.scalars(parts[probe.name])
    return {key.label.removeprefix(f"{probe.name} ".replace("_", " ")): found[key] for key in found}


def _seen(
    specimen: zoo.Specimen, ids: Tensor
) -> tuple[Callable[..., Tensor], Float[Tensor, "prompt width"]]:
    """F at a point in a prompt's context, and each prompt's own activation."""

    def output(prompt: int, point: Float[Tensor, " width"]) -> Tensor:
        return run(specimen, ids[prompt], 1, "final_norm", point)[1].double()

    return output, torch.stack([run(specimen, each, 1, "final_norm")[0] for each in ids])


@pytest.mark.parametrize(("name", "max_tokens"), [("llama", None), ("llama", 12), ("nano_gpt", 12)])
def test_each_is_what_single_forwards_give(name: str, max_tokens: int | None) -> None:
    specimen = zoo.build(name)
    ids = specimen.prompts(4, LENGTH)
    parts = _measured(specimen.model, PromptSet.from_token_ids(ids), max_tokens=max_tokens)
    output, own = _seen(specimen, ids)
    mean = own.mean(dim=0)
    for pair in (0, 1):
        a, b = own[pair], own[pair + 1]
        of_a, of_b = output(pair, a), output(pair + 1, b)
        for step, alpha in enumerate(torch.linspace(0, 1, NUM_STEPS).tolist()):
            x = (1 - alpha) * a + alpha * b
            y = mean + (x - mean) * (a - mean).norm() / (x - mean).norm()
            in_a, in_b = output(pair, x), output(pair + 1, x)
            both = parts["contexts"]
            for found, expected in (
                (parts["arc"]["distance"][pair, step], output(pair, y) - of_a),
                (both["distance"][pair, 0, step], in_a - of_a),
                (both["distance"][pair, 1, step], in_b - of_b),
                (both["gap"][pair, step] * (of_a - of_b).norm().float(), in_a - in_b),
            ):
                assert float(found) == pytest.approx(float(expected.norm()), rel=1e-4, abs=1e-4)
        t = float((mean - a) @ (b - a) / ((b - a) @ (b - a)))
        plane = parts["toward_mean"]
        assert float(plane["foot"][pair]) == pytest.approx(t, rel=1e-4)
        distance = (output(pair, mean) - of_a).norm()
        assert float(plane["mean_distance"][pair]) == pytest.approx(float(distance), rel=1e-4)
        for row, column in ((0, 0), (2, 4), (4, 1), (1, 3)):
            point = a + column / 4 * (b - a) + (row / 2 - 1) * (mean - a - t * (b - a))
            distance = (output(pair, point) - of_a).norm()
            found = float(plane["distance"][pair, row, column])
            assert found == pytest.approx(float(distance), rel=1e-4, abs=1e-4)
    rows = parts["toward_mean"]["distance"][:, [4, 2]]  # through the mean, and the path itself
    toward, along = (rows / rows[:, 1:, -1:]).diff(dim=2).amax(dim=2).unbind(dim=1)
    ratio = float((toward / along).double().quantile(0.5))
    assert _scalars(ALL[2], parts)["slope ratio"] == pytest.approx(ratio, rel=1e-5)
    straight = parts["paths"]
    in_a = parts["contexts"]["distance"][:, 0]
    torch.testing.assert_close(in_a, straight.distance[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["arc"]["straight_slope"], straight.max_slope[:2])


@pytest.fixture(scope="module")
def flat() -> dict[str, Part]:
    """A network whose output is its input, and tokens in the plane: at 1, i, -1, -i, and at 2."""
    model = zoo.HandMade([nn.Identity(), nn.Identity()])
    with torch.no_grad():
        model.embedding.weight.zero_()
        for token, place in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1), (2, 0)]):
            model.embedding.weight[token, :2] = torch.tensor(place, dtype=torch.float32)
    ids = torch.zeros(4, LENGTH, dtype=torch.long)
    ids[:, -1] = torch.arange(4)
    return _measured(model, PromptSet.from_token_ids(ids))


def test_arcs_are_circles_around_the_mean(flat: dict[str, Part]) -> None:
    """The mean is 0, so a quarter of a circle: chords, which a smooth model shows as they are."""
    alphas = torch.linspace(0, 1, NUM_STEPS)
    angle = torch.atan2(alphas, 1 - alphas)
    expected = 2 * (angle / 2).sin()
    part = flat["arc"]
    torch.testing.assert_close(part["distance"], expected.expand(2, -1), rtol=1e-5, atol=1e-6)
    slope = float((expected / expected[-1]).diff().max()) * (NUM_STEPS - 1)
    scalars = _scalars(ALL[0], flat)
    assert scalars["max slope"] == pytest.approx(slope, rel=1e-5)
    assert scalars["own slope"] == pytest.approx(slope, rel=1e-5)
    assert scalars["slope ratio"] == pytest.approx(slope, rel=1e-5)  # straight ones have slope 1
    assert scalars["miss"] == pytest.approx(0, abs=1e-6)


def test_where_no_token_looks_back_contexts_agree(flat: dict[str, Part]) -> None:
    part, scalars = flat["contexts"], _scalars(ALL[1], flat)
    assert part["gap"].abs().max() < 1e-6
    assert scalars["gap"] == pytest.approx(0, abs=1e-6)
    assert scalars["max slope of b"] == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(part["distance"][:, 0], part["distance"][:, 1].flip(1))


def test_the_plane_lies_through_a_b_and_the_mean(flat: dict[str, Part]) -> None:
    part, scalars = flat["toward_mean"], _scalars(ALL[2], flat)
    assert part["foot"].tolist() == pytest.approx([0.5, 0.5])
    # ||b - a|| = sqrt 2, and the mean is 1 / sqrt 2 away from the path's middle.
    up, across = torch.meshgrid(part["up"], part["across"], indexing="ij")
    expected = (2 * across.square() + up.square() / 2).sqrt()
    torch.testing.assert_close(part["distance"], expected.expand(2, -1, -1), rtol=1e-5, atol=1e-6)
    assert scalars["mean distance"] == pytest.approx(1 / math.sqrt(2), rel=1e-5)
    # The first row's last rise: from sqrt(1.5^2 / 2 + 1 / 2) to sqrt(2 + 1 / 2), of sqrt 2.
    rise = 4 * (math.sqrt(2.5) - math.sqrt(1.625)) / math.sqrt(2)
    assert scalars["slope ratio"] == pytest.approx(rise, rel=1e-4)


def test_a_step_is_found_in_both_contexts_and_beside_the_path() -> None:
    """A network that jumps at 0.33 of the first coordinate, which goes from -1 to 1."""
    specimen = zoo.build("step")
    ids = specimen.prompts(4, LENGTH)
    ids[:, -1] = torch.tensor([4, 7, 10, 10])
    parts = _measured(
        specimen.model, PromptSet.from_token_ids(ids), *(type(probe)() for probe in ALL)
    )
    both, plane = (_scalars(type(each)(), parts) for each in ALL[1:])
    assert parts["contexts"]["kept"].tolist() == [True, True, False]  # equal activations
    assert parts["toward_mean"]["kept"].tolist() == [True, True, False]
    assert parts["arc"]["kept"].tolist() == [True, True, False]
    assert both["max slope of b"] == NUM_STEPS - 1
    assert both["shift"] == pytest.approx(0, abs=1e-6)
    # The path from 4 to 7 jumps at 0.665, that from 7 to 10 at 0.335: from -1 to 1, and back.
    part = parts["toward_mean"]
    jumps = [0.675, 0.325]  # the middles of their intervals of 21 points
    gaps = [abs(jump - foot) for jump, foot in zip(jumps, part["foot"].tolist(), strict=False)]
    assert plane["jump to foot"] == pytest.approx(sum(gaps) / 2, abs=1e-5)


def test_the_first_pairs_are_taken_and_their_number_is_that_of_the_paths_at_most() -> None:
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    paths = PathsProbe(num_steps=NUM_STEPS, num_pairs=2)
    found = measure_probes(specimen.model, prompts, [paths, Arc(), Contexts()], SessionOptions())
    assert found["arc"]["distance"].shape == (2, NUM_STEPS)
    assert found["arc"]["num_points"] == 2 * NUM_STEPS
    assert found["contexts"]["num_points"] == 4 * NUM_STEPS


def test_a_pair_counts_if_all_is_finite_and_its_end_above_the_noise() -> None:
    paths = make_paths(num_pairs=4, num_steps=3)  # their noise is 1e-6 to 4e-6
    distance = torch.tensor([[0, 1, 1], [0, math.inf, 1], [0, 1, 2.9e-6]])
    assert counted(distance, paths).tolist() == [True, False, False]
    even = replace(paths, noise=None, noise_distance=2e-6)
    assert counted(distance, even).tolist() == [True, False, True]


def test_an_arc_counts_only_where_its_straight_path_does() -> None:
    class Lost(PathsProbe):
        def measure(self, run: Run) -> Paths:
            found = super().measure(run)
            found.distance[0, 1] = math.inf
            return found

    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(3, LENGTH))
    probes = Lost(num_steps=3), Arc(num_pairs=2)
    found = measure_probes(specimen.model, prompts, probes, SessionOptions())["arc"]
    assert found["distance"].isfinite().all()
    assert found["kept"].tolist() == [False, True]


def test_lost_outputs_do_not_count_and_the_rest_is_drawn() -> None:
    """With a row of weights that is NaN, nothing is finite; without it, everything."""
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    parts = _measured(specimen.model, prompts)
    draw: dict[str, Callable[[dict[str, Part]], Any]] = {
        "arc": lambda of: draw_arcs(of["arc"], of["paths"], "step 5"),
        "contexts": lambda of: draw_contexts(of["contexts"], "step 5"),
        "toward_mean": lambda of: draw_maps(of["toward_mean"], "step 5"),
    }
    specimen.model.get_parameter("model.layers.2.mlp.down_proj.weight").data[0] = math.nan
    lost = _measured(specimen.model, prompts)
    for probe in ALL:
        page = Page(title="step 5", part=parts[probe.name], parts=parts, prompts=prompts)
        ((key, image),) = probe.pictures(page, ())
        assert key in probe.keys
        assert image.std() > 10
        assert any("step 5" in word for word in words(draw[probe.name](parts)))
        assert not lost[probe.name]["kept"].any()
        numbers = _scalars(probe, lost)
        assert all(map(math.isnan, numbers.values())), (probe.name, numbers)
        for each in (parts, lost):
            assert_tidy(draw[probe.name](each))
