# pyright: reportMissingImports=false
"""The lines that docs/3-watching.md gives for loops without callbacks, run as they stand there."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from sr_monitor import InputError, Monitor, MonitorConfig, PromptSet, measure_paths
from tests.training import equal, facts_of, records
from tests.zoo import VOCAB, NanoGPT, PackedGPT, build

PAGE = (Path(__file__).parents[2] / "docs" / "3-watching.md").read_text()
LINES = dict(re.findall(r"^\| (\S+) \| [^|]+ \| `(monitor\.step\([^`]+\))` \|$", PAGE, re.M))
PROMPTS = PromptSet.from_token_ids(torch.randint(VOCAB, (5, 6)))


class _PicoBlock(nn.Module):
    """A block that puts out the stream and a cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor, mask: Any, past: Any, use_cache: bool) -> tuple[Tensor, None]:
        return self.inner(hidden), None


class Pico(NanoGPT):
    """As pico-train's decoder: `layer(h, mask, past_key_values, use_cache) -> (h, cache)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(_PicoBlock, self.transformer.pop("h").children()))

    def forward(self, idx: Tensor, targets: Any = None, use_cache: bool = False) -> Any:
        part: Any = self.transformer
        hidden = part["wte"](idx) + part["wpe"](torch.arange(idx.shape[1]))
        for layer in self.layers:
            hidden, _ = layer(hidden, None, None, use_cache)
        return self.lm_head(part["ln_f"](hidden)), None


MODELS: dict[str, Callable[[], nn.Module]] = {
    "nanoGPT": lambda: build("nano_gpt").model,
    "nanochat": lambda: build("mixing_gpt").model,
    "litgpt": lambda: build("lit_gpt").model,
    "pico-train": Pico,
    "Fabric": lambda: Fabric(accelerator="cpu", devices=1).setup_module(build("lit_gpt").model),
    "accelerate": lambda: accelerate.Accelerator(cpu=True).prepare(build("nano_gpt").model),
}


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
@pytest.mark.parametrize("loop", MODELS)
def test_the_line_measures_what_that_loop_trains(loop: str, tmp_path: Path) -> None:
    """After the update of each step, and no loss, weight or random state moves."""

    def train(line: str, folder: Path | None) -> dict[str, Any]:
        torch.manual_seed(0)
        model = MODELS[loop]().train()
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=0.01), []
        config = MonitorConfig(num_pairs=3, num_steps=5, num_slices=0)
        monitor = Monitor(PROMPTS, config, schedule=bool, log_dir=folder, on_error="raise")
        for step in (1, 2):
            found = model(torch.randint(VOCAB, (4, 12)))
            loss = (found[0] if isinstance(found, tuple) else found).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            names = dict.fromkeys(("raw_model", "orig_model", "model"), model)
            steps = dict.fromkeys(("iter_num", "step", "batch_step", "completed_steps"), step)
            own = {"monitor": monitor, "self": SimpleNamespace(model=model)}
            exec(line, {**names, **steps, **own, "state": {"step_count": step}})
        monitor.close()
        return facts_of(model, optimizer, losses)

    watched, plain = train(LINES[loop], tmp_path), train("", None)
    assert [fact for fact in plain if not equal(plain[fact], watched[fact])] == []
    found = records(tmp_path)
    assert list(found) == [1, 2]
    assert not torch.equal(found[1].paths.distance, found[2].paths.distance)
    assert set(LINES) == set(MODELS)


# torchtitan ---------------------------------------------------------------------------------------


class Masked(PackedGPT):
    """As on torchtitan's main branch: packed prompts, kept apart by masks that the caller makes."""

    def __init__(self) -> None:
        super().__init__("packed")

    def get_attention_masks(self, positions: Tensor) -> Tensor:
        """Show "query key" the earlier tokens of the same prompt; each begins at position 0."""
        place, prompt = torch.arange(len(positions)), (positions == 0).cumsum(0)
        return (place[:, None] >= place) & (prompt[:, None] == prompt)

    def forward(  # type: ignore[override]
        self, tokens: Tensor, positions: Tensor, attention_masks: Tensor
    ) -> Tensor:
        hidden = self.tok_embeddings(tokens) + self.positions(positions)
        for layer in self.layers.values():
            hidden = layer(hidden, attention_masks)
        logits: Tensor = self.output(self.norm(hidden))
        return logits


