"""Files of weights are read as they were saved, nothing in them is run, and damage is named."""

import json
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import find_checkpoints
from sr_monitor.replay.readers import recognise
from sr_monitor.replay.readers.base import READERS, CheckpointReader, register
from sr_monitor.replay.readers.files import read_safetensors, read_torch, tensors_in
from sr_monitor.replay.readers.saved import Saved, saved_in


@pytest.mark.parametrize("kind", ["safetensors", "new.bin", "old.bin"])
def test_weights_come_out_as_they_went_in_or_the_damage_is_named(tmp_path: Path, kind: str) -> None:
    file, read = tmp_path / f"w.{kind}", read_safetensors if kind == "safetensors" else read_torch
    with pytest.raises(InputError, match=rf"w.{kind}' is missing; copy or download it again$"):
        read(file)
    file.touch()
    with pytest.raises(InputError, match=rf"w.{kind}' is empty; copy or download it again$"):
        read(file)
    weights = {"a": torch.randn(99, 5), "b": torch.randn(4).bfloat16(), "c": torch.arange(3)}
    if kind == "safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "new.bin")
    found, whole = read(file), file.read_bytes()
    assert found.keys() == weights.keys()
    for name, tensor in tensors_in(found).items():
        assert (tensor.dtype, tensor.tolist()) == (weights[name].dtype, weights[name].tolist())
    for content in (whole[: len(whole) // 2], b"<html>not found</html>", whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"w.{kind}' is damaged or no file of weights \(.+;"):
            read(file)


def test_code_in_a_torch_file_is_not_run(tmp_path: Path, trap: object) -> None:
    torch.save({"a": torch.ones(2), "trap": trap}, tmp_path / "new.bin")
    torch.save({"trap": trap}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(trap, protocol=2))
    torch.save({"a": torch.ones(2), "args": Namespace(lr=1)}, tmp_path / "harmless.bin")
    for file in tmp_path.glob("*.bin"):
        expected = rf"{file.name}' holds more than weights .*GLOBAL .* is not run.* its state_dict"
        with pytest.raises(InputError, match=expected):
            read_torch(file)


def test_files_of_other_things_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    with pytest.raises(InputError, match=r"list.bin' holds a list, not weights by name"):
        read_torch(tmp_path / "list.bin")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b"])
def test_an_index_names_files_beside_it_only(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match=r"index.json' is damaged .*Invalid name"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("state", "step"),
    [(b'{"global_step": 7}', 7), (b'{"global_step": 1e9}', 0)]
    + [(content, 0) for content in (b"{", b"[]", b'{"global_step": 9223372036854775808}')]
    + [(b"[" * 100_000, 0)],
    ids=range(6),
)
def test_the_step_is_that_of_the_state_if_it_is_one(
    tmp_path: Path, state: bytes, step: int
) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_bytes(state)
    assert find_checkpoints(tmp_path)[0].name.step == step


def test_a_new_kind_of_checkpoint_is_one_class(tmp_path: Path) -> None:
    before = list(READERS)

    @register
    class OurTrainer(CheckpointReader):
        looked_for = "our trainer's weights.pt"

        def recognises(self, path: Path) -> bool:
            return path.name == "weights.pt"

        def read(self, path: Path) -> dict[str, Saved]:
            return saved_in([path], lambda file: tensors_in(read_torch(file)["model"]))

    try:
        torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "weights.pt")
        (found,) = find_checkpoints(tmp_path)
        assert found.read(None)["w"].load().tolist() == [1, 1]
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"looked, .* our trainer's weights.pt"):
            find_checkpoints(tmp_path / "empty")
    finally:
        READERS[:] = before
    assert recognise(tmp_path / "weights.pt") is None
