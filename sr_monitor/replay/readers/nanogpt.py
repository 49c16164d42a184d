"""nanoGPT's `ckpt.pt`, read as Hugging Face's GPT-2 of the same weights."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_monitor.replay.readers.base import CheckpointReader, register, to_step
from sr_monitor.replay.readers.files import explained, read_torch, tensors_in
from sr_monitor.replay.readers.foreign import Entries
from sr_monitor.replay.readers.saved import Saved, saved_in

_NAME = re.compile(r"ckpt([-_]?\d+)?\.pt")
_COMPILED = "_orig_mod."
_MASK = re.compile(r"\.attn\.bias$")
_TURNED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_BIASED = re.compile(r"\.(ln_\w|c_attn|c_proj|c_fc)\.weight$")


@register
class NanoGPTFile(CheckpointReader):
    """nanoGPT's `ckpt.pt`: weights, the architecture and the step."""

    looked_for = "nanoGPT's ckpt.pt"

    def recognises(self, path: Path) -> bool:
        """Return whether it is a file of that name, perhaps with a number."""
        return bool(_NAME.fullmatch(path.name)) and path.is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the weights of the model, not the optimizer's."""
        return saved_in([path], lambda file: tensors_in(read_torch(file).get("model")))

    def config(self, path: Path) -> Path:
        """Return the file itself, which says the architecture."""
        return path

    def architecture(self, path: Path) -> Entries:
        """Return the entries of a GPT-2's config."""
        found: Any = read_torch(path)
        with explained(path):
            args = dict(found["model_args"])
            return {
                "model_type": "gpt2",
                "vocab_size": args["vocab_size"],
                "n_positions": args["block_size"],
                "n_embd": args["n_embd"],
                "n_layer": args["n_layer"],
                "n_head": args["n_head"],
                "activation_function": "gelu",
                **dict.fromkeys(("bos_token_id", "eos_token_id")),
            }

    def named(self, weights: Mapping[str, Saved], config: Any) -> dict[str, Saved]:
        """Return the weights as GPT-2 keeps them: matrices transposed, and zeros for no biases."""
        found: dict[str, Saved] = {}
        for name, saved in weights.items():
            own = name.removeprefix(_COMPILED)
            if _MASK.search(own):
                continue
            if _BIASED.search(own):
                width = saved.like.new_empty(saved.like.shape[0])
                found.setdefault(
                    own.removesuffix("weight") + "bias", Saved(width, partial(_zeros, width))
                )
            found[own] = saved.changed(torch.t) if _TURNED.search(own) else saved
        return found

    def step(self, path: Path) -> int | None:
        """Return the iteration that it was saved at."""
        return to_step(read_torch(path).get("iter_num"))


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, device="cpu")
