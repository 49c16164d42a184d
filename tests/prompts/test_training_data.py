"""Prompts from the training data: what is found, how it is drawn, and that nothing is disturbed."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from transformers import (
    BatchEncoding,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)
from transformers.trainer_utils import RemoveColumnsCollator

from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.training_data import (
    count_tokens,
    prompts_from_batch,
    prompts_from_dataset,
    token_ids_of,
)


def _make_tokenizer(num_words: int = 2000) -> PreTrainedTokenizerFast:
    """Word n is token n; the special tokens come after the words."""
    special = ["<bos>", "<eos>", "<pad>", "<mask>", "<unk>"]
    words = [*(f"w{i}" for i in range(num_words)), *special]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend: Any = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        mask_token="<mask>",
        unk_token="<unk>",
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return _make_tokenizer()


class _Recorded(Dataset[Any]):
    """Any rows, and the order in which they were asked for."""

    def __init__(self, rows: Any, length: int | None = None) -> None:
        self.rows = rows
        self.length = len(rows) if length is None else length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.rows(index) if callable(self.rows) else self.rows[index]


def _rows(lengths: list[int]) -> list[list[int]]:
    """Rows of these lengths; no token stands twice in all of them."""
    ends = [0, *itertools.accumulate(lengths)]
    return [list(range(start, stop)) for start, stop in itertools.pairwise(ends)]


def _drawn(dataset: Any, **options: Any) -> PromptSet:
    prompts = prompts_from_dataset(dataset, **options)
    assert prompts is not None
    return prompts


def _is_run(window: list[int], corpus: list[int]) -> bool:
    """Whether the window is a contiguous run of the corpus, by trying every place."""
    width = len(window)
    return any(corpus[i : i + width] == window for i in range(len(corpus) - width + 1))


# What token ids are found in


_ROW = [5, 6, 7]
_BATCH = [[5, 6, 7], [8, 9, 3]]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (_ROW, [_ROW]),
        (_BATCH, _BATCH),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (torch.tensor(_ROW), [_ROW]),
        (torch.tensor(_BATCH, dtype=torch.int32), _BATCH),
        (np.array(_BATCH, dtype=np.uint16), _BATCH),
        (list(np.array(_ROW)), [_ROW]),
        ({"input_ids": _ROW, "labels": [1, 2, 3]}, [_ROW]),
        ({"text": "abc", "tokens": torch.tensor(_ROW)}, [_ROW]),
        ({"tokens": ["the", "cat"], "ids": _ROW}, [_ROW]),
        ({"x": np.array(_ROW), "y": np.array([0, 0, 0])}, [_ROW]),
        ({"x": [1, 1], "input_ids": _ROW}, [_ROW]),
        ({"input_ids": [torch.tensor([5, 6]), torch.tensor([7])]}, [[5, 6], [7]]),
        ({"input_ids": []}, [[]]),
        (BatchEncoding({"input_ids": torch.tensor(_BATCH)}), _BATCH),
        ((torch.tensor(_ROW), torch.tensor([1, 1, 1])), [_ROW]),
        ([torch.rand(3), torch.tensor([True] * 3), torch.tensor(_BATCH)], _BATCH),
        (("a name", 3, {"input_ids": _ROW}), [_ROW]),
        ([{"input_ids": _ROW}, {"input_ids": [8]}], [_ROW, [8]]),
        ([5, -200, 7], [[5, 7]]),
        # masks
        ({"input_ids": [0, 5, 6, 7, 0], "attention_mask": [0, 1, 1, 1, 0]}, [_ROW]),
        ({"input_ids": _ROW, "attention_mask": torch.tensor([0.0, 1.0, 1.0])}, [[6, 7]]),
        (
            {
                "input_ids": torch.tensor(_BATCH, dtype=torch.int16),
                "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]]),
            },
            [[5, 6], [9, 3]],
        ),
        ({"input_ids": _ROW, "attention_mask": [1, 1, 2]}, [_ROW]),  # packed: documents 1 and 2
        ({"input_ids": _ROW, "attention_mask": torch.zeros(3, 3)}, [_ROW]),  # no mask of tokens
        ({"input_ids": _ROW, "attention_mask": None}, [_ROW]),
    ],
)
def test_token_ids_are_found(item: Any, expected: list[list[int]]) -> None:
    assert token_ids_of(item) == expected


@pytest.mark.parametrize(
    "item",
    [
        None,
        3,
        "some text",
        b"bytes",
        torch.rand(4),
        torch.tensor([True, False]),
        torch.tensor(3),
        torch.zeros(2, 3, 4, dtype=torch.uint8),  # a picture
        np.array(["a", "b"]),
        [1.5, 2.0],
        [1, 2.5],
        [True, False],
        ["a", "b"],
        [1, "b"],
        [1, 2**70],
        [[[1, 2], [3, 4]]],
        (torch.rand(3, 8, 8), 7),
        {"text": "some text", "label": 1},
        {"input_ids": "some text"},
        {"pixel_values": torch.rand(3), "labels": torch.tensor([1, 2])},
        [{"text": "a"}, {"text": "b"}],
        {},
        (),
    ],
)
def test_where_there_are_no_token_ids_none_are_found(item: Any) -> None:
    assert token_ids_of(item) is None
    assert prompts_from_batch(item) is None
    assert prompts_from_dataset([item] * 3) is None


# How prompts are drawn


@pytest.mark.parametrize(
    "lengths",
    [
        [7] * 200,  # shorter than a prompt
        [16] * 300,
        [100] * 60,  # packed
        [1000] * 60,  # only a piece of each is taken
        [3, 500, 20, 11, 90, 1] * 30,
    ],
)
def test_prompts_are_contiguous_runs_of_the_rows_read(lengths: list[int]) -> None:
    rows = _rows(lengths)
    dataset = _Recorded([{"input_ids": row} for row in rows])
    prompts = _drawn(dataset, num_tokens=10, num_prompts=30, seed=4)
    corpus = [token for index in dataset.asked for token in rows[index]]
    windows = prompts.token_ids.tolist()
    assert prompts.token_ids.shape == (30, 10)
    assert len({tuple(window) for window in windows}) == 30
    assert all(_is_run(window, corpus) for window in windows)
    assert len(dataset.asked) == len(set(dataset.asked))
    assert (prompts.source, prompts.seed, prompts.texts) == ("the training data", 4, None)


def test_prompts_are_spread_over_the_data_and_over_long_rows() -> None:
    rows = _rows([1000] * 2000)
    dataset = _Recorded([{"input_ids": row} for row in rows])
    prompts = _drawn(dataset, num_prompts=200)
    starts = prompts.token_ids[:, 0]
    assert len(dataset.asked) < 250
    assert len({int(start) // 1000 for start in starts}) > 110
    assert {int(start) // 200_000 for start in starts} == set(range(10))
    assert {int(start) % 1000 // 100 for start in starts} == set(range(10))


def test_a_set_of_a_billion_rows_is_read_at_a_few() -> None:
    dataset = _Recorded(lambda index: {"input_ids": [index] * 20}, length=10**9)
    prompts = _drawn(dataset, num_prompts=50)
    assert len(dataset.asked) <= 4 * 50 * 10 / 20 + 7
    assert max(dataset.asked) > 8 * 10**8 > 2 * 10**8 > min(dataset.asked)
    assert prompts.token_ids.max() > 2**29


def test_a_billion_rows_without_a_token_come_to_an_end() -> None:
    dataset = _Recorded(lambda index: {"input_ids": []}, length=10**9)
    assert prompts_from_dataset(dataset, num_prompts=20) is None
    assert len(dataset.asked) <= 4 * 20 * 10


def test_numbers_that_turn_out_to_be_no_ids_are_not_taken_for_some() -> None:
    assert prompts_from_dataset([[1] * 1500 + [2.5]]) is None


def test_rows_of_another_kind_are_given_up_at_once() -> None:
    dataset = _Recorded(lambda index: {"pixels": torch.rand(2)}, length=10**9)
    assert prompts_from_dataset(dataset) is None
    assert len(dataset.asked) < 10


class _Slices(list[int]):
    """A row that counts how many of its tokens were taken out of it."""

    taken = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        _Slices.taken += len(found) if isinstance(key, slice) else 1
        return found

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("the row was read whole")


def test_of_a_huge_row_only_a_part_is_converted() -> None:
    row = _Slices(range(10**6))
    rows: list[Any] = [{"input_ids": row, "attention_mask": np.ones(10**6)}]
    prompts = _drawn(rows, num_prompts=257)
    assert _Slices.taken < 10**5
    assert prompts.source == "the training data"
    assert torch.equal(prompts.token_ids.diff(dim=1), torch.ones(257, 9).long())


def test_the_parts_of_huge_rows_are_anywhere_in_them() -> None:
    prompts = _drawn([np.arange(10**6)] * 60, num_prompts=200)
    assert len(set((prompts.token_ids[:, 0] // 100_000).tolist())) == 10


def test_no_prompt_reaches_across_the_end_of_what_was_looked_at() -> None:
    tokens, mask = np.arange(60 * 20_000).reshape(60, -1), np.arange(20_000) % 700 == 0
    huge = [{"input_ids": row, "attention_mask": mask} for row in tokens]
    short = [{"input_ids": [10**7 + 7 * i + j for j in range(7)]} for i in range(60)]
    dataset = _Recorded([*huge, *short])
    prompts = _drawn(dataset, num_prompts=40)
    visible = [*tokens[:, mask].tolist(), *(row["input_ids"] for row in short)]
    corpus = [token for index in dataset.asked for token in visible[index]]
    assert all(_is_run(window, corpus) for window in prompts.token_ids.tolist())


def test_text_that_hides_in_a_huge_row_is_found_all_the_same() -> None:
    mask = np.zeros(300_000, dtype=np.int8)
    mask[1000:1035] = 1
    prompts = _drawn([{"input_ids": np.arange(300_000), "attention_mask": mask}])
    assert sorted(prompts.token_ids.tolist()) == [
        list(range(s, s + 10)) for s in (1000, 1010, 1020)
    ]


def test_masked_positions_are_never_in_a_prompt() -> None:
    padded = [
        {"input_ids": [0] * 5 + row + [0] * 9, "attention_mask": [0] * 5 + [1] * 24 + [0] * 9}
        for row in _rows([24] * 40)
    ]
    plain = [{"input_ids": row} for row in _rows([24] * 40)]
    prompts = _drawn(padded, num_prompts=20)
    assert prompts.fingerprint == _drawn(plain, num_prompts=20).fingerprint


def test_special_tokens_are_dropped_where_the_tokenizer_is_known(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    plain = _rows([24] * 40)
    dressed = [torch.tensor([pad, pad, bos, *row, eos, pad]) for row in plain]
    prompts = _drawn(dressed, tokenizer=tokenizer, num_prompts=20)
    assert prompts.fingerprint == _drawn(plain, num_prompts=20).fingerprint
    assert pad in _drawn(dressed, num_prompts=20).token_ids
    first = prompts.token_ids[0].tolist()
    assert prompts.texts is not None
    assert prompts.texts[0] == " ".join(f"w{token}" for token in first)


@dataclass
class _Processor:
    """As a processor of several kinds of data is built; its own `decode` is not asked."""

    tokenizer: PreTrainedTokenizerFast


class _Letters:
    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_whatever_decodes_gives_the_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = _rows([24] * 40)
    expected = _drawn(plain, tokenizer=tokenizer, num_prompts=20)
    processed = _drawn(plain, tokenizer=_Processor(tokenizer), num_prompts=20)
    assert (processed.texts, processed.fingerprint) == (expected.texts, expected.fingerprint)
    letters = _drawn(plain, tokenizer=_Letters(), num_prompts=20)
    assert letters.texts == tuple("".join(map(chr, row)) for row in expected.token_ids.tolist())
    assert _drawn(plain, tokenizer=object(), num_prompts=20).texts is None


def _kinds(rows: list[list[int]]) -> dict[str, Any]:
    table = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    torch_table = datasets.Dataset.from_dict({"input_ids": rows})
    torch_table.set_format("torch")
    return {
        "list": rows,
        "dicts": [{"input_ids": row} for row in rows],
        "dataset": _Recorded(rows),
        "table": table,
        "table of tensors": torch_table,
        "table of arrays": table.with_format("numpy"),
        "tensors": TensorDataset(torch.tensor(rows), torch.zeros(len(rows))),
        "part": Subset(TensorDataset(torch.tensor([[0] * len(rows[0]), *rows])), range(1, 41)),
        "parts": ConcatDataset([_Recorded(rows[:15]), _Recorded(rows[15:])]),
        "matrix": torch.tensor(rows),
    }


@pytest.mark.parametrize("length", [25, 300])
def test_every_kind_of_data_set_gives_the_same_prompts(length: int) -> None:
    sets = {
        kind: _drawn(dataset, num_prompts=20, seed=3)
        for kind, dataset in _kinds(_rows([length] * 40)).items()
    }
    assert {prompts.fingerprint for prompts in sets.values()} == {sets["list"].fingerprint}, sets


def test_the_seed_decides() -> None:
    rows = _rows([60] * 40)
    first = _drawn(rows, num_prompts=20, seed=3)
    random.seed(8)
    torch.manual_seed(8)
    assert _drawn(rows, num_prompts=20, seed=3).fingerprint == first.fingerprint
    for other in (4, -1, 2**40):
        assert _drawn(rows, num_prompts=20, seed=other).fingerprint != first.fingerprint


@pytest.mark.parametrize("lengths", [[35], [30, 5], [2] * 17, [1, 1, 1, 29, 3]])
def test_little_text_is_used_up_and_the_source_says_so(lengths: list[int]) -> None:
    rows = _rows(lengths)
    for prompts in (_drawn(rows), prompts_from_batch(rows)):
        assert prompts is not None
        assert prompts.token_ids.shape == (3, 10)
        assert len(set(prompts.token_ids.flatten().tolist())) == 30
        assert prompts.source.endswith("the training data (3 prompts, it has no more)")


def test_of_uneven_rows_the_long_ones_make_up_for_the_short_ones() -> None:
    prompts = _drawn(_rows([5] * 400 + [4000]), num_prompts=257)
    assert len(prompts.token_ids) == 257


def test_less_than_three_prompts_are_none() -> None:
    assert prompts_from_dataset(_rows([29])) is None
    assert prompts_from_dataset([]) is None
    assert prompts_from_batch(torch.arange(29)) is None
    assert len(_drawn(_rows([29]), num_prompts=2).token_ids) == 2  # all that was asked for


class _Stream(IterableDataset[Any]):
    """A stream that knows its length is a stream all the same."""

    def __iter__(self) -> Iterator[list[int]]:
        raise AssertionError("the data set was iterated")

    def __len__(self) -> int:
        return 100


class _NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return [1, 2, 3]


class _LengthUnknown(_NoLength):
    def __len__(self) -> int:
        raise TypeError("unknown")


@pytest.mark.parametrize(
    "dataset",
    [
        None,
        _Stream(),
        _NoLength(),
        _LengthUnknown(),
        datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 40}).to_iterable_dataset(),
        iter([[1, 2, 3]]),
        {"train": [[1, 2, 3]]},
        "a name",
        [],
    ],
)
def test_what_cannot_be_read_by_index_gives_none(dataset: Any) -> None:
    assert prompts_from_dataset(dataset, num_tokens=2) is None


def test_a_batch_gives_prompts_as_a_data_set_of_its_rows_does(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"input_ids": row} for row in _rows([30, 70, 10, 55] * 4)]
    (batch,) = DataLoader(rows, batch_size=16, collate_fn=DataCollatorWithPadding(tokenizer))  # type: ignore
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_prompts": 12, "seed": 5}
    prompts = prompts_from_batch(batch, **options)
    assert prompts is not None
    expected = _drawn(rows, **options)
    assert (prompts.fingerprint, prompts.texts) == (expected.fingerprint, expected.texts)
    assert (prompts.source, prompts.seed) == ("a batch of the training data", 5)


# Rows of text that only the collator turns into ids


def _texts(num_rows: int, length: int = 30) -> list[dict[str, Any]]:
    texts = [" ".join(f"w{(31 * i + j) % 2000}" for j in range(length)) for i in range(num_rows)]
    return [{"text": text, "label": index} for index, text in enumerate(texts)]


def _tokenise(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> BatchEncoding:
    texts = [row.pop("text") for row in rows]  # as careless collators do
    batch: BatchEncoding = tokenizer(texts, padding=True, return_tensors="pt")
    return batch


@pytest.mark.parametrize("make", [list, datasets.Dataset.from_list])
def test_rows_of_text_are_read_through_the_collator(
    make: Callable[[Any], Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = _texts(50)
    encoded = [tokenizer(row["text"])["input_ids"] for row in rows]
    collate = functools.partial(_tokenise, tokenizer=tokenizer)
    prompts = _drawn(make(rows), collate=collate, tokenizer=tokenizer, num_prompts=20)
    expected = _drawn(encoded, tokenizer=tokenizer, num_prompts=20)
    assert prompts.fingerprint == expected.fingerprint
    assert rows == _texts(50)  # what the collator took out is still there


def test_the_collator_is_not_asked_where_rows_have_ids() -> None:
    def fail(rows: list[Any]) -> Any:
        raise AssertionError("collated")

    assert len(_drawn(_rows([30] * 20), collate=fail, num_prompts=9).token_ids) == 9


def test_rows_without_ids_before_and_after_collating_give_none() -> None:
    assert prompts_from_dataset(_texts(20), collate=list) is None


# Nothing is disturbed


def _state() -> list[Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy_state = (name, np.asarray(keys).tolist(), *rest)
    return [random.getstate(), numpy_state, torch.get_rng_state().tolist()]


def _draw_everywhere() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


@dataclass
class _Noisy(Dataset[Any]):
    """Rows that depend on every global generator, and on some that the data set keeps."""

    generators: list[Any] = field(
        default_factory=lambda: [
            random.Random(1),
            np.random.default_rng(1),
            np.random.RandomState(1),
            torch.Generator().manual_seed(1),
        ]
    )
    late: Any = None
    fail_at: int | None = None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> list[int]:
        if self.late is None:
            self.late = np.random.default_rng(0)
            self.later = torch.Generator().manual_seed(0)
        draws = [*_draw_everywhere(), *self.own(), self.late.random()]
        if index == self.fail_at:
            raise KeyError("row\nlost")
        return [int(draw * 1000) for draw in draws] * 5

    def own(self) -> list[float]:
        a, b, c, d = self.generators
        return [a.random(), b.random(), c.random_sample(), float(torch.rand((), generator=d))]


def test_random_states_are_put_back() -> None:
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    before = _state()
    prompts = _drawn(_Noisy(), num_prompts=9)
    assert _state() == before
    _draw_everywhere()
    assert _state() != before  # the comparison can fail
    assert _drawn(_Noisy(), num_prompts=9).fingerprint == prompts.fingerprint


def test_random_states_are_put_back_after_an_exception() -> None:
    before = _state()
    with pytest.raises(InputError):
        prompts_from_dataset(_Noisy(fail_at=11))
    assert _state() == before


@pytest.mark.parametrize(
    "wrap",
    [
        lambda noisy: noisy,
        lambda noisy: Subset(noisy, range(30)),
        lambda noisy: ConcatDataset([Subset(noisy, range(30)), noisy]),
    ],
)
def test_generators_of_the_data_set_are_put_back(wrap: Callable[[_Noisy], Any]) -> None:
    noisy = _Noisy()
    assert prompts_from_dataset(wrap(noisy), num_prompts=9) is not None
    assert noisy.late is None
    assert not hasattr(noisy, "later")
    assert noisy.own() == _Noisy().own()


def test_randomness_of_the_machine_has_no_state_to_put_back() -> None:
    noisy = _Noisy()
    noisy.late = random.SystemRandom()
    assert prompts_from_dataset(noisy, num_prompts=9) is not None


class _Module:
    """A collate function that is a method, as in a LightningModule."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def call(self, rows: list[Any]) -> Any:
        return self.collate(rows)


