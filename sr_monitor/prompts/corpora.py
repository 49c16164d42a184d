"""Texts and data sets, turned into windows of token ids.

A corpus is its texts joined by line breaks and tokenised without special tokens. Prompts are drawn
from its non-overlapping windows of `num_tokens`, without replacement, in a seeded order.

Of a large corpus only enough blocks of about 4,000 characters are tokenised to hold 20 windows for
each prompt: random blocks of texts, and the first ones of a data set, which may be a stream. A
smaller corpus is used whole, so a text, a file and a data set give the same prompts.

    request = WindowRequest("example", num_tokens=10, num_prompts=257, seed=0)
    windows = request.from_texts(["a long text", "another"], tokenizer)  # "prompt token"
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from sr_monitor.errors import InputError, check_kind, explained
from sr_monitor.prompts.token_ids import token_ids_of

_BLOCK = 4000
_CUT = re.compile(r"(?<=\S) (?=\S)")
_WINDOWS_PER_PROMPT = 20


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    def __call__(self, text: str, /, *, add_special_tokens: bool) -> Any:
        """Return a mapping whose `input_ids` are the token ids of `text`."""

    def decode(self, ids: list[int], /) -> Any:
        """Return the text of `ids`."""


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise `text` without special tokens."""
    fix = "pass the tokenizer itself, such as AutoTokenizer.from_pretrained(name)"
    check_kind("tokenizer", tokenizer, Tokenizer, fix)
    options: dict[str, Any] = {"add_special_tokens": False}
    if "verbose" in inspect.signature(tokenizer.__call__).parameters:
        options["verbose"] = False  # a corpus may be longer than the model's context
    # Tokenizers refuse half a surrogate pair, which is common in scraped JSON.
    text = text.encode("utf-8", "replace").decode("utf-8")
    with explained("the tokenizer fails", "its files are damaged: save or download them again"):
        return list(tokenizer(text, **options)["input_ids"])


def decode_all(tokenizer: object, ids: Int64[Tensor, "prompt token"]) -> tuple[str, ...] | None:
    """Return the text of each prompt; None without a tokenizer that decodes."""
    decode = getattr(tokenizer, "decode", None)
    return decode and tuple(str(decode(prompt)) for prompt in ids.tolist())


