"""Prompts from the training data, for a run that was given none.

A data set is read before the training only if reading a row runs no code of its owner's and leaves
nothing behind: a list, a tuple, a tensor, an array, a `TensorDataset`, a Hugging Face `Dataset`
without a transform, a `Subset` or a `ConcatDataset` of these. Of a stream that can be resumed (a
Hugging Face `IterableDataset`, or one with `state_dict` and `load_state_dict`), a copy is read, and
the stream itself stays where it is. Any other data set, and any collate function, may draw random
numbers or count its reads: there, prompts come from the first batches as the training loop gets
them. No loader is iterated.

Rows are read in a seeded order: short ones whole, long ones about four prompts long at a random
place. Pieces are joined until there are four windows for each prompt; none reaches across a cut.

    request = WindowRequest("a run", num_tokens=10, num_prompts=257, seed=0)
    prompts = prompts_from_dataset(loader.dataset, request, tokenizer)
    prompts = prompts or prompts_from_batch(first_batch, request, tokenizer)
"""

import copy
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from sr_monitor.errors import InputError
from sr_monitor.model.undisturbed import preserving_global_state
from sr_monitor.prompts.corpora import WindowRequest, decode_all, special_ids
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.token_ids import TokenRow, find_rows

_PLAIN_READS = (list.__getitem__, tuple.__getitem__, TensorDataset.__getitem__)
_WINDOWS_PER_PROMPT = 4
_FEWEST_PROMPTS = 3  # one triple
_ROWS_AT_ONCE = 8
_LOOKED_AT = 16_384  # positions of a row that are converted, where rows are longer


def prompts_from_dataset(
    dataset: Any, request: WindowRequest, tokenizer: Any = None
) -> PromptSet | None:
    """Draw prompts from a data set, reading only as many rows as it takes.

    The tokenizer, or a processor's, names the special tokens and gives the prompts their texts.
    Return fewer prompts where the data has no more; None where there are fewer than three, where
    rows hold no token ids, or where reading rows could have consequences.
    """
    if _reads_without_consequences(dataset):
        return _draw(dataset, request, tokenizer, "the training data")
    rows = _read_ahead(dataset, request)
    return _draw(rows, request, tokenizer, f"the first {len(rows)} rows of the training data")


def prompts_from_batch(
    batch: Any, request: WindowRequest, tokenizer: Any = None, *, num_batches: int = 1
) -> PromptSet | None:
    """Draw prompts from the rows of one or more batches; None where they hold too few ids."""
    what = "a batch" if num_batches == 1 else f"the first {num_batches} batches"
    return _draw(find_rows(batch) or [], request, tokenizer, f"{what} of the training data")


def _reads_without_consequences(dataset: Any) -> bool:
    """Return whether `dataset[index]` runs only code that is known to leave nothing behind."""
    if isinstance(dataset, Tensor | np.ndarray):
        return dataset.ndim > 0
    # A subclass may read its rows in its own way, so the method is compared, not the class.
    read = getattr(type(dataset), "__getitem__", None)
    if read is Subset.__getitem__:
        return _reads_without_consequences(dataset.dataset)
    if read is ConcatDataset.__getitem__:
        return all(map(_reads_without_consequences, dataset.datasets))
    hugging_face: Any = sys.modules.get("datasets.arrow_dataset")
    if hugging_face is not None and read is hugging_face.Dataset.__getitem__:
        return bool(dataset.format["type"] != "custom")  # a transform is its owner's code
    return read in _PLAIN_READS


@preserving_global_state()
def _read_ahead(dataset: Any, request: WindowRequest) -> list[Any]:
    """Return the first rows of a stream, one for each prompt or more; none if that fails."""
    share = _WINDOWS_PER_PROMPT * request.num_tokens
    rows, held = list[Any](), 0
    try:
        for row in islice(_copy_of_stream(dataset), request.num_prompts * share):
            held += sum(min(len(part.ids), share) for part in find_rows(row) or ())
            rows.append(row)
            if held >= request.num_prompts * share and len(rows) >= request.num_prompts:
                break
            if held == 0 and len(rows) == _ROWS_AT_ONCE:
                return []
    except Exception:  # it cannot be copied, or is ill: the first batches will do, or tell
        return []
    return rows