def _closure(collate: Any) -> Callable[[list[Any]], Any]:
    return lambda rows: collate(rows)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda collate: collate,
        lambda collate: RemoveColumnsCollator(collate, ["text", "input_ids"]),
        lambda collate: functools.partial(_Module.call, _Module(collate)),
        lambda collate: _Module(collate).call,
        _closure,
    ],
)
@pytest.mark.parametrize("seed", [None, 7])
def test_a_masking_collator_masks_afterwards_as_if_it_had_not_been_asked(
    seed: int | None, wrap: Callable[[Any], Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    """With a seed the collator keeps a generator, made at the first batch."""
    batch = [tokenizer(row["text"]) for row in _texts(4)]

    def masked(*, ask: bool, used: bool) -> list[list[int]]:
        torch.manual_seed(0)
        masking = DataCollatorForLanguageModeling(tokenizer, mlm=True, seed=seed)

        def collate(rows: list[Any]) -> Any:
            return masking([tokenizer(row["text"]) if "text" in row else row for row in rows])

        if used:
            collate(batch)
        if ask:
            prompts = _drawn(_texts(40), collate=wrap(collate), tokenizer=tokenizer, num_prompts=9)
            assert tokenizer.mask_token_id in prompts.token_ids  # it was asked, and it drew
        ids: list[list[int]] = collate(batch)["input_ids"].tolist()
        return ids

    for used in (False, True):
        assert masked(ask=True, used=used) == masked(ask=False, used=used)


def test_a_masked_language_model_gets_the_unmasked_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [tokenizer(row["text"]) for row in _texts(40)]
    masking = DataCollatorForLanguageModeling(tokenizer, mlm=True)
    prompts = _drawn(rows, collate=masking, tokenizer=tokenizer, num_prompts=20)
    assert tokenizer.mask_token_id not in prompts.token_ids


def test_a_loader_goes_on_as_if_nothing_had_been_asked() -> None:
    rows = torch.tensor(_rows([50] * 64))

    def batches(*, ask: bool) -> list[Any]:
        torch.manual_seed(3)
        loader = DataLoader(TensorDataset(rows), batch_size=8, shuffle=True)
        found = []
        for (batch,) in loader:
            if ask:
                _drawn(loader.dataset, collate=loader.collate_fn, num_prompts=9)
            found.append(batch.tolist())
        return found

    assert batches(ask=True) == batches(ask=False)


# Mistakes


def test_a_row_that_raises_is_named() -> None:
    message = (
        r"^prompts_from_dataset\(_Noisy, num_tokens=10, num_prompts=257\): row 11 of the training "
        r"data raised KeyError: 'row\\nlost'; pass prompts=, for example prompts=PromptSet\.from_"
    )
    with pytest.raises(InputError, match=message) as caught:
        prompts_from_dataset(_Noisy(fail_at=11))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_collator_that_raises_is_named_in_one_line() -> None:
    def collate(rows: list[Any]) -> Any:
        raise RuntimeError("no\npadding token" + "!" * 1000)

    message = r"the collate function, given 8 rows, raised RuntimeError: no padding token!"
    with pytest.raises(InputError, match=message) as caught:
        prompts_from_dataset(_texts(20), collate=collate)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_length_that_raises_is_named() -> None:
    class Lost(_NoLength):
        def __len__(self) -> int:
            raise OSError("disk gone")

    with pytest.raises(InputError, match="length of the training data raised OSError: disk gone"):
        prompts_from_dataset(Lost())


def test_what_makes_no_prompts_is_refused_in_the_name_of_the_call() -> None:
    with pytest.raises(InputError, match=r"^prompts_from_dataset\(list, num_tokens=1,"):
        prompts_from_dataset([], num_tokens=1)
    with pytest.raises(InputError, match=r"^prompts_from_batch\(list, .*num_prompts=1\)"):
        prompts_from_batch([], num_prompts=1)


def test_tokens_are_counted_as_they_would_be_found() -> None:
    ids = torch.tensor([[3, 4, 5, -100], [6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for batch, expected in (
        ({"input_ids": ids, "attention_mask": mask}, 5),
        ({"input_ids": ids}, 7),
        ((ids[1], torch.ones(2)), 4),
        ([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}], 4),
    ):
        counted, found = count_tokens(batch), token_ids_of(batch)
        assert counted is not None
        assert found is not None
        assert int(counted) == expected == sum(map(len, found))
    assert count_tokens({"text": "no ids"}) is None
