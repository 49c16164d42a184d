"""Sign changes of gates: equal to whole forwards, and where they are known."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sr_monitor import PromptSet
from sr_monitor.model.engine import Chunk
from sr_monitor.model.gates import Gates
from sr_monitor.model.outputs import Outputs, Tap
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page, Part
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.polytopes import Crossings, Polytopes, _Reader, pack_anywhere, pack_signs
from sr_monitor.probes.sampling import Sampling
from tests import zoo
from tests.oracle import last_of, on_input, on_output, run, wrapped

LENGTH, NUM_PAIRS, NUM_STEPS = 6, 3, 7
JUMP = torch.tensor([[3, 5, 2], [3, 5, 7]])  # an even last token, an odd one


def _measured(
    specimen: zoo.Specimen,
    ids: Tensor,
    num_steps: int = NUM_STEPS,
    sampling: Sampling = "grid",
    **options: Any,
) -> dict[str, Part]:
    paths = PathsProbe(num_steps=num_steps, sampling=sampling)
    prompts = PromptSet.from_token_ids(ids)
    return measure_probes(specimen.model, prompts, [paths, Polytopes()], SessionOptions(**options))


def _oracle(
    specimen: zoo.Specimen, places: list[tuple[str, bool, slice]], num_steps: int
) -> Float[Tensor, "pair block interval"]:
    """Sign changes of named modules' inputs or outputs, from one plain forward pass a point."""
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)

    def signs(prompt: Tensor, point: Tensor) -> list[Bool[Tensor, " gate"]]:
        seen: list[Tensor] = []

        def visit(columns: slice) -> Callable[[Tensor], Tensor]:
            def note(hidden: Tensor) -> Tensor:
                seen.append(last_of(hidden)[columns] > 0)
                return hidden

            return note

        with ExitStack() as stack:
            for block in specimen.layers[1:]:
                for name, before, columns in places:
                    around = on_input if before else on_output
                    module: nn.Module = block.get_submodule(name)
                    stack.enter_context(wrapped(module, around(visit(columns))))
            run(specimen, prompt, 1, "final_norm", point)
        return seen

    rows = []
    for pair in range(NUM_PAIRS):
        a, b = (run(specimen, prompt, 1, "final_norm")[0] for prompt in ids[pair : pair + 2])
        alphas = torch.linspace(0, 1, num_steps).tolist()
        found = [signs(ids[pair], (1 - alpha) * a + alpha * b) for alpha in alphas]
        for one, other in pairwise(found):
            rows.append([float((x != y).sum()) for x, y in zip(one, other, strict=True)])
    # "pair·interval block" to "pair block interval"
    return torch.tensor(rows).view(NUM_PAIRS, num_steps - 1, -1).transpose(1, 2)


ALL = slice(None)


@pytest.mark.parametrize(
    ("name", "place", "engine"),
    [
        ("llama", ("mlp.gate_proj", False, ALL), "shared"),
        ("phi3", ("mlp.gate_up_proj", False, slice(48)), "rows"),
        ("gpt2", ("mlp.c_fc", False, ALL), "shared"),
        ("opt", ("fc1", False, ALL), "plain"),
        ("nano_gpt", ("mlp.0", False, ALL), "auto"),
    ],
)
def test_sign_changes_are_those_of_whole_forwards(
    name: str, place: tuple[str, bool, slice], engine: str
) -> None:
    specimen = zoo.build(name)
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    # So few tokens at once that a path comes in several pieces.
    found = _measured(specimen, ids, engine=engine, max_tokens=9)["polytopes"]
    expected = _oracle(specimen, [place], NUM_STEPS)
    assert expected.sum() > 50
    assert torch.equal(found.by_block, expected.sum(dim=2))
    assert torch.equal(found.crossings, expected.sum(dim=1))
    assert torch.equal(found.count, expected.sum(dim=(1, 2)))


