"""Regions from curves whose steps are known, and the way of the output from whole forwards."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_monitor import Paths, PromptSet
from sr_monitor.model.engine import Chunk
from sr_monitor.model.outputs import Outputs
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page, Part
from sr_monitor.probes.measuring import derived, measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.regions import Regions, same_corner, same_slopes
from sr_monitor.probes.sampling import Sampling
from sr_monitor.probes.slices import Slices
from sr_monitor.probes.trajectory import Trajectory
from tests import zoo
from tests.oracle import run

S = 51
ALPHAS = torch.linspace(0, 1, S)


def _paths(curves: Tensor, noise: float = 1e-6) -> Paths:
    return Paths(
        alphas=ALPHAS,
        distance=curves,
        input_distance=torch.ones(len(curves)),
        noise_distance=noise,
        noise_floor=noise,
        num_points=curves.numel(),
        engine="plain",
    )


def _steps(*places: float) -> Tensor:
    return sum((place < ALPHAS).float() for place in places) / len(places)  # type: ignore[return-value]


CURVES = torch.stack([ALPHAS, 3 * _steps(0.33), _steps(0.2, 0.7), _steps(0.1, 0.5, 0.9)])


def _part(curves: Tensor, **paths: Any) -> Part:
    return derived([Regions()], {"paths": _paths(curves, **paths)})["regions"]


def test_known_curves_have_their_regions() -> None:
    part = _part(CURVES)
    assert part["count"].tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(part["plateau"], torch.tensor([0.0, 0.98, 0.96, 0.94]))
    torch.testing.assert_close(part["variation"], torch.ones(4))
    assert part["within"][1:].tolist() == [0, 0, 0]
    scalars = Regions().scalars(part)
    assert scalars[Regions.COUNT] == 2.5
    assert scalars[Regions.WITHIN] == 0.0


def test_pairs_that_do_not_count_say_nothing() -> None:
    broken = CURVES.clone()
    broken[1, 7] = torch.inf
    broken[2] *= 1e-9  # below the noise
    part = _part(broken)
    assert part["count"].isnan().tolist() == [False, True, True, False]
    assert part["peaks"].any(dim=1).tolist() == [False, False, False, True]
    assert Regions().scalars(part)[Regions.COUNT] == 2.5


def test_noise_makes_no_steps() -> None:
    noise = 0.02 * torch.randn(64, S, generator=torch.Generator().manual_seed(0))
    noise[:, [0, -1]] = 0
    curves = (ALPHAS + noise).abs()
    assert (_part(curves, noise=1e-6)["count"] > 3).float().mean() > 0.9
    assert (_part(curves, noise=0.08)["count"] == 1).all()


def test_a_path_that_was_not_looked_at_everywhere() -> None:
    sparse = CURVES[1:2].clone()
    sparse[0, 1:15] = torch.nan
    assert _part(sparse)["count"].tolist() == [2]


def _slices(nearest: Tensor) -> Slices:
    """Maps in which the corner of each point is the nearest."""
    distance = torch.ones(1, 3, 4, 4).scatter(1, nearest[:, None], 0.5)
    return Slices(
        coordinates=torch.linspace(0, 1, 4),
        distance=distance,
        foot=torch.zeros(1),
        num_points=1,
        engine="plain",
    )


def test_the_same_regions_are_recognised() -> None:
    nearest = torch.arange(16).view(1, 4, 4) % 3
    moved = nearest.clone()
    moved[0, 0] = (moved[0, 0] + 1) % 3
    before = {"paths": _paths(CURVES), "slices": _slices(nearest)}
    after = {"paths": _paths(CURVES.flip(0)), "slices": _slices(moved)}
    assert same_corner(before, before) == 1.0
    assert same_corner(before, after) == 0.75
    broken = _slices(moved)
    broken.distance[0, 0, 0, :2] = torch.inf  # two of the four that moved
    assert same_corner(before, {"slices": broken}) == pytest.approx(12 / 14)
    assert same_slopes(before, before) == pytest.approx(1.0)
    assert same_slopes(before, after) == pytest.approx(0.6)  # ranks 1 4 3 2 and 2 3 4 1
    assert same_corner(before, {"paths": before["paths"]}) != same_corner(before, before)
    prompts = PromptSet.from_token_ids(torch.zeros(2, 2, dtype=torch.long))
    pages = [
        Page(title=f"step {n}", part=_part(CURVES), parts=parts, prompts=prompts)
        for n, parts in enumerate((before, after))
    ]
    changes = Regions().changes(pages[1], pages[0])
    assert changes[Regions.CORNERS] == 0.75
    assert list(dict(Regions().pictures(pages[0], []))) == [Regions.SPEEDS]
    pictures = dict(Regions().pictures(pages[1], pages[:1]))
    assert list(pictures) == [Regions.SPEEDS, Regions.HYPOTHESES, Regions.IDENTITY]
    alone = [replace(page, parts={"paths": page.parts["paths"]}) for page in pages]
    assert list(Regions().changes(alone[1], alone[0])) == [Regions.SLOPES]
    narrower = dict(Regions().pictures(alone[1], alone[:1]))[Regions.IDENTITY]
    assert narrower.shape[1] < pictures[Regions.IDENTITY].shape[1]


def test_pairs_that_are_drawn_anew_are_not_compared() -> None:
    prompts = PromptSet.from_token_ids(torch.arange(10).view(5, 2))
    parts = {"paths": _paths(CURVES)}
    pages = [
        Page(title=f"step {n}", part=_part(CURVES), parts=parts, prompts=prompts.reordered(n))
        for n in (1, 2, 3)
    ]
    assert Regions().changes(pages[1], pages[0]) == {}
    assert list(dict(Regions().pictures(pages[2], pages[:2]))) == [
        Regions.SPEEDS,
        Regions.HYPOTHESES,
    ]


def _measured(specimen: zoo.Specimen, sampling: Sampling = "grid", steps: int = 9) -> Any:
    prompts = PromptSet.from_token_ids(specimen.prompts(4, 6))
    probes = [PathsProbe(num_steps=steps, sampling=sampling), Regions()]
    return measure_probes(specimen.model, prompts, probes, SessionOptions(max_tokens=40))


def test_the_way_is_that_of_whole_forwards() -> None:
    specimen = zoo.build("llama")
    found = _measured(specimen)
    for (own, other), way in zip(
        pairwise(specimen.prompts(4, 6)), found["regions"]["way"], strict=True
    ):
        (a, _), (b, _) = (run(specimen, each, 1, "final_norm") for each in (own, other))
        outputs = [
            run(specimen, own, 1, "final_norm", (1 - alpha) * a + alpha * b)[1]
            for alpha in torch.linspace(0, 1, 9).tolist()
        ]
        moved = torch.stack([(y - x).norm() for x, y in pairwise(outputs)])
        expected = moved.cumsum(dim=0) / (outputs[-1] - outputs[0]).norm()
        torch.testing.assert_close(way[1:], expected, rtol=1e-3, atol=0)
    part = found["regions"]
    # What only the distance to A's output shows is never longer.
    assert (part["way"][:, -1] > part["variation"]).all()
    scalars = Regions().scalars(part)
    assert scalars[Regions.LENGTH] == pytest.approx(float(part["way"][:, -1].median()))
    derived_later = derived([Regions()], {"paths": found["paths"]})["regions"]
    assert Regions.LENGTH not in Regions().scalars(derived_later)
    assert torch.equal(derived_later["count"], part["count"])


def test_a_step_at_one_distance_from_a_shows_on_the_way_alone() -> None:
    """The output goes half of the way, to the side, and on: three steps, of which d shows two."""
    way = 2 * _steps(0.2, 0.5, 0.8)
    curve = _steps(0.2, 0.8)
    part = Regions().settle(way[None], {"paths": _paths(curve[None])})
    assert (part["count"].tolist(), part["way_count"].tolist()) == ([3], [4])
    assert part["way"][0, -1] == 2.0


def test_networks_whose_way_is_known() -> None:
    numbers = Regions().scalars(_measured(zoo.build("linear"))["regions"])
    assert numbers[Regions.LENGTH] == pytest.approx(1.0, rel=1e-4)
    assert numbers[Regions.COUNT] == numbers[Regions.WAY_COUNT] == 1.0
    found = _measured(zoo.build("step"), steps=S)
    ends = [int(prompt[-1]) % 2 for prompt in zoo.build("step").prompts(4, 6)]
    jumps = [x != y for x, y in pairwise(ends)]
    assert any(jumps)
    assert not all(jumps)  # a pair that does not count, too
    assert found["regions"]["count"].isfinite().tolist() == jumps
    numbers = Regions().scalars(found["regions"])
    assert numbers[Regions.COUNT] == numbers[Regions.WAY_COUNT] == 2.0
    assert numbers[Regions.LENGTH] == 1.0


def test_points_may_come_in_any_order_and_again() -> None:
    outputs = torch.tensor([[0.0, 0.0], [9.0, 9.0], [3.0, 4.0], [9.0, 9.0], [3.0, 5.0]])
    reader = Trajectory(1, 5)
    for places in ([0, 4], [2], [4, 0]):
        chosen, zeros = torch.tensor(places), torch.zeros(len(places), dtype=torch.long)
        clean = Outputs(outputs[:1])
        reader.read(Chunk(zeros, chosen, Outputs(outputs[chosen]), clean, zeros))
    way = reader.part(lambda mine: mine)
    assert way.nan_to_num(-1).tolist() == [[0, -1, 5, -1, 6]]


def test_adaptive_sampling_sees_a_way_that_is_a_little_shorter() -> None:
    specimen = zoo.build("gpt2")
    grid, sparse = (_measured(specimen, sampling, S) for sampling in ("grid", "adaptive"))
    looked = ~sparse["paths"].distance.isnan()
    assert not looked.all()
    assert torch.equal(~sparse["regions"]["way"].isnan(), looked)
    share = sparse["regions"]["way"][:, -1] / grid["regions"]["way"][:, -1]
    assert ((share > 0.8) & (share <= 1.001)).all()
