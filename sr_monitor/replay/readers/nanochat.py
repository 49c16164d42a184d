"""nanochat's `model_000500.pt`, read as Hugging Face's NanoChat, which is nanochat as of 2025.

d12/model_000500.pt      weights; later ones (2026) have parameters that NanoChat lacks: refused
d12/meta_000500.json     the architecture under "model_config", and the step
"""

import json
import re
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.base import CheckpointReader, register, to_step
from sr_monitor.replay.readers.files import explained, read_torch, tensors_in
from sr_monitor.replay.readers.foreign import Entries, Known, unlike
from sr_monitor.replay.readers.saved import Saved, renamed, saved_in

_NAME = re.compile(r"model_(\d+)\.pt")
_COMPILED = "_orig_mod."
_NAMES = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.h.*.mlp.c_fc.weight": "model.layers.*.mlp.fc1.weight",
    "transformer.h.*.mlp.c_proj.weight": "model.layers.*.mlp.fc2.weight",
    **{
        f"transformer.h.*.attn.c_{own}.weight": f"model.layers.*.self_attn.{theirs}_proj.weight"
        for own, theirs in {"q": "q", "k": "k", "v": "v", "proj": "o"}.items()
    },
}
_BLOCK = re.compile(r"\.h\.\d+\.")
_KNOWN = {*_NAMES, "lm_head.weight"}
_ENTRIES: Known = {
    **dict.fromkeys(("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")),
    "window_pattern": ("L",),
}
_BY_TOKEN = ("transformer.wte.weight", "lm_head.weight")


@register
class NanochatFile(CheckpointReader):
    """A file of nanochat's weights, with its `meta_000500.json` beside it."""

    looked_for = "nanochat's model_000500.pt beside meta_000500.json"

    def recognises(self, path: Path) -> bool:
        """Return whether it is a file of that name with its description beside it."""
        return _NAME.fullmatch(path.name) is not None and _meta(path).is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the weights; rows beyond the vocabulary, which it pads, are never used."""
        rows = itemgetter(slice(self._model(path)["vocab_size"]))
        weights = saved_in([path], _weights)
        return {n: w.changed(rows) if n in _BY_TOKEN else w for n, w in weights.items()}

    def problem(self, path: Path) -> str | None:
        """Return what in its architecture NanoChat does not have."""
        try:
            strange = list(unlike(self._model(path), _ENTRIES))
            names = (_BLOCK.sub(".h.*.", name) for name in _weights(path))
            strange += sorted({name for name in names if name not in _KNOWN})
        except InputError as error:
            return str(error)
        if not strange:
            return None
        return (
            f"{str(path)!r} was trained with {', '.join(strange)[:400]}, which no Hugging Face "
            "model computes (NanoChat is nanochat as of 2025); measure it while it trains: "
            "monitor.step(orig_model, step) in scripts/base_train.py"
        )

    def config(self, path: Path) -> Path:
        """Return the file itself: its description is beside it."""
        return path

    def architecture(self, path: Path) -> Entries:
        """Return the entries of a NanoChat's config."""
        model = self._model(path)
        with explained(_meta(path)):
            return {
                "model_type": "nanochat",
                "vocab_size": model["vocab_size"],
                "hidden_size": model["n_embd"],
                "intermediate_size": 4 * model["n_embd"],
                "num_hidden_layers": model["n_layer"],
                "num_attention_heads": model["n_head"],
                "num_key_value_heads": model["n_kv_head"],
                "max_position_embeddings": model["sequence_len"],
                "rms_norm_eps": torch.finfo(torch.float32).eps,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
                "final_logit_softcapping": 15.0,
                **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
            }

    def named(self, weights: Mapping[str, Saved], config: Any) -> dict[str, Saved]:
        """Return the weights by NanoChat's names."""
        return renamed(weights, _NAMES)

    def step(self, path: Path) -> int | None:
        """Return the step in the file's name."""
        match = _NAME.fullmatch(path.name)
        return to_step(int(match[1])) if match else None

    def files(self, path: Path) -> list[Path]:
        """Return the weights and their description."""
        return [path, _meta(path)]

    def _model(self, path: Path) -> Entries:
        with explained(_meta(path)) as file:
            return dict(json.loads(file.read_text(encoding="utf-8"))["model_config"])


def _meta(path: Path) -> Path:
    return path.with_name(path.name.replace("model_", "meta_")).with_suffix(".json")


def _weights(file: Path) -> dict[str, Tensor]:
    return {n.removeprefix(_COMPILED): t for n, t in tensors_in(read_torch(file)).items()}
