"""The keys and values of earlier tokens, as Hugging Face models keep them, or as OLMo-core's could.

cache = new_cache(anatomy)
model(prompts[:, :-1], past_key_values=cache)
"""

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sr_monitor.model import olmo_core
from sr_monitor.model.anatomy import Anatomy

_PLAIN_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}
_PLAIN_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}  # in a config


def new_cache(anatomy: Anatomy) -> Any:
    """Return an empty cache, or None if the model keeps none of the plain kind."""
    if not anatomy.is_hugging_face:
        return olmo_core.new_cache(anatomy.blocks)
    if "past_key_values" not in anatomy.arguments:
        return None
    from transformers.cache_utils import DynamicCache

    kinds = getattr(anatomy.config.get_text_config(decoder=True), "layer_types", None) or ()
    if not _PLAIN_KINDS.issuperset(kinds):  # transformers 5.0 makes plain layers for all of them
        return None
    cache = DynamicCache(config=anatomy.config)
    is_plain = all(type(layer).__name__ in _PLAIN_LAYERS for layer in cache.layers)
    return cache if is_plain else None


def rows_of(cache: Any, rows: slice | Int[Tensor, " row"]) -> Any:
    """Return a cache of some of the rows of `cache`, which stays as it is."""
    if cache is None:
        return None
    # Cache layers rebind their tensors when they grow, so a shallow copy of each is enough.
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
    return chosen


def can_share_rows(anatomy: Anatomy, cache: Any, num_earlier: int) -> bool:
    """Whether several points may stand in one row: masks and positions are taken as given."""
    if not anatomy.is_hugging_face:
        return True
    config = anatomy.config
    return (
        {"position_ids", "attention_mask"} <= anatomy.arguments
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        and not getattr(config, "alibi", False)
        and all(
            layer.keys.shape[-2] == num_earlier for layer in cache.layers if layer.is_initialized
        )
    )


def shared_row(
    num_rows: int, num_points: int, num_earlier: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return positions and a mask under which points share a row: each sees no other point."""
    position = torch.full((num_rows, num_points), num_earlier, device=device)
    # A float mask, because eager attention adds it and would add a bool one as 0 and 1.
    others = torch.full((num_points, num_points), float("-inf"), device=device).fill_diagonal_(0.0)
    mask = torch.cat([others.new_zeros(num_points, num_earlier), others], dim=1).to(dtype)
    # (point, key) -> (row, 1, point, key)
    return {"position_ids": position, "attention_mask": mask.expand(num_rows, 1, -1, -1)}
