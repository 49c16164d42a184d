"""Prompt sets: how pairs and triples are formed, what is saved and read again, what is refused."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet


def _chain(num_prompts: int = 5) -> PromptSet:
    return PromptSet.from_token_ids(torch.arange(num_prompts * 3).view(-1, 3))


def _explicit(num_pairs: int = 3) -> PromptSet:
    return PromptSet(token_ids=torch.arange(num_pairs * 6).view(-1, 3), pairing="explicit")


@pytest.mark.parametrize(
    ("prompts", "pairs", "triples"),
    [
        (_chain(5), [(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1, 2), (1, 2, 3), (2, 3, 4)]),
        (_explicit(3), [(0, 1), (2, 3), (4, 5)], [(0, 1, 2), (2, 3, 4)]),
        (_chain(2), [(0, 1)], []),
    ],
)
def test_pairs_and_triples(
    prompts: PromptSet, pairs: list[tuple[int, ...]], triples: list[tuple[int, ...]]
) -> None:
    ids, before = prompts.token_ids, prompts.fingerprint
    assert (prompts.num_pairs, prompts.num_triples) == (len(pairs), len(triples))
    assert prompts.num_tokens == 3
    for made, expected in ((prompts.pairs, pairs), (prompts.triples, triples)):
        for few in {len(expected), len(expected) // 2, 0}:
            for side, members in enumerate(made(few)):
                assert members.tolist() == [ids[tuple_[side]].tolist() for tuple_ in expected[:few]]
        assert len(made()[0]) == len(expected)
        for members in made():
            members += 1
    assert prompts.fingerprint == before  # what is done to pairs is not done to the set


def test_another_order_is_drawn_from_seed_and_step_and_keeps_texts_and_explicit_pairs() -> None:
    for prompts in (_chain(40), _explicit(20)):
        named = replace(prompts, texts=tuple(map(str, prompts.token_ids.tolist())), seed=3)
        if prompts.pairing == "explicit":
            named = replace(named, labels=tuple(map(str, prompts.pairs()[0].tolist())))
        drawn = named.reordered(5)
        again = PromptSet.from_json(named.to_json()).reordered(5)
        assert drawn.fingerprint == again.fingerprint  # as a replay draws it
        assert drawn.texts == tuple(map(str, drawn.token_ids.tolist()))
        rows = [sorted(each.token_ids.tolist()) for each in (drawn, named)]
        assert rows[0] == rows[1]
        others = (named, named.reordered(6), replace(named, seed=4).reordered(5))
        assert drawn.fingerprint not in {other.fingerprint for other in others}
        if prompts.pairing == "explicit":
            assert drawn.labels == tuple(map(str, drawn.pairs()[0].tolist()))
            assert (drawn.pairs()[1] - drawn.pairs()[0] == 3).all()
        else:
            kept, new = (torch.stack(each.pairs(), dim=1) for each in (named, drawn))
            assert not any((pair == kept).all(dim=(1, 2)).any() for pair in new[:10])


def test_more_pairs_than_there_are_is_refused() -> None:
    for make, num, there in (("pairs", 5, 4), ("pairs", -1, 4), ("triples", 4, 3)):
        with pytest.raises(InputError, match=rf"{make}\({num}\): the set has {there} {make}"):
            getattr(_chain(5), make)(num)


@pytest.mark.parametrize(
    "make",
    [
        list,
        iter,
        torch.tensor,
        lambda rows: np.array(rows, dtype=np.uint16),
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: [np.array(row, dtype=np.int32) for row in rows],
    ],
)
def test_token_ids_in_any_shape_of_container(make: Callable[[Any], Any]) -> None:
    rows = [[1, 2, 3], [4, 5, 6]]
    given = make(rows)
    prompts = PromptSet.from_token_ids(given, source="by hand")
    if isinstance(given, torch.Tensor):
        given.fill_(9)  # the set has a copy
    assert prompts.token_ids.tolist() == rows
    assert prompts.token_ids.dtype == torch.int64
    assert (prompts.source, prompts.pairing, prompts.seed) == ("by hand", "chain", None)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [[1, 2], [3, 4], [5, 6, 7]],
            r"prompt 2 .* \(3,\) .* prompt 0 .* \(2,\)",
        ),
        ([[1, 2]], "1 prompts of 2 tokens"),
        ([], "0 prompts of 0 tokens"),
        ([[1, 2], [3, -100]], "token id -100 is below 0"),
        ([[1.0, 2.0], [3.0, 4.0]], "prompt 0 .* torch.float32"),
        ([1, 2, 3], r"prompt 0 has the shape \(\)"),
        ([[1, 2], [3, 2**70]], "no token ids"),
        (torch.tensor(3), "no token ids"),
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


def test_fingerprint_is_a_hash_of_ids_shape_and_pairing_only() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 40000]])
    content = b"chain (2, 3) " + b"".join(n.to_bytes(8, "little") for n in ids.flatten().tolist())
    reference = hashlib.sha256(content).hexdigest()[:16]
    for same in (
        PromptSet(token_ids=ids, source="elsewhere", seed=3, texts=("a", "b")),
        PromptSet.from_token_ids(ids.t().contiguous().t()),
    ):
        assert same.fingerprint == reference
    different = [
        PromptSet.from_token_ids(ids.flip(0)),
        PromptSet.from_token_ids(ids.view(3, 2)),
        PromptSet(token_ids=ids, pairing="explicit"),
    ]
    assert len({reference, *(prompts.fingerprint for prompts in different)}) == 4


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
    path = tmp_path / "new folder" / "prompts.txt"  # recognised under any name
    prompts.save(path)
    prompts.save(path)  # again, over itself
    assert list(path.parent.iterdir()) == [path]
    loaded = load(path)
    assert loaded.to_json() == prompts.to_json()
    rows = [line for line in prompts.to_json().split("\n") if line.startswith('    {"tokens": [')]
    assert len(rows) == len(prompts.token_ids)  # for people: a line for each
    for name in ("texts", "source", "seed", "labels", "pairing", "fingerprint"):
        assert getattr(loaded, name) == getattr(prompts, name), name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))))  # formatted in another way
    assert load(path).to_json() == prompts.to_json()
    with pytest.raises(InputError, match="this is a folder"):
        prompts.save(tmp_path)


_CUT = r"no file that PromptSet\.save wrote"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["prompts"][0]["tokens"].reverse(), "fingerprint .*, but its prompts have"),
        (lambda c: c.update(pairing="explicit"), "fingerprint .*, but its prompts have"),
        (lambda c: c.update(schema=2), "schema 2, this sr-monitor reads schema 1; .*--upgrade"),
        (lambda c: c.pop("fingerprint"), "damaged .KeyError: 'fingerprint'"),
        (lambda c: c["prompts"].insert(0, 3), "damaged .TypeError"),
        (lambda c: c["prompts"][1]["tokens"].append(5), r"prompt 1 has the shape \(4,\)"),
        (lambda c: c.update(pairing="circle"), 'pairing is "chain" or "explicit", not .circle'),
        (lambda c: None, _CUT),
    ],
)
def test_changed_files_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.json"
    _chain(4).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content) if message != _CUT else path.read_text()[:-20])
    with pytest.raises(InputError, match=message):
        PromptSet.from_file(path)


def test_another_file_is_not_loaded_as_a_set(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    for text in ('{"format": "something"}', "[]", "some text", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=_CUT):
            PromptSet.load(path)


def test_the_texts_of_a_triple() -> None:
    prompts = replace(
        PromptSet.from_token_ids(torch.arange(18).reshape(6, 3)), texts=tuple("abcdef")
    )
    for pairing, count in (("chain", 4), ("explicit", 2)):
        paired = replace(prompts, pairing=pairing)
        corners = torch.stack(paired.triples(), dim=1)
        assert len(corners) == count
        for index, corner in enumerate(corners.tolist()):
            texts = tuple("abcdef"[first // 3] for first, _, _ in corner)
            assert paired.texts_of_triple(index) == texts
    assert replace(prompts, texts=None).texts_of_triple(0) is None
