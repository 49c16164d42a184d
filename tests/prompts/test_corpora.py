"""Prompts from texts, data sets and files: what is drawn, how much is read, what is refused."""

import json
import logging
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from sr_monitor.errors import InputError
from sr_monitor.prompts.choose import PromptOptions, choose_prompts
from sr_monitor.prompts.corpora import blocks
from sr_monitor.prompts.prompt_set import PromptSet
from tests.saved import train_tokenizer

_SENTENCE = (
    "the cat sat on a warm mat while rain fell over quiet hills and nobody in town knew that "
    "seven small boats had left before dawn, carrying bread, letters; maps: and one old clock."
)


def _text(num_words: int, seed: int = 0) -> str:
    """Random words: a corpus in which hardly two windows are alike."""
    choose = random.Random(seed)
    return " ".join(choose.choice(_SENTENCE.split()) for _ in range(num_words))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that adds a BOS unless it is told not to."""
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    made = train_tokenizer([_text(2000, seed=1)], 500, model_max_length=32, **special)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    assert made("the cat")["input_ids"][0] == made.bos_token_id == 0
    return made


class _Letters:
    """One token per character; counts the characters it was given."""

    num_characters = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        self.num_characters += len(text)
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """All token ids of a text, by the way that does not go through our code."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _windows(ids: list[int], num_tokens: int) -> list[list[int]]:
    return [ids[i : i + num_tokens] for i in range(0, len(ids) - num_tokens + 1, num_tokens)]


