"""Names as they are on the hub and on disks, and the choice among them."""

import math
import re
from itertools import pairwise, product

import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.names import (
    CheckpointName,
    add_tokens,
    choose_spaced,
    choose_tokens,
    match_names,
    parse_tokens,
    read_name,
    read_names,
    read_titles,
    split_runs,
)

B = 10**9
MIX = "mix-round5-from-2T-ckpt"
NAMES: dict[str, CheckpointName] = {
    name.text: name
    for name in (
        CheckpointName("step1000-tokens4B", 1000, 4 * B),  # OLMo 1
        CheckpointName("step651581-tokens2731B", 651581, 2731 * B),  # OLMo 0424
        CheckpointName("step0-tokens0B", 0, 0),  # OLMo 0724
        CheckpointName("stage1-step150-tokens1B", 150, B, 1),  # OLMo 2
        CheckpointName("stage2-ingredient3-step23852-tokens51B", 23852, 51 * B, 2, 3),
        CheckpointName("stage1-step1413814", 1413814, stage=1),  # OLMo 3
        CheckpointName(f"stage2-step47684-{MIX}", 47684, stage=2, rest=MIX),
        CheckpointName("step143000", 143000),  # Pythia
        CheckpointName("stage1-step-3440000", 3440000, stage=1),  # SmolLM3
        CheckpointName("lc-4k-to-32k-step-4000", 4000, rest="lc-4k-to-32k"),
        CheckpointName("step2627139-tokens15T", 2627139, 15_000 * B),  # Apertus
        CheckpointName("step10-tokens1.5B", 10, 1_500_000_000),
        CheckpointName("ckpt_000", 0),  # Amber
        CheckpointName("checkpoint-500", 500),  # Trainer
        CheckpointName("epoch=0-step=500.ckpt", 500, rest="epoch=0"),  # Lightning
        CheckpointName("epoch=1-loss=-1e-05-step=7.ckpt", 7, rest="epoch=1-loss=-1e-05"),
        CheckpointName("epoch=0-step=500-v1.ckpt", 500, rest="epoch=0-v1"),
        CheckpointName("step-000500", 500),
        CheckpointName("step_20", 20),
        CheckpointName("epoch_3_step_20", 20, rest="epoch_3"),
        CheckpointName("global_step500", 500),
        CheckpointName("iter_0001000", 1000),
        CheckpointName("OLMo-1B-step500", 500, rest="OLMo-1B"),
        CheckpointName("000500", 500),
    )
}
BRANCHES = {
    "stage2-ingredient3-step23852-tokens51B": "ingredient3",
    f"stage2-step47684-{MIX}": MIX,
    "lc-4k-to-32k-step-4000": "lc-4k-to-32k",
    "epoch=0-step=500-v1.ckpt": "v1",
    "OLMo-1B-step500": "OLMo-1B",
}
WITHOUT_A_STEP = (
    "main last.ckpt epoch=3.ckpt Qwen2-0.5B OLMo-2-0425-1B v1.0 step runs lockstep5 step12.5 "
    "stage2 it-SFT tokens4B epoch_3 2024-run"
)


@pytest.mark.parametrize("text", NAMES)
def test_real_names_are_read(text: str) -> None:
    name = read_name(text)
    assert name == NAMES[text]
    assert name is not None
    assert name.branch == BRANCHES.get(text, "")


@pytest.mark.parametrize("text", ["", "step" + 5000 * "9", *WITHOUT_A_STEP.split()])
def test_names_without_a_step_are_not_read(text: str) -> None:
    assert read_name(text) is None
    assert read_names(["step1", text]) == read_names(["step1"])


OLMO_2 = "stage1-step10 stage1-step20 stage2-ingredient1-step10 stage2-ingredient2-step10"
OLMO_3 = "stage1-step5 stage1-step10 stage2-step3 stage2-step9 stage2-step9-mix-a stage3-step1"
SMOL_3 = "stage1-step-40 stage1-step-80 stage2-step-120 lc-4k-to-32k-step-4"


