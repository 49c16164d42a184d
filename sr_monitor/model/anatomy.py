"""Where things are inside a model: its blocks, its final vector, what its `forward` accepts.

The only file that knows how models are built. A Hugging Face model answers for itself
(`get_decoder`, `config`); any other causal module is looked at: its blocks are the one
`nn.ModuleList` or `nn.Sequential` of blocks (or the one named by `layer_path`), its final vector is
the last vector of the stream's width that a module outside the blocks puts out after the last
block.

    anatomy = dissect(model)
    anatomy.blocks, anatomy.final, anatomy.vocabulary
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.wrappers import core_of, execution_device, unwrap


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a causal language model that a measurement touches."""

    root: nn.Module
    """What is called: the model, out of wrappers that only add communication or compilation."""
    core: nn.Module
    """The model that the wrappers (FSDP, PEFT) hold; asked about itself, never called."""
    blocks: Sequence[nn.Module]
    """The decoder blocks, first to last."""
    final: nn.Module | None
    """The module that puts out the vector the unembedding reads; None where it is not named."""
    vocabulary: int | None
    """How many token ids the embedding knows; None when it has no `nn.Embedding`."""
    max_tokens: int | None
    """The longest prompt the model has positions for; None when it does not say."""
    arguments: frozenset[str]
    """The names that the core's `forward` takes."""

    @property
    def is_hugging_face(self) -> bool:
        """Whether the model is called, cached and asked the way Hugging Face models are."""
        return _is_hugging_face(self.core)

    @property
    def config(self) -> Any:
        """The text configuration of a Hugging Face model."""
        core: Any = self.core
        return core.config.get_text_config(decoder=True)

    @property
    def unembedding(self) -> nn.Module | None:
        """The map to the vocabulary, where the model names it."""
        core: Any = self.core
        return core.get_output_embeddings() if self.is_hugging_face else None

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        core: Any = self.core
        embedding = core.get_input_embeddings() if self.is_hugging_face else None
        weight: Tensor | None = getattr(embedding, "weight", None)
        weight = next(self.root.parameters()) if weight is None else weight
        return execution_device(self.root) if weight.is_meta else weight.device


def dissect(model: nn.Module, layer_path: str | None = None) -> Anatomy:
    """Finds the parts of `model`; `layer_path` names the list of blocks where it is not found."""
    root = unwrap(model)
    core = core_of(root)
    if _is_hugging_face(core):
        return _dissect_hugging_face(root, core, layer_path)
    return Anatomy(
        root=root,
        core=core,
        blocks=_named_blocks(core, layer_path) if layer_path else _only_block_list(core),
        final=None,
        vocabulary=_first_embedding_size(core),
        max_tokens=None,
        arguments=_arguments(core),
    )


def check_layer(anatomy: Anatomy, layer: int) -> None:
    """Refuses a layer that the model does not have."""
    if not 0 <= layer <= len(anatomy.blocks):
        raise InputError(
            f"layer={layer}: {type(anatomy.core).__name__} has layers 0 (the embedding output) "
            f"to {len(anatomy.blocks)} (after its last block)"
        )


def _is_hugging_face(core: nn.Module) -> bool:
    config = getattr(core, "config", None)
    return hasattr(core, "get_decoder") and hasattr(config, "get_text_config")


def _first_embedding_size(core: nn.Module) -> int | None:
    embeddings = (module for module in core.modules() if isinstance(module, nn.Embedding))
    return next((embedding.num_embeddings for embedding in embeddings), None)


def _arguments(core: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(type(core).forward).parameters)


def _dissect_hugging_face(root: nn.Module, core: Any, layer_path: str | None) -> Anatomy:
    name = type(core).__name__
    if getattr(core.config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is an encoder-decoder: its decoder reads a second sequence, which a stable "
            "region has no place for; measure a decoder-only (causal) model"
        )
    config = core.config.get_text_config(decoder=True)
    decoder = core.get_decoder()
    embedding = core.get_input_embeddings()
    return Anatomy(
        root=root,
        core=core,
        blocks=_named_blocks(core, layer_path)
        if layer_path
        else _blocks_of_length(decoder, config.num_hidden_layers, name),
        # A model that names itself its decoder puts out logits: its final vector is looked for.
        final=None if decoder is core else decoder,
        vocabulary=getattr(embedding, "num_embeddings", None),
        max_tokens=getattr(config, "max_position_embeddings", None),
        arguments=_arguments(core),
    )


def _named_blocks(core: nn.Module, layer_path: str) -> Sequence[nn.Module]:
    try:
        blocks = core.get_submodule(layer_path)
    except AttributeError:
        blocks = None
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
        found = "nothing" if blocks is None else f"a {type(blocks).__name__}"
        raise InputError(
            f"layer_path={layer_path!r} names {found} in {type(core).__name__}; pass the path of "
            f"the list of decoder blocks, one of: {_candidates_text(core)}"
        )
    return list(blocks)


def _blocks_of_length(decoder: nn.Module, length: int, name: str) -> Sequence[nn.Module]:
    found = [blocks for _, blocks in _outermost_lists(decoder) if len(blocks) == length]
    if len(found) != 1:
        raise InputError(
            f"{name} has {len(found)} lists of num_hidden_layers={length} blocks in its decoder, "
            f"not one; name the right one with layer_path=, one of: {_candidates_text(decoder)}"
        )
    return list(found[0])


def _only_block_list(core: nn.Module) -> Sequence[nn.Module]:
    found = list(_outermost_lists(core))
    if len(found) != 1:
        raise InputError(
            f"{type(core).__name__} is no Hugging Face model and has {len(found)} lists of "
            f"modules, not one; name its decoder blocks with layer_path=, one of: "
            f"{_candidates_text(core)}"
        )
    return list(found[0][1])


def _outermost_lists(module: nn.Module) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Every list of modules, blocks maybe, that is not inside another one (experts, heads)."""
    inside: tuple[str, ...] = ()
    for path, child in module.named_modules():
        if not path or path.startswith(inside):
            continue
        if isinstance(child, nn.ModuleList | nn.Sequential) and _may_be_blocks(child):
            inside = (*inside, path + ".")
            yield path, child


def _may_be_blocks(modules: nn.ModuleList | nn.Sequential) -> bool:
    """Whether it is a list with something in it, or blocks of one class that run in a row."""
    if isinstance(modules, nn.ModuleList):
        return len(modules) > 0
    kinds = {type(module) for module in modules}
    # The layers of an MLP, which is a row too, have no parts, or are rows themselves.
    has_parts = all(next(module.children(), None) is not None for module in modules)
    return len(modules) > 1 and len(kinds) == 1 and nn.Sequential not in kinds and has_parts


def _candidates_text(core: nn.Module) -> str:
    return ", ".join(f"{path!r} ({len(blocks)})" for path, blocks in _outermost_lists(core)) or (
        "(it has no list of modules)"
    )
