"""Slices cut into regions: equal to single forwards, and known regions of a known network."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.model.stream import Output
from sr_monitor.probes.base import Page, Part
from sr_monitor.probes.map import (
    AREAS,
    BOUNDARY,
    REGIONS,
    SHARPNESS,
    TOKEN_AREAS,
    TOKEN_REGIONS,
    TOKEN_SHARPNESS,
    Map,
)
from sr_monitor.probes.map_pictures import draw_map
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from tests import zoo
from tests.oracle import run
from tests.pictures import assert_tidy, words

LENGTH, SIDE = 6, 7
PROBES = PathsProbe(num_pairs=1, num_steps=2), Map()


def _measured(
    specimen: zoo.Specimen, prompts: PromptSet, side: int = SIDE, num_slices: int = 2
) -> dict[str, Part]:
    slices = SlicesProbe(num_slices=num_slices, slice_resolution=side)
    return measure_probes(specimen.model, prompts, [*PROBES, slices], SessionOptions())


@pytest.mark.parametrize("name", ["llama", "gemma2_window", "nano_gpt"])
def test_top_tokens_and_nearest_corners_are_those_of_single_forwards(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_monitor.probes.next_tokens._MOST_LOGITS", 20 * zoo.VOCAB)
    specimen = zoo.build(name)
    prompts = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    parts = _measured(specimen, prompts)
    places = torch.linspace(-0.25, 1.25, SIDE).tolist()
    for triple, corners in enumerate(zip(*prompts.triples(2), strict=True)):
        a, b, c = (run(specimen, corner, 1, "logits")[0] for corner in corners)
        second = c - a - torch.dot(c - a, b - a) / torch.dot(b - a, b - a) * (b - a)
        for row, column in ((0, 0), (3, 5), (6, 2)):
            point = a + places[column] * (b - a) + places[row] * second
            cell = triple, slice(None), row, column
            tops = [int(run(specimen, each, 1, "logits", point)[1].argmax()) for each in corners]
            assert parts["map"]["top_token"][cell].tolist() == tops
            distances = parts["slices"].distance[cell].tolist()
            nearest = parts["map"]["nearest"][triple, row, column]
            assert int(nearest) == distances.index(min(distances))


def test_a_network_with_one_jump_has_two_regions() -> None:
    """A and C are even, B is odd: half of the plane is B's, by distance and by token."""
    specimen = zoo.build("step")
    ids = specimen.prompts(3, LENGTH)
    ids[:, -1] = torch.tensor([4, 7, 10])
    parts = _measured(specimen, PromptSet.from_token_ids(ids), 31, 1)
    part, scalars = parts["map"], Map().scalars(parts["map"])
    assert scalars[REGIONS] == scalars[TOKEN_REGIONS] == 2
    for tops in part["top_token"][0]:
        assert len(tops.unique()) == 2
        assert torch.equal(tops == tops[0, 0], part["nearest"][0] == part["nearest"][0, 0, 0])
    assert part["nearest"].unique().tolist() == [0, 1]  # of A and C, equally near, the first
    # The first coordinate is -1 at A and 1 at B, and jumps at 0.33: two thirds of the way there.
    assert scalars[BOUNDARY] == pytest.approx(1, rel=0.06)
    assert scalars[SHARPNESS] == pytest.approx(scalars[TOKEN_SHARPNESS])
    assert scalars[SHARPNESS] > 30
    areas = Map().histograms(part)
    assert areas[AREAS].tolist() == pytest.approx([0.61, 0.39], abs=0.04)
    assert len(areas[TOKEN_AREAS]) == 6


def test_points_that_are_lost_belong_to_no_region() -> None:
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(3, LENGTH))
    parts = _measured(specimen, prompts, num_slices=1)
    distance = parts["slices"].distance.clone()
    distance[0, 1, 2, 3] = math.inf
    lost = replace(parts["slices"], distance=distance)
    raw = {"top_token": parts["map"]["top_token"].flatten(0, 1).flatten(1)}
    part = Map().settle(raw, {"slices": lost})
    assert (part["nearest"] == -1).nonzero().tolist() == [[0, 2, 3]]
    assert (part["top_token"] == -1).nonzero().tolist() == [[0, 1, 2, 3]]
    assert all(math.isfinite(value) for value in Map().scalars(part).values())
    assert_tidy(draw_map(part, lost, 0, "step 3"))


