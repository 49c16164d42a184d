"""Where the blocks of a model are: what is taken for them, and what is named where none can be."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from sr_monitor.errors import InputError
from sr_monitor.model.anatomy import dissect
from tests.zoo import LectureGPT, NanoGPT, build


class Part(nn.Module):
    """A module of a class of its own, with a layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


class OtherPart(Part):
    """A module of another class."""


class Model(Part):
    """A model that may have anything in it, under the name `beside`."""

    def __init__(self, beside: nn.Module) -> None:
        super().__init__()
        self.beside = beside


def without_forward() -> nn.Module:
    """Lists of a layer's parts, one list a layer, as in x-transformers."""
    layers = [nn.ModuleList([nn.ModuleList([Part()]), Part()]) for _ in range(3)]
    layers[0].append(None)  # type: ignore[arg-type]
    return nn.ModuleList(layers)


def keyed(*keys: str, make: Callable[[], nn.Module] = Part) -> nn.ModuleDict:
    return nn.ModuleDict({key: make() for key in keys})


NO_BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
    "MLP": lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
    "rows": lambda: nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))),
    "two classes": lambda: nn.Sequential(Part(), OtherPart()),
    "one module": lambda: nn.Sequential(Part()),
    "empty": nn.Sequential,
    "empty list": nn.ModuleList,
    "empty dictionary": nn.ModuleDict,
    "names": lambda: keyed("query", "key"),
    "a number short": lambda: keyed("0", "1", "3"),
    "two prefixes": lambda: keyed("a0", "b1"),
    "numbered layers": lambda: keyed("fc1", "fc2", make=lambda: nn.Linear(2, 2)),
    "without forward": without_forward,
}
BLOCKS: dict[str, Callable[[], Any]] = {
    "list": lambda: nn.ModuleList([Part(), OtherPart()]),
    "row": lambda: nn.Sequential(Part(), Part()),
    "dictionary": lambda: keyed("0", "1"),
    "prefix": lambda: keyed(*(f"layer_{index}" for index in range(9, 12))),
    "one block": lambda: keyed("0"),
    "a group": lambda: nn.ModuleDict({"first": Part(), "blocks": nn.ModuleList([Part(), Part()])}),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_only_list_of_blocks_is_found(kind: str) -> None:
    beside = BLOCKS[kind]()
    inside = beside["blocks"] if kind == "a group" else beside
    assert list(dissect(Model(beside)).blocks) == list(inside.children())


def test_lists_inside_blocks_are_no_candidates() -> None:
    model = LectureGPT()  # a list of heads in each block
    assert list(dissect(model).blocks) == list(model.blocks)


@pytest.mark.parametrize("kind", NO_BLOCKS)
def test_what_is_no_list_of_blocks_is_no_second_one(kind: str) -> None:
    model = NanoGPT()
    model.beside = NO_BLOCKS[kind]()
    assert list(dissect(model).blocks) == list(model.get_submodule("transformer.h").children())
    with pytest.raises(InputError, match=r"^Model .* 0 lists .*layer_path=\[\.\.\.\]$"):
        dissect(Model(NO_BLOCKS[kind]()))


def test_a_row_around_the_whole_model_does_not_hide_its_blocks() -> None:
    model = NanoGPT()
    assert list(dissect(nn.Sequential(model)).blocks) == list(dissect(model).blocks)
    with pytest.raises(InputError, match=r"2 lists .* '0\.transformer\.h' .* '1\.transformer\.h'"):
        dissect(nn.Sequential(model, NanoGPT()))


def test_of_two_lists_both_are_named_and_either_can_be_chosen() -> None:
    model = Model(BLOCKS["list"]())
    model.other = keyed("0")
    with pytest.raises(InputError, match=r"2 lists .*layer_path=.* 'beside' \(2\), 'other' \(1\)"):
        dissect(model)
    for path in ("beside", "other"):
        blocks = list(model.get_submodule(path).children())
        assert list(dissect(model, path).blocks) == blocks
        assert list(dissect(model, blocks).blocks) == blocks


def test_lists_inside_a_decoder_are_named_by_paths_from_the_model() -> None:
    model: Any = build("llama").model
    model.model.other = nn.ModuleList(Part() for _ in range(3))
    with pytest.raises(InputError, match=r"2 lists .* 'model.layers' \(3\), 'model.other' \(3\)"):
        dissect(model)
    assert list(dissect(model, "model.layers").blocks) == list(model.model.layers)


def test_any_dictionary_of_modules_can_be_named() -> None:
    model = Model(keyed("attention", "mlp"))
    assert len(dissect(model, "beside").blocks) == 2


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("make", "layer_path", "said"),
    [
        (BLOCKS["list"], "blocks", r"'blocks' names nothing in Model.*'beside' \(2\)"),
        (BLOCKS["list"], "layer", "'layer' names a Linear"),
        (without_forward, "beside", "names a ModuleList of modules without a forward"),
        (nn.ModuleDict, "beside", "names a ModuleDict in"),
        (BLOCKS["list"], [], r"layer_path=\[\]: pass"),
        (BLOCKS["list"], [Part()], r"layer_path\[0\] is a Part that is no module of Model"),
        (BLOCKS["list"], ["beside"], r"layer_path\[0\] is a str"),
    ],
)
def test_what_names_no_blocks_is_refused(
    make: Callable[[], nn.Module], layer_path: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        dissect(Model(make()), layer_path)
    assert "\n" not in str(caught.value)


def test_given_blocks_without_a_forward_or_twice_the_same_are_refused() -> None:
    model = Model(without_forward())
    with pytest.raises(InputError, match=r"layer_path\[0\] is a ModuleList"):
        dissect(model, list(model.beside.children()))
    model = Model(nn.ModuleList([Part(), Part()]))
    with pytest.raises(InputError, match="same module as more than one block"):
        dissect(model, [*model.beside.children()] * 2)


def test_a_config_may_leave_open_how_many_positions_there_are() -> None:
    """As those that OLMo-core writes for Hugging Face."""
    model: Any = build("olmo").model
    assert dissect(model).max_tokens == model.config.max_position_embeddings > 0
    model.config.max_position_embeddings = -1
    assert dissect(model).max_tokens is None
