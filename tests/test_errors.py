"""What is wrong with an argument, in one short line."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from sr_monitor.errors import InputError, check_folder_name, check_kind, check_word, whole

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_kind_become_int(value: Any) -> None:
    number = whole("num_pairs", value, least=1)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [2.0, "2", None, [2], torch.tensor([1, 2])])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^num_pairs=.*: pass a whole number$"):
        whole("num_pairs", value, least=1)


def test_a_number_that_is_too_small_is_refused_alone_or_in_its_call() -> None:
    with pytest.raises(InputError, match=r"^num_pairs=0: pass 1 or more$"):
        whole("num_pairs", 0, least=1)
    with pytest.raises(InputError, match=r"^every\(0\): n is 0; pass 1 or more$"):
        whole("n", 0, least=1, call="every(0)")
    assert whole("seed", -1) == -1


def test_a_word_is_one_of_those_there_are() -> None:
    check_word("way", "up", Literal["up", "down"])
    with pytest.raises(InputError, match=r"^way='left': pass one of up, down$"):
        check_word("way", "left", Literal["up", "down"])


def test_of_a_long_value_the_beginning_is_told_in_one_line() -> None:
    check_kind("prompts", "a", str | None, "pass text")
    with pytest.raises(InputError) as caught:
        check_kind("prompts", torch.zeros(50, 9), str | None, "pass text")
    assert str(caught.value).startswith("prompts=tensor([[0., 0., ")
    assert str(caught.value).endswith("...: pass text")
    assert len(str(caught.value)) < 100
    assert "\n" not in str(caught.value)


def test_a_name_is_that_of_one_folder() -> None:
    for name in ("stable_regions", "layer 4!", "v1.2", "..."):
        check_folder_name("name", name)
    for wrong in ("", ".", "..", "a/b", "a/", "../a", "/tmp", None, 5, Path("a")):
        with pytest.raises(InputError, match=r"^name=.*: pass the name of one folder"):
            check_folder_name("name", wrong)


def test_what_measuring_is_given_is_refused_in_words_without_the_type_checks() -> None:
    code = (
        "import torch\n"
        "from sr_monitor import PromptSet, measure_paths, measure_slices\n"
        "from tests.zoo import build\n"
        "model, ids = build('gpt2').model, torch.arange(12).view(3, 4)\n"
        "for call in (\n"
        "    lambda: measure_paths('gpt2', ids, ids),\n"
        "    lambda: measure_paths(model, ids.tolist(), ids),\n"
        "    lambda: measure_paths(model, ids, ids, layer=1.0),\n"
        "    lambda: measure_paths(model, ids, ids, num_steps=5.0),\n"
        "    lambda: measure_slices(model, ids, ids, ids, span=(0,)),\n"
        "    lambda: measure_slices(model, ids, ids, ids, span=(float('-inf'), 1)),\n"
        "    lambda: PromptSet.from_texts('some text', 'gpt2'),\n"
        "):\n"
        "    try: call()\n"
        "    except ValueError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == [
        "InputError model='gpt2': pass the model itself, not its name",
        "InputError prompts=[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]: pass token ids, a "
        "LongTensor (item, token)",
        "InputError layer=1.0: pass a whole number",
        "InputError num_steps=5.0: pass a whole number",
        "InputError span=(0,): pass the lowest coordinate, then a higher one",
        "InputError span=(-inf, 1): pass the lowest coordinate, then a higher one",
        "InputError tokenizer='gpt2': pass the tokenizer itself, such as "
        "AutoTokenizer.from_pretrained(name)",
    ]
