"""Names as they are on the hub and on disks, and the choice among them."""

import math
from itertools import pairwise

import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.names import (
    CheckpointName,
    choose_spaced,
    choose_tokens,
    closest,
    match_names,
    parse_tokens,
    read_name,
    read_names,
    split_runs,
)

B = 10**9
# name: step, tokens, stage, ingredient, rest, branch
NAMES: dict[str, tuple[int, int | None, int | None, int | None, str, str]] = {
    "step1000-tokens4B": (1000, 4 * B, None, None, "", ""),  # OLMo 1
    "step651581-tokens2731B": (651581, 2731 * B, None, None, "", ""),  # OLMo 0424
    "step0-tokens0B": (0, 0, None, None, "", ""),  # OLMo 0724
    "stage1-step150-tokens1B": (150, B, 1, None, "", ""),  # OLMo 2
    "stage2-ingredient3-step23852-tokens51B": (23852, 51 * B, 2, 3, "", "ingredient3"),
    "stage1-step1413814": (1413814, None, 1, None, "", ""),  # OLMo 3
    "stage2-step47684-mix-round5-from-2T-ckpt": (
        47684,
        None,
        2,
        None,
        "mix-round5-from-2T-ckpt",
        "mix-round5-from-2T-ckpt",
    ),
    "step143000": (143000, None, None, None, "", ""),  # Pythia
    "stage1-step-3440000": (3440000, None, 1, None, "", ""),  # SmolLM3
    "lc-4k-to-32k-step-4000": (4000, None, None, None, "lc-4k-to-32k", "lc-4k-to-32k"),
    "step2627139-tokens15T": (2627139, 15_000 * B, None, None, "", ""),  # Apertus
    "step10-tokens1.5B": (10, 1_500_000_000, None, None, "", ""),
    "ckpt_000": (0, None, None, None, "", ""),  # Amber
    "checkpoint-500": (500, None, None, None, "", ""),  # Trainer
    "epoch=0-step=500.ckpt": (500, None, None, None, "epoch=0", ""),  # Lightning
    "epoch=12-step=500-val_loss=0.32.ckpt": (500, None, None, None, "epoch=12-val_loss=0.32", ""),
    "epoch=1-val_loss=-1e-05-step=7.ckpt": (7, None, None, None, "epoch=1-val_loss=-1e-05", ""),
    "epoch=0-step=500-v1.ckpt": (500, None, None, None, "epoch=0-v1", "v1"),
    "step-000500": (500, None, None, None, "", ""),
    "step_20": (20, None, None, None, "", ""),
    "epoch_3_step_20": (20, None, None, None, "epoch_3", ""),
    "global_step500": (500, None, None, None, "", ""),
    "iter_0001000": (1000, None, None, None, "", ""),
    "OLMo-1B-step500": (500, None, None, None, "OLMo-1B", "OLMo-1B"),
    "000500": (500, None, None, None, "", ""),
}


@pytest.mark.parametrize("text", NAMES)
def test_real_names_are_read(text: str) -> None:
    name = read_name(text)
    assert name is not None
    assert name.text == text
    found = (name.step, name.tokens, name.stage, name.ingredient, name.rest, name.branch)
    assert found == NAMES[text]


@pytest.mark.parametrize(
    "text",
    [
        "main",
        "last.ckpt",
        "epoch=3.ckpt",
        "Qwen2-0.5B",
        "OLMo-2-0425-1B",
        "v1.0",
        "",
        "step",
        "runs",
        "lockstep5",
        "step12.5",
        "stage2",
        "it-SFT",
        "tokens4B",
        "epoch_3",
        "2024-run",
    ],
)
def test_names_without_a_step_are_not_read(text: str) -> None:
    assert read_name(text) is None


def test_order_is_by_stage_then_branch_then_step() -> None:
    expected = [
        "stage1-step900-tokens4B",
        "stage1-step1000-tokens5B",
        "stage2-ingredient1-step0-tokens0B",
        "stage2-ingredient1-step10-tokens1B",
        "stage2-ingredient2-step2-tokens1B",
    ]
    names = read_names([*reversed(expected), "main"])
    assert [name.text for name in names] == expected


OLMO_2 = [
    "stage1-step1000-tokens3B",
    "stage1-step2000-tokens5B",
    "stage2-ingredient1-step1000-tokens3B",
    "stage2-ingredient2-step1000-tokens3B",
]
OLMO_3 = [
    "stage1-step500",
    "stage1-step1000",
    "stage2-step300",
    "stage2-step900",
    "stage2-step900-mix-a-from-2T-ckpt",
    "stage3-step100",
]
SMOL_3 = ["stage1-step-40", "stage1-step-80", "stage2-step-120", "lc-4k-to-32k-step-4"]


@pytest.mark.parametrize(
    ("texts", "runs"),
    [
        (OLMO_2, {"": 2, "stage2-ingredient1": 1, "stage2-ingredient2": 1}),
        (OLMO_3, {"": 2, "stage2": 2, "stage2-mix-a-from-2T-ckpt": 1, "stage3": 1}),
        (SMOL_3, {"lc-4k-to-32k": 1, "": 3}),
        (["step5", "stage1-step2"], {"": 1, "stage1": 1}),
        (["checkpoint-2", "checkpoint-10"], {"": 2}),
        (["stage2-step1", "stage2-step2"], {"": 2}),
        (["epoch=0-step=5-loss=2.5.ckpt", "epoch=1-step=9-loss=1.5.ckpt"], {"": 2}),
        ([], {}),
    ],
)
def test_parallel_branches_and_new_starts_are_runs_of_their_own(
    texts: list[str], runs: dict[str, int]
) -> None:
    found = split_runs(read_names(texts))
    assert {run: len(names) for run, names in found.items()} == runs
    for names in found.values():
        steps = [name.step for name in names]
        assert steps == sorted(set(steps))
    assert sorted(name.text for names in found.values() for name in names) == sorted(texts)


