"""Prompts from the training data itself, for a run that was given none.

A data set with a length is read at rows chosen by a seeded permutation. Of a long row a piece at a
random place is taken, about four prompts long, so that the prompts are spread over the data; short
rows are taken whole. Pieces are joined until there are four windows for each prompt, and the
prompts are drawn from these by `WindowRequest.draw`. No window reaches across a cut.

Nothing is disturbed: no loader is iterated, and the random states, those that the data set or the
collator keep for themselves included, are afterwards what they were.

    prompts = prompts_from_dataset(loader.dataset, collate=loader.collate_fn, tokenizer=tokenizer)
    prompts = prompts or prompts_from_batch(first_batch, tokenizer=tokenizer)
"""

import copy
import functools
import gc
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from sr_monitor.errors import InputError
from sr_monitor.prompts.corpora import WindowRequest, to_tensor
from sr_monitor.prompts.prompt_set import PromptSet

_KEYS = ("input_ids", "tokens", "ids", "x")
_WINDOWS_PER_PROMPT = 4
_FEWEST_PROMPTS = 3  # one triple
_ROWS_AT_ONCE = 8
_LOOKED_AT = 16_384  # positions of a row that are converted, where rows are longer
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_OPAQUE = (nn.Module, ModuleType, type, random.SystemRandom, Tensor, np.ndarray, str, int, float)
_LEVELS = 8  # how deep generators of collators and data sets are looked for
_MOST_PARTS = 100
_MOST_OBJECTS = 10_000


def prompts_from_dataset(
    dataset: Any,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    tokenizer: Any = None,
    num_tokens: int = 10,
    num_prompts: int = 257,
    seed: int = 0,
) -> PromptSet | None:
    """Draw prompts from a data set with a length, reading only as many rows as it takes.

    Where rows hold no token ids but `collate` is given, a few rows at a time are collated and the
    ids are read from the batch. The tokenizer, or a processor's, says what the special tokens are
    and gives the prompts their texts.

    Returns:
        The prompts, fewer than `num_prompts` where the data has no more; None where there are
        fewer than three, no token ids, no length or no access by index.
    """
    call = f"prompts_from_dataset({type(dataset).__name__}, {num_tokens=}, {num_prompts=})"
    request = WindowRequest(call=call, num_tokens=num_tokens, num_prompts=num_prompts, seed=seed)
    with _nothing_disturbed(seed, dataset, collate):
        size = _size(dataset, call)
        rows = functools.partial(_dataset_rows, dataset, size, collate, request)
        return _prompts(rows, size, request, tokenizer, "the training data")


def prompts_from_batch(
    batch: Any,
    *,
    tokenizer: Any = None,
    num_tokens: int = 10,
    num_prompts: int = 257,
    seed: int = 0,
) -> PromptSet | None:
    """Draw prompts from one batch as the training loop gets it; None where it holds too few ids."""
    call = f"prompts_from_batch({type(batch).__name__}, {num_tokens=}, {num_prompts=})"
    request = WindowRequest(call=call, num_tokens=num_tokens, num_prompts=num_prompts, seed=seed)
    found = _find(batch) or []
    order = list(_permutation(len(found), request))
    source = "a batch of the training data"
    return _prompts(lambda: (found[i] for i in order), len(found), request, tokenizer, source)


def token_ids_of(item: Any) -> list[list[int]] | None:
    """Return the token ids of each row in a row or a batch of training data, None if it has none.

    They are looked for in a mapping under `input_ids`, `tokens`, `ids` and `x`, less what an
    `attention_mask` hides; in an integer tensor, array or list, 1-D for a row and 2-D for a batch;
    in the first part of a tuple or list that has any. Numbers below 0 stand for no token.
    """
    rows = _find(item)
    return None if rows is None else [row.tokens(0, len(row.ids)).tolist() for row in rows]


def holds_ids(item: Any) -> bool:
    """Whether `token_ids_of` would give any row, without converting them."""
    return bool(_find(item))


def count_tokens(item: Any) -> Tensor | None:
    """How many ids `token_ids_of` would give, without waiting for the device they are on."""
    rows = _find(item)
    return None if rows is None else sum((row.count() for row in rows), torch.tensor(0))


@dataclass(frozen=True, slots=True)
class _Row:
    """Token ids as they were found, not yet converted, and what hides some of them."""

    ids: Any
    mask: Any

    def tokens(self, start: int, stop: int) -> Int64[Tensor, " token"]:
        ids = to_tensor(self.ids[start:stop])
        if not _is_integer(ids):
            return torch.empty(0, dtype=torch.int64)
        ids = ids.long()
        if self.mask is not None:
            ids = ids[to_tensor(self.mask[start:stop]).bool()]
        return ids[ids >= 0]

    def count(self) -> Int64[Tensor, ""]:
        ids = torch.as_tensor(self.ids)
        known = ids >= 0
        if self.mask is not None:
            known = known & torch.as_tensor(self.mask, device=ids.device).bool()
        return known.sum()