def test_a_piecewise_linear_network_has_the_pieces_it_was_built_with() -> None:
    parts = _measured(zoo.build("rectified"), JUMP, num_steps=21)
    found: Crossings = parts["polytopes"]
    assert found.by_block.tolist() == [[4.0, 2.0, 1.0]]
    # Thresholds at these alphas; the jump's two are in neighbouring intervals.
    passed = [0.065, 0.265, 0.525, 0.965, 0.665, 0.705, 0.615]
    expected = torch.zeros(20)
    for alpha in passed:
        expected[int(20 * alpha)] += 1
    assert torch.equal(found.crossings[0], expected)
    # Steepest in 0.65 to 0.7; near are the five intervals around it, which hold three.
    assert found.near[0] == pytest.approx(3 / 0.25)
    assert found.far[0] == pytest.approx(4 / 0.75)
    assert found.regions.tolist() == [2.0]
    numbers = Polytopes().scalars(found)
    assert numbers[Polytopes.COUNT] == 7
    assert numbers[Polytopes.RATIO] == pytest.approx(2.25)
    assert numbers[Polytopes.PER_REGION] == 3.5


def test_adaptive_sampling_counts_between_the_points_it_looked_at() -> None:
    specimen = zoo.build("llama")
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    adaptive = _measured(specimen, ids, 51, "adaptive")
    grid = _measured(specimen, ids, 51)
    looked = ~adaptive["paths"].distance.isnan()
    neighbours = looked[:, 1:] & looked[:, :-1]
    found, every = adaptive["polytopes"].crossings, grid["polytopes"].crossings
    assert not looked.all()
    assert torch.equal(found[neighbours], every[neighbours])
    assert found.isfinite().all()
    # A gate that changes twice within a gap is not seen there; none is seen that did not change.
    totals, most = found.sum(dim=1), every.sum(dim=1)
    assert (totals <= most + 1e-3).all()
    assert (totals >= 0.8 * most).all()


def test_signs_are_kept_only_until_the_neighbours_have_come() -> None:
    signs = torch.arange(12, dtype=torch.uint8)[:, None]
    reader = _Reader(1, 12)
    for places in torch.tensor([[4, 5], [3, 2], [0, 1], [6, 8], [7, 9], [10, 11]]):
        seen = Outputs(torch.zeros(2, 1), {"gate signs 2": signs[places]})
        none = torch.zeros_like(places)
        reader.read(Chunk(none, places, seen, seen[:1], none))
        assert len(reader._waiting[0]) <= 2
    expected = [(one ^ (one + 1)).bit_count() for one in range(11)]
    assert reader.part(lambda rows: rows)["changes"].flatten().tolist() == expected


def test_signs_are_bits_of_the_gates_alone() -> None:
    gates = Gates(Tap(nn.Identity()), 2, 13)
    tapped = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0))
    packed = pack_signs(gates, tapped)
    assert packed.shape == (3, 5, 2)
    assert torch.equal(packed, pack_anywhere(gates.of(tapped) > 0))  # as on a GPU
    bits = [(packed[..., place // 8] >> (place % 8)) & 1 for place in range(11)]
    assert torch.equal(torch.stack(bits, dim=-1).bool(), tapped[..., 2:13] > 0)


def test_models_without_gates_are_left_out_by_name() -> None:
    for name in ("mamba", "mixtral"):
        specimen = zoo.build(name)
        ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
        with pytest.warns(UserWarning, match="probes='polytopes': M.* has no feed-forward"):
            assert list(_measured(specimen, ids)) == ["paths"]


def test_pairs_that_do_not_count_give_no_numbers_and_all_is_drawn_and_kept() -> None:
    specimen = zoo.build("llama")
    ids = specimen.prompts(NUM_PAIRS + 1, LENGTH)
    ids[1] = ids[0]
    parts = _measured(specimen, ids)
    found: Crossings = parts["polytopes"]
    assert found.count.isnan().tolist() == [True, False, False]
    page = Page(title="step 0", part=found, parts=parts, prompts=PromptSet.from_token_ids(ids))
    assert [key for key, _ in Polytopes().pictures(page, [])] == [Polytopes.WHERE]
    again = Polytopes().unpack(Polytopes().pack(found))
    assert Polytopes().scalars(again) == Polytopes().scalars(found)