def steps_of(names: list[CheckpointName]) -> list[int]:
    return [name.step for name in names]


def test_spaced_choices_are_log_spaced_with_both_ends() -> None:
    powers = read_names(f"step{2**k}" for k in range(13))
    assert steps_of(choose_spaced(powers, 5)) == [1, 8, 64, 512, 4096]
    pythia = read_names(
        f"step{n}" for n in [0, *(2**k for k in range(10)), *range(1000, 143001, 1000)]
    )
    chosen = steps_of(choose_spaced(pythia, 20))
    assert len(chosen) == 20
    assert (chosen[0], chosen[1], chosen[-1]) == (0, 1, 143000)
    ratios = [math.log(b / a) for a, b in pairwise(chosen[1:])]
    assert max(ratios) < 3 * min(ratios)


def test_sparse_starts_are_taken_one_by_one() -> None:
    olmo = read_names(f"step{n}" for n in range(0, 1_454_001, 1000))
    chosen = steps_of(choose_spaced(olmo, 20))
    assert len(set(chosen)) == 20
    assert chosen[:4] == [0, 1000, 2000, 3000]
    assert chosen[-1] == 1_454_000
    gaps = [b - a for a, b in pairwise(chosen)]
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("num", range(2, 12))
@pytest.mark.parametrize("first", [0, 1, 1000])
def test_any_number_gives_that_many_and_both_ends(num: int, first: int) -> None:
    names = read_names(f"step{n}" for n in range(first, first + 9))
    chosen = steps_of(choose_spaced(names, num))
    assert len(set(chosen)) == len(chosen) == min(num, 9)
    assert (chosen[0], chosen[-1]) == (first, first + 8)


def test_a_gap_does_not_swallow_the_number() -> None:
    names = read_names(f"step{n}" for n in (1, 2, 3, 4, 5, 6, 1000))
    assert steps_of(choose_spaced(names, 5)) == [1, 4, 5, 6, 1000]


def test_each_run_gets_its_number() -> None:
    names = read_names(
        [f"stage1-step{n}" for n in range(1, 9)] + [f"stage2-step{n}" for n in range(1, 5)]
    )
    assert [name.text for name in choose_spaced(names, 2)] == [
        "stage1-step1",
        "stage1-step8",
        "stage2-step1",
        "stage2-step4",
    ]


def test_one_is_too_few_to_space() -> None:
    with pytest.raises(InputError, match=r"choose_spaced\(num=1\): `num` must be at least 2"):
        choose_spaced(read_names(["step1", "step2"]), 1)


def test_the_nearest_number_of_tokens_is_taken_from_the_names() -> None:
    names = read_names(
        ["step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "step9-tokens9B"]
    )
    chosen = choose_tokens(names, [4e9, 10e9, 3.9e9, 100e9])
    assert [name.text for name in chosen] == ["step9-tokens9B", "step2000-tokens4B"]


def test_tokens_of_later_stages_count_on() -> None:
    names = read_names(
        f"{stage}-step{step}-tokens{tokens}B"
        for stage, step, tokens in (
            ("stage1", 1, 5),
            ("stage1", 900, 4000),
            ("stage2-ingredient1", 2, 5),
            ("stage2-ingredient1", 8, 50),
        )
    )
    chosen = choose_tokens(names, [4e9, 4049e9])
    assert [name.text for name in chosen] == [names[0].text, names[3].text]


def test_tokens_that_no_name_says_are_not_made_up() -> None:
    expected = r"no name says how many tokens .*\(stage1-step1, stage1-step2\); choose by step"
    with pytest.raises(InputError, match=expected):
        choose_tokens(read_names(["stage1-step1", "stage1-step2"]), [4e9])


def test_tokens_are_parsed() -> None:
    assert parse_tokens("4B,10b, 0.5T,250M,3.2B") == [
        4 * B,
        10 * B,
        500 * B,
        250 * 10**6,
        3_200_000_000,
    ]
    assert parse_tokens("4e9,7,2K") == [4 * B, 7, 2000]
    for wrong in ("4X", "", "4B,,5B", "-4B", "B", "4 B B", "1e999", "9e307T"):
        with pytest.raises(InputError, match=r"is no number of tokens; write them like 4B,10B"):
            parse_tokens(wrong)


TEXTS = ["main", "step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "step3000-tokens6B"]


def test_globs_and_names_are_matched() -> None:
    assert match_names("step*", TEXTS) == TEXTS[1:]
    assert match_names("step?000-*", TEXTS) == TEXTS[2:]
    assert match_names("main", TEXTS) == ["main"]
    assert match_names("odd[1]", ["odd[1]"]) == ["odd[1]"]


def test_a_name_that_does_not_exist_gets_the_closest() -> None:
    expected = (
        "no checkpoint 'step1000-tokens4B' among 5; the closest: step1000-tokens2B, "
        "step0-tokens0B, step2000-tokens4B"
    )
    with pytest.raises(InputError) as caught:
        match_names("step1000-tokens4B", TEXTS)
    assert str(caught.value) == expected
    assert closest("step2900-tokens9B", TEXTS, 1) == ["step3000-tokens6B"]
    assert closest("mian", TEXTS, 1) == ["main"]
    assert closest("step7", ["main"]) == ["main"]
    branches = ["stage1-step10", "stage2-ingredient1-step11", "stage2-ingredient2-step50"]
    assert closest("stage2-ingredient2-step11", branches, 1) == [branches[2]]
    with pytest.raises(InputError, match="among 0; the closest: nothing there"):
        match_names("step*", [])
