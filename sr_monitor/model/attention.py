"""Read attention weights: a Hugging Face model run once with eager attention, then as it was.

Fast kernels never hold the weights. Eager attention gives them out beside its output.

    for number, attended in attend(stream, prompts).items():
        attended.weights[:, :, -1, 0]          # what the last token pays to the first
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor.errors import MissingPartError
from sr_monitor.model.anatomy import Anatomy
from sr_monitor.model.stream import Stream

_SETTING = "_attn_implementation_internal"


@dataclass(frozen=True)
class Attended:
    """The attention of one block in some prompts."""

    weights: Float[Tensor, "prompt head token token"]
    """The share of each query's attention that each key gets; they may add up to less than 1."""
    values: Float[Tensor, "prompt head token width"] | None
    """What each token would write; None where the block keeps only those in its window."""


def attend(stream: Stream, prompts: Int[Tensor, "prompt token"]) -> dict[int, Attended]:
    """Return the attention of each block that has some, by number; refuse a model without any."""
    anatomy, seen = stream.anatomy, dict[int, Tensor]()
    anatomy.check_blocks_are_whole()
    with eager_attention(anatomy), ExitStack() as stack:
        for number, block in enumerate(anatomy.blocks, start=1):
            for module in block.modules():
                stack.callback(module.register_forward_hook(_note(seen, number)).remove)
        # The last token of what is run before the points is not run itself.
        cache = stream.prefill(torch.cat([prompts, prompts[:, -1:]], dim=1))
    if cache is None or not seen:
        raise MissingPartError(
            f"{type(anatomy.core).__name__} gives out no attention weights: it is no Hugging Face "
            "model with a plain cache of keys and values and eager attention"
        )
    return {number: _attended(cache.layers[number - 1], each) for number, each in seen.items()}


@contextmanager
def eager_attention(anatomy: Anatomy) -> Iterator[None]:
    """Have a Hugging Face model use eager attention; other models stay as they are."""
    configs = [getattr(module, "config", None) for module in anatomy.core.modules()]
    having = [vars(each) for each in configs if _SETTING in getattr(each, "__dict__", ())]
    settings = {id(setting): setting for setting in having}
    before = [(setting, setting[_SETTING]) for setting in settings.values()]
    try:
        for setting, _ in before:
            setting[_SETTING] = "eager"
        yield
    finally:
        for setting, name in before:
            setting[_SETTING] = name


def _note(seen: dict[int, Tensor], number: int) -> Any:
    """Return a hook that keeps the weights among what a module puts out."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and _are_weights(output[1]):
            seen[number] = output[1].detach().float()

    return hook


def _are_weights(given: Any) -> bool:
    """Whether this is (prompt, head, query, key), with the queries at the last of the keys."""
    return isinstance(given, Tensor) and given.ndim == 4 and given.shape[-1] == given.shape[-2]


def _attended(layer: Any, weights: Float[Tensor, "prompt head token token"]) -> Attended:
    values: Tensor = layer.values.float()
    if values.shape[-2] != weights.shape[-1] or weights.shape[1] % values.shape[1]:
        return Attended(weights, None)
    # Several heads may share keys and values: (prompt, shared, ...) -> (prompt, head, ...).
    return Attended(weights, values.repeat_interleave(weights.shape[1] // values.shape[1], dim=1))
