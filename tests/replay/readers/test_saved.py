"""Weights are loaded when they are asked for, and one file at a time is in memory."""

import weakref
from pathlib import Path

import torch
from torch import Tensor

from sr_monitor.replay.readers.saved import Saved, held, saved_in

FILES = [Path(f"{number}.bin") for number in range(3)]


class Disk:
    """Files of two weights each, and how many of them were in memory at once."""

    def __init__(self) -> None:
        self.read_so_far: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def read(self, file: Path) -> dict[str, Tensor]:
        weights = {f"{file.stem}.{name}": torch.full((2, 3), float(file.stem)) for name in "ab"}
        self.read_so_far += map(weakref.ref, weights.values())
        self.peak = max(self.peak, self.in_memory())
        return weights

    def in_memory(self) -> int:
        return sum(tensor() is not None for tensor in self.read_so_far)


def test_one_file_at_a_time_is_in_memory() -> None:
    disk = Disk()
    weights = saved_in(FILES, disk.read)
    assert disk.in_memory() == 0
    assert {name: tuple(saved.like.shape) for name, saved in weights.items()} == {
        f"{file.stem}.{name}": (2, 3) for file in FILES for name in "ab"
    }
    for name, saved in weights.items():
        assert saved.load().tolist() == torch.full((2, 3), float(name[0])).tolist()
    assert disk.peak == 2


def test_a_change_is_made_of_what_is_loaded_and_of_its_shape() -> None:
    calls: list[int] = []

    def load() -> Tensor:
        calls.append(1)
        return torch.arange(6.0).view(2, 3)

    saved = Saved(torch.empty(2, 3, device="meta"), load).changed(lambda t: t.T[1:])
    assert (tuple(saved.like.shape), saved.like.device.type, calls) == ((2, 2), "meta", [])
    assert saved.load().tolist() == [[1, 4], [2, 5]]
    assert held({"w": torch.ones(2)})["w"].load().tolist() == [1, 1]
