"""Find the parts of a causal language model that a measurement touches.

A Hugging Face model names them (`get_decoder`, `config`). Of any other, the blocks are the items of
the only container that can be meant; `examination` finds the final vector.

    anatomy = dissect(model, layer_path="transformer.h")
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sr_monitor.errors import InputError, MissingPartError, refused
from sr_monitor.model.mates import find_mates
from sr_monitor.model.wrappers import core_of, execution_device, unwrap

LayerPath: TypeAlias = str | Sequence[nn.Module] | None

_Container: TypeAlias = nn.ModuleList | nn.Sequential | nn.ModuleDict


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

    @cached_property
    def mates(self) -> frozenset[int]:
        """The ranks that share the blocks, this one included; empty where each has them whole."""
        return find_mates(self.root)

    def check_blocks_are_whole(self) -> None:
        """Refuse to look inside blocks that are spread over several ranks."""
        if len(self.mates) > 1:
            raise MissingPartError(
                f"the blocks of {type(self.core).__name__} are spread over {len(self.mates)} ranks "
                "(tensor parallelism): each has a part of the heads and gates"
            )

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
        blocks=_find_blocks(core, layer_path),
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
    positions = getattr(config, "max_position_embeddings", None)
    return Anatomy(
        root=root,
        core=core,
        blocks=_find_blocks(core, layer_path, decoder=decoder, length=config.num_hidden_layers),
        is_hugging_face=True,
        # A model that names itself its decoder puts out logits: its final vector is looked for.
        final=None if decoder is core else decoder,
        vocabulary=getattr(core.get_input_embeddings(), "num_embeddings", None),
        max_tokens=positions if positions and positions > 0 else None,  # -1: OLMo-core's exports
    )


def _find_blocks(
    core: nn.Module,
    layer_path: LayerPath = None,
    *,
    decoder: nn.Module | None = None,
    length: int | None = None,
) -> list[nn.Module]:
    """Return the blocks that `layer_path` names or gives, or those of the only container.

    That is an outermost `nn.ModuleList`, `nn.ModuleDict` whose keys count up ("0", "1", ...), or
    `nn.Sequential` of one class. A Hugging Face model says which part is its `decoder`, and the
    number of its blocks.
    """
    if isinstance(layer_path, str):
        blocks = _named(core, layer_path)
    elif layer_path is not None:
        blocks = _given(core, layer_path)
    else:
        found = list(_candidates(core if decoder is None else decoder).values())
        found = [items for items in found if length in (None, len(items))]
        if len(found) != 1:
            what = "blocks" if length is None else f"num_hidden_layers={length} blocks"
            raise InputError(
                f"{type(core).__name__} has {len(found)} lists of {what}, not one; "
                f"{_how_to_name(core)}"
            )
        blocks = found[0]
    if len(set(blocks)) < len(blocks):
        raise InputError(
            f"{type(core).__name__} uses the same module as more than one block: a layer cannot be "
            "told by it; this architecture cannot be measured"
        )
    return blocks


def _named(core: nn.Module, layer_path: str) -> list[nn.Module]:
    try:
        named = core.get_submodule(layer_path)
    except AttributeError:
        named = None
    blocks = _items(named) if isinstance(named, _Container) else []
    if not blocks or not all(map(_runs, blocks)):
        found = "nothing" if named is None else f"a {type(named).__name__}"
        without = " of modules without a forward" if blocks else ""
        raise InputError(
            f"layer_path={layer_path!r} names {found}{without} in {type(core).__name__}; "
            f"{_how_to_name(core)}"
        )
    return blocks


def _given(core: nn.Module, modules: Sequence[Any]) -> list[nn.Module]:
    blocks, inside = list(modules), set(core.modules())
    if not blocks:
        raise refused("layer_path", modules, "pass all decoder blocks, first to last")
    for index, block in enumerate(blocks):
        if block not in inside or not _runs(block):
            raise InputError(
                f"layer_path[{index}] is a {type(block).__name__} that is no module of "
                f"{type(core).__name__} with a forward; pass its decoder blocks, first to last"
            )
    return blocks


def _candidates(module: nn.Module) -> dict[str, list[nn.Module]]:
    """Map the path of each container that may hold the blocks to its items.

    A container inside another one holds experts or heads; items without a forward are the parts of
    a layer.
    """
    found: dict[str, list[nn.Module]] = {}
    for path, child in module.named_modules():
        if not path or path.startswith(tuple(outer + "." for outer in found)):
            continue
        if isinstance(child, _Container) and _is_list(child):
            found[path] = _items(child)
    return {path: items for path, items in found.items() if items and all(map(_runs, items))}


def _is_list(container: _Container) -> bool:
    """Whether the items are alike; other dictionaries and rows only group what is in them."""
    if isinstance(container, nn.ModuleList):
        return True
    items = _items(container)
    # The layers of an MLP, in a row or by name, have no parts, or are rows themselves.
    have_parts = all(next(item.children(), None) is not None for item in items)
    if isinstance(container, nn.ModuleDict):
        return have_parts and _count_up(list(container.keys()))
    kinds = {type(item) for item in items}
    return have_parts and len(items) > 1 and len(kinds) == 1 and nn.Sequential not in kinds


def _count_up(keys: list[str]) -> bool:
    """Whether keys are consecutive numbers, maybe behind one prefix: "0", "1" or "h_0", "h_1"."""
    parts = [re.fullmatch(r"(.*?)(\d+)", key) for key in keys]
    numbered = [(part[1], int(part[2])) for part in parts if part]
    prefix, first = numbered[0] if numbered else ("", 0)
    return numbered == [(prefix, first + index) for index in range(len(keys))]


def _runs(module: nn.Module | None) -> bool:
    # None is a place in a list that is left free.
    return module is not None and (
        "forward" in vars(module) or type(module).forward is not nn.Module.forward
    )


def _items(container: _Container) -> list[nn.Module]:
    return list(container.values() if isinstance(container, nn.ModuleDict) else container)


def _how_to_name(module: nn.Module) -> str:
    found = ", ".join(f"{path!r} ({len(items)})" for path, items in _candidates(module).items())
    if not found:
        return "pass its decoder blocks as a list of modules: layer_path=[...]"
    return f"name its decoder blocks with layer_path=, one of: {found}, or pass a list of modules"
