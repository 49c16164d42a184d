"""Find token ids in rows and batches of training data, or take them as a matrix.

Token ids are what a mapping holds under `input_ids`, `tokens`, `ids` or `x`, except where its
`attention_mask` is 0; an integer tensor, array or list, 1-D for a row and 2-D for a batch; or the
first part of a tuple or list that holds any. Numbers below 0 stand for no token.

    token_ids_of({"input_ids": [[5, 6, 0]], "attention_mask": [[1, 1, 0]]})  # [[5, 6]]
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sr_monitor.errors import InputError

_KEYS = ("input_ids", "tokens", "ids", "x")
_PROBED = 1000  # values of a row that are converted to see whether they are token ids


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids, and the mask that hides some of them: lists, arrays or tensors of one length."""

    ids: Any
    mask: Any

    def tokens(self, start: int, stop: int) -> Int64[Tensor, " token"]:
        """Return the visible ids between two positions, on the CPU."""
        ids = _to_tensor(self.ids[start:stop])
        if not _is_integer(ids):
            return torch.empty(0, dtype=torch.int64)
        ids = ids.long()
        if self.mask is not None:
            ids = ids[_to_tensor(self.mask[start:stop]).bool()]
        return ids[ids >= 0]

    def count(self) -> Int64[Tensor, ""]:
        """Count the visible ids on the device that they are on."""
        ids = torch.as_tensor(self.ids).long()  # unsigned ones cannot be compared
        visible = ids >= 0
        if self.mask is not None:
            visible = visible & torch.as_tensor(self.mask, device=ids.device).bool()
        return visible.sum()


def token_ids_of(item: Any) -> list[list[int]] | None:
    """Return the token ids of each row, None where there are none."""
    rows = find_rows(item)
    return None if rows is None else [row.tokens(0, len(row.ids)).tolist() for row in rows]


def count_tokens(item: Any) -> Int64[Tensor, ""] | None:
    """Count the ids of `token_ids_of`, without waiting for their device."""
    rows = find_rows(item)
    return None if rows is None else sum((row.count() for row in rows), torch.tensor(0))


def find_rows(item: Any) -> list[TokenRow] | None:
    """Return the rows of token ids in a row or a batch of training data, None if it has none."""
    if isinstance(item, TokenRow):
        return [item]
    found: Iterable[list[TokenRow] | None]
    if isinstance(item, Mapping):
        mask = item.get("attention_mask")
        found = (_rows(item[key], mask) for key in _KEYS if key in item)
    elif isinstance(item, tuple) or (isinstance(item, list) and _holds_parts(item)):
        if item and all(isinstance(part, Mapping) for part in item):
            return [row for part in item for row in find_rows(part) or ()] or None
        found = map(find_rows, item)
    else:
        return _rows(item, None)
    return next((rows for rows in found if rows is not None), None)


def _holds_parts(items: list[Any]) -> bool:
    """Return whether a list holds tensors, mappings and the like, not numbers."""
    return bool(items) and not isinstance(items[0], int | float | np.number | list)


def _rows(values: Any, mask: Any) -> list[TokenRow] | None:
    ids, masks = _vectors(values), _vectors(mask)
    if ids is None or not all(map(_holds_ids, ids)):
        return None
    if masks is None or [len(row) for row in masks] != [len(row) for row in ids]:
        return [TokenRow(row, None) for row in ids]  # a mask of another shape masks something else
    return [TokenRow(row, hidden) for row, hidden in zip(ids, masks, strict=True)]


def _vectors(values: Any) -> list[Any] | None:
    """Return the rows of what is 1-D or 2-D; a row may be a list, an array or a tensor."""
    if isinstance(values, list | tuple):
        first = values[0] if values else 0
        num_dimensions = 2 if isinstance(first, list | tuple) else 1 + getattr(first, "ndim", 0)
    else:
        num_dimensions = getattr(values, "ndim", 0)
    if num_dimensions == 2:
        return list(values)  # "row token"
    return [values] if num_dimensions == 1 else None


def _holds_ids(values: Any) -> bool:
    try:
        return _is_integer(values if isinstance(values, Tensor) else torch.tensor(values[:_PROBED]))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _is_integer(values: Tensor) -> bool:
    """Return whether these are token ids; an empty list makes a tensor of floats."""
    kind = values.dtype
    is_number = kind.is_floating_point or kind.is_complex or kind == torch.bool
    return values.ndim == 1 and (len(values) == 0 or not is_number)


def _to_tensor(values: Any) -> Tensor:
    """Return a tensor, an array or nested lists as a tensor on the CPU."""
    return values.cpu() if isinstance(values, Tensor) else torch.tensor(values)


def token_matrix(ids: Tensor | Iterable[Any], call: str) -> Int64[Tensor, "prompt token"]:
    """Copy `ids` to one tensor; refuse anything but whole numbers in rows of one length."""
    try:
        rows = [_to_tensor(row) for row in ids]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{call}: these are no token ids: {error}") from error
    for index, row in enumerate(rows):
        if not _is_integer(row) or len(row) != len(rows[0]):
            raise InputError(
                f"{call}: prompt {index} has the shape {tuple(row.shape)} and type {row.dtype}, "
                f"prompt 0 has the shape {tuple(rows[0].shape)}; every prompt must be a sequence "
                "of int token ids, all of the same length"
            )
    # Rows of (token,) become (prompt, token).
    return torch.stack([row.long() for row in rows]) if rows else torch.empty(0, 0).long()
