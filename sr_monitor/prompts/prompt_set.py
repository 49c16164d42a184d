"""The prompts of a measurement, and the pairs and triples they form.

A `PromptSet` stays the same at every step, in every run and in every replay. Its fingerprint proves
it, and people can read its file.

In a "chain" the prompts are unrelated: pair i is (prompt i, prompt i + 1), triple i is
(i, i + 1, i + 2). In an "explicit" set pair i is (prompt 2i, prompt 2i + 1), and triple i is pair i
with the first prompt of the next pair.

    prompts = PromptSet.from_texts(texts, tokenizer, num_tokens=10, num_prompts=257, seed=0)
    prompts_a, prompts_b = prompts.pairs()  # 256 pairs, each "pair token"
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sr_monitor.errors import InputError, check_kind, explained
from sr_monitor.files import write_whole
from sr_monitor.prompts import files
from sr_monitor.prompts.corpora import (
    Tokenizer,
    WindowRequest,
    decode_all,
    encode,
    open_dataset,
    seeded,
)
from sr_monitor.prompts.token_ids import token_matrix

_MEANING = Path(__file__).with_name("meaning.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptSet:
    """Prompts of equal length, in a fixed order; see `sr_monitor.prompts.prompt_set`."""

    token_ids: Int64[Tensor, "prompt token"] = field(repr=False)
    """The prompts, on the CPU."""
    texts: tuple[str, ...] | None = field(default=None, repr=False)
    """The text of each prompt; None without a tokenizer."""
    source: str = "token ids"
    """Where the prompts come from."""
    seed: int | None = None
    """The seed they were drawn with; None where nothing was drawn."""
    labels: tuple[str, ...] | None = field(default=None, repr=False)
    """A word for each pair of an explicit set."""
    pairing: str = "chain"
    """How pairs are formed: "chain" or "explicit"."""
    tokenizer: Any = field(default=None, repr=False)
    """Names tokens in pictures, where one is at hand; neither saved nor sent to other processes."""

    def __post_init__(self) -> None:
        """Refuse prompts that cannot be measured."""
        num_prompts, num_tokens = self.token_ids.shape
        if num_prompts < 2 or num_tokens < 2:
            raise InputError(
                f"PromptSet: got {num_prompts} prompts of {num_tokens} tokens; at least 2 prompts "
                "make a pair, and a prompt needs at least 2 tokens, a last one and a context"
            )
        if self.token_ids.min() < 0:
            raise InputError(f"PromptSet: token id {int(self.token_ids.min())} is below 0")
        if self.pairing not in ("chain", "explicit"):
            raise InputError(f'PromptSet: pairing is "chain" or "explicit", not {self.pairing!r}')
        if self.pairing == "explicit" and num_prompts % 2:
            raise InputError(f"PromptSet: {num_prompts} prompts cannot form explicit pairs")
        check_kind("source", self.source, str, "pass text", call="PromptSet")
        check_kind("seed", self.seed, int | None, "pass a whole number", call="PromptSet")
        for name, expected in (("texts", num_prompts), ("labels", self.num_pairs)):
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise InputError(f"PromptSet: got {len(values)} {name}, expected {expected}")
            for value in values or ():
                check_kind(name, value, str, "pass text for each", call="PromptSet")

    @property
    def num_tokens(self) -> int:
        """The length of every prompt."""
        return self.token_ids.shape[1]

    @property
    def num_pairs(self) -> int:
        """How many pairs there are."""
        num_prompts = len(self.token_ids)
        return num_prompts - 1 if self.pairing == "chain" else num_prompts // 2

    @property
    def num_triples(self) -> int:
        """How many triples there are."""
        return self.num_pairs - 1

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the token ids and the pairing."""
        content = hashlib.sha256(f"{self.pairing} {tuple(self.token_ids.shape)} ".encode())
        content.update(self.token_ids.numpy().astype("<i8").tobytes())
        return content.hexdigest()[:16]

    def pairs(self, num: int | None = None) -> tuple[Int64[Tensor, "pair token"], ...]:
        """Return both sides of the first `num` pairs, or of all."""
        return self._members(2, num, self.num_pairs, "pairs")

    def triples(self, num: int | None = None) -> tuple[Int64[Tensor, "triple token"], ...]:
        """Return the three corners of the first `num` triples, or of all."""
        return self._members(3, num, self.num_triples, "triples")

    def texts_of_triple(self, index: int) -> tuple[str, ...] | None:
        """Return the texts of the corners of a triple; None where there are no texts."""
        first = index * self._stride
        return self.texts and self.texts[first : first + 3]

    def token_name(self, token: int) -> str:
        """Return the text of a token, its spaces as dots; its id where it has no text."""
        try:
            text = str(self.tokenizer.decode([token]))
        except Exception:  # no tokenizer, or one that knows fewer tokens than the model has
            return str(token)
        is_part_of_a_character = "\ufffd" in text
        return text.replace(" ", "·") if text and not is_part_of_a_character else str(token)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the tokenizer, which may be large, or not be pickled at all."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "tokenizer"}
        return partial(PromptSet, **values), ()

    @property
    def _stride(self) -> int:
        """The distance between the first prompts of neighbouring pairs."""
        return 1 if self.pairing == "chain" else 2

    def _members(
        self, size: int, num: int | None, available: int, what: str
    ) -> tuple[Int64[Tensor, "item token"], ...]:
        num = available if num is None else num
        if not 0 <= num <= available:
            raise InputError(
                f"PromptSet.{what}({num}): the set has {available} {what}; ask for 0 to "
                f"{available}, or make a larger set"
            )
        return tuple(self.token_ids[first :: self._stride][:num].clone() for first in range(size))

    def reordered(self, step: int) -> "PromptSet":
        """Return the prompts in an order drawn from the seed and the step.

        A chain has other pairs then; explicit pairs stay pairs, and others are the first ones.
        """
        # A chain is shuffled prompt by prompt, an explicit set pair by pair: "item member".
        items = torch.arange(len(self.token_ids)).view(-1, self._stride)
        drawn = torch.randperm(len(items), generator=seeded(f"order {self.seed} {step}"))
        order, labels = items[drawn].flatten(), self.labels
        return replace(
            self,
            token_ids=self.token_ids[order],
            texts=self.texts and tuple(self.texts[index] for index in order),
            labels=tuple(labels[i] for i in drawn) if labels and self._stride == 2 else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the set as JSON, one line per prompt; the file appears whole or not at all."""
        path = Path(path)
        if path.is_dir():
            raise InputError(f"PromptSet.save({str(path)!r}): this is a folder; name a file in it")
        # A text may hold half a surrogate pair; written as \udXXX it is valid JSON again.
        write_whole(path, self.to_json().encode("utf-8", errors="backslashreplace"))

    def to_json(self) -> str:
        """Return the set as text that people and `from_json` can read."""
        names = ("fingerprint", "source", "seed", "pairing", "labels")
        rows = zip(self.token_ids.tolist(), self.texts or [None] * len(self.token_ids), strict=True)
        return files.format_saved(
            {name: getattr(self, name) for name in names},
            ({"tokens": tokens, "text": text} for tokens, text in rows),
        )

    @classmethod
    def load(cls, path: str | Path) -> "PromptSet":
        """Read a saved set; refuse one that was changed or comes from a later version."""
        call = f"PromptSet.load({str(path)!r})"
        return cls.from_json(files.read_text(Path(path), call), call=call)

    @classmethod
    def from_json(cls, text: str, *, call: str = "PromptSet.from_json") -> "PromptSet":
        """Read what `to_json` wrote; error messages begin with `call`."""
        content = files.parse_saved(text, call)
        with explained(f"{call}: the file is damaged", "save it again"):
            texts = tuple(prompt["text"] for prompt in content["prompts"])
            prompts = cls(
                token_ids=token_matrix([prompt["tokens"] for prompt in content["prompts"]], call),
                texts=None if None in texts else texts,
                source=content["source"],
                seed=content["seed"],
                labels=content["labels"] and tuple(content["labels"]),
                pairing=content["pairing"],
            )
            fingerprint = content["fingerprint"]
        if prompts.fingerprint != fingerprint:
            raise InputError(
                f"{call}: the file says fingerprint {fingerprint}, but its prompts have "
                f"{prompts.fingerprint}: it was changed after saving; make a new set"
            )
        return prompts

    @classmethod
    def from_token_ids(
        cls, ids: Tensor | Iterable[Any], *, source: str = "token ids"
    ) -> "PromptSet":
        """Take prompts as they are: a tensor or nested sequences, "prompt token"."""
        return cls(token_ids=token_matrix(ids, "PromptSet.from_token_ids"), source=source)

    @classmethod
    def from_texts(
        cls,
        texts: str | Iterable[str],
        tokenizer: Tokenizer,
        *,
        num_tokens: int = 10,
        num_prompts: int = 257,
        seed: int = 0,
        source: str = "texts",
    ) -> "PromptSet":
        """Draw windows from the corpus that `texts` form; see `sr_monitor.prompts.corpora`."""
        call = f"PromptSet.from_texts({source})"
        request = WindowRequest(call, num_tokens=num_tokens, num_prompts=num_prompts, seed=seed)
        ids = request.from_texts(texts, tokenizer)
        return cls._decoded(ids, tokenizer, source=source, seed=seed)

    @classmethod
    def from_last_token_swaps(
        cls,
        texts: str | Iterable[str],
        tokenizer: Tokenizer,
        *,
        num_tokens: int = 10,
        num_pairs: int = 256,
        seed: int = 0,
        source: str = "texts",
    ) -> "PromptSet":
        """Draw explicit pairs that differ in their last tokens only.

        The first of a pair is a window as in `from_texts`; the second ends with the last token of
        another window of the sample.
        """
        call = f"PromptSet.from_last_token_swaps({source})"
        request = WindowRequest(call, num_tokens=num_tokens, num_prompts=num_pairs, seed=seed)
        ids = request.swap_last_tokens(request.from_texts(texts, tokenizer))
        source = f"last-token swaps in {source}"
        return cls._decoded(ids, tokenizer, source=source, seed=seed, pairing="explicit")

    @classmethod
    def from_dataset(
        cls,
        dataset: str | Iterable[Any],
        tokenizer: Tokenizer | None = None,
        *,
        column: str = "text",
        split: str = "train",
        config: str | None = None,
        num_tokens: int = 10,
        num_prompts: int = 257,
        seed: int = 0,
    ) -> "PromptSet":
        """Draw windows from the first rows of a data set, reading no more of them than it takes.

        The data set is anything that iterates over rows (mappings), or the name of one on the hub
        or of a folder, of which `config` and `split` choose a part. Texts are read from `column`;
        without it or a tokenizer, token ids from `input_ids`.
        """
        source = f"data set ({type(dataset).__name__})"
        if isinstance(dataset, str):
            source = " ".join(filter(None, ["data set", dataset, config, split]))
        call = f"PromptSet.from_dataset({source})"
        request = WindowRequest(call, num_tokens=num_tokens, num_prompts=num_prompts, seed=seed)
        if isinstance(dataset, str):
            dataset = open_dataset(dataset, config, split, call)
        ids = request.from_rows(dataset, tokenizer, column)
        return cls._decoded(ids, tokenizer, source=source, seed=seed)

    @classmethod
    def from_file(
        cls, path: str | Path, tokenizer: Tokenizer | None = None, **options: int
    ) -> "PromptSet":
        """Read a saved set, a text, JSON lines of texts, or JSON lines of pairs.

        A saved set needs no tokenizer. JSON lines are all {"text": ...}, a corpus, or all
        {"a": ..., "b": ..., "label": ...}, explicit pairs. A corpus is drawn from with the options
        num_tokens, num_prompts and seed of `from_texts`.
        """
        path, call = Path(path), f"PromptSet.from_file({str(path)!r})"
        content = files.read_text(path, call)
        if files.SAVED.match(content):
            return cls.from_json(content, call=call)
        if tokenizer is None:
            raise InputError(f"{call}: this is no saved PromptSet, so a tokenizer is needed")
        entries = files.parse_entries(content, path, call)
        if files.is_pair(entries[0]):
            return cls.from_pairs(entries, tokenizer, source=str(path))
        texts = [entry["text"] for entry in entries]
        return cls.from_texts(texts, tokenizer, source=str(path), **options)

    @classmethod
    def from_meaning(cls, tokenizer: Tokenizer) -> "PromptSet":
        """Take the pairs that come with this package, labelled "similar" and "dissimilar".

        64 of everyday English sentences of ten words. A similar pair says one thing in two ways;
        the dissimilar pairs join the same sentences otherwise. No pair shares its last word.
        """
        entries = map(json.loads, _MEANING.read_text(encoding="utf-8").splitlines())
        source = "the meaning pairs of sr-monitor"
        return cls.from_pairs(entries, tokenizer, source=source, cut=True)

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        source: str = "pairs",
        cut: bool = False,
    ) -> "PromptSet":
        """Take explicit pairs of texts, {"a": ..., "b": ..., "label": ...}; the label is optional.

        All texts must have the same number of tokens, or be `cut`: of each as many of its last
        tokens are taken as the shortest has.
        """
        pairs, call = list(pairs), f"PromptSet.from_pairs({source})"
        for index, pair in enumerate(pairs):
            if not files.is_pair(pair):
                raise InputError(f'{call}: pair {index} is {pair!r}, not {{"a": text, "b": text}}')
        texts = tuple(pair[side] for pair in pairs for side in ("a", "b"))
        labels = tuple(str(pair.get("label", "")) for pair in pairs)
        rows = [encode(tokenizer, text) for text in texts]
        if cut and rows:
            rows = [row[len(row) - min(map(len, rows)) :] for row in rows]
        ids = token_matrix(rows, call)
        return cls(
            token_ids=ids,
            texts=decode_all(tokenizer, ids) if cut else texts,
            source=source,
            labels=labels if any(labels) else None,
            pairing="explicit",
            tokenizer=tokenizer,
        )

    @classmethod
    def _decoded(
        cls, ids: Int64[Tensor, "prompt token"], tokenizer: Any, **about: Any
    ) -> "PromptSet":
        """Take prompts with the texts that the tokenizer gives them."""
        return cls(token_ids=ids, texts=decode_all(tokenizer, ids), tokenizer=tokenizer, **about)
