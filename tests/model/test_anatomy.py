"""Where the blocks of a model are: what is taken for them, and what is named where none can be."""

from collections.abc import Callable

import pytest
from torch import nn

from sr_monitor.errors import InputError
from sr_monitor.model.anatomy import dissect
from tests.zoo import LectureGPT, NanoGPT


class Part(nn.Module):
    """Something of a class of its own, with a layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


class OtherPart(Part):
    """Of another class."""


def test_blocks_in_a_row_are_found_and_the_heads_in_them_are_not() -> None:
    model = LectureGPT()
    assert list(dissect(model).blocks) == list(model.blocks)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))),
        lambda: nn.Sequential(Part(), OtherPart()),
        lambda: nn.Sequential(Part()),
        lambda: nn.Sequential(),
        lambda: nn.ModuleList(),
    ],
    ids=["linear", "an MLP", "rows of layers", "two classes", "one module", "empty", "empty list"],
)
def test_what_is_no_row_of_blocks_is_no_second_list(make: Callable[[], nn.Module]) -> None:
    model = NanoGPT()
    model.beside = make()
    assert list(dissect(model).blocks) == list(model.get_submodule("transformer.h").children())


def test_a_row_around_the_whole_model_does_not_hide_its_blocks() -> None:
    model = NanoGPT()
    assert list(dissect(nn.Sequential(model)).blocks) == list(dissect(model).blocks)
    with pytest.raises(InputError, match=r"2 lists .* '0\.transformer\.h' .* '1\.transformer\.h'"):
        dissect(nn.Sequential(model, NanoGPT()))


def test_of_two_lists_both_are_named() -> None:
    model = LectureGPT()
    model.other = nn.ModuleList([nn.Linear(2, 2)])
    said = r"2 lists of modules, not one; .*layer_path=, one of: 'blocks' \(3\), 'other' \(1\)"
    with pytest.raises(InputError, match=said):
        dissect(model)
    assert list(dissect(model, "blocks").blocks) == list(model.blocks)


def test_a_model_without_a_list_is_told_so() -> None:
    with pytest.raises(InputError, match=r"Part .* 0 lists .* \(it has no list of modules\)"):
        dissect(Part())
