"""Prompts from the training data: how they are drawn, and that no training is disturbed."""

import itertools
import random
from collections import UserDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from sr_monitor.errors import InputError
from sr_monitor.prompts.corpora import WindowRequest
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.training_data import prompts_from_batch, prompts_from_dataset


def _request(num_prompts: int = 257, num_tokens: int = 10, seed: int = 0) -> WindowRequest:
    return WindowRequest("test", num_tokens=num_tokens, num_prompts=num_prompts, seed=seed)


def _drawn(dataset: Any, num_prompts: int = 257, tokenizer: Any = None, seed: int = 0) -> PromptSet:
    prompts = prompts_from_dataset(dataset, _request(num_prompts, seed=seed), tokenizer)
    assert prompts is not None
    return prompts


def _rows(lengths: list[int]) -> list[list[int]]:
    """Rows of these lengths; no token stands twice in all of them."""
    ends = [0, *itertools.accumulate(lengths)]
    return [list(range(start, stop)) for start, stop in itertools.pairwise(ends)]


@dataclass
class _Indices(Sequence[int]):
    """The indices of a `Subset` that notes which of its rows are asked for."""

    num_rows: int
    length: int
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return index % self.num_rows


def _noted(rows: Any, length: int = 0) -> tuple[Any, list[int]]:
    """A data set of these rows, over and over to this length, and the reads of it."""
    indices = _Indices(len(rows), length or len(rows))
    return Subset(rows, indices), indices.asked


def _is_run(window: list[int], corpus: list[int]) -> bool:
    """Whether the window is a contiguous run of the corpus, by trying every place."""
    width = len(window)
    return any(corpus[i : i + width] == window for i in range(len(corpus) - width + 1))


# Rows shorter than a prompt, rows of which a piece is taken, and a mixture.
@pytest.mark.parametrize("lengths", [[7] * 200, [1000] * 60, [3, 500, 20, 11, 90, 1] * 30])
def test_prompts_are_contiguous_runs_of_the_rows_read(lengths: list[int]) -> None:
    rows = _rows(lengths)
    dataset, asked = _noted([{"input_ids": row} for row in rows])
    prompts = _drawn(dataset, 30, seed=4)
    corpus = [token for index in asked for token in rows[index]]
    windows = prompts.token_ids.tolist()
    assert len({tuple(window) for window in windows}) == 30
    assert all(len(window) == 10 and _is_run(window, corpus) for window in windows)
    assert len(asked) == len(set(asked))
    assert (prompts.source, prompts.seed, prompts.texts) == ("the training data", 4, None)