def seeded(words: str) -> torch.Generator:
    """Return a new generator that draws the same for the same words, on any machine."""
    digest = hashlib.sha256(words.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def special_ids(tokenizer: object) -> set[int]:
    """Return the ids of BOS, EOS and padding that the tokenizer has."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {token for name in names if (token := getattr(tokenizer, name, None)) is not None}


def blocks(texts: Iterable[Any], call: str) -> Iterator[str]:
    """Cut the corpus into blocks, wherever its texts begin and end."""
    rest, separator = "", ""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{call}: text {index} is of type {type(text).__name__}, not str")
        rest += separator + text
        separator = "" if text.endswith("\n") else "\n"
        start = 0
        while len(rest) - start > 2 * _BLOCK:
            # A corpus without spaces is cut anywhere, at the price of one odd token.
            cut = _CUT.search(rest, start + _BLOCK, start + 2 * _BLOCK)
            stop = cut.start() if cut else start + 2 * _BLOCK
            yield rest[start:stop]
            start = stop
        rest = rest[start:]
    if rest:
        yield rest


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """Parameters for sampling prompts of equal length from the windows of a corpus."""

    call: str
    """What error messages begin with."""
    _: KW_ONLY
    num_tokens: int
    num_prompts: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse prompts without a context, and fewer than make a pair."""
        if self.num_tokens < 2 or self.num_prompts < 2:
            raise InputError(
                f"{self.call}: got {self.num_prompts} prompts of {self.num_tokens} tokens; at "
                "least 2 prompts make a pair, and a prompt needs at least 2 tokens"
            )

    def generator(self, purpose: str) -> torch.Generator:
        """Return a new generator for one purpose, seeded."""
        return seeded(f"{purpose} {self.seed}")

    def from_texts(
        self, texts: str | Iterable[Any], tokenizer: Tokenizer
    ) -> Int64[Tensor, "prompt token"]:
        """Draw from blocks spread over the whole corpus."""
        parts = list(blocks([texts] if isinstance(texts, str) else texts, self.call))
        order = torch.randperm(len(parts), generator=self.generator("blocks")).tolist()
        encoded = dict(self._enough((i, encode(tokenizer, parts[i])) for i in order))
        return self.draw(chain.from_iterable(encoded[i] for i in sorted(encoded)))

    def from_rows(
        self, dataset: Iterable[Any], tokenizer: Tokenizer | None, column: str
    ) -> Int64[Tensor, "prompt token"]:
        """Draw from the first rows of a data set, reading no more of them than it takes."""
        parts = enumerate(self._ids_of(dataset, tokenizer, column))
        return self.draw(chain.from_iterable(ids for _, ids in self._enough(parts)))

    def _ids_of(
        self, dataset: Iterable[Any], tokenizer: Tokenizer | None, column: str
    ) -> Iterator[list[int]]:
        """Tokenise the texts in `column`, or else read `input_ids` without special tokens."""
        rows = iter(dataset)
        first = next(rows, None)
        if not isinstance(first, Mapping):
            found = "no rows" if first is None else f"rows of type {type(first).__name__}"
            raise InputError(
                f"{self.call}: the data set has {found}; rows must be mappings of columns; pass "
                "one split of a data set that has several"
            )
        rows = chain([first], rows)
        if tokenizer is not None and column in first and column != "input_ids":
            texts = (row[column] for row in rows if row[column] is not None)
            return (encode(tokenizer, block) for block in blocks(texts, self.call))
        if "input_ids" in first:
            special = special_ids(tokenizer)
            found_ids = (chain.from_iterable(token_ids_of(row) or ()) for row in rows)
            return ([token for token in ids if token not in special] for ids in found_ids)
        has = "no tokenizer" if tokenizer is None else "a tokenizer"
        raise InputError(
            f"{self.call}: the columns are {sorted(first)} and there is {has}; pass a tokenizer "
            "and column= the name of a text column, or a data set with a column 'input_ids'"
        )

    def draw(self, ids: Iterable[int]) -> Int64[Tensor, "prompt token"]:
        """Cut `ids` into windows and draw from them without replacement."""
        corpus = torch.tensor(list(ids), dtype=torch.int64)
        num_windows = len(corpus) // self.num_tokens
        if num_windows < self.num_prompts:
            raise InputError(
                f"{self.call}: the text has {len(corpus)} tokens, but {self.num_prompts} prompts "
                f"of {self.num_tokens} tokens need {self.num_prompts * self.num_tokens}; give more "
                "text or ask for fewer prompts"
            )
        # (window * token,) becomes (window, token); what does not fill a window is left out.
        windows = corpus[: num_windows * self.num_tokens].view(num_windows, self.num_tokens)
        order = torch.randperm(num_windows, generator=self.generator("windows"))
        return windows[order[: self.num_prompts]]

    def swap_last_tokens(
        self, windows: Int64[Tensor, "window token"]
    ) -> Int64[Tensor, "prompt token"]:
        """Follow each window by a copy that ends with the last token of another window."""
        generator = self.generator("swaps")
        last, swapped = windows[:, -1], windows.clone()
        if bool((last == last[0]).all()):
            raise InputError(
                f"{self.call}: all {len(windows)} prompts drawn end with the same token, "
                f"{int(last[0])}; give more varied text"
            )
        for index, token in enumerate(last):
            others = last[last != token]
            swapped[index, -1] = others[torch.randint(len(others), (), generator=generator)]
        # (window, side, token) becomes (window * side, token): the sides of a pair are neighbours.
        return torch.stack([windows, swapped], dim=1).flatten(0, 1)

    def _enough(self, parts: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[int, list[int]]]:
        """Pass on `parts` until they hold enough tokens to draw from."""
        missing = _WINDOWS_PER_PROMPT * self.num_prompts * self.num_tokens
        for index, ids in parts:
            yield index, ids
            missing -= len(ids)
            if missing <= 0:
                return


def open_dataset(name: str, config: str | None, split: str, call: str) -> Iterator[Any]:
    """Stream the rows of a data set of the hub, or of a local folder."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        fix = "pip install 'sr-monitor[transformers]'"
        raise InputError(f"{call}: the package `datasets` is missing; run: {fix}") from error
    with explained(f"{call}: cannot open {name!r} (config={config!r}, split={split!r})"):
        yield from load_dataset(name, config, split=split, streaming=True)