def test_texts_give_windows_of_the_tokenised_corpus(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [_text(200), _text(150, seed=2) + "\n", _text(170, seed=3)]
    windows = _windows(_ids(tokenizer, texts[0] + "\n" + texts[1] + texts[2]), 7)
    prompts = PromptSet.from_texts(texts, tokenizer, num_tokens=7, num_prompts=30, seed=5)
    drawn = prompts.token_ids.tolist()
    positions = [windows.index(window) for window in drawn]
    assert len(set(positions)) == 30  # without replacement; equal windows would be one position
    assert positions != sorted(positions)
    assert max(positions) > len(windows) / 2
    assert prompts.texts == tuple(tokenizer.backend_tokenizer.decode(ids) for ids in drawn)


def test_no_bos_enters_and_any_corpus_is_taken(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        text = _text(500) + "\ud83d"  # half a surrogate pair, which no tokenizer takes
        drawn = PromptSet.from_texts(text, tokenizer, num_tokens=5, num_prompts=40)
        assert caplog.messages == []
        tokenizer(_text(500))
        assert "longer than the specified maximum" in caplog.text  # what would have been said
    finally:
        logger.removeHandler(caplog.handler)
    for prompts in (drawn, PromptSet.from_pairs([{"a": "the cat", "b": "the cat"}], tokenizer)):
        assert tokenizer.bos_token_id not in prompts.token_ids


_NUMBERS = "".join(f"{number * number % 9973:04d} " for number in range(20_000))


@pytest.mark.parametrize(
    ("make", "fingerprint"),
    [
        (PromptSet.from_texts, "7df7105dd024b948"),
        (PromptSet.from_dataset, "d5b1832acc199ede"),
        (PromptSet.from_last_token_swaps, "ec6bc984789b23ab"),
    ],
)
def test_the_seed_decides_forever_and_the_global_generator_is_left_alone(
    make: Any, fingerprint: str
) -> None:
    texts: list[Any] = [_NUMBERS[start : start + 1000] for start in range(0, 100_000, 1000)]
    corpus: Any = "".join(texts) if make != PromptSet.from_dataset else [{"text": t} for t in texts]
    num = "num_pairs" if make == PromptSet.from_last_token_swaps else "num_prompts"
    options = {"num_tokens": 8, num: 40}
    for _ in range(2):
        torch.rand(1)
        state = torch.get_rng_state()
        assert make(corpus, _Letters(), seed=3, **options).fingerprint == fingerprint
        assert torch.equal(torch.get_rng_state(), state)
    assert make(corpus, _Letters(), seed=4, **options).fingerprint != fingerprint


def test_a_large_corpus_is_tokenised_in_part_and_the_sample_is_spread() -> None:
    letters = _Letters()
    corpus = "".join(f"{number:07d} " for number in range(500_000))  # 4 million characters
    prompts = PromptSet.from_texts(corpus, letters, num_tokens=16, num_prompts=200)
    assert 20 * 200 * 16 <= letters.num_characters < 20 * 200 * 16 + 8000
    tenths = {int(re.findall(r"\d{7}", text)[0]) // 50_000 for text in prompts.texts or ()}
    assert len(tenths) >= 7


def test_blocks_are_the_corpus_however_it_is_divided() -> None:
    corpus = _text(6000) + "\n" + "x" * 9000 + "\n" + _text(1000)
    for size in (1, 37, 5000, 10**6):
        lines = [corpus[i : i + size] + "\n" for i in range(0, len(corpus), size)]
        found = list(blocks(lines, "test"))
        assert "".join(found) == "".join(lines)
        assert (len(found) > 5, max(map(len, found)) <= 8000) == (True, True)
        assert found == list(blocks(["".join(lines)], "test"))


def test_swaps_change_the_last_token_only(tokenizer: PreTrainedTokenizerFast) -> None:
    text = _text(900)
    prompts = PromptSet.from_last_token_swaps(text, tokenizer, num_tokens=6, num_pairs=50, seed=2)
    a, b = prompts.pairs()
    assert (prompts.pairing, prompts.seed, prompts.num_pairs) == ("explicit", 2, 50)
    drawn = PromptSet.from_texts([text], tokenizer, num_tokens=6, num_prompts=50, seed=2)
    assert torch.equal(a, drawn.token_ids)
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert bool((a[:, -1] != b[:, -1]).all())
    assert set(b[:, -1].tolist()) <= set(a[:, -1].tolist())
    assert len(set(b[:, -1].tolist())) > 5
    assert prompts.texts is not None
    assert prompts.texts[1] == tokenizer.decode(b[0].tolist())


def _rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"text": _text(30, seed=i), "number": i} for i in range(num_rows)]


def _id_rows(num_rows: int) -> list[dict[str, Any]]:
    return [{"input_ids": list(range(10 * i + 5, 10 * i + 15))} for i in range(num_rows)]


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
    gaps = [{"text": None}, *rows[:20], {"text": None}, *rows[20:]]
    for road in (dataset, dataset.to_iterable_dataset(), rows, gaps, str(tmp_path), encoded):
        prompts = PromptSet.from_dataset(road, tokenizer, num_prompts=60, seed=8)
        assert prompts.fingerprint == expected.fingerprint
        assert (prompts.texts, prompts.seed) == (expected.texts, 8)
    stories = [{"text": "x", "story": text} for text in texts]
    prompts = PromptSet.from_dataset(stories, tokenizer, column="story", num_prompts=60, seed=8)
    assert prompts.fingerprint == expected.fingerprint
    for name in ("train.jsonl", "corpus.txt"):
        prompts = PromptSet.from_file(tmp_path / name, tokenizer, num_prompts=60, seed=8)
        assert prompts.fingerprint == expected.fingerprint
        assert prompts.source == str(tmp_path / name)


def test_ids_need_no_tokenizer_and_padding_and_special_tokens_are_left_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    dressed = [
        {"input_ids": [pad, bos, *row["input_ids"], eos, 9], "attention_mask": [0, *[1] * 12, 0]}
        for row in _id_rows(8)
    ]
    plain = datasets.Dataset.from_list(_id_rows(8))
    forms = [(plain.with_format(form), None) for form in (None, "torch", "numpy")]
    for dataset, given in [*forms, (dressed, tokenizer)]:
        prompts = PromptSet.from_dataset(dataset, given, num_tokens=4, num_prompts=20)
        assert sorted(prompts.token_ids.tolist()) == _windows(list(range(5, 85)), 4)
        assert (prompts.texts is None) == (given is None)


def test_no_more_rows_are_read_than_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    def counted(rows: list[Any]) -> Iterator[Any]:
        for row in rows:
            counts.append(1)
            yield row

    counts: list[int] = []
    PromptSet.from_dataset(counted(_id_rows(500)), num_tokens=4, num_prompts=10)
    assert len(counts) == 20 * 10 * 4 / 10
    counts.clear()
    PromptSet.from_dataset(counted(_rows(500)), tokenizer, num_tokens=4, num_prompts=10)
    assert len(counts) < 100  # a few blocks of 4,000 characters, 30 words to a row


_UNEVEN = [{"a": "one", "b": "two"}, {"a": "six", "b": "four"}]


@pytest.mark.parametrize(
    ("make", "given", "options", "message"),
    [
        ("texts", ["a" * 99], {}, "99 tokens, but 257 .* need 2570"),
        ("texts", "ab", {"num_tokens": 1}, "257 prompts of 1 tokens; .*at least 2"),
        ("texts", ["the", 3], {}, "text 1 is of type int, not str"),
        ("last_token_swaps", "ab", {"num_pairs": 1}, "got 1 prompts of 10"),
        ("last_token_swaps", "a" * 99, {"num_pairs": 4}, "4 prompts .* same token, 97"),
        ("pairs", [], {}, "got 0 prompts"),
        ("pairs", [{"a": "the", "b": 3}], {}, "pair 0 is {'a': 'the', 'b': 3}, not"),
        ("pairs", [("the", "cat")], {}, "pair 0 is"),
        ("pairs", _UNEVEN, {}, r"prompt 3 has the shape \(4,\) .* prompt 0 has the shape \(3,\)"),
        ("dataset", _rows(3), {"tokenizer": None}, r"\['number', 'text'\] and .* no tokenizer"),
        ("dataset", _rows(3), {"column": "story"}, r"\['number', 'text'\] and .* a tokenizer"),
        ("dataset", datasets.Dataset.from_list([]), {}, "the data set has no rows"),
        ("dataset", {"train": _rows(3)}, {}, "rows of type str.*pass one split"),
        ("dataset", "./nowhere", {}, r"cannot open './nowhere' \(config=None, split='train'\)"),
    ],
)
@pytest.mark.usefixtures("_as_users_run_it")
def test_what_makes_no_prompts_is_refused(
    make: str, given: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        getattr(PromptSet, f"from_{make}")(given, **({"tokenizer": _Letters()} | options))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[transformers\]'$"):
        PromptSet.from_dataset("owner/name", _Letters())


def test_a_text_file_may_hold_any_script(tmp_path: Path) -> None:
    text = "{ größe\u2028 猫が座った " + _text(90)
    path = tmp_path / "corpus"
    path.write_text("\ufeff" + text, encoding="utf-8")
    prompts = PromptSet.from_file(path, _Letters(), num_tokens=5, num_prompts=20, seed=1)
    expected = PromptSet.from_texts(text, _Letters(), num_tokens=5, num_prompts=20, seed=1)
    assert prompts.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", b" \n\n", "the file is empty"),
        ("corpus.txt", b"\xff\xfe\x00", "cannot be read as utf-8 text"),
        ("corpus.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', """line 3 is '{"text": "b"'"""),
        ("corpus", b'{"text": "a"}\nb\n', "line 2 is 'b'; the lines of a JSON file must be all"),
        ("corpus.json", b"[\n1]", r"line 1 is '\['"),
        ("corpus.jsonl", b'{"text": "a"}\n{"a": "a", "b": "b"}', "line 2 is"),
        ("corpus.jsonl", b"[" * 100_000, "line 1 is"),
    ],
)
def test_bad_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        PromptSet.from_file(tmp_path / name, _Letters())
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_a_missing_file_and_a_missing_tokenizer_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("the cat")
    for path, said in (
        (tmp_path, "directory"),
        (tmp_path / "a", "No such"),
        (text, "tokenizer is"),
    ):
        with pytest.raises(InputError, match=said):
            PromptSet.from_file(path)


_PAIRS: list[dict[str, Any]] = [
    {"a": "the cat\u2028", "b": "the mat\u2028", "label": "noun"},
    {"a": "the mat\u2028", "b": "the dog\u2028", "label": 4},
]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "pairs"])
def test_pairs_keep_their_texts_and_labels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(p, ensure_ascii=False) for p in _PAIRS), "utf-8")
    prompts = PromptSet.from_file(path, _Letters())
    assert prompts.source == str(path)
    texts = tuple(pair[side] for pair in _PAIRS for side in ("a", "b"))
    assert prompts.token_ids.tolist() == [list(map(ord, text)) for text in texts]
    assert (prompts.texts, prompts.labels) == (texts, ("noun", "4"))
    assert (prompts.pairing, prompts.num_pairs, prompts.seed) == ("explicit", 2, None)
    unlabelled = [{"a": pair["a"], "b": pair["b"]} for pair in _PAIRS]
    assert PromptSet.from_pairs(unlabelled, _Letters()).labels is None


def test_pairs_of_different_lengths_can_be_cut_to_their_last_tokens() -> None:
    pairs = [{"a": "the cat", "b": "a dog"}, {"a": "my mouse", "b": "the horse"}]
    with pytest.raises(InputError, match="all of the same length"):
        PromptSet.from_pairs(pairs, _Letters())
    prompts = PromptSet.from_pairs(pairs, _Letters(), cut=True)
    assert prompts.texts == ("e cat", "a dog", "mouse", "horse")


def test_the_meaning_pairs_are_two_ways_to_join_the_same_sentences() -> None:
    prompts = choose_prompts(PromptOptions(prompts="meaning"), _Letters(), 257)
    assert prompts.num_pairs == 64
    assert prompts.labels == ("similar", "dissimilar") * 32
    assert prompts.texts is not None
    a, b = prompts.texts[0::2], prompts.texts[1::2]
    for side in (a, b):
        assert sorted(side[0::2]) == sorted(side[1::2])
        assert len(set(side)) == 32
    assert all(x.split()[-1] != y.split()[-1] for x, y in zip(a, b, strict=True))
    assert len(set(map(len, prompts.texts))) == 1
