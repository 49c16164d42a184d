"""Find the parts of a causal language model that a measurement touches.

A Hugging Face model names them (`get_decoder`, `config`); of any other module, `blocks` finds the
decoder blocks, and `examination` the final vector.

    anatomy = dissect(model, layer_path="transformer.h")
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.blocks import LayerPath, find_blocks
from sr_monitor.model.wrappers import core_of, execution_device, unwrap


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a causal language model that a measurement touches."""

    root: nn.Module
    """What is called: the model, out of wrappers that only add communication or compilation."""
    core: Any
    """The model that the wrappers (FSDP, PEFT) hold; asked about itself, never called."""
    blocks: Sequence[nn.Module]
    """The decoder blocks, first to last."""
    is_hugging_face: bool
    """Whether the model is called, cached and asked the way Hugging Face models are."""
    final: nn.Module | None = None
    """The module that puts out the vector the unembedding reads; None where it is not named."""
    vocabulary: int | None = None
    """How many token ids the embedding knows; None when it has no `nn.Embedding`."""
    max_tokens: int | None = None
    """The longest prompt the model has positions for; None when it does not say."""

    @cached_property
    def arguments(self) -> frozenset[str]:
        """The names that the core's `forward` takes."""
        return frozenset(inspect.signature(type(self.core).forward).parameters)

    @property
    def config(self) -> Any:
        """The text configuration of a Hugging Face model."""
        return self.core.config.get_text_config(decoder=True)

    @property
    def unembedding(self) -> nn.Module | None:
        """The map to the vocabulary, where the model names it."""
        return self.core.get_output_embeddings() if self.is_hugging_face else None

    @property
    def weights(self) -> str:
        """The name of the weights' type."""
        return str(next(self.root.parameters()).dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        embedding = self.core.get_input_embeddings() if self.is_hugging_face else None
        weight: Tensor | None = getattr(embedding, "weight", None)
        weight = next(self.root.parameters()) if weight is None else weight
        return execution_device(self.root) if weight.is_meta else weight.device


def dissect(model: nn.Module, layer_path: LayerPath = None) -> Anatomy:
    """Find the parts of `model`; `layer_path` names its blocks, or is a list of them."""
    root = unwrap(model)
    core = core_of(root)
    if hasattr(core, "get_decoder") and hasattr(getattr(core, "config", None), "get_text_config"):
        return _dissect_hugging_face(root, core, layer_path)
    embeddings = (module for module in core.modules() if isinstance(module, nn.Embedding))
    return Anatomy(
        root=root,
        core=core,
        blocks=find_blocks(core, layer_path),
        is_hugging_face=False,
        vocabulary=next((each.num_embeddings for each in embeddings), None),
    )


def check_layer(anatomy: Anatomy, layer: int) -> None:
    """Refuse a layer that the model does not have."""
    if not 0 <= layer <= len(anatomy.blocks):
        raise InputError(
            f"layer={layer}: {type(anatomy.core).__name__} has layers 0 (the embedding output) "
            f"to {len(anatomy.blocks)} (after its last block)"
        )


def _dissect_hugging_face(root: nn.Module, core: Any, layer_path: LayerPath) -> Anatomy:
    if getattr(core.config, "is_encoder_decoder", False):
        raise InputError(
            f"{type(core).__name__} is an encoder-decoder: its decoder reads a second sequence; "
            "measure a decoder-only (causal) model"
        )
    config = core.config.get_text_config(decoder=True)
    decoder = core.get_decoder()
    return Anatomy(
        root=root,
        core=core,
        blocks=find_blocks(core, layer_path, decoder=decoder, length=config.num_hidden_layers),
        is_hugging_face=True,
        # A model that names itself its decoder puts out logits: its final vector is looked for.
        final=None if decoder is core else decoder,
        vocabulary=getattr(core.get_input_embeddings(), "num_embeddings", None),
        max_tokens=getattr(config, "max_position_embeddings", None),
    )
