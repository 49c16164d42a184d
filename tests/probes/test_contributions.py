"""What sublayers add: known in a block built by hand, and equal to whole forwards in a model."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page
from sr_monitor.probes.contributions import Contributions, shares_and_turns
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import last_of, on_input, on_output, wrapped

NUM_PAIRS = 5


def _measured(specimen: zoo.Specimen) -> tuple[PromptSet, dict[str, Tensor]]:
    prompts = PromptSet.from_token_ids(specimen.prompts(NUM_PAIRS + 1, 6))
    probes = [PathsProbe(num_steps=3), Contributions()]
    found = measure_probes(specimen.model, prompts, probes, SessionOptions(max_tokens=40))
    return prompts, found["contributions"]


def _oracle(
    specimen: zoo.Specimen, block: int, parts: tuple[str, str], scale: float
) -> Float[Tensor, "kind 2"]:
    """Medians over the prompts of norms and cosines, from functions in the modules' place."""
    rows = []
    for prompt in specimen.prompts(NUM_PAIRS + 1, 6)[:-1]:
        seen: dict[str, Tensor] = {}

        def note(name: str, stream: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen[name] = last_of(stream).clone()
            return stream

        layer = specimen.layers[block - 1]
        attention, feed_forward = (layer.get_submodule(part) for part in parts)
        with (
            torch.no_grad(),
            wrapped(layer, on_input(lambda x: note("into", x))),
            wrapped(attention, on_output(lambda x: note("attention", x))),
            wrapped(feed_forward, on_output(lambda x: note("feed_forward", x))),
        ):
            specimen.run(prompt)
        stream, values = seen["into"], []
        for kind in ("attention", "feed_forward"):
            added = scale * seen[kind]
            cosine = nn.functional.cosine_similarity(added, stream, dim=0)
            values.append(torch.stack([added.norm() / stream.norm(), cosine]))
            stream = stream + added
        rows.append(torch.stack(values))
    return torch.stack(rows).median(dim=0).values


@pytest.mark.parametrize(
    ("name", "parts", "scale"),
    [
        ("llama", ("self_attn", "mlp"), 1.0),
        ("granite", ("self_attn", "mlp"), 0.5),  # scales its residual branches
        ("gpt_neox", ("attention", "mlp"), 1.0),  # in parallel
        ("nano_gpt", ("proj", "mlp"), 1.0),
    ],
)
def test_contributions_are_those_of_whole_forwards(
    name: str, parts: tuple[str, str], scale: float
) -> None:
    specimen = zoo.build(name)
    _, found = _measured(specimen)
    assert found["block"].tolist() == [2, 3]
    for place, block in enumerate((2, 3)):
        expected = _oracle(specimen, block, parts, scale)
        for kind, (share, turn) in zip(("attention", "feed_forward"), expected, strict=True):
            assert float(found[f"{kind}_share"][place]) == pytest.approx(float(share), rel=1e-3)
            assert float(found[f"{kind}_turn"][place]) == pytest.approx(float(turn), abs=1e-3)


def test_a_context_that_is_not_finite_says_nothing() -> None:
    stream = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    made = stream.flip(1)
    made[1] = torch.nan
    found = shares_and_turns({"into": stream, "block": stream + made, "feed_forward": made})
    assert found[[0, 2], 1, 0].tolist() == pytest.approx([1.0, 1.0])
    assert found[1].isnan().all()


class _Halving(nn.Module):
    """Adds minus a half of the stream: a feed-forward that erases."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(zoo.WIDTH, zoo.WIDTH, bias=False)
        self.mlp.weight.data = -torch.eye(zoo.WIDTH) / 2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(x)
        return out


def test_a_block_that_erases_half_of_the_stream() -> None:
    model = zoo.HandMade([_Halving(), _Halving()]).eval()
    specimen = zoo.Specimen(model=model, blocks="blocks", unembedding="unembedding")
    prompts, found = _measured(specimen)
    assert float(found["feed_forward_share"]) == pytest.approx(0.5)
    assert float(found["feed_forward_turn"]) == pytest.approx(-1.0)
    assert found["attention_share"].isnan().all()
    scalars = Contributions().scalars(found)
    assert scalars == {Contributions.FEED_FORWARD: pytest.approx(0.5)}
    page = Page(title="step 0", part=found, parts={}, prompts=prompts)
    assert [key for key, _ in Contributions().pictures(page, ())] == [Contributions.BY_BLOCK]


def test_a_model_that_adds_nothing_to_a_stream_is_refused_by_name() -> None:
    specimen = zoo.build("step")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, 6))
    refusal = r"probes='contributions': HandMade has no .* are measured"
    with pytest.warns(UserWarning, match=refusal):
        parts = measure_probes(
            specimen.model, prompts, [PathsProbe(num_steps=3), Contributions()], SessionOptions()
        )
    assert list(parts) == ["paths"]
