"""Checkpoints in the format of OLMo-core's trainer, written from Hugging Face models.

save_step(tiny_olmo("olmo2"), tmp_path / "step500")
"""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from tests.saved import tiny_model
from tests.trained import save_shards

_STORAGE = "olmo_core.distributed.checkpoint.filesystem"
_NORM = {"name": "rms", "eps": 1e-06, "bias": False, "dtype": "float32"}
_NORM |= {"_CLASS_": "olmo_core.nn.layer_norm.LayerNormConfig"}
_NAMES = {
    "self_attn.q_proj": "attention.w_q",
    "self_attn.k_proj": "attention.w_k",
    "self_attn.v_proj": "attention.w_v",
    "self_attn.o_proj": "attention.w_out",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "model.layers.": "blocks.",
    "model.embed_tokens": "embeddings",
    "model.norm": "lm_head.norm",
    "post_feedforward_layernorm": "feed_forward_norm",
}
_OLMO = {"post_attention_layernorm": "attention_norm"}
_LLAMA = {"post_attention_layernorm": "feed_forward_norm", "input_layernorm": "attention_norm"}


def tiny_olmo(kind: str) -> Any:
    """A tiny Hugging Face model of a kind that OLMo-core trains, norms and all random."""
    made = {"olmo2": "Olmo2", "olmo3": "Olmo3", "llama": "Llama"}[kind]
    sizes: dict[str, Any] = {"num_hidden_layers": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}
    ropes: Any = {"rope_type": "default", "rope_theta": 9_000.0}
    if kind == "olmo3":
        sizes |= {"sliding_window": 3}
        yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
        full = (
            ropes | yarn | {"beta_fast": 32, "beta_slow": 1, "attention_factor": 1.2079441541679836}
        )
        ropes = {"sliding_attention": ropes, "full_attention": full}
    model = tiny_model(made, rope_parameters=ropes, **sizes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 2)
    return model


def save_step(model: Any, folder: Path, **changed: Any) -> Path:
    """Save a model and an optimizer's state as the trainer does; change entries of the config."""
    state = {_own_name(name, model): tensor for name, tensor in model.state_dict().items()}
    optimizer = {f"state.{name}.exp_avg": torch.zeros_like(t) for name, t in state.items()}
    groups = {f"param_groups.{name}.lr": 0.01 for name in state}
    shards = save_shards({"model": state, "optim": optimizer | groups}, folder / "model_and_optim")
    _rewrite_table(shards / ".metadata")
    (folder / "train").mkdir()
    torch.save(
        {"global_step": 500, "rng": {"python": (3, (1, 2), None)}}, folder / "train/rank0.pt"
    )
    (folder / ".metadata.json").write_text('{"ephemeral": false, "version": "3.0.0"}')
    (folder / "config.json").write_text(json.dumps(experiment(model, **changed)))
    return folder


def experiment(model: Any, **changed: Any) -> dict[str, Any]:
    """The config.json of a training; `changed` are entries of the model, `a__b` of a part of it."""
    made = _model_entries(model.config)
    for path, value in changed.items():
        *where, name = path.split("__")
        entries = made
        for part in where:
            entries = entries[part]
        entries[name] = value
    tokenizer = {"vocab_size": 300, "eos_token_id": 0, "identifier": "allenai/dolma2-tokenizer"}
    return {
        "model": made,
        "dataset": {"tokenizer": tokenizer, "sequence_length": 32},
        "train_module": {"max_sequence_length": 32},
        "_CLASS_": "__main__.ExperimentConfig",
    }


def _model_entries(config: Any) -> dict[str, Any]:
    block = _block_entries(config)
    made = {
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "n_layers": config.num_hidden_layers,
        "block": block,
        "lm_head": {"name": "default", "layer_norm": _NORM, "bias": False, "dtype": "float32"},
        "name": "default",
        "dtype": "float32",
        "init_method": "normal",
        "init_seed": 0,
        "init_std": 0.02,
        "tie_word_embeddings": False,
        "_CLASS_": "olmo_core.nn.transformer.config.TransformerConfig",
    }
    if config.model_type == "olmo3":
        scaling: dict[str, Any] = {
            "factor": 8,
            "beta_fast": 32,
            "beta_slow": 1,
            "old_context_len": 64,
        }
        scaling |= {"_CLASS_": "olmo_core.nn.rope.YaRNRoPEScalingConfig"}
        last = json.loads(json.dumps(block))
        last["sequence_mixer"]["rope"]["scaling"] = scaling
        made["block_overrides"] = {"3": last}
    return made


def _block_entries(config: Any) -> dict[str, Any]:
    is_llama = config.model_type == "llama"
    rope: dict[str, Any] = {
        "name": "default",
        "theta": 9_000,
        "full_precision": True,
        "no_global_rope": False,
    }
    attention: dict[str, Any] = {
        "name": "default",
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "bias": False,
        "rope": rope | {"partial_rotary_factor": 1.0, "_CLASS_": "olmo_core.nn.rope.RoPEConfig"},
        "dtype": "float32",
        "use_head_qk_norm": False,
        "type": "attention",
    }
    attention |= {} if is_llama else {"qk_norm": _NORM}
    if config.model_type == "olmo3":
        window: dict[str, Any] = {
            "pattern": [3, 3, 3, -1],
            "force_full_attention_on_first_layer": False,
        }
        attention["sliding_window"] = window | {"force_full_attention_on_last_layer": True}
    feed_forward: dict[str, Any] = {
        "hidden_size": config.intermediate_size,
        "name": "default",
        "bias": False,
    }
    return {
        "sequence_mixer": attention,
        "layer_norm": _NORM,
        "feed_forward": feed_forward | {"dtype": "float32", "activation": "silu"},
        "name": "default" if is_llama else "reordered_norm",
    }


def _own_name(name: str, model: Any) -> str:
    if name == "lm_head.weight":
        return "lm_head.w_out.weight"
    of_kind = _LLAMA if model.config.model_type == "llama" else _OLMO
    for theirs, own in (_NAMES | of_kind).items():
        name = name.replace(theirs, own)
    return name


def _rewrite_table(file: Path) -> None:
    """Name the places of the parts by the class of OLMo-core, which this process does not have."""
    table = pickle.loads(file.read_bytes())
    kind = type("_StorageInfo", (), {"__module__": _STORAGE})
    for index, place in table.storage_data.items():
        own = table.storage_data[index] = kind()
        vars(own).update(
            {name: vars(place)[name] for name in ("relative_path", "offset", "length")}
        )
    parts = _STORAGE.split(".")
    modules: dict[str, Any] = {}
    for end in range(1, len(parts) + 1):
        modules[".".join(parts[:end])] = ModuleType(".".join(parts[:end]))
    modules[_STORAGE]._StorageInfo = kind
    with patch.dict(sys.modules, modules):
        file.write_bytes(pickle.dumps(table))


def optimizer_bytes(folder: Path) -> list[tuple[Path, int, int]]:
    """Where the optimizer's state lies: each file, start and length."""
    from sr_monitor.replay.readers.inert import fields, read_inert
    from sr_monitor.replay.readers.sharded import _ALLOWED

    shards = folder / "model_and_optim"
    table: Any = fields(read_inert((shards / ".metadata").read_bytes(), _ALLOWED))
    found = []
    for index, place in fields(table["storage_data"]).items():
        where: Any = fields(place)
        if str(fields(index)["fqn"]).startswith("optim."):
            found.append((shards / where["relative_path"], where["offset"], where["length"]))
    return found
