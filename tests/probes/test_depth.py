"""The path after every block, and cut at every layer: equal to whole forwards, and where known."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor import PromptSet, measure_paths
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page, Part, Probe
from sr_monitor.probes.depth import Depth, Depths
from sr_monitor.probes.keys import Key
from sr_monitor.probes.layers import Layers
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.sampling import Sampling
from tests import zoo
from tests.oracle import last_of, on_output, run, wrapped

LENGTH, NUM_PAIRS, NUM_STEPS = 6, 3, 7


def _measured(
    specimen: zoo.Specimen,
    *probes: Probe,
    num_steps: int = NUM_STEPS,
    sampling: Sampling = "grid",
    ids: Tensor | None = None,
    layer: int = 1,
) -> dict[str, Part]:
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH) if ids is None else ids
    paths = PathsProbe(num_steps=num_steps, sampling=sampling)
    prompts = PromptSet.from_token_ids(ids)
    return measure_probes(specimen.model, prompts, [paths, *probes], SessionOptions(layer=layer))


def _oracle(specimen: zoo.Specimen) -> Float[Tensor, "pair block step"]:
    """The distance after each block, from one plain forward pass a point."""
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)

    def after_blocks(prompt: Tensor, point: Tensor) -> Float[Tensor, "block width"]:
        seen: dict[int, Tensor] = {}

        def visit(number: int, stream: Tensor) -> Tensor:
            seen[number] = last_of(stream).clone()
            return stream

        with ExitStack() as stack:
            for number, block in enumerate(specimen.layers[1:]):
                stack.enter_context(wrapped(block, on_output(partial(visit, number))))
            run(specimen, prompt, 1, "final_norm", point)
        return torch.stack([seen[number] for number in sorted(seen)])

    found = torch.empty(NUM_PAIRS, specimen.num_layers - 1, NUM_STEPS)
    for pair in range(NUM_PAIRS):
        a, b = (run(specimen, prompt, 1, "final_norm")[0] for prompt in ids[pair : pair + 2])
        clean = after_blocks(ids[pair], a)
        for step, alpha in enumerate(torch.linspace(0, 1, NUM_STEPS).tolist()):
            here = after_blocks(ids[pair], (1 - alpha) * a + alpha * b)
            found[pair, :, step] = (here - clean).norm(dim=-1)
    return found


@pytest.mark.parametrize("name", ["llama", "mixing_gpt", "mamba", "row_gpt"])
def test_the_distance_after_each_block_is_that_of_whole_forwards(name: str) -> None:
    specimen = zoo.build(name)
    part, expected = _measured(specimen, Depth())["depth"], _oracle(specimen)
    assert part.blocks.tolist() == list(range(2, specimen.num_layers + 1))
    torch.testing.assert_close(part.end_distance, expected[..., -1], rtol=1e-4, atol=1e-5)
    relative = expected / expected[..., -1:]
    rises = relative.diff(dim=-1) * (NUM_STEPS - 1)
    torch.testing.assert_close(part.max_slope, rises.amax(dim=-1), rtol=1e-3, atol=1e-4)
    middles = (rises.argmax(dim=-1) + 0.5) / (NUM_STEPS - 1)
    torch.testing.assert_close(part.location, middles)
    torch.testing.assert_close(part.curves, relative.median(dim=0).values, rtol=1e-3, atol=1e-4)


def test_a_path_turns_into_a_step_at_the_block_that_makes_it() -> None:
    """Its last block makes one; all before hand the straight line on."""
    specimen = zoo.build("step")
    ids = torch.tensor([[3, 5, 2], [3, 5, 7], [3, 5, 4]])  # an even token, an odd one
    parts = _measured(specimen, Depth(), Layers(num_layers=4), num_steps=21, ids=ids)
    depth, layers = parts["depth"], parts["layers"]
    torch.testing.assert_close(depth.max_slope[0], torch.tensor([1.0, 20.0]), rtol=1e-4, atol=0)
    assert depth.location[0, 1] == pytest.approx(0.675)  # between alpha 0.65 and 0.7
    numbers = Depth().scalars(depth)
    assert numbers == {Depth.STEEPEST: 20.0, Depth.STEEPEST_BLOCK: 3.0, Depth.TURN: 3.0}
    # Cut anywhere before that block, paths cross its step; cut after it, they are straight.
    expected = torch.tensor([20.0, 20.0, 20.0, 1.0])
    torch.testing.assert_close(layers.max_slope[0], expected, rtol=1e-4, atol=0)


def test_it_looks_where_the_paths_look_and_pairs_that_do_not_count_are_left_out() -> None:
    specimen = zoo.build("llama")
    ids = specimen.prompts(4, LENGTH)
    ids[1] = ids[0]  # no path from a prompt to itself
    grid, adaptive = (
        _measured(specimen, Depth(), num_steps=51, sampling=sampling, ids=ids)["depth"]
        for sampling in ("grid", "adaptive")
    )
    for part in (grid, adaptive):
        assert part.max_slope[0].isnan().all()
        assert part.max_slope[1:].isfinite().all()
    assert (adaptive.max_slope[1:] <= grid.max_slope[1:] + 1e-3).all()


def test_weights_that_are_not_finite_give_no_numbers() -> None:
    specimen = zoo.build("nano_gpt")
    with torch.no_grad():
        next(specimen.layers[-1].parameters()).fill_(math.nan)
    parts = _measured(specimen, Depth(), Layers(num_layers=2))
    assert math.isnan(Depth().scalars(parts["depth"])[Depth.STEEPEST])
    assert math.isnan(Layers().scalars(parts["layers"])[Layers.STEEPEST])


@pytest.mark.parametrize("name", ["llama", "mixing_gpt", "skipping_llama"])
def test_each_cut_is_a_measurement_at_that_layer(name: str) -> None:
    specimen = zoo.build(name)
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    probe = Layers(num_pairs=2, num_steps=NUM_STEPS, num_layers=99)
    part = _measured(specimen, probe, layer=0)["layers"]
    assert part.layers.tolist() == list(range(specimen.num_layers + 1))
    for place, layer in enumerate(part.layers.tolist()):
        alone = measure_paths(
            specimen.model, ids[:2], ids[1:3], layer=layer, num_steps=NUM_STEPS, engine="plain"
        )
        torch.testing.assert_close(part.distance[:, place], alone.distance, rtol=1e-4, atol=1e-4)
    assert part.num_points == 2 * NUM_STEPS * len(part.layers)


def test_the_last_layer_has_no_block_to_read() -> None:
    with pytest.warns(UserWarning, match="no block after layer=3; pass a lower layer"):
        parts = _measured(zoo.build("llama"), Depth(), layer=3)
    assert list(parts) == ["paths"]


def test_pictures_and_records() -> None:
    specimen = zoo.build("llama")
    probes: tuple[Probe, ...] = Depth(), Layers(num_layers=3)
    for probe in probes:
        parts = _measured(specimen, probe)
        prompts = PromptSet.from_token_ids(specimen.prompts(NUM_PAIRS + 1, LENGTH))
        part = parts[probe.name]
        page = Page(title="step 0", part=part, parts=parts, prompts=prompts)
        drawn = dict(probe.pictures(page, []))
        wider = dict(probe.pictures(page, [page]))
        assert set(drawn) == {key for key in probe.keys if key.kind == "image"}
        slopes = [key for key in drawn if key.name.endswith("slopes")]
        assert all(wider[key].shape[1] > drawn[key].shape[1] for key in slopes)
        assert _numbers_of_record(probe, part) == probe.scalars(part)


def _numbers_of_record(probe: Probe, part: Part) -> Mapping[Key, float]:
    return probe.scalars(probe.unpack(probe.pack(part)))


def test_the_turn_is_where_paths_are_half_as_far_above_a_line_as_at_their_steepest() -> None:
    slopes = torch.tensor([[1.0, 1.6, 2.1, 3.0, 2.5]])
    depths = Depths(
        blocks=torch.arange(2, 7),
        max_slope=slopes,
        location=torch.full((1, 5), 0.5),
        end_distance=torch.ones(1, 5),
        curves=torch.linspace(0, 1, 3).repeat(5, 1),
    )
    found = Depth().scalars(depths)
    assert (found[Depth.STEEPEST_BLOCK], found[Depth.TURN]) == (5, 4)
