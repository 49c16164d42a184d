"""What readers of other libraries' formats share on the way to a model of Hugging Face.

for said in unlike({"name": "moe"}, {"name": ("default",)}):
    print(said)     # name='moe'
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sr_monitor.replay.readers.saved import Saved

_QUERIES_AND_KEYS = re.compile(r"self_attn\.([qk])_proj\.weight$")

Entries = dict[str, Any]
"""The entries of a config."""
Known = Mapping[str, tuple[object, ...] | None]
"""The values that entries may have (None: any); others have to be null, false or 0: not used."""


def unlike(entries: Entries, known: Known, where: str = "") -> Iterator[str]:
    """Yield each entry that is not known, or has another value."""
    for name, value in entries.items():
        allowed = known.get(name, (False,))
        if value is not None and allowed is not None and value not in allowed:
            yield f"{where}{name}={value!r}"


def turned_by_halves(weights: Mapping[str, Saved], config: Any) -> dict[str, Saved]:
    """Return a Llama's weights, its queries and keys reordered as Hugging Face turns them.

    Llama's own code turns neighbouring rows (0, 1), (2, 3), ... of a head by their position;
    Hugging Face's turns row k and row k + half.
    """
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    found = dict(weights)
    for name, saved in weights.items():
        if match := _QUERIES_AND_KEYS.search(name):
            found[name] = saved.changed(_reorder(heads[match[1]]))
    return found


def _reorder(heads: int) -> Callable[[Tensor], Tensor]:
    def reorder(weight: Tensor) -> Tensor:
        rows, width = weight.shape
        # "head*half*two width" to "head half two width" to "head two half width", flat again
        return weight.view(heads, -1, 2, width).transpose(1, 2).reshape(rows, width)

    return reorder
