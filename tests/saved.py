"""Tiny random models in folders, as `save_pretrained` leaves them, and a tokenizer for them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from sr_monitor.prompts.python_corpus import python_texts

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


def save_model(folder: Path, kind: str = "Llama", head: str = "ForCausalLM", **config: Any) -> Path:
    """Save a model of this kind, its weights drawn from seed 0."""
    import transformers

    made = getattr(transformers, f"{kind}Config")(**(config or SIZES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _quietly(getattr(transformers, f"{kind}{head}")(made), folder)
    return folder


def save_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of the help topics of Python."""
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(python_texts()[:5], trainer)
    fast: Any = PreTrainedTokenizerFast
    _quietly(fast(tokenizer_object=backend), folder)
    return folder


def _quietly(thing: Any, folder: Path) -> None:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    thing.save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