def test_prompts_are_spread_over_the_data_and_over_long_rows() -> None:
    dataset, asked = _noted(_rows([1000] * 2000))
    starts = _drawn(dataset, 200).token_ids[:, 0]
    assert len(asked) < 250
    assert len({int(start) // 1000 for start in starts}) > 110
    assert {int(start) // 200_000 for start in starts} == set(range(10))
    assert {int(start) % 1000 // 100 for start in starts} == set(range(10))


@pytest.mark.parametrize(
    ("row", "most"), [(list(range(20)), 107), ({"input_ids": []}, 2000), ({"pixels": [0.5]}, 9)]
)
def test_a_set_of_a_billion_rows_is_read_at_a_few(row: Any, most: int) -> None:
    dataset, asked = _noted([row], length=10**9)
    found = prompts_from_dataset(dataset, _request(50))
    assert (found is not None) == isinstance(row, list)
    assert len(asked) <= most
    assert max(asked) > 6 * 10**8 > 4 * 10**8 > min(asked)


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
    prompts = _drawn([{"input_ids": row, "attention_mask": np.ones(10**6)}])
    assert _Slices.taken < 10**5
    assert prompts.source == "the training data"
    assert torch.equal(prompts.token_ids.diff(dim=1), torch.ones(257, 9).long())
    places = _drawn([np.arange(10**6)] * 60, 200).token_ids[:, 0] // 100_000
    assert len(set(places.tolist())) == 10  # the parts are anywhere


def test_no_prompt_reaches_across_the_end_of_what_was_looked_at() -> None:
    tokens, mask = np.arange(60 * 20_000).reshape(60, -1), np.arange(20_000) % 700 == 0
    huge = [{"input_ids": row, "attention_mask": mask} for row in tokens]
    short = [{"input_ids": [10**7 + 7 * i + j for j in range(7)]} for i in range(60)]
    dataset, asked = _noted([*huge, *short])
    prompts = _drawn(dataset, 40)
    visible = [*tokens[:, mask].tolist(), *(row["input_ids"] for row in short)]
    corpus = [token for index in asked for token in visible[index]]
    assert all(_is_run(window, corpus) for window in prompts.token_ids.tolist())
    mask = np.isin(np.arange(300_000), range(1000, 1035))
    prompts = _drawn([{"input_ids": np.arange(300_000), "attention_mask": mask}])
    assert sorted(prompts.token_ids[:, 0].tolist()) == [1000, 1010, 1020]  # little is visible


class _Words:
    """Word n is token n; the special tokens come after the words."""

    bos_token_id, eos_token_id, pad_token_id = 2000, 2001, 2002

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"w{token}" for token in ids)


def test_masked_and_special_tokens_are_left_out_and_texts_decoded() -> None:
    plain = _rows([24] * 40)
    masked = [
        {"input_ids": [0] * 5 + row + [0] * 9, "attention_mask": [0] * 5 + [1] * 24 + [0] * 9}
        for row in plain
    ]
    dressed = [torch.tensor([2002, 2002, 2000, *row, 2001, 2002]) for row in plain]
    expected = _drawn(plain, 20)
    assert _drawn(masked, 20).fingerprint == expected.fingerprint
    assert 2002 in _drawn(dressed, 20).token_ids
    assert (expected.texts, _drawn(plain, 20, object()).texts) == (None, None)
    for tokenizer in (_Words(), SimpleNamespace(tokenizer=_Words())):  # a processor holds one
        prompts = _drawn(dressed, 20, tokenizer)
        assert prompts.fingerprint == expected.fingerprint
        assert prompts.texts == tuple(map(_Words().decode, prompts.token_ids.tolist()))


def _kinds(rows: list[list[int]]) -> dict[str, Any]:
    table: Any = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    tensors = TensorDataset(torch.tensor([[0] * len(rows[0]), *rows]))
    as_list: Any = rows
    return {
        "tuple": tuple(rows),
        "dicts": [{"input_ids": row} for row in rows],
        "table": table,
        "table of tensors": table.with_format("torch"),
        "tensors": TensorDataset(torch.tensor(rows), torch.zeros(len(rows))),
        "part": Subset(tensors, range(1, 41)),
        "parts": ConcatDataset([Subset(as_list, range(15)), Subset(as_list, range(15, 40))]),
        "matrix": torch.tensor(rows),
        "array": np.array(rows),
    }


@pytest.mark.parametrize(
    ("length", "fingerprint"), [(25, "90bf432b31df1d73"), (300, "9455857aff717360")]
)
def test_every_kind_of_data_gives_the_same_prompts_forever(length: int, fingerprint: str) -> None:
    rows = _rows([length] * 40)
    request = _request(20, seed=3)
    assert prompts_from_batch({"input_ids": rows}, request).fingerprint == fingerprint  # type: ignore[union-attr]
    for kind, dataset in _kinds(rows).items():
        assert _drawn(dataset, 20, seed=3).fingerprint == fingerprint, kind
    assert all(_drawn(rows, 20, seed=seed).fingerprint != fingerprint for seed in (4, -1, 2**40))


@pytest.mark.parametrize("lengths", [[35], [1, 1, 1, 29, 3]])
def test_little_text_is_used_up_and_the_source_says_so(lengths: list[int]) -> None:
    rows = _rows(lengths)
    for prompts in (_drawn(rows), prompts_from_batch(rows, _request())):
        assert prompts is not None
        assert prompts.token_ids.shape == (3, 10)
        assert len(set(prompts.token_ids.flatten().tolist())) == 30
        assert prompts.source.endswith("the training data (3 prompts, it has no more)")


def test_less_than_three_prompts_are_none() -> None:
    assert len(_drawn(_rows([5] * 400 + [4000])).token_ids) == 257  # long rows make up for short
    floats = [[1] * 1500 + [2.5]]  # seen late
    for rows in (_rows([29]), [], floats):
        assert prompts_from_dataset(rows, _request()) is None
        assert prompts_from_batch(rows, _request()) is None
    assert len(_drawn(_rows([29]), 2).token_ids) == 2  # all that was asked for


def test_a_row_that_raises_is_named_in_one_line() -> None:
    dataset: Any = Subset([[1, 2]], [0, 7])  # type: ignore
    message = r"^test: row 1 of the training data raised IndexError: .*; pass prompts=, for example"
    with pytest.raises(InputError, match=message) as caught:
        prompts_from_dataset(dataset, _request())
    assert isinstance(caught.value.__cause__, IndexError)


def _fail(*_: Any) -> Any:
    raise AssertionError("a row was read")


def _own(base: type) -> Any:
    """A data set of this kind that reads rows in a way of its own, which must not happen here."""

    reads = dict.fromkeys(("__getitem__", "__getitems__", "__iter__"), _fail)
    return type("Own", (base,), {**reads, "__len__": lambda self: 40})


_IDS = torch.arange(1200).view(40, 30)
_TABLE: Any = datasets.Dataset.from_dict({"input_ids": _IDS.tolist()})


@pytest.mark.parametrize(
    "dataset",
    [
        None,
        _own(list)([[1, 2, 3]] * 40),
        _own(TensorDataset)(_IDS),
        _own(Subset)(TensorDataset(_IDS), range(40)),
        _own(Dataset)(),
        ConcatDataset([TensorDataset(_IDS), _own(Dataset)()]),
        _own(IterableDataset)(),
        Subset(_TABLE.with_transform(_fail), range(30)),
        iter([[1, 2, 3]]),
        {"train": [[1, 2, 3]]},
        torch.tensor(3),
    ],
)
def test_what_may_have_consequences_is_not_read(dataset: Any) -> None:
    assert prompts_from_dataset(dataset, _request(num_tokens=2)) is None


class _Resumable(IterableDataset[Any]):
    """Rows from where it stands, each with noise from a generator of its own."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.at, self.chance = rows, 0, random.Random(0)

    def __iter__(self) -> Iterator[Any]:
        while self.at < len(self.rows):
            self.at += 1
            yield {"input_ids": [id + self.chance.randrange(9) for id in self.rows[self.at - 1]]}

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "chance": self.chance.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("its copy was read, so it needs no rescue")


def _streams() -> dict[str, Any]:
    rows, chance = _rows([50] * 400), random.Random(0)
    table: Any = datasets.Dataset.from_dict({"input_ids": rows})

    def noisy(row: Any) -> Any:
        return {"input_ids": [token + chance.randrange(9) for token in row["input_ids"]]}

    return {
        "table": table.to_iterable_dataset(num_shards=4),
        "shuffled": table.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=50),
        "mapped": table.to_iterable_dataset().map(noisy),
        "of a rank": table.to_iterable_dataset(num_shards=4).shard(num_shards=2, index=1),
        "resumable": _Resumable(rows),
    }


@pytest.mark.parametrize("kind", _streams())
def test_a_stream_that_can_be_resumed_is_read_ahead_and_stays_where_it_is(kind: str) -> None:
    expected = [list(row["input_ids"]) for row in _streams()[kind]]
    stream = _streams()[kind]
    reader = iter(stream)
    before = [next(reader) for _ in range(3)]
    state = stream.state_dict()
    prompts = _drawn(stream, 100)
    assert stream.state_dict() == state
    assert [list(row["input_ids"]) for row in itertools.chain(before, reader)] == expected
    assert len(prompts.token_ids) == 100
    assert len({int(start) // 50 for start in prompts.token_ids[:, 0]}) > 60
    assert prompts.source == "the first 100 rows of the training data"


def test_a_stream_that_cannot_be_copied_or_read_is_left_to_the_batches() -> None:
    lazy = (row for row in _rows([50] * 99))
    texts = datasets.Dataset.from_dict({"text": ["a"] * 99}).to_iterable_dataset()
    for stream in (_Resumable(lazy), texts, _TABLE.to_iterable_dataset().map(_fail)):
        assert prompts_from_dataset(stream, _request()) is None
    assert len(list(lazy)) == 99


class _Noisy(UserDict[str, Any]):
    """A row that draws from a global generator when it is looked into."""

    def __getitem__(self, key: str) -> Any:
        torch.rand(())
        return self.data[key]


def test_the_global_generators_are_put_back() -> None:
    before, row = torch.get_rng_state(), _Noisy(input_ids=[1, 2] * 50)
    _drawn([row] * 40)
    assert torch.equal(torch.get_rng_state(), before)
    assert row["input_ids"]
    assert not torch.equal(torch.get_rng_state(), before)  # the comparison can fail
