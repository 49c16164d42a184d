"""Keys and values of earlier tokens in models of OLMo-core, whose own cache needs a GPU's kernels.

Its attention makes queries, keys and values; they are kept, and continued from, in the place of the
product that follows. Its classes are known by name, as nothing is imported.

    cache = new_cache(blocks)
    with cache.in_use():
        model(prompts[:, :-1])
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sr_monitor.model.hooks import forward_replaced

_ATTENTIONS = ("Attention", "NormalizedAttention")
_ROPES = ("RotaryEmbedding", "ComplexRotaryEmbedding")

_Heads: TypeAlias = Float[Tensor, "row token head width"]


@dataclass
class _Layer:
    """One attention module, and the keys and values it made of the earlier tokens."""

    attention: Any
    keys: _Heads | None = None
    values: _Heads | None = None

    @property
    def is_initialized(self) -> bool:
        return self.keys is not None


@dataclass
class AttentionCache:
    """The keys and values of all blocks: filled by a first forward, continued from by later ones.

    A later forward takes points that stand at one position: each sees the earlier tokens and
    itself.
    """

    layers: list[_Layer]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the model fill this cache, or continue from it."""
        with ExitStack() as stack:
            for layer in self.layers:
                backend, rope = layer.attention.backend, layer.attention.rope
                run = _continue if layer.is_initialized else _keep
                product = partial(run, layer, backend.forward)
                stack.enter_context(forward_replaced(backend, product))
                if layer.is_initialized and rope is not None:
                    turned = partial(_turn_together, layer, rope.forward)
                    stack.enter_context(forward_replaced(rope, turned))
            yield


def new_cache(blocks: Sequence[nn.Module]) -> AttentionCache | None:
    """Return an empty cache; None unless each block has one attention that can be continued."""
    found = [[each for each in block.modules() if _is_attention(each)] for block in blocks]
    if not all(len(each) == 1 for each in found):
        return None
    return AttentionCache([_Layer(attention) for (attention,) in found])


def _is_attention(module: Any) -> bool:
    """Whether this is attention of OLMo-core with nothing but rotations and a softmax in it."""
    kind = type(module)
    return (
        kind.__module__.startswith("olmo_core.")
        and kind.__name__ in _ATTENTIONS
        and (module.rope is None or type(module.rope).__name__ in _ROPES)
        and getattr(module, "sinks", None) is None
        and getattr(module, "kv_cache_manager", None) is None
        and not getattr(module, "scalable_softmax", False)
    )


def _keep(
    layer: _Layer, forward: Callable[..., Tensor], qkv: tuple[Tensor, Tensor, Tensor], **rest: Any
) -> Tensor:
    _, layer.keys, layer.values = qkv
    return forward(qkv, **rest)


def _continue(
    layer: _Layer, forward: Callable[..., Tensor], qkv: tuple[Tensor, Tensor, Tensor], **rest: Any
) -> _Heads:
    assert layer.keys is not None
    assert layer.values is not None
    backend = layer.attention.backend
    query, key, value = qkv
    mask = _mask(layer.keys.shape[1], query.shape[1], backend.window_size[0]).to(query.device)
    attended = F.scaled_dot_product_attention(
        # (row, token, head, width) -> (row, head, token, width); heads of keys may be fewer
        query.transpose(1, 2),
        torch.cat([layer.keys, key], dim=1).transpose(1, 2),
        torch.cat([layer.values, value], dim=1).transpose(1, 2),
        attn_mask=mask,
        scale=backend.scale,
        enable_gqa=True,
    )
    return attended.transpose(1, 2).contiguous()


def _mask(num_earlier: int, num_points: int, window: int) -> Bool[Tensor, "point key"]:
    """Show each point itself and the earlier tokens, as far back as the window reaches."""
    earlier = torch.arange(num_earlier)
    visible = earlier >= num_earlier - window if window >= 0 else earlier >= 0
    # (earlier,) -> (point, earlier)
    return torch.cat([visible.expand(num_points, -1), torch.eye(num_points).bool()], dim=1)


def _turn_together(
    layer: _Layer, forward: Callable[..., Any], query: Tensor, key: Tensor, **given: Any
) -> Any:
    """Give all points the rotation of the one position that they stand at."""
    assert layer.keys is not None
    place, num_points = layer.keys.shape[1], query.shape[1]
    tables = layer.attention.rope.get_buffers(place + 1, query.device)
    names = ("pos_sin", "pos_cos", "freqs_cis")
    here = {name: getattr(tables, name) for name in names}
    # (position, width) -> (point, width): the same row for each point
    same = {name: t[place].expand(num_points, -1) for name, t in here.items() if t is not None}
    return forward(query, key, **(given | same))