def _find(item: Any) -> list[_Row] | None:
    found: Iterable[list[_Row] | None]
    if isinstance(item, Mapping):
        mask = item.get("attention_mask")
        found = (_rows(item[key], mask) for key in _KEYS if key in item)
    elif isinstance(item, tuple) or (isinstance(item, list) and _holds_parts(item)):
        if item and all(isinstance(part, Mapping) for part in item):
            return [row for part in item for row in _find(part) or ()] or None
        found = map(_find, item)
    else:
        return _rows(item, None)
    return next((rows for rows in found if rows is not None), None)


def _holds_parts(items: list[Any]) -> bool:
    """Whether a list is a collection of tensors, mappings and the like, not of numbers."""
    return bool(items) and not isinstance(items[0], int | float | np.number | list)


def _rows(values: Any, mask: Any) -> list[_Row] | None:
    ids, masks = _vectors(values), _vectors(mask)
    if ids is None or not all(map(_holds_ids, ids)):
        return None
    if masks is None or [len(row) for row in masks] != [len(row) for row in ids]:
        return [_Row(row, None) for row in ids]  # a mask of another shape is about something else
    return [_Row(row, hidden) for row, hidden in zip(ids, masks, strict=True)]


def _vectors(values: Any) -> list[Any] | None:
    """Return the rows of what is 1-D or 2-D; a row may be a list, an array or a tensor."""
    if isinstance(values, list | tuple):
        first = values[0] if values else 0
        num_dimensions = 2 if isinstance(first, list | tuple) else 1 + getattr(first, "ndim", 0)
    else:
        num_dimensions = getattr(values, "ndim", 0)
    if num_dimensions == 2:
        return list(values)
    return [values] if num_dimensions == 1 else None


def _holds_ids(values: Any) -> bool:
    if isinstance(values, Tensor):
        return _is_integer(values)
    try:
        return _is_integer(to_tensor(values[:1000]))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _is_integer(values: Tensor) -> bool:
    if values.ndim != 1:
        return False
    kind = values.dtype
    return not (len(values) and (kind.is_floating_point or kind.is_complex or kind == torch.bool))


def _size(dataset: Any, call: str) -> int:
    """Return the number of rows that can be read by index, 0 where none can."""
    # NOTE: torch's IterableDataset has a __getitem__, which raises, and may have a length.
    if isinstance(dataset, IterableDataset | Mapping) or not hasattr(dataset, "__getitem__"):
        return 0
    with _blaming(call, "the length of the training data"):
        try:
            return len(dataset)
        except (TypeError, NotImplementedError):
            return 0


def _dataset_rows(
    dataset: Any,
    size: int,
    collate: Callable[[list[Any]], Any] | None,
    request: WindowRequest,
) -> Iterator[_Row]:
    """Read rows in a seeded order; stop where several in a row hold no token ids."""
    # Rows of less than one token on average are no text worth reading on.
    order = islice(_permutation(size, request), _wanted(request))
    while chunk := list(islice(order, _ROWS_AT_ONCE)):
        items = [_read(dataset, index, request.call) for index in chunk]
        found = [_find(item) for item in items]
        if collate is not None and all(rows is None for rows in found):
            found = [_collated(items, collate, request.call)]
        if all(rows is None for rows in found):
            return
        yield from (row for rows in found for row in rows or ())


def _read(dataset: Any, index: int, call: str) -> Any:
    with _blaming(call, f"row {index} of the training data"):
        return dataset[index]


def _collated(
    items: list[Any], collate: Callable[[list[Any]], Any], call: str
) -> list[_Row] | None:
    # Collators like to pop columns, and the rows may be the data set's own.
    items = [copy.copy(item) if isinstance(item, Mapping) else item for item in items]
    with _blaming(call, f"the collate function, given {len(items)} rows,"):
        return _find(collate(items))


@contextmanager
def _blaming(call: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{call}: {what} raised {reason[:300]}; pass prompts=, for example "
            "prompts=PromptSet.from_texts(texts, tokenizer)"
        ) from error


def _permutation(size: int, request: WindowRequest) -> Iterator[int]:
    """Shuffle range(size) lazily: the cost is that of the numbers taken."""
    generator, moved = request.generator("rows"), dict[int, int]()
    for index in range(size):
        other = index + int(torch.randint(size - index, (), generator=generator))
        yield moved.get(other, other)
        moved[other] = moved.pop(index, index)


def _wanted(request: WindowRequest) -> int:
    return _WINDOWS_PER_PROMPT * request.num_prompts * request.num_tokens


