"""Weights come out of files as they went in, and nothing in a file is ever run."""

import json
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.replay.reading import read_index, read_safetensors, read_torch


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A trap that is known to work."""
    trap = Trap(tmp_path / "ran")
    pickle.loads(pickle.dumps(trap))
    assert trap.marker.exists()
    trap.marker.unlink()
    return trap


def some_weights() -> dict[str, Tensor]:
    return {"a.weight": torch.randn(5, 3), "b": torch.randn(4).bfloat16(), "c": torch.arange(3)}


def assert_same(found: dict[str, Any], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_safetensors_are_read(tmp_path: Path) -> None:
    one, two = some_weights(), {"d": torch.ones(2, 2)}
    save_file(one, tmp_path / "1.safetensors")
    save_file(two, tmp_path / "2.safetensors")
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert_same(read_safetensors(files), one | two)


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_read(tmp_path: Path, new: bool) -> None:
    weights = some_weights()
    torch.save(weights, tmp_path / "w.bin", _use_new_zipfile_serialization=new)
    assert_same(read_torch(tmp_path / "w.bin"), weights)


def test_an_index_names_files_beside_it(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "2.st", "a": "1.st", "c": "1.st"}}))
    assert read_index(index) == [tmp_path / "1.st", tmp_path / "2.st"]
    for name in ("../secret", "/etc/passwd", "a/b"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match=r"index.json' is damaged .*Invalid name"):
            read_index(index)


def test_code_in_a_torch_file_is_not_run(tmp_path: Path, trap: Trap) -> None:
    torch.save({"a": torch.ones(2), "trap": trap}, tmp_path / "new.bin")
    torch.save({"trap": trap}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(trap, protocol=2))
    for name in ("new.bin", "old.bin", "bare.bin"):
        expected = rf"{name}' holds more than weights \(.*GLOBAL .*\) and is not run; if you trust"
        with pytest.raises(InputError, match=expected):
            read_torch(tmp_path / name)
    assert not trap.marker.exists()


def test_harmless_objects_are_not_let_in_either(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "args": Namespace(lr=1)}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"\(.*argparse.Namespace.*save its state_dict alone"):
        read_torch(tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("name", "read"),
    [("w.bin", read_torch), ("w.safetensors", lambda file: read_safetensors([file]))],
)
def test_damaged_files_are_named_with_the_reason_and_the_fix(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    file = tmp_path / name
    with pytest.raises(InputError, match=rf"{name}' is missing; copy or download it again$"):
        read(file)
    file.touch()
    with pytest.raises(InputError, match=rf"{name}' is empty; copy or download it again$"):
        read(file)
    weights = {"a": torch.randn(100, 100)}
    torch.save(weights, file) if name == "w.bin" else save_file(weights, file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>not found</html>", whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(
            InputError, match=rf"{name}' is damaged or no file of weights \(.+\); co"
        ):
            read(file)
    file.write_bytes(whole)
    read(file)


def test_files_of_other_things_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    with pytest.raises(InputError, match=r"list.bin' holds a list, not weights by name; save the"):
        read_torch(tmp_path / "list.bin")
