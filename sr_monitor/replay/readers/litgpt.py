"""litgpt's `lit_model.pth` beside `model_config.yaml`, read as Hugging Face's Llama.

step-00001000/lit_model.pth          weights under "model", and the optimizer's
step-00001000/model_config.yaml      the architecture
"""

import re
from collections.abc import Mapping
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.base import CheckpointReader, register, to_step
from sr_monitor.replay.readers.files import explained, read_torch, tensors_in
from sr_monitor.replay.readers.foreign import Entries, Known, unlike
from sr_monitor.replay.readers.saved import Saved, renamed, saved_in

_WEIGHTS, _CONFIG = "lit_model.pth", "model_config.yaml"
_NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "transformer.h.*.norm_1.weight": "model.layers.*.input_layernorm.weight",
    "transformer.h.*.norm_2.weight": "model.layers.*.post_attention_layernorm.weight",
    "transformer.h.*.attn.proj.weight": "model.layers.*.self_attn.o_proj.weight",
    "transformer.h.*.mlp.fc_1.weight": "model.layers.*.mlp.gate_proj.weight",
    "transformer.h.*.mlp.fc_2.weight": "model.layers.*.mlp.up_proj.weight",
    "transformer.h.*.mlp.proj.weight": "model.layers.*.mlp.down_proj.weight",
    **{f"transformer.h.*.attn.{q}": f"model.layers.*.self_attn.{q}_proj.weight" for q in "qkv"},
}
_QKV = re.compile(r"^(.*\.attn\.)qkv\.weight$")
_LLAMA: Known = {
    **dict.fromkeys(("name", "hf_config", "block_size", "n_layer", "n_embd", "vocab_size")),
    **dict.fromkeys(("padding_multiple", "padded_vocab_size", "norm_eps", "n_head", "head_size")),
    **dict.fromkeys(("n_query_groups", "rope_base", "rope_adjustments", "intermediate_size")),
    # used with experts, other norms or other activations only
    **dict.fromkeys(("moe_intermediate_size", "n_expert_per_token", "routed_scaling_factor")),
    **dict.fromkeys(("norm_qk_type", "gelu_approximate")),
    "mlp_class_name": ("LLaMAMLP",),
    "norm_class_name": ("RMSNorm",),
    "rotary_percentage": (1.0,),
    "rope_condense_ratio": (1,),
    "norm_1": (True,),
    "norm_2": (True,),
}
_SCALED = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}


@register
class LitGPTFolder(CheckpointReader):
    """A folder that litgpt saved."""

    looked_for = f"litgpt's {_WEIGHTS}"

    def recognises(self, path: Path) -> bool:
        """Return whether its file of weights is there."""
        return (path / _WEIGHTS).is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the weights, by litgpt's names; a converted model has no trainer's key."""

        def weights(file: Path) -> dict[str, Tensor]:
            content = read_torch(file)
            return tensors_in(content.get("model", content))

        return saved_in([path / _WEIGHTS], weights)

    def problem(self, path: Path) -> str | None:
        """Return what in its architecture is not Llama's."""
        try:
            self.architecture(path)
        except InputError as error:
            return str(error)
        return None

    def config(self, path: Path) -> Path | None:
        """Return the folder, if the architecture is in it."""
        return path if (path / _CONFIG).is_file() else None

    def architecture(self, path: Path) -> Entries | None:
        """Return the entries of a Llama's config."""
        if self.config(path) is None:
            return None
        yaml = import_module("yaml")  # comes with transformers
        with explained(path / _CONFIG) as file:
            return _to_llama(dict(yaml.safe_load(file.read_text(encoding="utf-8"))), f"{path}")

    def named(self, weights: Mapping[str, Saved], config: Any) -> dict[str, Saved]:
        """Return the weights by Llama's names, queries, keys and values apart."""
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        found: dict[str, Saved] = {}
        for name, saved in weights.items():
            if match := _QKV.match(name):
                ends = (0, heads * width, (heads + groups) * width, None)
                for q, start, end in zip("qkv", ends[:-1], ends[1:], strict=True):
                    found[match[1] + q] = saved.changed(itemgetter(slice(start, end)))
            else:
                found[name] = saved
        return renamed(found, _NAMES)

    def step(self, path: Path) -> int | None:
        """Return the step that the file says."""
        return to_step(read_torch(path / _WEIGHTS).get("step_count"))

    def files(self, path: Path) -> list[Path]:
        """Return the file of weights."""
        return [path / _WEIGHTS]


def _to_llama(model: Entries, source: str) -> Entries:
    strange = list(unlike(model, _LLAMA))
    adjusted = model.get("rope_adjustments") or {}
    strange += ["its rope_adjustments"] if adjusted and adjusted.keys() != _SCALED.keys() else []
    strange += ["Gemma's norms"] if "gemma" in str(model.get("name")).lower() else []
    if strange:
        raise InputError(
            f"{source!r} was trained with {', '.join(strange)[:400]}, which Llama does not have; "
            "convert it (litgpt convert_from_litgpt), or measure it while it trains (Monitor)"
        )
    scaled = {theirs: adjusted[own] for own, theirs in _SCALED.items() if adjusted}
    return {
        "model_type": "llama",
        "vocab_size": model["padded_vocab_size"],
        "hidden_size": model["n_embd"],
        "intermediate_size": model["intermediate_size"],
        "num_hidden_layers": model["n_layer"],
        "num_attention_heads": model["n_head"],
        "num_key_value_heads": model["n_query_groups"],
        "head_dim": model["head_size"],
        "max_position_embeddings": model["block_size"],
        "rms_norm_eps": model["norm_eps"],
        "rope_parameters": {
            "rope_type": "llama3" if adjusted else "default",
            "rope_theta": model["rope_base"],
            **scaled,
        },
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
    }