@pytest.mark.parametrize(
    ("texts", "runs"),
    [
        (OLMO_2, {"": 2, "stage2-ingredient1": 1, "stage2-ingredient2": 1}),
        (OLMO_3, {"": 2, "stage2": 2, "stage2-mix-a": 1, "stage3": 1}),
        (SMOL_3, {"lc-4k-to-32k": 1, "": 3}),
        ("step5 stage1-step2", {"": 1, "stage1": 1}),
        ("checkpoint-2 checkpoint-10", {"": 2}),
        ("stage2-step1 stage2-step2", {"": 2}),
        ("epoch=0-step=5-loss=2.5.ckpt epoch=1-step=9-loss=1.5.ckpt", {"": 2}),
        ("", {}),
    ],
)
def test_parallel_branches_and_new_starts_are_runs_of_their_own(
    texts: str, runs: dict[str, int]
) -> None:
    found = split_runs(read_names(texts.split()))
    assert {run: len(names) for run, names in found.items()} == runs
    for names in found.values():
        steps = [name.step for name in names]
        assert steps == sorted(set(steps))
    assert sorted(name.text for names in found.values() for name in names) == sorted(texts.split())


# Choices


def spaced(num: int, *steps: int) -> list[int]:
    return [name.step for name in choose_spaced(read_names(f"step{n}" for n in steps), num)]


def test_spaced_choices_are_log_spaced_with_both_ends() -> None:
    assert spaced(5, *(2**k for k in range(13))) == [1, 8, 64, 512, 4096]
    pythia = spaced(20, 0, *(2**k for k in range(10)), *range(1000, 143001, 1000))
    assert (len(pythia), pythia[0], pythia[1], pythia[-1]) == (20, 0, 1, 143000)
    ratios = [math.log(b / a) for a, b in pairwise(pythia[1:])]
    assert max(ratios) < 3 * min(ratios)
    olmo = spaced(20, *range(0, 1_454_001, 1000))  # sparse at the start: taken one by one
    assert (len(set(olmo)), olmo[:4], olmo[-1]) == (20, [0, 1000, 2000, 3000], 1_454_000)
    gaps = [b - a for a, b in pairwise(olmo)]
    assert gaps == sorted(gaps)
    assert spaced(5, 1, 2, 3, 4, 5, 6, 1000) == [1, 4, 5, 6, 1000]  # a gap takes no place
    for num, first in product(range(2, 12), (0, 1, 1000)):
        chosen = spaced(num, *range(first, first + 9))
        assert len(set(chosen)) == len(chosen) == min(num, 9)
        assert (chosen[0], chosen[-1]) == (first, first + 8)
    names = read_names(f"stage{stage}-step{n}" for stage in (1, 2) for n in range(1, 5))
    two = [name.text for name in choose_spaced(names, 2)]  # of each run
    assert two == ["stage1-step1", "stage1-step4", "stage2-step1", "stage2-step4"]


def test_the_nearest_number_of_tokens_is_taken_from_the_names() -> None:
    names = read_names(f"step{n}-tokens{n}B" for n in (0, 2, 4, 9))
    chosen = choose_tokens(add_tokens(names), [4e9, 10e9, 3.9e9, 100e9])
    assert {name.step: for_ for name, for_ in chosen.items()} == {4: [4e9, 3.9e9], 9: [1e10, 1e11]}
    told = ("stage1-step1-tokens5B", "stage1-step9-tokens4000B", "stage2-step8-tokens50B")
    names = read_names(told)  # tokens of later stages count on
    assert [name.text for name in choose_tokens(add_tokens(names), [4e9, 4049e9])] == [*told[::2]]
    with pytest.raises(InputError, match=r"no name says how many tokens .*\(step1, step2\)"):
        choose_tokens(dict.fromkeys(read_names(["step1", "step2"])), [4e9])