def test_packed_prompts_with_masks_and_positions_are_measured() -> None:
    def call(model: Any, ids: Tensor) -> Any:
        # (prompt, token) -> (prompt·token,)
        positions = torch.arange(ids.shape[1]).expand_as(ids).flatten()
        return model(ids.flatten(), positions, model.get_attention_masks(positions=positions))

    torch.manual_seed(0)
    model, packed = Masked().eval(), PackedGPT("packed").eval()
    packed.load_state_dict(model.state_dict())
    pairs = PROMPTS.pairs(4)
    found = measure_paths(model, *pairs, num_steps=5, call=call)
    expected = measure_paths(packed, *pairs, num_steps=5)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-5, atol=1e-5)
    assert (found.end_distance > 0.1).all()


@pytest.fixture
def titan() -> dict[str, Any]:
    """What the code for torchtitan in the docs defines."""
    if not (find_spec("torchtitan") and find_spec("triton")):
        pytest.skip("pip install torchtitan triton")
    (code,) = re.findall(r"## torchtitan.*?```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, Any] = {"__name__": __name__}
    exec(code, space)
    return space


def llama3() -> Any:
    """A tiny Llama 3 of torchtitan's own."""
    from torchtitan.models import llama3 as its
    from torchtitan.models.llama3.model import Llama3Model

    layers = its._build_llama3_layers(
        n_layers=3, dim=32, n_heads=4, hidden_dim=48, attn_backend="flex", fuse_qkv=False,
        rope=its.ComplexRoPE.Config(dim=8, max_seq_len=64, theta=10_000),
    )  # fmt: skip
    embedding = {"num_embeddings": VOCAB, "embedding_dim": 32, "param_init": its._EMBEDDING_INIT}
    config = Llama3Model.Config(
        dim=32,
        vocab_size=VOCAB,
        tok_embeddings=its.Embedding.Config(**embedding),
        norm=its.RMSNorm.Config(normalized_shape=32, param_init=its._NORM_INIT),
        lm_head=its.Linear.Config(
            in_features=32, out_features=VOCAB, param_init=its._output_linear_init(32)
        ),
        layers=layers,
    )
    torch.manual_seed(0)
    model = config.build()
    model.init_states()
    return model


@pytest.mark.filterwarnings("ignore")  # torchtitan's, about what it imports
def test_the_component_measures_the_models_of_torchtitan(
    titan: dict[str, Any], tmp_path: Path
) -> None:
    from torchtitan.models.llama3 import Llama3StateDictAdapter

    transformers = pytest.importorskip("transformers")
    model = llama3()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)
    PROMPTS.save(tmp_path / "prompts.json")
    places = {"prompts": str(tmp_path / "prompts.json"), "folder": str(tmp_path)}
    config = titan["StableRegions"].Config(freq=2, **places)
    one = SimpleNamespace(pp_enabled=False, cp_enabled=False)
    component = config.build(parallel_dims=one, tokenizer=None)
    for step in range(1, 5):
        if component.should_validate(step):
            component.validate([model], step)
    component.monitor.close()
    found = records(tmp_path)
    assert list(found) == [1, 2, 4]
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, rope_theta=10_000, rms_norm_eps=model.norm.eps or 1e-5,
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(Llama3StateDictAdapter(model.config, None).to_hf(model.state_dict()))
    expected = measure_paths(theirs, *PROMPTS.pairs(4)).max_slope
    torch.testing.assert_close(found[4].paths.max_slope, expected, rtol=1e-5, atol=0)
    for name in ("pp_enabled", "cp_enabled"):
        cut_up = SimpleNamespace(**{"pp_enabled": False, "cp_enabled": False, name: True})
        with pytest.raises(InputError, match="with pipeline parallelism no rank holds all blocks"):
            config.build(parallel_dims=cut_up)
