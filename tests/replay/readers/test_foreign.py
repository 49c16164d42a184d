"""What nanoGPT, litgpt, torchtitan and pico-train save is read as the same model of Hugging Face.

The files are written here in their formats; the Llama with the rotations of Meta's own code, which
torchtitan and pico-train share, is an oracle of its own.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import find_checkpoints
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.options import ReplayOptions
from tests.saved import save_folder, tiny_model
from tests.trained import save_shards

IDS = torch.arange(24).view(2, 12) * 7 % 300
HEADS, GROUPS, WIDTH = 4, 2, 8
LLAMA: dict[str, Any] = {
    "num_key_value_heads": GROUPS,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 9_000.0},
}


class Attention(nn.Module):
    """Llama's attention, whose rotations pair neighbouring numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(32, HEADS * WIDTH, bias=False)
        self.wk = nn.Linear(32, GROUPS * WIDTH, bias=False)
        self.wv = nn.Linear(32, GROUPS * WIDTH, bias=False)
        self.wo = nn.Linear(HEADS * WIDTH, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, WIDTH) for part in (self.wq, self.wk, self.wv))
        q, k, v = (part.transpose(1, 2) for part in (turn(q), turn(k), v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.wo(seen.transpose(1, 2).flatten(2))
        return out


def turn(x: Tensor) -> Tensor:
    """Turn each pair of neighbours, as a complex number, by its position."""
    frequencies = 9_000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    angles = torch.outer(torch.arange(x.shape[1]), frequencies)[:, None]
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(32, 64, bias=False) for _ in range(2))
        self.w2 = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(32, eps=1e-5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class OwnLlama(nn.Module):
    """Llama in the words of torchtitan."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(300, 32)
        self.layers = nn.ModuleDict({f"{number}": Block() for number in range(3)})
        self.norm = nn.RMSNorm(32, eps=1e-5)
        self.output = nn.Linear(32, 300, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids)
        for block in self.layers.values():
            x = block(x)
        out: Tensor = self.output(self.norm(x))
        return out


def loaded(path: Path, step: int, **options: Any) -> Any:
    (found,) = find_checkpoints(path)
    assert (found.name.step, found.problem) == (step, None)
    return ModelKeeper(ReplayOptions(device="cpu", **options)).load(found)


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    with torch.no_grad():
        theirs: Any = expected(IDS)
        torch.testing.assert_close(
            found(IDS).logits, getattr(theirs, "logits", theirs), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("inside", ["", "qkv_linear."])
def test_torchtitan_with_a_base(tmp_path: Path, inside: str) -> None:
    model = OwnLlama()
    state = {
        name.replace(".attention.wq", f".attention.{inside}wq")
        .replace(".attention.wk", f".attention.{inside}wk")
        .replace(".attention.wv", f".attention.{inside}wv"): tensor
        for name, tensor in model.state_dict().items()
    }
    moments = {f"state.{name}.exp_avg": torch.ones_like(t) for name, t in state.items()}
    beside = {"optimizer": moments, "train_state": {"step": torch.tensor(70)}}
    save_shards({**state, **beside}, tmp_path / "checkpoint" / "step-70")
    base = save_folder(tiny_model(**LLAMA), tmp_path / "base")
    assert_same(loaded(tmp_path / "checkpoint", 70, base=str(base)), model)
    other = str(save_folder(tiny_model("GPT2", "LMHeadModel"), tmp_path / "gpt2"))
    with pytest.raises(InputError, match="for its Llama models, and --base names a gpt2; convert"):
        loaded(tmp_path / "checkpoint", 70, base=other)
    with pytest.raises(InputError, match="does not say which architecture it is of"):
        loaded(tmp_path / "checkpoint", 70)


def test_shards_of_others_in_such_a_folder_are_left_alone(tmp_path: Path) -> None:
    model = tiny_model()
    save_shards({"model": model.state_dict()}, tmp_path / "step-3")
    base = save_folder(tiny_model(), tmp_path / "base")
    assert_same(loaded(tmp_path / "step-3", 3, base=str(base)), model)


PICO = {
    "tok_embeddings": "embedding_proj",
    "output.": "de_embedding_proj.",
    "feed_forward.w1": "swiglu.w_0",
    "feed_forward.w3": "swiglu.w_1",
    "feed_forward.w2": "swiglu.w_2",
    "ffn_norm": "swiglu_norm",
    "wq.": "q_proj.",
    "wk.": "k_proj.",
    "wv.": "v_proj.",
    "wo.": "o_proj.",
}


def test_pico_train(tmp_path: Path) -> None:
    model, state = OwnLlama(), {}
    for name, tensor in model.state_dict().items():
        name = "output_norm.weight" if name == "norm.weight" else name
        for own, theirs in PICO.items():
            name = name.replace(own, theirs)
        state[f"pico_decoder.{name}"] = tensor
    (folder := tmp_path / "checkpoints" / "step_500").mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    entries: dict[str, Any] = {
        "model_type": "pico_decoder",
        "d_model": 32,
        "n_layers": 3,
        "vocab_size": 300,
    }
    entries |= {"batch_size": 4, "max_seq_len": 64, "activation_hidden_dim": 64, "norm_eps": 1e-5}
    entries |= {"attention_n_heads": HEADS, "attention_n_kv_heads": GROUPS}
    entries |= {"position_emb_theta": 9_000.0, "auto_map": {"AutoConfig": "pico_decoder.Config"}}
    (folder / "config.json").write_text(json.dumps(entries))
    (folder / "pico_decoder.py").write_text("raise SystemExit('code of the folder was run')")
    (tmp_path / "checkpoints" / "latest").symlink_to("step_500", target_is_directory=True)
    assert_same(loaded(tmp_path / "checkpoints", 500), model)
    del entries["norm_eps"]
    (folder / "config.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"config.json' is damaged or no file .*norm_eps"):
        loaded(tmp_path / "checkpoints", 500)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path: Path, bias: bool) -> None:
    model: Any = tiny_model("GPT2", "LMHeadModel", activation_function="gelu", n_positions=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if name.endswith("bias") and not bias:
                parameter.zero_()
    state = {
        f"_orig_mod.{name}": (tensor.T if tensor.dim() == 2 and "c_" in name else tensor).clone()
        for name, tensor in model.state_dict().items()
        if bias or not name.endswith("bias")
    }
    state["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # the mask
    args: dict[str, Any] = {
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 32,
        "block_size": 64,
        "vocab_size": 300,
    }
    content: dict[str, Any] = {"model": state, "model_args": args | {"bias": bias, "dropout": 0.0}}
    content |= {"iter_num": 250, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save(content, tmp_path / "ckpt.pt")
    assert_same(loaded(tmp_path, 250), model)
    del content["model_args"]
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"ckpt.pt' is damaged or no file of weights .*model_args"):
        loaded(tmp_path, 250)


def save_litgpt(model: Any, folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True)
    names = {
        "model.layers.": "transformer.h.",
        "model.embed_tokens": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_2",
        "self_attn.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.fc_1",
        "mlp.up_proj": "mlp.fc_2",
        "mlp.down_proj": "mlp.proj",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for own, theirs in names.items():
            name = name.replace(own, theirs)
        state[name] = tensor.clone()
    for number in range(3):
        parts = [state.pop(f"transformer.h.{number}.self_attn.{q}_proj.weight") for q in "qkv"]
        state[f"transformer.h.{number}.attn.qkv.weight"] = torch.cat(parts)
    content = {"model": state, "optimizer": {"state": {}}, "iter_num": 2000, "step_count": 1000}
    torch.save(content, folder / "lit_model.pth")
    entries: dict[str, Any] = {
        "name": "tiny",
        "hf_config": {},
        "block_size": 64,
        "n_layer": 3,
        "n_embd": 32,
    }
    entries |= {"vocab_size": 290, "padding_multiple": 512, "padded_vocab_size": 300, "n_head": 4}
    entries |= {"head_size": 8, "n_query_groups": 2, "norm_eps": 1e-5, "rope_base": 9_000}
    entries |= {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "n_expert": 0}
    entries |= {"parallel_residual": False, "rotary_percentage": 1.0, "rope_condense_ratio": 1}
    entries |= {"bias": False, "intermediate_size": 64, "norm_1": True, "norm_2": True}
    entries |= {"norm_qk_type": "default", "gelu_approximate": "none", "sliding_window_size": None}
    (folder / "model_config.yaml").write_text(import_module("yaml").dump(entries | changed))
    return folder


def test_litgpt(tmp_path: Path) -> None:
    model = tiny_model(**LLAMA)
    save_litgpt(model, tmp_path / "step-00001000")
    assert_same(loaded(tmp_path, 1000), model)
    (tmp_path / "step-00001000").rename(tmp_path / "final")
    assert_same(loaded(tmp_path, 1000), model)
    scaled: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": 9_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
    }
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 6}
    longer: dict[str, Any] = LLAMA | {"rope_parameters": scaled}
    other = tiny_model(**longer)
    adjusted = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    adjusted |= {"original_max_seq_len": 6}
    save_litgpt(other, tmp_path / "long" / "step-00000002", rope_adjustments=adjusted)
    assert_same(loaded(tmp_path / "long", 2), other)


@pytest.mark.parametrize(
    "changed",
    [
        {"mlp_class_name": "GptNeoxMLP"},
        {"parallel_residual": True},
        {"norm_qk": True},
        {"rotary_percentage": 0.25},
        {"final_logit_softcapping": 30.0},
        {"sliding_window_size": 512},
        {"norm_1": False},
        {"something_new": 3},
    ],
)
def test_what_llama_does_not_have_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    save_litgpt(tiny_model(**LLAMA), tmp_path / "step-00000001", **changed)
    ((name, value),) = changed.items()
    with pytest.raises(InputError) as caught:
        find_checkpoints(tmp_path)
    assert f"was trained with {name}={value!r}, which Llama does not have" in str(caught.value)


class NanoChat(nn.Module):
    """nanochat's model as of 2025: norms without weights, relu^2, and rotations the other way."""

    def __init__(self, *, vocab: int = 290, padded: int = 320) -> None:
        super().__init__()
        self.vocab = vocab
        block = {
            "attn.c_q": (32, HEADS * WIDTH),
            "attn.c_k": (32, GROUPS * WIDTH),
            "attn.c_v": (32, GROUPS * WIDTH),
            "attn.c_proj": (HEADS * WIDTH, 32),
            "mlp.c_fc": (32, 128),
            "mlp.c_proj": (128, 32),
        }
        shapes = {
            f"transformer.h.{number}.{name}": shape
            for number in range(2)
            for name, shape in block.items()
        }
        shapes |= {"lm_head": (32, padded), "transformer.wte": (32, padded)}
        generator = torch.Generator().manual_seed(0)
        self.w = {
            f"{name}.weight": torch.randn(out, wide, generator=generator) / wide**0.5
            for name, (wide, out) in shapes.items()
        }

    def forward(self, ids: Tensor) -> Tensor:
        x = norm(self.w["transformer.wte.weight"][ids])
        for number in range(2):
            own = f"transformer.h.{number}."
            x = x + self.attend(norm(x), f"{own}attn.")
            inner = (norm(x) @ self.w[f"{own}mlp.c_fc.weight"].T).relu() ** 2
            x = x + inner @ self.w[f"{own}mlp.c_proj.weight"].T
        logits = (norm(x) @ self.w["lm_head.weight"].T)[..., : self.vocab]
        return 15 * torch.tanh(logits / 15)

    def attend(self, x: Tensor, own: str) -> Tensor:
        q, k, v = (
            (x @ self.w[f"{own}c_{part}.weight"].T).view(*x.shape[:2], -1, WIDTH).transpose(1, 2)
            for part in "qkv"
        )
        frequencies = 10_000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        angles = torch.outer(torch.arange(x.shape[1]), frequencies)

        def turned(z: Tensor) -> Tensor:
            one, two = z.chunk(2, dim=-1)
            cos, sin = angles.cos(), angles.sin()
            return norm(torch.cat([one * cos + two * sin, two * cos - one * sin], dim=-1))

        seen = nn.functional.scaled_dot_product_attention(
            turned(q), turned(k), v, is_causal=True, enable_gqa=True
        )
        out: Tensor = seen.transpose(1, 2).flatten(2) @ self.w[f"{own}c_proj.weight"].T
        return out


def norm(x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],))


