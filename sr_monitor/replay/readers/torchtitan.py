"""torchtitan's `checkpoint/step-N`: shards whose weights lie beside the optimizer's at the top.

They do not say the architecture: `--base` names a Llama of the same one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.base import register
from sr_monitor.replay.readers.foreign import turned_by_halves
from sr_monitor.replay.readers.saved import Saved, renamed
from sr_monitor.replay.readers.sharded import ShardedFolder

_STEP = re.compile(r"step-\d+")
_BESIDE = ("optimizer.", "lr_scheduler.", "dataloader.", "train_state.")
_FIRST = "tok_embeddings.weight"
_NAMES = {
    _FIRST: "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "layers.*.attention.wo.weight": "model.layers.*.self_attn.o_proj.weight",
    "layers.*.feed_forward.w1.weight": "model.layers.*.mlp.gate_proj.weight",
    "layers.*.feed_forward.w2.weight": "model.layers.*.mlp.down_proj.weight",
    "layers.*.feed_forward.w3.weight": "model.layers.*.mlp.up_proj.weight",
    "layers.*.attention_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.*.ffn_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    **{
        f"layers.*.attention.{inside}w{q}.weight": f"model.layers.*.self_attn.{q}_proj.weight"
        for q in "qkv"
        for inside in ("", "qkv_linear.")  # until 2025, and later
    },
}


@register
class TorchtitanFolder(ShardedFolder):
    """A `step-N` folder of torchtitan."""

    looked_for = "torchtitan's step-N"

    def recognises(self, path: Path) -> bool:
        """Return whether it is a folder of shards that is called so."""
        return super().recognises(path) and bool(_STEP.fullmatch(path.resolve().name))

    def named(self, weights: Mapping[str, Saved], config: Any) -> Mapping[str, Saved]:
        """Return the weights by Llama's names; those of another trainer keep theirs."""
        if _FIRST not in weights:
            return weights
        if config.model_type != "llama":
            raise InputError(
                f"torchtitan's checkpoints are read for its Llama models, and --base names a "
                f"{config.model_type}; convert others with torchtitan's convert_to_hf.py"
            )
        own = {name: w for name, w in weights.items() if not name.startswith(_BESIDE)}
        return turned_by_halves(renamed(own, _NAMES), config)
