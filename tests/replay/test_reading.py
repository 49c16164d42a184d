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
from torch.distributed.checkpoint.metadata import MetadataIndex

from sr_monitor.errors import InputError
from sr_monitor.replay.reading import read_index, read_safetensors, read_sharded, read_torch
from tests.trained import save_shards


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


@pytest.mark.parametrize(
    ("wrap", "beside"),
    [
        (lambda weights: {"model": weights}, {"optimizer_0": {"state": {"a": torch.ones(3)}}}),
        (
            lambda weights: {"state_dict": weights},
            {"optimizer_states": {"m": torch.ones(3), "n": 1}},
        ),
        (lambda weights: weights, {}),
        (lambda weights: {f"model.{name}": tensor for name, tensor in weights.items()}, {}),
    ],
)
def test_shards_are_read_whole_in_each_layout(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]], beside: dict[str, Any]
) -> None:
    weights = some_weights()
    content = wrap(weights)
    save_shards(content | beside, tmp_path / "dcp")
    flat = all(isinstance(entry, Tensor) for entry in content.values())
    assert_same(read_sharded(tmp_path / "dcp"), content if flat else weights)


def test_halves_from_two_ranks_are_joined(tmp_path: Path) -> None:
    """The table that two ranks leave: one weight in two chunks."""
    whole = torch.randn(7, 3)
    folder = save_shards({"model": {"w": whole[:4], "other": whole[4:]}}, tmp_path / "dcp")
    table = pickle.loads((folder / ".metadata").read_bytes())
    entries, places = table.state_dict_metadata, table.storage_data
    second = entries.pop("model.other").chunks[0]
    second.offsets = torch.Size([4, 0])
    entries["model.w"].chunks.append(second)
    entries["model.w"].size = whole.shape
    place = places.pop(MetadataIndex("model.other", [0, 0]))
    places[MetadataIndex("model.w", [4, 0], 1)] = place
    del table.planner_data["model.other"]
    (folder / ".metadata").write_bytes(pickle.dumps(table))
    assert_same(read_sharded(folder), {"w": whole})


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


def test_code_in_the_table_of_shards_is_not_run(tmp_path: Path, trap: Trap) -> None:
    folder = save_shards({"model": some_weights()}, tmp_path / "dcp")
    table = folder / ".metadata"
    content = pickle.loads(table.read_bytes())
    content.planner_data["trap"] = trap
    for protocol in (2, 4, 5):
        table.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(InputError, match=r"metadata' holds more than weights \(GLOBAL "):
            read_sharded(folder)
    assert not trap.marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os"),
        ("torch", "load"),
        ("torch", "float32.__class__"),
        ("builtins", "eval"),
        ("pathlib", "Path.touch"),
    ],
)
def test_no_detour_leads_out_of_the_table(tmp_path: Path, module: str, name: str) -> None:
    # Protocol 4 looks dotted names up, attribute by attribute.
    opcodes = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    opcodes += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    (tmp_path / ".metadata").write_bytes(opcodes)
    with pytest.raises(InputError, match=r"holds more than weights \(GLOBAL "):
        read_sharded(tmp_path)


def test_code_in_the_shards_is_not_run(tmp_path: Path, trap: Trap) -> None:
    folder = save_shards({"model": {"a": torch.ones(3)}}, tmp_path / "dcp")
    torch.save({"trap": trap}, folder / "trapped")
    (shard,) = folder.glob("*.distcp")
    content = pickle.loads((folder / ".metadata").read_bytes())
    (info,) = content.storage_data.values()
    info.offset, info.length = 0, (folder / "trapped").stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    (folder / "trapped").replace(shard)
    with pytest.raises(
        InputError, match=r"dcp' holds more than weights \(.*GLOBAL .*\) and is not"
    ):
        read_sharded(folder)
    assert not trap.marker.exists()


def test_pickles_beside_the_weights_are_never_opened(tmp_path: Path, trap: Trap) -> None:
    folder = save_shards({"model": some_weights(), "extra": trap}, tmp_path / "dcp")
    assert read_sharded(folder).keys() == some_weights().keys()
    bare = save_shards({"a": torch.ones(2), "extra": trap}, tmp_path / "bare")
    assert read_sharded(bare).keys() == {"a"}
    assert not trap.marker.exists()


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


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    folder = save_shards({"model": some_weights()}, tmp_path / "dcp")
    table, (shard,) = (folder / ".metadata"), folder.glob("*.distcp")
    kept, whole = table.read_bytes(), shard.read_bytes()
    for content in (kept[:50], pickle.dumps(3)):
        table.write_bytes(content)
        with pytest.raises(InputError, match=r"metadata' is damaged or no file of weights"):
            read_sharded(folder)
    table.write_bytes(kept)
    shard.write_bytes(whole[:100])
    with pytest.raises(InputError, match="dcp' is damaged or no file of weights"):
        read_sharded(folder)
    shard.unlink()
    with pytest.raises(InputError, match="dcp' "):
        read_sharded(folder)


def test_files_of_other_things_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    with pytest.raises(InputError, match=r"list.bin' holds a list, not weights by name; save the"):
        read_torch(tmp_path / "list.bin")