@pytest.mark.parametrize(
    ("billions", "expected"),
    [
        (14, ["ingredient1 4", "ingredient2 4", "ingredient3 4"]),  # as near, all three
        (15.2, ["ingredient1 5", "ingredient2 5", "ingredient3 6"]),  # each reaches it
        (17.9, ["ingredient3 8"]),  # which the others do not
        (99, ["ingredient3 8"]),
        (9, [" 10"]),
    ],
)
def test_parallel_branches_are_chosen_together(billions: float, expected: list[str]) -> None:
    second = {1: (4, 5, 6), 2: (4, 5, 6), 3: (4, 6, 8)}
    told = [
        f"stage2-ingredient{i}-step{n}-tokens{n}B" for i, steps in second.items() for n in steps
    ]
    names = read_names(["stage1-step1-tokens1B", "stage1-step10-tokens10B", *told])
    chosen = choose_tokens(add_tokens(names), [billions * B])
    assert [f"{name.branch} {name.step}" for name in chosen] == expected


def test_tokens_are_parsed() -> None:
    assert parse_tokens("4B,10b, 0.5T,250M") == [4 * B, 10 * B, 500 * B, 250 * 10**6]
    assert parse_tokens("3.2B,4e9,7,2K") == [3_200_000_000, 4 * B, 7, 2000]
    for wrong in ("4X", "", "4B,,5B", "-4B", "B", "4 B B", "1e999", "9e307T"):
        with pytest.raises(InputError, match=r"is no number of tokens; write them like 4B,10B"):
            parse_tokens(wrong)


TEXTS = ["main", "step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "step3000-tokens6B"]
STAGED = ["stage1-step10", "stage2-ingredient1-step11", "stage2-ingredient2-step50"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("step*", TEXTS[1:]), ("step?000-*", TEXTS[2:]), ("main", ["main"]), ("odd[1]", ["odd[1]"])],
)
def test_globs_and_names_are_matched(pattern: str, found: list[str]) -> None:
    assert match_names(pattern, [*TEXTS, "odd[1]"]) == found


@pytest.mark.parametrize(
    ("pattern", "texts", "nearest"),
    [
        ("step1000-tokens4B", TEXTS, f"among 5; the closest: {TEXTS[2]}, {TEXTS[1]}, {TEXTS[3]}"),
        ("step2900-tokens9B", TEXTS, f"closest: {TEXTS[4]}"),
        ("mian", TEXTS, "closest: main"),
        ("step7", ["main"], "closest: main"),
        ("stage2-ingredient2-step11", STAGED, f"closest: {STAGED[2]}"),
        ("step*", [], "among 0; the closest: nothing there"),
    ],
)
def test_a_name_that_does_not_exist_gets_the_closest(
    pattern: str, texts: list[str], nearest: str
) -> None:
    with pytest.raises(InputError, match=re.escape(nearest)):
        match_names(pattern, texts)


@pytest.mark.parametrize(
    ("titles", "found"),
    [
        (["Training in progress, step 500 "], {"step500": 0}),
        (
            ["Saving HF Model -- Step 2000", "Saving HF Model -- Step 1000"],
            {"step2000": 0, "step1000": 1},
        ),
        (["Training in progress, step 5 (again)", "Training in progress, step 5"], {"step5": 0}),
        (["End of training", "Training in progress, step 7"], {"step7": 1, "step8": 0}),
        (["Training in progress, step 7", "End of training"], {"step7": 0}),
        (["End of training", "initial commit"], {}),
        (["Training in progress, epoch 1", "Model save", "step 3"], {}),
    ],
)
def test_titles_of_commits_say_steps(titles: list[str], found: dict[str, int]) -> None:
    commits = [(title, f"{number}") for number, title in enumerate(titles)]
    assert read_titles(commits) == {name: f"{number}" for name, number in found.items()}
