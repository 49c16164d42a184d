"""Tiny random models in folders, as `save_pretrained` leaves them, and a tokenizer for them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sr_monitor.model.loading import quiet
from sr_monitor.prompts.choose import help_topics

VOCABULARY = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def tiny_model(kind: str = "Llama", head: str = "ForCausalLM", **config: Any) -> Any:
    """Make a model of this kind, with random weights."""
    made = getattr(transformers, f"{kind}Config")(**(SIZES | config))
    return getattr(transformers, f"{kind}{head}")(made).eval()


def save_folder(model: Any, folder: Path, **options: Any) -> Path:
    """Call `save_pretrained`, without its progress bar."""
    with quiet(transformers):
        model.save_pretrained(folder, **options)
    return folder


def unmapped(file: Path) -> dict[str, torch.Tensor]:
    """Read weights from a file that a test will overwrite: older safetensors map what they load."""
    return {name: weight.clone() for name, weight in load_file(file).items()}


def save_model(folder: Path, kind: str = "Llama", head: str = "ForCausalLM", **config: Any) -> Path:
    """Save a model of this kind, its weights drawn from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return save_folder(tiny_model(kind, head, **config), folder)


def save_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of the help topics of Python."""
    return save_folder(train_tokenizer(help_topics()[:5], VOCABULARY), folder)


def train_tokenizer(texts: list[str], vocab_size: int, **options: Any) -> PreTrainedTokenizerFast:
    """Train a tokenizer; the options ending in `_token` are its special tokens, ids 0, 1, ..."""
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[word for name, word in options.items() if name.endswith("_token")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = fast(tokenizer_object=backend, **options)
    return tokenizer
