"""Prompt sets: where they come from, how pairs are formed, and what is refused."""

import hashlib
import json
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sr_monitor.errors import InputError
from sr_monitor.prompts.corpora import blocks
from sr_monitor.prompts.prompt_set import PromptSet

_SENTENCE = (
    "the cat sat on a warm mat while rain fell over quiet hills and nobody in town knew that "
    "seven small boats had left before dawn, carrying bread, letters; maps: and one old clock."
)


def _text(num_words: int, seed: int = 0) -> str:
    """Random words: a corpus in which hardly two windows are alike."""
    choose = random.Random(seed)
    return " ".join(choose.choice(_SENTENCE.split()) for _ in range(num_words))


def _make_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    backend: Any = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_text(2000, seed=1)], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=32,
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return _make_tokenizer()


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """All token ids of a text, by the way that does not go through our code."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _windows(ids: list[int], num_tokens: int) -> list[list[int]]:
    return [ids[i : i + num_tokens] for i in range(0, len(ids) - num_tokens + 1, num_tokens)]


def _chain(num_prompts: int = 5, num_tokens: int = 3) -> PromptSet:
    return PromptSet.from_token_ids(torch.arange(num_prompts * num_tokens).view(-1, num_tokens))


def _explicit(num_pairs: int) -> PromptSet:
    ids = torch.arange(num_pairs * 6).view(-1, 3)
    return PromptSet(token_ids=ids, pairing="explicit")


# Pairs and triples


def test_chain_pairs_and_triples_are_neighbours() -> None:
    prompts = _chain(5)
    ids = prompts.token_ids
    assert (prompts.num_pairs, prompts.num_triples, prompts.num_tokens) == (4, 3, 3)
    a, b = prompts.pairs()
    assert a.tolist() == [ids[i].tolist() for i in range(4)]
    assert b.tolist() == [ids[i + 1].tolist() for i in range(4)]
    corners = prompts.triples()
    for offset, corner in enumerate(corners):
        assert corner.tolist() == [ids[i + offset].tolist() for i in range(3)]


def test_explicit_pairs_are_as_given_and_a_triple_adds_the_next_prompt() -> None:
    prompts = _explicit(3)
    ids = prompts.token_ids
    assert (prompts.num_pairs, prompts.num_triples) == (3, 2)
    a, b = prompts.pairs()
    assert a.tolist() == ids[[0, 2, 4]].tolist()
    assert b.tolist() == ids[[1, 3, 5]].tolist()
    first, second, third = prompts.triples()
    assert first.tolist() == ids[[0, 2]].tolist()
    assert second.tolist() == ids[[1, 3]].tolist()
    assert third.tolist() == ids[[2, 4]].tolist()


@pytest.mark.parametrize("prompts", [_chain(6), _explicit(4)])
def test_fewer_pairs_are_the_first_ones(prompts: PromptSet) -> None:
    for few, all_of_them in zip(prompts.pairs(2), prompts.pairs(), strict=True):
        assert few.tolist() == all_of_them[:2].tolist()
    for few, all_of_them in zip(prompts.triples(1), prompts.triples(), strict=True):
        assert few.tolist() == all_of_them[:1].tolist()


def test_two_prompts_make_a_pair_and_no_triple() -> None:
    prompts = _chain(2)
    assert prompts.pairs()[0].shape == (1, 3)
    assert prompts.triples()[2].shape == (0, 3)


def test_more_pairs_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"pairs\(5\): the set has 4 pairs"):
        _chain(5).pairs(5)
    with pytest.raises(InputError, match=r"triples\(4\): the set has 3 triples"):
        _chain(5).triples(4)
    with pytest.raises(InputError, match=r"pairs\(-1\): the set has 4 pairs"):
        _chain(5).pairs(-1)


# Token ids


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: rows,
        tuple,
        torch.tensor,
        np.array,
        lambda rows: torch.tensor(rows, dtype=torch.int32),
        lambda rows: np.array(rows, dtype=np.uint16),
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: [np.array(row, dtype=np.int32) for row in rows],
        lambda rows: (row for row in rows),
    ],
)
def test_token_ids_in_any_shape_of_container(make: Callable[[Any], Any]) -> None:
    rows = [[1, 2, 3], [4, 5, 6]]
    prompts = PromptSet.from_token_ids(make(rows), source="by hand")
    assert prompts.token_ids.tolist() == rows
    assert prompts.token_ids.dtype == torch.int64
    assert (prompts.texts, prompts.seed, prompts.labels) == (None, None, None)
    assert (prompts.source, prompts.pairing) == ("by hand", "chain")


def test_token_ids_are_a_copy() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    prompts = PromptSet.from_token_ids(ids)
    ids.fill_(9)
    assert prompts.token_ids.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2], [3, 4], [5, 6, 7]], "prompt 2 has 3 tokens, but prompt 0 has 2"),
        ([[1, 2], [], [5, 6]], "prompt 1 has 0 tokens, but prompt 0 has 2"),
        ([[1, 2]], "got 1 prompts of 2 tokens"),
        ([[1], [2]], "got 2 prompts of 1 tokens"),
        ([], "got 0 prompts of 0 tokens"),
        ([[], []], "got 2 prompts of 0 tokens"),
        ([[1, 2], [3, -100]], "token id -100 is below 0"),
        ([[1.0, 2.0], [3.0, 4.0]], "prompt 0 is a 1-dimensional torch.float32 tensor"),
        ([[True, False], [True, True]], "prompt 0 is a 1-dimensional torch.bool tensor"),
        ([1, 2, 3], "prompt 0 is a 0-dimensional torch.int64 tensor"),
        ([[[1, 2]], [[3, 4]]], "prompt 0 is a 2-dimensional torch.int64 tensor"),
        (["ab", "cd"], "these are no token ids"),
        ([[1, 2], [3, 2**70]], "these are no token ids"),
        (torch.tensor(3), "these are no token ids"),
    ],
)
def test_bad_token_ids_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptSet.from_token_ids(ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairing": "explicit"}, "3 prompts cannot form explicit pairs"),
        ({"texts": ("a", "b")}, "got 2 texts, expected 3"),
        ({"labels": ("a", "b", "c")}, "got 3 labels, expected 2"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptSet(token_ids=torch.arange(6).view(3, 2), **fields)


def test_what_is_done_to_pairs_is_not_done_to_the_set() -> None:
    prompts = _chain(5)
    before = prompts.fingerprint
    for members in (prompts.pairs(), prompts.triples()):
        for ids in members:
            ids += 1
    assert prompts.fingerprint == before


# Fingerprint and file


def test_fingerprint_is_the_hash_that_it_says() -> None:
    prompts = PromptSet.from_token_ids([[1, 2], [3, 40000]])
    content = b"chain (2, 2) " + b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, 40000))
    assert prompts.fingerprint == hashlib.sha256(content).hexdigest()[:16]


def test_fingerprint_depends_on_ids_shape_and_pairing_only() -> None:
    ids = torch.arange(24).view(4, 6)
    reference = PromptSet.from_token_ids(ids)
    different = [
        PromptSet.from_token_ids(ids.flip(0)),
        PromptSet.from_token_ids(ids.view(6, 4)),
        PromptSet.from_token_ids(ids + 1),
        PromptSet(token_ids=ids, pairing="explicit"),
    ]
    assert len({reference.fingerprint, *(prompts.fingerprint for prompts in different)}) == 5
    same = PromptSet(token_ids=ids, source="elsewhere", seed=3, texts=("a", "b", "c", "d"))
    assert same.fingerprint == reference.fingerprint
    assert PromptSet.from_token_ids(ids.t().contiguous().t()).fingerprint == reference.fingerprint


def _assert_equal(left: PromptSet, right: PromptSet) -> None:
    assert torch.equal(left.token_ids, right.token_ids)
    for name in ("texts", "source", "seed", "labels", "pairing", "fingerprint"):
        assert getattr(left, name) == getattr(right, name), name


_SETS = [
    _chain(4),
    PromptSet(token_ids=torch.tensor([[1, 2], [3, 4]]), texts=(' "q"\n', "é\u2028\ud83d"), seed=7),
    PromptSet(
        token_ids=torch.arange(8).view(4, 2),
        source="by hand \\ é",
        labels=("same", ""),
        pairing="explicit",
    ),
]


@pytest.mark.parametrize("prompts", _SETS)
@pytest.mark.parametrize("load", [PromptSet.load, PromptSet.from_file])
def test_saved_sets_come_back(
    prompts: PromptSet, load: Callable[[Path], PromptSet], tmp_path: Path
) -> None:
    path = tmp_path / "new folder" / "prompts.json"
    prompts.save(path)
    prompts.save(path)  # again, over itself
    _assert_equal(load(path), prompts)
    assert list(path.parent.iterdir()) == [path]


def test_saved_file_is_json_with_one_line_per_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    PromptSet(token_ids=torch.tensor([[1, 2], [3, 4]]), texts=("né", "b"), seed=7).save(path)
    text = path.read_text(encoding="utf-8")
    assert '    {"tokens": [1, 2], "text": "né"},\n    {"tokens": [3, 4], "text": "b"}\n' in text
    content = json.loads(text)
    assert (content["schema"], content["seed"], content["pairing"]) == (1, 7, "chain")


def test_a_set_is_recognised_under_any_name_and_formatting(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "prompts.txt"
    _chain().save(path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    _assert_equal(PromptSet.from_file(path, tokenizer), _chain())


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    _chain().save(path)
    before = path.read_bytes()
    unwritable = PromptSet(token_ids=torch.ones(2, 2).long(), source="x", seed=1)
    object.__setattr__(unwritable, "source", object())
    with pytest.raises(TypeError, match="not JSON serializable"):
        unwritable.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a folder"):
        _chain().save(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["prompts"][0]["tokens"].reverse(), "the file says fingerprint .*, but its"),
        (lambda c: c.update(pairing="explicit"), "the file says fingerprint .*, but its prompts"),
        (lambda c: c.update(schema=2), "schema 2, this sr-monitor reads schema 1; .*--upgrade"),
        (lambda c: c.pop("schema"), "has schema None"),
        (lambda c: c.pop("fingerprint"), "damaged .KeyError.'fingerprint'"),
        (lambda c: c.pop("seed"), "damaged .KeyError.'seed'"),
        (lambda c: c["prompts"][1].pop("tokens"), "damaged .KeyError.'tokens'"),
        (lambda c: c["prompts"].insert(0, 3), "damaged .TypeError"),
        (lambda c: c["prompts"][1]["tokens"].append(5), "prompt 1 has 4 tokens, but prompt 0"),
        (lambda c: c.update(pairing="circle"), 'pairing is "chain" or "explicit", not .circle'),
        (lambda c: c.update(format="something"), "this is no file that PromptSet.save wrote"),
    ],
)
def test_changed_files_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.json"
    _chain(4).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        PromptSet.load(path)


def test_a_truncated_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    _chain().save(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match="this is no file that"):
        PromptSet.from_file(path)


# Texts


def test_texts_give_windows_of_the_tokenised_corpus(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [_text(200), _text(150, seed=2) + "\n", _text(170, seed=3)]
    corpus = texts[0] + "\n" + texts[1] + texts[2]
    windows = _windows(_ids(tokenizer, corpus), 7)
    prompts = PromptSet.from_texts(texts, tokenizer, num_tokens=7, num_prompts=30, seed=5)
    drawn = prompts.token_ids.tolist()
    positions = [windows.index(window) for window in drawn]
    assert len(set(positions)) == 30  # without replacement; equal windows would be one position
    assert positions != sorted(positions)
    assert max(positions) > len(windows) / 2
    assert prompts.texts == tuple(tokenizer.backend_tokenizer.decode(ids) for ids in drawn)
    assert (prompts.seed, prompts.pairing, prompts.labels) == (5, "chain", None)


def test_all_windows_can_be_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    text = _text(3000)  # several blocks
    windows = _windows(_ids(tokenizer, text), 4)
    prompts = PromptSet.from_texts(text, tokenizer, num_tokens=4, num_prompts=len(windows))
    assert sorted(prompts.token_ids.tolist()) == sorted(windows)


def test_one_text_is_not_taken_for_many(tokenizer: PreTrainedTokenizerFast) -> None:
    text = _text(400)
    one = PromptSet.from_texts(text, tokenizer, num_prompts=9)
    _assert_equal(one, PromptSet.from_texts([text], tokenizer, num_prompts=9))
    _assert_equal(one, PromptSet.from_texts(iter([text]), tokenizer, num_prompts=9))


def test_no_bos_enters_and_the_corpus_may_exceed_the_context() -> None:
    tokenizer = _make_tokenizer(bos=True)
    assert tokenizer("the cat")["input_ids"][0] == tokenizer.bos_token_id  # it does add one
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        drawn = PromptSet.from_texts(_text(500), tokenizer, num_tokens=5, num_prompts=40)
        assert messages == []
        tokenizer(_text(500))
        assert "longer than the specified maximum" in messages[0]  # what would have been said
    finally:
        logger.removeHandler(handler)
    pairs = PromptSet.from_pairs([{"a": "the cat", "b": "the cat"}], tokenizer)
    for prompts in (drawn, pairs):
        assert tokenizer.bos_token_id not in prompts.token_ids
    plain = PromptSet.from_texts(_text(500), _make_tokenizer(), num_tokens=5, num_prompts=40)
    assert plain.fingerprint == drawn.fingerprint


def test_the_seed_decides_and_the_global_generator_is_left_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text, state = _text(600), torch.get_rng_state()
    makers: list[Callable[[int], PromptSet]] = [
        lambda seed: PromptSet.from_texts(text, tokenizer, num_prompts=20, seed=seed),
        lambda seed: PromptSet.from_last_token_swaps(text, tokenizer, num_pairs=20, seed=seed),
    ]
    for make in makers:
        first = make(3)
        torch.manual_seed(99)
        _assert_equal(make(3), first)
        assert make(4).fingerprint != first.fingerprint
        torch.set_rng_state(state)
        make(3)
        assert torch.equal(torch.get_rng_state(), state)


class _Letters:
    """One token per character; counts the characters it was given."""

    def __init__(self) -> None:
        self.num_characters = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        self.num_characters += len(text)
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_large_corpus_is_tokenised_in_part_and_the_sample_is_spread() -> None:
    letters = _Letters()
    corpus = "".join(f"{number:07d} " for number in range(500_000))  # 4 million characters
    prompts = PromptSet.from_texts(corpus, letters, num_tokens=16, num_prompts=200)
    assert 20 * 200 * 16 <= letters.num_characters < 20 * 200 * 16 + 8000
    assert prompts.texts is not None
    tenths = {int(re.findall(r"\d{7}", text)[0]) // 50_000 for text in prompts.texts}
    assert len(tenths) >= 7


@pytest.mark.parametrize("size", [1, 37, 5000, 10**6])
def test_blocks_are_the_corpus_however_it_is_divided(
    size: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = _text(6000) + "\n" + "x" * 9000 + "\n" + _text(1000)
    lines = [corpus[i : i + size] + "\n" for i in range(0, len(corpus), size)]
    whole = "".join(lines)
    expected = list(blocks([whole], "test"))
    assert "".join(expected) == whole
    assert len(expected) > 5
    assert max(map(len, expected)) <= 8000
    assert list(blocks(lines, "test")) == expected


def test_blocks_do_not_change_the_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = _text(6000)
    parts = list(blocks([corpus], "test"))
    assert len(parts) > 5
    assert [i for part in parts for i in _ids(tokenizer, part)] == _ids(tokenizer, corpus)


def test_half_a_surrogate_pair_in_a_text_is_no_obstacle(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompts = PromptSet.from_texts(_text(50) + "\ud83d", tokenizer, num_tokens=2, num_prompts=4)
    assert prompts.token_ids.shape == (4, 2)


def test_too_little_text_says_how_much_there_is(tokenizer: PreTrainedTokenizerFast) -> None:
    text = _text(10)
    num_tokens = len(_ids(tokenizer, text))
    with pytest.raises(
        InputError,
        match=f"has {num_tokens} tokens, but 257 prompts of 10 tokens need 2570",
    ):
        PromptSet.from_texts([text], tokenizer)
    with pytest.raises(InputError, match="has 0 tokens, but"):
        PromptSet.from_texts([], tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 1}, r"num_tokens=1.*at least 2 tokens"),
        ({"num_prompts": 1}, r"num_prompts=1\).*at least 2 prompts"),
    ],
)
def test_requests_without_a_pair_or_a_context_are_refused(
    options: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(_text(500))
    rows = [{"text": _text(500)}]
    roads: list[tuple[Any, Any]] = [
        (PromptSet.from_texts, rows[0]["text"]),
        (PromptSet.from_file, path),
    ]
    for road, corpus in [*roads, (PromptSet.from_dataset, rows)]:
        with pytest.raises(InputError, match=message):
            road(corpus, tokenizer, **options)
    with pytest.raises(InputError, match=r"num_pairs=1\).*at least 2 prompts must be drawn"):
        PromptSet.from_last_token_swaps(_text(500), tokenizer, num_pairs=1)


def test_what_is_no_text_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    texts: Any = ["the cat", 3]
    with pytest.raises(InputError, match="text 1 is of type int, not str"):
        PromptSet.from_dataset([{"text": text} for text in texts], tokenizer)


# Last-token swaps


def test_swaps_change_the_last_token_only(tokenizer: PreTrainedTokenizerFast) -> None:
    text = _text(900)
    prompts = PromptSet.from_last_token_swaps(text, tokenizer, num_tokens=6, num_pairs=50, seed=2)
    a, b = prompts.pairs()
    assert (prompts.pairing, prompts.seed, prompts.num_pairs) == ("explicit", 2, 50)
    drawn = PromptSet.from_texts(text, tokenizer, num_tokens=6, num_prompts=50, seed=2)
    assert torch.equal(a, drawn.token_ids)
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert bool((a[:, -1] != b[:, -1]).all())
    assert set(b[:, -1].tolist()) <= set(a[:, -1].tolist())
    assert len(set(b[:, -1].tolist())) > 5
    assert prompts.texts is not None
    assert prompts.texts[1] == tokenizer.decode(b[0].tolist())


def test_swaps_need_two_last_tokens() -> None:
    with pytest.raises(InputError, match="all 4 prompts drawn end with the same token, 97"):
        PromptSet.from_last_token_swaps("a" * 40, _Letters(), num_tokens=5, num_pairs=4)


# Data sets


def _rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"text": _text(30, seed=i), "number": i} for i in range(num_rows)]


def test_every_road_leads_to_the_same_prompts(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = _rows(40)
    texts = [row["text"] for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    expected = PromptSet.from_texts(texts, tokenizer, num_prompts=60, seed=8)
    dataset = datasets.Dataset.from_list(rows)
    encoded = datasets.Dataset.from_list([{"input_ids": _ids(tokenizer, "\n".join(texts))}])
    for road in (dataset, dataset.to_iterable_dataset(), rows, str(tmp_path), encoded):
        prompts = PromptSet.from_dataset(road, tokenizer, num_prompts=60, seed=8)
        assert prompts.fingerprint == expected.fingerprint
        assert (prompts.texts, prompts.seed) == (expected.texts, 8)
    for name in ("train.jsonl", "corpus.txt"):
        prompts = PromptSet.from_file(tmp_path / name, tokenizer, num_prompts=60, seed=8)
        assert prompts.fingerprint == expected.fingerprint
        assert prompts.source == str(tmp_path / name)


def test_the_named_column_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": "x", "story": row["text"]} for row in _rows(40)]
    prompts = PromptSet.from_dataset(rows, tokenizer, column="story", num_prompts=20)
    expected = PromptSet.from_dataset(_rows(40), tokenizer, num_prompts=20)
    assert prompts.fingerprint == expected.fingerprint


def test_missing_texts_are_skipped(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = _rows(40)
    gaps = [{"text": None}, *rows[:20], {"text": None}, *rows[20:]]
    with_gaps = PromptSet.from_dataset(gaps, tokenizer, num_prompts=20)
    without = PromptSet.from_dataset(rows, tokenizer, num_prompts=20)
    assert with_gaps.fingerprint == without.fingerprint


def _id_rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"input_ids": list(range(10 * i + 5, 10 * i + 15))} for i in range(num_rows)]


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_ids_need_no_tokenizer(form: str | None) -> None:
    dataset = datasets.Dataset.from_list(_id_rows(8)).with_format(form)
    prompts = PromptSet.from_dataset(dataset, num_tokens=4, num_prompts=20)
    windows = _windows(list(range(5, 85)), 4)
    assert sorted(prompts.token_ids.tolist()) == sorted(windows)
    assert prompts.texts is None


def test_padding_and_special_tokens_of_ids_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    plain = _id_rows(8)
    dressed = [
        {"input_ids": [pad, bos, *row["input_ids"], eos, 9], "attention_mask": [0, *[1] * 12, 0]}
        for row in plain
    ]
    expected = PromptSet.from_dataset(plain, num_tokens=4, num_prompts=20)
    prompts = PromptSet.from_dataset(dressed, tokenizer, num_tokens=4, num_prompts=20)
    assert prompts.fingerprint == expected.fingerprint


def _counted(rows: list[dict[str, Any]], counts: list[int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        counts.append(1)
        yield row


def test_no_more_rows_are_read_than_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    counts: list[int] = []
    PromptSet.from_dataset(_counted(_id_rows(500), counts), num_tokens=4, num_prompts=10)
    assert len(counts) == 20 * 10 * 4 / 10
    counts.clear()
    rows = [{"text": row["text"] + "."} for row in _rows(2000)]
    PromptSet.from_dataset(_counted(rows, counts), tokenizer, num_tokens=4, num_prompts=10)
    assert len(counts) < 100  # a few blocks of 4,000 characters, 30 words to a row


def test_too_few_rows_say_how_much_there_is() -> None:
    with pytest.raises(InputError, match="has 30 tokens, but 257 prompts of 10 tokens need 2570"):
        PromptSet.from_dataset(_id_rows(3))


def test_rows_without_text_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"columns are \['number', 'text'\] and there is no token"):
        PromptSet.from_dataset(_rows(3))
    with pytest.raises(InputError, match=r"columns are \['number', 'text'\] and there is a token"):
        PromptSet.from_dataset(_rows(3), tokenizer, column="story")
    with pytest.raises(InputError, match="text 0 is of type int, not str"):
        PromptSet.from_dataset(_rows(3), tokenizer, column="number")
    with pytest.raises(InputError, match="the data set has no rows"):
        PromptSet.from_dataset(datasets.Dataset.from_list([]), tokenizer)
    with pytest.raises(InputError, match=r"rows of type str.*pass one split"):
        PromptSet.from_dataset({"train": _rows(3)}, tokenizer)


def test_a_data_set_that_cannot_be_opened_is_named(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"cannot open '.*nowhere' \(config=None, split='train'\)"):
        PromptSet.from_dataset(str(tmp_path / "nowhere"), tokenizer)
    (tmp_path / "train.jsonl").write_text('{"text": "the cat"}\n')
    with pytest.raises(InputError, match=r"split='test'.*Bad split: test"):
        PromptSet.from_dataset(str(tmp_path), tokenizer, split="test")


def test_the_missing_extra_is_named(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[transformers\]'$"):
        PromptSet.from_dataset("owner/name", tokenizer)


# Files


def test_a_text_file_may_hold_any_script(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "{ größe\u2028 猫が座った " + _text(90)
    path = tmp_path / "corpus"
    path.write_text("\ufeff" + text, encoding="utf-8")
    prompts = PromptSet.from_file(path, tokenizer, num_tokens=5, num_prompts=20, seed=1)
    expected = PromptSet.from_texts(text, tokenizer, num_tokens=5, num_prompts=20, seed=1)
    assert prompts.fingerprint == expected.fingerprint


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs"])
def test_a_file_of_pairs(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / name
    pairs = [
        {"a": "the cat\u2028", "b": "the mat\u2028", "label": "x"},
        {"a": "the mat\u2028", "b": "the cat\u2028"},
    ]
    path.write_text("\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs), "utf-8")
    prompts = PromptSet.from_file(path, tokenizer)
    _assert_equal(prompts, PromptSet.from_pairs(pairs, tokenizer, source=str(path)))
    assert prompts.labels == ("x", "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.txt", b"", "the file is empty"),
        ("corpus.jsonl", b" \n\n", "the file is empty"),
        ("corpus.txt", b"\xff\xfe\x00", "cannot be read as utf-8 text"),
        ("corpus.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', """line 3 is '{"text": "b"'"""),
        ("corpus", b'{"text": "a"}\nb\n', "line 2 is 'b'; the lines of a JSON file must be all"),
        ("corpus.json", b"[\n1]", r"line 1 is '\['"),
        ("corpus.jsonl", b'{"text": 3}', "line 1 is"),
        ("corpus.jsonl", b'{"text": "a"}\n{"a": "a", "b": "b"}', "line 2 is"),
        ("corpus.jsonl", b"[" * 100_000, "line 1 is"),
    ],
)
def test_bad_files_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        PromptSet.from_file(tmp_path / name, tokenizer)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_a_missing_file_and_a_missing_tokenizer_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    for load in (PromptSet.from_file, PromptSet.load):
        with pytest.raises(InputError, match="this is a folder"):
            load(tmp_path)
        with pytest.raises(InputError, match="No such file"):
            load(tmp_path / "nowhere.txt")
    (tmp_path / "corpus.txt").write_text("the cat")
    with pytest.raises(InputError, match="so a tokenizer is needed"):
        PromptSet.from_file(tmp_path / "corpus.txt")


# Explicit pairs


def test_pairs_keep_their_texts_and_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs: list[dict[str, Any]] = [
        {"a": "the cat sat", "b": "the mat sat", "label": "noun"},
        {"a": "the cat on", "b": "the mat on", "label": 4},
    ]
    prompts = PromptSet.from_pairs(pairs, tokenizer, source="by hand")
    expected = [_ids(tokenizer, pair[side]) for pair in pairs for side in ("a", "b")]
    assert prompts.token_ids.tolist() == expected
    assert prompts.texts == ("the cat sat", "the mat sat", "the cat on", "the mat on")
    assert (prompts.labels, prompts.source) == (("noun", "4"), "by hand")
    assert (prompts.pairing, prompts.num_pairs, prompts.seed) == ("explicit", 2, None)
    unlabelled = [{"a": pair["a"], "b": pair["b"]} for pair in pairs]
    assert PromptSet.from_pairs(unlabelled, tokenizer).labels is None


def test_pairs_of_unequal_length_are_named() -> None:
    pairs = [{"a": "four", "b": "five"}, {"a": "four", "b": "three"}]
    with pytest.raises(
        InputError, match=r"in pair 1 \('four', 'three'\) a has 4 tokens and b has 5"
    ):
        PromptSet.from_pairs(pairs, _Letters())
    pairs[1] = {"a": "seven", "b": "eight"}
    with pytest.raises(InputError, match=r"in pair 1 .* b has 5, in pair 0 a has 4; .*reword"):
        PromptSet.from_pairs(pairs, _Letters())


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "got 0 prompts"),
        ([{"a": "a", "b": "b"}], "got 2 prompts of 1 tokens"),
        ([{"a": "", "b": ""}], "got 2 prompts of 0 tokens"),
        ([{"a": "the"}], "pair 0 is {'a': 'the'}, not"),
        ([("the", "cat")], r"pair 0 is \('the', 'cat'\), not"),
        ([{"a": "the", "b": 3}], "pair 0 is"),
    ],
)
@pytest.mark.usefixtures("_as_users_run_it")
def test_bad_pairs_are_refused(pairs: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptSet.from_pairs(pairs, _Letters())
