"""A `stepN` folder of OLMo-core's trainer, read as Hugging Face's Olmo2, Olmo3 or Llama.

step1000/config.json                    the experiment, and in it the architecture
step1000/model_and_optim/.metadata      a table of shards; the optimizer's are never read
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.base import CheckpointReader, register
from sr_monitor.replay.readers.files import explained
from sr_monitor.replay.readers.foreign import Entries
from sr_monitor.replay.readers.olmo_core_config import to_hugging_face
from sr_monitor.replay.readers.saved import Saved, renamed
from sr_monitor.replay.readers.sharded import METADATA, read_sharded

SHARDS = "model_and_optim"
"""Where its trainer puts the shards."""

_NAMES = {
    "embeddings.weight": "model.embed_tokens.weight",
    "lm_head.norm.weight": "model.norm.weight",
    "lm_head.w_out.weight": "lm_head.weight",
    "blocks.*.attention.w_q.weight": "model.layers.*.self_attn.q_proj.weight",
    "blocks.*.attention.w_k.weight": "model.layers.*.self_attn.k_proj.weight",
    "blocks.*.attention.w_v.weight": "model.layers.*.self_attn.v_proj.weight",
    "blocks.*.attention.w_out.weight": "model.layers.*.self_attn.o_proj.weight",
    "blocks.*.attention.q_norm.weight": "model.layers.*.self_attn.q_norm.weight",
    "blocks.*.attention.k_norm.weight": "model.layers.*.self_attn.k_norm.weight",
    "blocks.*.feed_forward.w1.weight": "model.layers.*.mlp.gate_proj.weight",
    "blocks.*.feed_forward.w2.weight": "model.layers.*.mlp.down_proj.weight",
    "blocks.*.feed_forward.w3.weight": "model.layers.*.mlp.up_proj.weight",
    "blocks.*.attention_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "blocks.*.feed_forward_norm.weight": "model.layers.*.post_feedforward_layernorm.weight",
}
_NAMES_LLAMA = _NAMES | {
    "blocks.*.attention_norm.weight": "model.layers.*.input_layernorm.weight",
    "blocks.*.feed_forward_norm.weight": "model.layers.*.post_attention_layernorm.weight",
}


@register
class OlmoCoreFolder(CheckpointReader):
    """A `stepN` folder of OLMo-core."""

    looked_for = f"OLMo-core's stepN ({SHARDS})"
    inner = SHARDS

    def recognises(self, path: Path) -> bool:
        """Return whether the table of its shards is there."""
        return (path / SHARDS / METADATA).is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the model's weights, by OLMo-core's names."""
        return read_sharded(path / SHARDS)

    def problem(self, path: Path) -> str | None:
        """Return which part of its architecture no Hugging Face model has."""
        try:
            self.architecture(path)
        except InputError as error:
            return str(error)
        return None

    def architecture(self, path: Path) -> Entries | None:
        """Return the entries of a Hugging Face config for what config.json describes."""
        found = self._experiment(path)
        if found is None or "model_type" in found:
            return None
        with explained(path / "config.json"):
            return to_hugging_face(found.get("model", found), f"{path}")

    def named(self, weights: Mapping[str, Saved], config: Any) -> dict[str, Saved]:
        """Return the weights by the names of Olmo2 and Olmo3, or of Llama."""
        return renamed(weights, _NAMES_LLAMA if config.model_type == "llama" else _NAMES)

    def tokenizer(self, path: Path) -> str | None:
        """Return the tokenizer of its data set."""
        return tokenizer_in(self._experiment(path))

    def files(self, path: Path) -> list[Path]:
        """Return the shards."""
        return sorted((path / SHARDS).iterdir())

    def _experiment(self, path: Path) -> Entries | None:
        if (folder := self.config(path)) is None:
            return None
        with explained(folder / "config.json") as file:
            return dict(json.loads(file.read_text(encoding="utf-8")))


def tokenizer_in(experiment: object) -> str | None:
    """Return the tokenizer of the data set that a config.json describes."""
    for name in ("dataset", "tokenizer", "identifier"):
        experiment = experiment.get(name) if isinstance(experiment, dict) else None
    return experiment if isinstance(experiment, str) else None
