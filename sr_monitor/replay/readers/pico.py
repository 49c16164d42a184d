"""pico-train's `step_N` folders, read as Hugging Face's Llama of the same weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr_monitor.replay.readers.base import register
from sr_monitor.replay.readers.files import explained
from sr_monitor.replay.readers.foreign import Entries, turned_by_halves
from sr_monitor.replay.readers.huggingface import HuggingFaceFolder
from sr_monitor.replay.readers.saved import Saved, renamed

_NAMES = {
    "embedding_proj.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "de_embedding_proj.weight": "lm_head.weight",
    "layers.*.attention_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.*.swiglu_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.swiglu.w_0.weight": "model.layers.*.mlp.gate_proj.weight",
    "layers.*.swiglu.w_1.weight": "model.layers.*.mlp.up_proj.weight",
    "layers.*.swiglu.w_2.weight": "model.layers.*.mlp.down_proj.weight",
    **{
        f"layers.*.attention.{part}.weight": f"model.layers.*.self_attn.{part}.weight"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj")
    },
}


@register
class PicoFolder(HuggingFaceFolder):
    """A Hugging Face folder of pico-train, whose own code does not run with current versions."""

    looked_for = ""

    def recognises(self, path: Path) -> bool:
        """Return whether its config names pico's architecture."""
        return super().recognises(path) and _entries(path).get("model_type") == "pico_decoder"

    def architecture(self, path: Path) -> Entries:
        """Return the entries of a Llama's config."""
        model = _entries(path)
        with explained(path / "config.json"):
            return {
                "model_type": "llama",
                "vocab_size": model["vocab_size"],
                "hidden_size": model["d_model"],
                "intermediate_size": model["activation_hidden_dim"],
                "num_hidden_layers": model["n_layers"],
                "num_attention_heads": model["attention_n_heads"],
                "num_key_value_heads": model["attention_n_kv_heads"] or model["attention_n_heads"],
                "max_position_embeddings": model["max_seq_len"],
                "rms_norm_eps": model["norm_eps"],
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": model["position_emb_theta"],
                },
                **dict.fromkeys(("bos_token_id", "eos_token_id")),
            }

    def named(self, weights: Mapping[str, Saved], config: Any) -> dict[str, Saved]:
        """Return the weights by Llama's names, for rotations of halves."""
        bare = {name.removeprefix("pico_decoder."): saved for name, saved in weights.items()}
        return turned_by_halves(renamed(bare, _NAMES), config)


def _entries(path: Path) -> Entries:
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # whoever reads the config says so
        return {}
    return found if isinstance(found, dict) else {}
