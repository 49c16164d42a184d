"""Taps read modules at every point, and hold them at what they were, as whole forwards would."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sr_monitor import PromptSet
from sr_monitor.errors import MissingPartError
from sr_monitor.model.engine import Chunk
from sr_monitor.model.outputs import Tap
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.session import SessionOptions, open_session
from sr_monitor.probes.base import Probe
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from tests import zoo
from tests.oracle import last_of, on_input, on_output, run, wrapped
from tests.outside_probe import Norms

NUM_POINTS, LENGTH = 70, 6  # more than fit a row

CASES: list[tuple[str, EngineName, list[str]]] = [
    # A block, an attention, and the input of an activation function, of the last block.
    (
        "llama",
        "shared",
        ["model.layers.1", "model.layers.1.self_attn", "model.layers.1.mlp.act_fn"],
    ),
    ("llama", "rows", ["model.layers.1", "model.layers.1.self_attn", "model.layers.1.mlp.act_fn"]),
    ("mixtral", "shared", ["model.layers.1.mlp"]),
    ("falcon_rope", "shared", ["transformer.h.1", "transformer.h.1.mlp"]),  # adds in place
    ("sequence_gpt", "plain", ["layers.1"]),
]


def _is_function(name: str) -> bool:
    return name.endswith("act_fn")


def _oracle(
    specimen: zoo.Specimen,
    prompt: Tensor,
    point: Tensor,
    modules: dict[str, nn.Module],
    held: dict[str, Tensor],
) -> tuple[Float[Tensor, " d_output"], dict[str, Float[Tensor, " width"]]]:
    """F and what the modules read, in one plain forward with functions in the modules' place."""
    found: dict[str, Tensor] = {}

    def visit(name: str, stream: Tensor) -> Tensor:
        if name in held:
            stream = stream.clone()
            last_of(stream)[:] = held[name]
        found[name] = last_of(stream).clone()
        return stream

    with ExitStack() as stack:
        for name, module in modules.items():
            place = on_input if _is_function(name) else on_output
            stack.enter_context(wrapped(module, place(partial(visit, name))))
        _, output = run(specimen, prompt, 1, "final_norm", point)
    return output, found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_taps_are_those_of_whole_forwards(case: tuple[str, EngineName, list[str]]) -> None:
    name, way, paths = case
    specimen = zoo.build(name)
    a, b = specimen.prompts(4, LENGTH).chunk(2)
    modules = {path: specimen.model.get_submodule(path) for path in paths}
    taps = {path: Tap(module, before=_is_function(path)) for path, module in modules.items()}
    chosen = (0, 33, NUM_POINTS - 1)
    alphas = torch.linspace(0, 1, NUM_POINTS)[:, None]
    for held in ((), (paths[0],), (paths[-1],)):
        chunks: list[Chunk] = []
        options = SessionOptions(engine=way, max_tokens=80)
        with (
            open_session(specimen.model, (a, b), options) as session,
            session.stream.tapping(taps),
        ):
            starts, ends = session.share(a, b).activations()
            # "pair 1 d_model" and "point 1" to "pair point d_model"
            points = (1 - alphas) * starts[:, None] + alphas * ends[:, None]
            context = session.engine.open(a)
            clean = session.engine.run(context, points[:, :1], lambda _: None)
            session.engine.run(context, points, chunks.append, clean, held=held)
        for pair in (0, 1):
            _, own = _oracle(specimen, a[pair], points[pair, 0], modules, {})
            kept = {each: own[each] for each in held}
            for place in chosen:
                output, found = _oracle(specimen, a[pair], points[pair, place], modules, kept)
                chunk = next(
                    each.some((each.contexts == pair) & (each.places == place))
                    for each in chunks
                    if ((each.contexts == pair) & (each.places == place)).any()
                )
                torch.testing.assert_close(chunk.outputs[0], output, rtol=1e-4, atol=2e-5)
                for path in paths:
                    torch.testing.assert_close(
                        chunk.taps[path][0], found[path], rtol=1e-4, atol=2e-5
                    )
                    torch.testing.assert_close(
                        chunk.clean_tap(path)[0], own[path], rtol=1e-4, atol=2e-5
                    )
        assert not any(module._forward_hooks for module in specimen.model.modules())


class Gateless(Probe):
    name, rides = "gateless", "paths"

    def taps(self, stream: object) -> dict[str, Tap]:
        raise MissingPartError("Llama has no gates")


def test_a_probe_whose_part_a_model_lacks_is_left_out() -> None:
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    with pytest.warns(UserWarning, match=r"probes='gateless': Llama has no gates.* are measured"):
        parts = measure_probes(
            specimen.model, prompts, [PathsProbe(), Gateless(), Norms()], SessionOptions()
        )
    assert list(parts) == ["paths", "norms"]


def test_a_tap_keeps_what_it_makes_of_a_module() -> None:
    specimen = zoo.build("llama")
    ids, module = specimen.prompts(2, LENGTH), specimen.model.get_submodule("model.layers.1.mlp")
    taps = {"all": Tap(module), "signs": Tap(module, keep=lambda each: each > 0)}
    with (
        open_session(specimen.model, ids.chunk(2), SessionOptions()) as session,
        session.stream.tapping(taps),
    ):
        found = session.stream.continue_plain(ids, session.stream.read(ids)).taps
        assert torch.equal(found["signs"], found["all"] > 0)