def _prompts(
    make_rows: Callable[[], Iterator[_Row]],
    num_rows: int,
    request: WindowRequest,
    tokenizer: Any,
    source: str,
) -> PromptSet | None:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {getattr(tokenizer, name, None) for name in names} - {None}
    ids = _gather(make_rows, num_rows, request, torch.tensor(list(special), dtype=torch.int64))
    num_prompts = min(request.num_prompts, len(ids) // request.num_tokens)
    if num_prompts < min(request.num_prompts, _FEWEST_PROMPTS):
        return None
    if num_prompts < request.num_prompts:
        source += f" ({num_prompts} prompts, it has no more)"
    windows = replace(request, num_prompts=num_prompts).draw(ids)
    texts = None
    if hasattr(tokenizer, "decode"):
        texts = tuple(str(tokenizer.decode(window)) for window in windows.tolist())
    return PromptSet(token_ids=windows, texts=texts, source=source, seed=request.seed)


def _gather(
    make_rows: Callable[[], Iterator[_Row]], num_rows: int, request: WindowRequest, special: Tensor
) -> list[int]:
    """Join pieces of rows; where that is too little, longer pieces."""
    each = -(-request.num_prompts // max(num_rows, 1))
    share = _WINDOWS_PER_PROMPT * request.num_tokens * each
    ids, was_cut = _join(make_rows(), share, _LOOKED_AT, request, special)
    if was_cut and len(ids) < request.num_prompts * request.num_tokens:
        ids, _ = _join(make_rows(), _wanted(request), sys.maxsize, request, special)
    return ids


def _join(
    rows: Iterator[_Row], share: int, look: int, request: WindowRequest, special: Tensor
) -> tuple[list[int], bool]:
    """Join pieces of up to `share` tokens; returns them, and whether any row was cut."""
    generator, was_cut = request.generator("places"), False
    ids: list[int] = []
    for row in rows:
        piece, cut = _piece(row, share, look, generator, special)
        if cut:  # it begins and ends where a window does
            _trim(ids, request.num_tokens)
            _trim(piece, request.num_tokens)
        ids += piece
        was_cut |= cut
        if len(ids) >= _wanted(request):
            break
    return ids, was_cut


def _trim(ids: list[int], num_tokens: int) -> None:
    del ids[len(ids) - len(ids) % num_tokens :]


def _piece(
    row: _Row, share: int, look: int, generator: torch.Generator, special: Tensor
) -> tuple[list[int], bool]:
    """Return a row, or `share` tokens at a random place in it, and whether it was cut."""
    start = _place(len(row.ids), look, generator)
    tokens = row.tokens(start, start + min(look, len(row.ids)))
    tokens = tokens[~torch.isin(tokens, special)]
    first = _place(len(tokens), share, generator)
    return tokens[first : first + share].tolist(), len(row.ids) > look or len(tokens) > share


def _place(length: int, wanted: int, generator: torch.Generator) -> int:
    return int(torch.randint(max(length - wanted, 0) + 1, (), generator=generator))


@contextmanager
def _nothing_disturbed(seed: int, *owners: Any) -> Iterator[None]:
    """Seed the global generators inside; they and the owners' own are put back afterwards."""
    undo: list[Callable[[], Any]] = [
        functools.partial(random.setstate, random.getstate()),
        functools.partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002
        functools.partial(torch.set_rng_state, torch.get_rng_state()),
        *_undo_own(owners),
    ]
    # NOTE: to ask for the states of GPUs that are not in use would start them.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.append(functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        # NOTE: torch.manual_seed would also seed the GPUs, now or when they are first used.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        for put_back in undo:
            put_back()


def _undo_own(owners: Iterable[Any]) -> Iterator[Callable[[], Any]]:
    """Find the generators that data sets, transforms and collators keep, a few levels deep."""
    level, seen = list(owners), set[int]()
    for _ in range(_LEVELS):
        level = [item for item in level if id(item) not in seen and not isinstance(item, _OPAQUE)]
        seen.update(map(id, level))
        for item in level:
            if isinstance(item, _GENERATORS):
                yield _undo_draws(item)
            elif isinstance(getattr(item, "__dict__", None), dict):
                yield functools.partial(_undo_attributes, vars(item), dict(vars(item)))
        level = [part for item in level for part in _parts(item)][:_MOST_OBJECTS]


def _parts(item: Any) -> list[Any]:
    if isinstance(item, FunctionType):
        return gc.get_referents(*(item.__closure__ or ()))
    if isinstance(item, dict | list | tuple | functools.partial | MethodType):
        return gc.get_referents(item)[:_MOST_PARTS]
    namespace = getattr(item, "__dict__", None)
    return list(namespace.values()) if isinstance(namespace, dict) else []


def _undo_draws(generator: Any) -> Callable[[], Any]:
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return functools.partial(setattr, bits, "state", bits.state)
    return functools.partial(generator.set_state, generator.get_state())


def _undo_attributes(namespace: dict[str, Any], before: dict[str, Any]) -> None:
    """Put back attributes that hold another generator now: one was made at the first use."""
    for name, value in list(namespace.items()):
        if isinstance(value, _GENERATORS) and before.get(name) is not value:
            del namespace[name]
            namespace.update({name: before[name]} if name in before else {})