def save_nanochat(folder: Path, weights: dict[str, Tensor], **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    torch.save({f"_orig_mod.{n}": t for n, t in weights.items()}, folder / "model_000500.pt")
    model = {"sequence_len": 64, "vocab_size": 290, "n_layer": 2, "n_head": HEADS}
    model |= {"n_kv_head": GROUPS, "n_embd": 32, **changes}
    meta = {"step": 500, "model_config": model}
    (folder / "meta_000500.json").write_text(json.dumps(meta))


def test_nanochat(tmp_path: Path) -> None:
    """Its padded vocabulary is cropped, as nanochat crops its logits."""
    model = NanoChat()
    save_nanochat(tmp_path, model.w)
    (tmp_path / "optim_000500_rank0.pt").write_bytes(b"never read")
    found = loaded(tmp_path, 500)
    assert (type(found).__name__, found(IDS % 290).logits.shape[-1]) == ("NanoChatForCausalLM", 290)
    with torch.no_grad():
        torch.testing.assert_close(found(IDS % 290).logits, model(IDS % 290), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "changes", "said"),
    [
        ({"x0_lambdas": torch.zeros(2)}, {}, "x0_lambdas"),
        ({"transformer.h.1.attn.ve_gate.weight": torch.ones(2, 12)}, {}, r"attn\.ve_gate"),
        ({}, {"window_pattern": "SSSL"}, "window_pattern='SSSL'"),
    ],
)
def test_what_nanochat_got_since_is_refused_by_name(
    tmp_path: Path, more: dict[str, Tensor], changes: dict[str, Any], said: str
) -> None:
    save_nanochat(tmp_path, {**NanoChat().w, **more}, **changes)
    with pytest.raises(InputError, match=rf"trained with .*{said}.*step\(orig_model, step\)"):
        find_checkpoints(tmp_path)


def test_nanochat_without_its_description(tmp_path: Path) -> None:
    torch.save(NanoChat().w, tmp_path / "model_000500.pt")
    with pytest.raises(InputError, match="holds no known checkpoint"):
        find_checkpoints(tmp_path)
    (tmp_path / "meta_000500.json").write_text("{}")
    with pytest.raises(InputError, match=r"meta_000500\.json"):
        find_checkpoints(tmp_path)
