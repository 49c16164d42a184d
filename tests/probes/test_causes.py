"""Sublayers held at their value for A: equal to whole forwards, and where the answer is known."""

import math
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page, Part
from sr_monitor.probes.causes import Causes, Held
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import last_of, on_output, run, wrapped

LENGTH, NUM_PAIRS, NUM_STEPS = 6, 2, 5
JUMP = torch.tensor([[3, 5, 2], [3, 5, 7]])  # an even last token, an odd one


def _measured(
    specimen: zoo.Specimen, ids: Tensor, probe: Causes, layer: int = 1
) -> dict[str, Part]:
    prompts = PromptSet.from_token_ids(ids)
    paths = PathsProbe(num_steps=NUM_STEPS)
    return measure_probes(specimen.model, prompts, [paths, probe], SessionOptions(layer=layer))


def _oracle(
    specimen: zoo.Specimen, ids: Tensor, held: list[nn.Module]
) -> Float[Tensor, "pair step"]:
    """d(alpha) with modules' outputs at the last position those of A, one forward pass a point."""
    rows = []
    for own, other in pairwise(ids):
        (a, clean), (b, _) = (run(specimen, prompt, 1, "final_norm") for prompt in (own, other))
        kept: dict[int, Tensor] = {}

        def visit(place: int, hidden: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            hidden = hidden.clone()
            last_of(hidden)[:] = kept.setdefault(place, last_of(hidden).clone())
            return hidden

        with ExitStack() as stack:
            for place, module in enumerate(held):
                stack.enter_context(wrapped(module, on_output(partial(visit, place))))
            for alpha in torch.linspace(0, 1, NUM_STEPS).tolist():
                _, output = run(specimen, own, 1, "final_norm", (1 - alpha) * a + alpha * b)
                rows.append((output - clean).norm())
    return torch.stack(rows).view(-1, NUM_STEPS)


@pytest.mark.parametrize(
    ("name", "attention", "feed_forward"),
    [
        ("llama", "self_attn", "mlp"),
        ("falcon_rope", "self_attention.dense", "mlp.dense_4h_to_h"),
        ("gemma2_window", "post_attention_layernorm", "post_feedforward_layernorm"),
        ("nano_gpt", "proj", "mlp"),
    ],
)
def test_held_paths_are_those_of_whole_forwards(
    name: str, attention: str, feed_forward: str
) -> None:
    specimen = zoo.build(name)
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    found = _measured(specimen, ids, Causes(num_pairs=9, num_steps=NUM_STEPS))["causes"]
    blocks = specimen.layers[1:]
    assert found.blocks.tolist() == list(range(2, specimen.num_layers + 1))
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    close(found.whole, _oracle(specimen, ids, []))
    for kind, path in enumerate((attention, feed_forward)):
        modules = [block.get_submodule(path) for block in blocks]
        for place in (0, len(modules) - 1):
            close(found.one[:, kind, place], _oracle(specimen, ids, [modules[place]]))
        close(found.all[:, kind], _oracle(specimen, ids, modules))
    assert found.num_points == NUM_PAIRS * NUM_STEPS * (2 * len(blocks) + 3)


def test_the_feed_forward_that_makes_the_jump_is_named() -> None:
    """Block 3 makes it, block 4 flattens the plateau, block 2 and attention do nothing."""
    specimen = zoo.build("rectified")
    found: Held = _measured(specimen, JUMP, Causes())["causes"]
    # Over 0.3 to 0.4 of the first coordinate the line rises by 0.1, and the jump by 7.
    of_jump = 1 - 0.1 / 7.1
    torch.testing.assert_close(found.share[0], torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.share[1], torch.tensor([0, of_jump, 0]), rtol=1e-3, atol=1e-4)
    # On the plateau, alpha 0 to 0.65, the whole path rises by 0.07 of 8.77; without block 4 by
    # 1.3 of 10, without block 3 by 0.07 of 0.77.
    whole = 0.07 / 0.65 / 8.77
    flattening = torch.tensor([0, 0.07 / 0.65 / 0.77 - whole, 1.3 / 0.65 / 10 - whole])
    torch.testing.assert_close(found.flattening[0], torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.flattening[1], flattening, rtol=1e-3, atol=1e-4)
    numbers = Causes().scalars(found)
    assert numbers[Causes.JUMP_BLOCK] == 3
    assert numbers[Causes.JUMP_SHARE] == pytest.approx(of_jump, rel=1e-3)
    assert numbers[Causes.WITHOUT_ATTENTION] == pytest.approx(7.1 * 20 / 8.77, rel=1e-3)
    assert numbers[Causes.WITHOUT_FEED_FORWARD] == pytest.approx(1, rel=1e-3)
    assert numbers[Causes.JUMP_FEED_FORWARD] == pytest.approx(of_jump, rel=1e-3)
    assert numbers[Causes.PLATEAU_FEED_FORWARD] == pytest.approx(1 - whole, rel=1e-3)
    assert abs(numbers[Causes.PLATEAU_ATTENTION]) < 1e-3


def test_experts_are_held_together() -> None:
    specimen = zoo.build("mixtral")
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    found = _measured(specimen, ids, Causes(num_steps=NUM_STEPS))["causes"]
    experts = [block.get_submodule("mlp") for block in specimen.layers[1:]]
    torch.testing.assert_close(
        found.all[:, 1], _oracle(specimen, ids, experts), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("name", "layer"), [("mamba", 1), ("llama", 3)])
def test_models_without_sublayers_are_left_out_by_name(name: str, layer: int) -> None:
    specimen = zoo.build(name)
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    with pytest.warns(UserWarning, match=f"probes='causes': .* has no block after layer={layer}"):
        assert list(_measured(specimen, ids, Causes(), layer)) == ["paths"]


def test_pairs_that_do_not_count_give_no_numbers_and_all_is_drawn_and_kept() -> None:
    specimen = zoo.build("llama")
    ids = specimen.prompts(NUM_PAIRS + 2, LENGTH)
    ids[1] = ids[0]
    probe = Causes(num_steps=NUM_STEPS)
    parts = _measured(specimen, ids, probe)
    found: Held = parts["causes"]
    assert found.whole[:, -1].isnan().tolist() == [True, False, False]
    assert found.share.isfinite().all()
    page = Page(title="step 0", part=found, parts=parts, prompts=PromptSet.from_token_ids(ids))
    drawn = [key for key, _ in probe.pictures(page, [page])]
    assert drawn == [Causes.BLOCKS, Causes.TRAINING]
    again = probe.unpack(probe.pack(found))
    assert probe.scalars(again) == probe.scalars(found)
    ids[1:] = ids[0]
    numbers = probe.scalars(_measured(specimen, ids, probe)["causes"])
    assert all(math.isnan(value) for value in numbers.values())