def test_without_slices_there_is_no_map_and_without_logits_it_is_left_out() -> None:
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(3, LENGTH))
    assert list(_measured(specimen, prompts, num_slices=0)) == ["paths"]
    probes = [*PROBES, SlicesProbe(num_slices=1, slice_resolution=3)]
    output: Output = "resid_final"
    with pytest.warns(UserWarning, match=r"probes='map': output='resid_final'.* are measured"):
        parts = measure_probes(specimen.model, prompts, probes, SessionOptions(output=output))
    assert list(parts) == ["paths", "slices"]


class _Speaks:
    """Decodes as a user's tokenizer may: not every token of the model, not every one to a text."""

    def decode(self, ids: list[int]) -> str:
        return {0: " the$\n", 17: "\ufffd", 18: ""}[ids[0]]


def test_the_picture_names_tokens_where_a_tokenizer_is_at_hand() -> None:
    specimen = zoo.build("llama")
    ids = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    prompts = replace(ids, tokenizer=_Speaks())
    assert [prompts.token_name(token) for token in (0, 17, 18, 19)] == [
        *("·the$\n", "17"),
        *("18", "19"),
    ]
    for same in (prompts.reordered(3), pickle.loads(pickle.dumps(prompts))):
        assert sorted(same.token_ids.tolist()) == sorted(prompts.token_ids.tolist())
    assert prompts.reordered(3).token_name(0) == "·the$\n"
    assert pickle.loads(pickle.dumps(prompts)).token_name(0) == ids.token_name(0) == "0"
    parts = _measured(specimen, ids)
    part = parts["map"] | {"top_token": torch.zeros(1, 3, SIDE, SIDE, dtype=torch.int32)}
    part["top_token"][0, 0, :, 4:] = 17
    figure = draw_map(part, parts["slices"], 0, "step 5", name=prompts.token_name)
    assert_tidy(figure)
    found = [word for word in words(figure) if word in ("·the$↵", "17")]
    assert sorted(found) == ["17", *["·the$↵"] * 3]
    part["top_token"] = part["top_token"].repeat(2, 1, 1, 1)
    spoken, mute = (
        dict(Map().pictures(Page(title="", part=part, parts=parts, prompts=each), ()))
        for each in (prompts, ids)
    )
    assert not any((spoken[key] == mute[key]).all() for key in mute)


def test_the_picture_names_large_regions_and_draws_every_boundary() -> None:
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    parts = _measured(specimen, prompts)
    page = Page(title="step 5", part=parts["map"], parts=parts, prompts=prompts)
    pictures = dict(Map().pictures(page, ()))
    assert [key.label for key in pictures] == ["map 0", "map 1"]
    assert all(image.std() > 10 for image in pictures.values())
    part = parts["map"] | {"top_token": torch.zeros(1, 3, SIDE, SIDE, dtype=torch.int32)}
    part["top_token"][0, 0, :, 4:] = 17
    part["top_token"][0, 0, 0, 0] = 23  # too small to be named
    figure = draw_map(part, parts["slices"], 0, "step 5")
    assert_tidy(figure)
    assert sorted(word for word in words(figure) if word.isdigit()) == ["0", "0", "0", "17"]
    corners, of_a, of_b, _ = figure.axes
    assert len(of_b.collections[0].get_paths()) == 0
    sides = np.concatenate([path.vertices for path in of_a.collections[0].get_paths()])
    assert len(sides) == 2 * (SIDE + 2)
    nearest = parts["map"]["nearest"][0]
    num_sides = (nearest.diff(dim=0) != 0).sum() + (nearest.diff(dim=1) != 0).sum()
    assert len(corners.collections[0].get_paths()) == num_sides
