"""Attention, feed-forward and gates are found by what they do, under any name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sr_monitor.errors import MissingPartError
from sr_monitor.model import sublayers
from sr_monitor.model.calls import recorded
from sr_monitor.model.gates import Gates
from sr_monitor.model.outputs import Tap
from sr_monitor.model.session import Session, SessionOptions, open_session
from sr_monitor.model.stream import Stream
from sr_monitor.model.sublayers import Sublayers, find_gates, find_parts, find_sublayers
from tests import zoo

# Attention, feed-forward, and what takes the gates, in the last block.
PARTS = {
    "gpt2": ("attn", "mlp", "mlp.act"),
    "opt": ("self_attn", "fc2", "activation_fn"),
    # These two add the stream inside of the modules that are named so.
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h", "mlp.gelu_impl"),
    "mpt": ("attn", "ffn.down_proj", "ffn.act"),
    "falcon_rope": ("self_attention", "mlp", "mlp.act"),  # side by side
    "granite": ("self_attn", "mlp", "mlp.act_fn"),  # scaled
    "phi3": ("self_attn", "mlp", "mlp.activation_fn"),  # gate and factor in one matrix
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm", "mlp.act_fn"),
    "llama4_chunked": ("self_attn", "feed_forward", "feed_forward.shared_expert.activation_fn"),
    "mixtral": ("self_attn", "mlp", None),
    "qwen3_next": ("linear_attn", "mlp", "mlp.shared_expert.act_fn"),
    "lit_gpt": ("proj", "mlp", "mlp.1"),
    "row_gpt": ("proj", "mlp", "mlp.1"),
    "mamba": (None, None, None),
    "linear": (None, None, None),
}


@contextmanager
def _opened(specimen: zoo.Specimen) -> Iterator[Session]:
    a, b = specimen.prompts(2, 5).chunk(2)
    with open_session(specimen.model, (a, b), SessionOptions()) as session:
        yield session


def test_a_session_looks_for_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[nn.Module] = []

    def noted(block: nn.Module) -> Any:
        blocks.append(block)
        return recorded(block)

    monkeypatch.setattr(sublayers, "recorded", noted)
    specimen = zoo.build("llama")
    for times in (1, 2):
        with _opened(specimen) as session:
            assert find_parts(session.stream) == find_parts(session.stream)
            find_gates(session.stream)
        assert len(blocks) == times * 2 * (specimen.num_layers - 1)


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_found_by_what_they_do(name: str) -> None:
    specimen = zoo.build(name)
    with _opened(specimen) as session:
        found = find_sublayers(session.stream)
    assert list(found) == list(range(2, specimen.num_layers + 1))
    last = found[specimen.num_layers]
    names = {module: name for name, module in specimen.layers[-1].named_modules()}
    gates = None if last.gates is None else last.gates.tap
    taps = last.attention, last.feed_forward, gates
    assert tuple(None if tap is None else names[tap.module] for tap in taps) == PARTS[name]
    assert gates is None or gates.before
    modules = list(specimen.model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in modules)


class _Attention(nn.Module):
    """The mean of the tokens so far, mapped."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(zoo.WIDTH, zoo.WIDTH)

    def forward(self, x: Float[Tensor, "prompt token width"]) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1)[:, None]
        made: Tensor = self.out(x.cumsum(dim=1) / counts)
        return made


class _Plain(nn.Module):
    """The activation is a mere function."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(zoo.WIDTH, 48), nn.Linear(48, zoo.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(F.gelu(self.up(x)))
        return made

    def gates(self, x: Tensor) -> Tensor:
        made: Tensor = self.up(x)
        return made


class _Gated(nn.Module):
    """w2(silu(w1 x) * w3 x), as in the code of Llama; here the factor is computed first."""

    def __init__(self) -> None:
        super().__init__()
        self.w3, self.w1 = nn.Linear(zoo.WIDTH, 48), nn.Linear(zoo.WIDTH, 48)
        self.w2 = nn.Linear(48, zoo.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.w3(x)
        made: Tensor = self.w2(F.silu(self.w1(x)) * factor)
        return made

    def gates(self, x: Tensor) -> Tensor:
        made: Tensor = self.w1(x)
        return made


class _Fused(nn.Module):
    """Factor and gate in one matrix, in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(zoo.WIDTH, 96), nn.Linear(48, zoo.WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        factor, gate = self.both(x).chunk(2, dim=-1)
        made: Tensor = self.down(F.silu(gate) * factor)
        return made

    def gates(self, x: Tensor) -> Tensor:
        made: Tensor = self.both(x)[..., 48:]
        return made


class _Block(nn.Module):
    """Its names say nothing, or the opposite."""

    def __init__(self, first: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.mlp, self.norm, self.attention = first, nn.LayerNorm(zoo.WIDTH), attention

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        made: Tensor = x + self.attention(self.norm(x))
        return made


class _Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Gated()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.part(x)
        return made


class _Silent(nn.Module):
    """Projections start at zero: nothing is added to the stream yet."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(), _Plain()
        for linear in (self.self_attn.out, self.mlp.down):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(x)
        made: Tensor = x + self.mlp(x)
        return made


def _made(*blocks: nn.Module) -> zoo.Specimen:
    model = zoo.HandMade([nn.Identity(), *blocks]).eval()
    return zoo.Specimen(model=model, blocks="blocks", unembedding="unembedding")


@pytest.mark.parametrize("kind", [_Plain, _Gated, _Fused])
def test_gates_of_activations_that_are_functions(kind: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    attention, feed_forward = _Attention(), kind()
    block = _Block(attention, feed_forward)
    given = list[Tensor]()
    with _opened(_made(block)) as session:
        found = find_sublayers(session.stream)[2]
        assert found.attention == Tap(attention)
        assert found.feed_forward == Tap(feed_forward)
        gates = find_gates(session.stream)[2]
        block.norm.register_forward_hook(lambda *call: given.append(call[-1][:, -1]))
        prompts = torch.tensor([[3, 5, 2]])
        with session.stream.tapping({"gate": gates.tap}):
            seen = session.stream.continue_plain(prompts, session.stream.read(prompts))
    torch.testing.assert_close(gates.of(seen.taps["gate"]), feed_forward.gates(given[-1]))


def test_blocks_of_one_part_and_parts_that_add_nothing_yet() -> None:
    torch.manual_seed(0)
    alone, silent = _Alone(), _Silent()
    with _opened(_made(alone, silent)) as session:
        found = find_sublayers(session.stream)
    gates = found[2].gates
    assert gates is not None
    assert found[2] == Sublayers(feed_forward=Tap(alone.part), gates=gates)
    assert gates.tap == Tap(alone.part.w1)
    assert found[3].attention == Tap(silent.self_attn)
    assert found[3].feed_forward == Tap(silent.mlp)
    assert found[3].gates == Gates(Tap(silent.mlp.up), 0, 48)


@pytest.mark.parametrize(
    ("name", "find", "message"),
    [
        ("mamba", find_parts, "MambaForCausalLM has no block after layer=1 that adds an attention"),
        ("mamba", find_gates, "MambaForCausalLM has no feed-forward after layer=1 whose gates"),
        ("mixtral", find_gates, "MixtralForCausalLM has no feed-forward .*; routed experts have"),
    ],
)
def test_models_without_them_are_refused_by_name(
    name: str, find: Callable[[Stream], object], message: str
) -> None:
    with _opened(zoo.build(name)) as session, pytest.raises(MissingPartError, match=message):
        find(session.stream)
