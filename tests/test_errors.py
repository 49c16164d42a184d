"""What is wrong with an argument, in one short line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sr_monitor import PromptSet, measure_paths, measure_slices
from sr_monitor.errors import InputError, check_folder_name, check_kind, check_word, whole
from tests import zoo

pytestmark = pytest.mark.usefixtures("_as_users_run_it")


@pytest.mark.parametrize("value", [2.0, "2", None, [2], torch.tensor([1, 2])])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^num_pairs=.*: pass a whole number$"):
        whole("num_pairs", value, least=1)


def test_a_number_that_is_too_small_is_refused_alone_or_in_its_call() -> None:
    with pytest.raises(InputError, match=r"^num_pairs=0: pass 1 or more$"):
        whole("num_pairs", 0, least=1)
    with pytest.raises(InputError, match=r"^every\(0\): n is 0; pass 1 or more$"):
        whole("n", 0, least=1, call="every(0)")
    assert whole("seed", torch.tensor(-1)) == -1


def test_a_word_is_one_of_those_there_are() -> None:
    check_word("way", "up", Literal["up", "down"])
    with pytest.raises(InputError, match=r"^way='left': pass one of up, down$"):
        check_word("way", "left", Literal["up", "down"])


def test_of_a_long_value_the_beginning_is_told_in_one_line() -> None:
    check_kind("prompts", "a", str | None, "pass text")
    with pytest.raises(InputError, match=r"^prompts=tensor\(\[\[0., 0., .{,50}\.\.\.: pass text$"):
        check_kind("prompts", torch.zeros(50, 9), str | None, "pass text")


def test_a_name_is_that_of_one_folder() -> None:
    for name in ("stable_regions", "layer 4!", "v1.2", "..."):
        check_folder_name("name", name)
    for wrong in ("", ".", "..", "a/b", "a/", "../a", "/tmp", None, 5, Path("a")):
        with pytest.raises(InputError, match=r"^name=.*: pass the name of one folder"):
            check_folder_name("name", wrong)


PATHS: Any = measure_paths
SLICES: Any = measure_slices
TEXTS: Any = PromptSet.from_texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _, ids: PATHS("gpt2", ids, ids), r"^model='gpt2': pass the model itself"),
        (lambda model, ids: PATHS(model, ids.tolist(), ids), r"^prompts=\[\[0, .*: .* LongTensor"),
        (lambda model, ids: PATHS(model, ids, ids, layer=1.0), r"^layer=1\.0: .*whole"),
        (lambda model, ids: PATHS(model, ids, ids, num_steps=5.0), r"^num_steps=5\.0: .*whole"),
        (lambda model, ids: SLICES(model, ids, ids, ids, span=(0,)), r"^span=\(0,\): .*higher"),
        (lambda model, ids: SLICES(model, ids, ids, ids, span=(-torch.inf, 1)), r"^span=\(-inf, 1"),
        (lambda _, __: TEXTS("text", "gpt2"), r"^tokenizer='gpt2': .*tokenizer itself"),
    ],
)
def test_what_measuring_is_given_is_refused_in_words(
    call: Callable[[nn.Module, Tensor], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(zoo.build("gpt2").model, torch.arange(12).view(3, 4))
    assert "\n" not in str(caught.value)
