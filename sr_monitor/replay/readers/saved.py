"""Weights that stay on the disk until they are asked for, one file at a time.

weights = saved_in([Path("model.safetensors")], load_file)
weights["lm_head.weight"].like.shape     # known without reading the values
weights["lm_head.weight"].load()
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Saved:
    """A weight in a checkpoint."""

    like: Tensor
    """A tensor of its shape and dtype, without values, on the meta device."""
    load: Callable[[], Tensor]

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Saved":
        """Return what becomes of it, as a transpose or a slice, once it is loaded."""
        return Saved(change(self.like), lambda: change(self.load()))


def held(tensors: Mapping[str, Tensor]) -> dict[str, Saved]:
    """Return tensors that are in memory already."""
    likes = _likes(tensors)
    return {name: Saved(likes[name], partial(_same, t)) for name, t in tensors.items()}


def saved_in(
    files: Iterable[Path], read: Callable[[Path], Mapping[str, Tensor]]
) -> dict[str, Saved]:
    """Return the weights in some files; the file last loaded from is the only one kept open."""
    last: dict[Path, Mapping[str, Tensor]] = {}

    def load(file: Path, name: str) -> Tensor:
        if file not in last:
            last.clear()  # first, so that no two files are in memory
            last[file] = read(file)
        return last[file][name]

    return {
        name: Saved(like, partial(load, file, name))
        for file in files
        for name, like in _likes(read(file)).items()
    }


def renamed(weights: Mapping[str, Saved], names: Mapping[str, str]) -> dict[str, Saved]:
    """Return weights under other names, where `*` is the number of a block; others keep theirs."""
    found = {}
    for name, saved in weights.items():
        number = _NUMBER.search(name)
        known = names.get(_NUMBER.sub(".*.", name, count=1), name)
        found[known.replace("*", number[1] if number else "*")] = saved
    return found


def _likes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def _same(tensor: Tensor) -> Tensor:
    return tensor