def _copy_of_stream(dataset: Any) -> Any:
    """Copy a stream with all that reading it changes; return nothing where nobody promises that."""
    if type(dataset).__name__ == "IterableDatasetShard":  # accelerate's, around a rank's stream
        dataset = dataset.dataset
    hugging_face: Any = sys.modules.get("datasets.iterable_dataset")
    if hugging_face is not None and isinstance(dataset, hugging_face.IterableDataset):
        dill = import_module("dill")  # copies functions with what they refer to
        return dill.loads(dill.dumps(dataset, recurse=True))
    names = ("__iter__", "state_dict", "load_state_dict")
    if not all(hasattr(type(dataset), name) for name in names):
        return ()
    # A file that is mapped into memory may be larger than memory, and is only read.
    mapped = (value for value in vars(dataset).values() if isinstance(value, np.memmap))
    return copy.deepcopy(dataset, {id(value): value for value in mapped})


@preserving_global_state()
def _draw(rows: Any, request: WindowRequest, tokenizer: Any, source: str) -> PromptSet | None:
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    special = torch.tensor(list(special_ids(tokenizer)), dtype=torch.int64)
    ids = _Sampler(rows, request, special).gather()
    num_prompts = min(request.num_prompts, len(ids) // request.num_tokens)
    if num_prompts < min(request.num_prompts, _FEWEST_PROMPTS):
        return None
    if num_prompts < request.num_prompts:
        source += f" ({num_prompts} prompts, it has no more)"
    windows = replace(request, num_prompts=num_prompts).draw(ids)
    texts = decode_all(tokenizer, windows)
    return PromptSet(token_ids=windows, texts=texts, source=source, seed=request.seed)


@dataclass(frozen=True, slots=True)
class _Sampler:
    """Pieces of rows at random places, joined, without `special` tokens."""

    rows: Any
    request: WindowRequest
    special: Int64[Tensor, " special"]

    def gather(self) -> list[int]:
        """Join pieces of rows; where that is too little, longer pieces."""
        num_prompts, num_tokens = self.request.num_prompts, self.request.num_tokens
        tokens_per_prompt = _WINDOWS_PER_PROMPT * num_tokens
        prompts_per_row = math.ceil(num_prompts / max(len(self.rows), 1))
        wanted, share = tokens_per_prompt * num_prompts, tokens_per_prompt * prompts_per_row
        ids, was_cut = self._join(wanted, share, _LOOKED_AT)
        if was_cut and len(ids) < num_prompts * num_tokens:
            ids, _ = self._join(wanted, wanted, sys.maxsize)
        return ids

    def _join(self, wanted: int, share: int, look: int) -> tuple[list[int], bool]:
        """Join pieces of up to `share` tokens; return them, and whether any row was cut."""
        generator, was_cut = self.request.generator("places"), False
        ids: list[int] = []
        for row in self._read(wanted):
            start = _place(len(row.ids), look, generator)
            tokens = row.tokens(start, start + min(look, len(row.ids)))
            tokens = tokens[~torch.isin(tokens, self.special)]
            first = _place(len(tokens), share, generator)
            piece = tokens[first : first + share].tolist()
            if len(row.ids) > look or len(tokens) > share:
                was_cut = True
                for whole in (ids, piece):  # a window begins and ends at the cut
                    del whole[len(whole) - len(whole) % self.request.num_tokens :]
            ids += piece
            if len(ids) >= wanted:
                break
        return ids, was_cut

    def _read(self, most: int) -> Iterator[TokenRow]:
        """Read rows in a seeded order; stop where several in a row hold no token ids."""
        # Rows of less than one token on average are not worth reading on.
        order = islice(_permutation(len(self.rows), self.request.generator("rows")), most)
        while chunk := list(islice(order, _ROWS_AT_ONCE)):
            found = [find_rows(self._row(index)) for index in chunk]
            if all(rows is None for rows in found):
                return
            yield from (row for rows in found for row in rows or ())

    def _row(self, index: int) -> Any:
        try:
            return self.rows[index]
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"{self.request.call}: row {index} of the training data raised {reason[:300]}; "
                "pass prompts=, for example prompts=PromptSet.from_texts(texts, tokenizer)"
            ) from error


def _place(length: int, wanted: int, generator: torch.Generator) -> int:
    return int(torch.randint(max(length - wanted, 0) + 1, (), generator=generator))


def _permutation(size: int, generator: torch.Generator) -> Iterator[int]:
    """Shuffle range(size) lazily: the cost is that of the numbers taken."""
    moved = dict[int, int]()
    for index in range(size):
        other = index + int(torch.randint(size - index, (), generator=generator))
        yield moved.get(other, other)
        moved[other] = moved.pop(index, index)
