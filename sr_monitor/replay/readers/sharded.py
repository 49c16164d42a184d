"""Sharded checkpoints of `torch.distributed.checkpoint`, read without its loader.

Such a folder holds files in which each part of a weight was saved by itself with `torch.save`, and
a table of which bytes hold which part. FSDP, Lightning's sharded strategies and accelerate write
them. Torch's own loader unpickles the table, runs some of what it points to, and opens any path in
it. Here the table is data, and what it says is checked against the files before memory is taken.

    weights = read_sharded(Path("checkpoint-500/pytorch_model_fsdp_0"))
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor

from sr_monitor.replay.readers.base import CheckpointReader, register, step_in
from sr_monitor.replay.readers.files import explained, read_torch
from sr_monitor.replay.readers.inert import Name, Stub, fields, only, read_inert
from sr_monitor.replay.readers.saved import Saved

METADATA = ".metadata"
"""The table of a sharded checkpoint, which is written last."""

_KEYS = ("model", "state_dict")
"""Where the weights are: the key of FSDP, and the other one that Lightning uses."""
_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_MOST_DIMENSIONS = 64  # of a tensor in torch
_DCP = "torch.distributed.checkpoint"
_TENSOR = f"{_DCP}.metadata.TensorStorageMetadata"
_CLASSES = (
    *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
)
_ALLOWED = {
    *_DTYPES,
    *(f"{_DCP}.metadata.{name}" for name in _CLASSES),
    *(f"pathlib{part}.{kind}Path" for part in ("", "._local") for kind in ("Posix", "Windows")),
    f"{_DCP}.filesystem._StorageInfo",
    "olmo_core.distributed.checkpoint.filesystem._StorageInfo",
    "torch.serialization._get_layout",
    "torch.Size",
}
"""All that a table may name, to be kept as a name."""

Shape = tuple[int, ...]


class _Part(NamedTuple):
    """A block of a weight, and the bytes that hold it."""

    offsets: Shape
    shape: Shape
    file: Path
    start: int
    length: int


class Range(NamedTuple):
    """Some bytes of a file of shards."""

    name: str
    start: int
    length: int


class _Weight(NamedTuple):
    """A weight in parts."""

    dtype: torch.dtype
    shape: Shape
    parts: list[_Part]


@register
class ShardedFolder(CheckpointReader):
    """A folder of shards with their table, such as Lightning's sharded `.ckpt` folders."""

    looked_for = f"a folder of shards ({METADATA}), such as Lightning's sharded .ckpt"

    def recognises(self, path: Path) -> bool:
        """Return whether the table is there."""
        return (path / METADATA).is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the weights, whole."""
        return read_sharded(path)

    def step(self, path: Path) -> int | None:
        """Return the step that Lightning saves beside the shards."""
        file = path / "meta.pt"
        return step_in(read_torch(file)) if file.exists() else None


def read_sharded(folder: Path) -> dict[str, Saved]:
    """Return the weights in a folder of shards, each joined once it is loaded, by one process.

    Those under the key "model" or "state_dict" if there is one, else every tensor.
    """
    with explained(folder / METADATA) as file:
        weights = _read_table(file, partial(_inside, folder))
    with explained(folder):
        _check_sizes(weights.values())
        return {
            name: Saved(_like(weight), partial(_load_whole, folder, weight))
            for name, weight in weights.items()
        }


def _like(weight: _Weight) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device="meta")


def listed_ranges(folder: Path) -> list[Range]:
    """Return which bytes of which files hold weights, by the table alone: no shard is read."""
    with explained(folder / METADATA) as file:
        weights = _read_table(file, partial(_plain, folder))
        parts = {part for weight in weights.values() for part in weight.parts}
    found: list[Range] = []
    for name, start, length in sorted((p.file.name, p.start, p.length) for p in parts):
        if found and found[-1].name == name and found[-1].start + found[-1].length == start:
            found[-1] = found[-1]._replace(length=found[-1].length + length)
        else:
            found.append(Range(name, start, length))
    return found


def _plain(folder: Path, name: str) -> Path:
    """Return a file that would lie right in the folder; refuse any other."""
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"it names {name!r}, which is no file of shards")
    return folder / name


def _read_table(file: Path, find: Callable[[str], Path]) -> dict[str, _Weight]:
    """Return the weights that the table lists, by their names in the model."""
    table = fields(read_inert(file.read_bytes(), _ALLOWED))
    entries, find = fields(table["state_dict_metadata"]), cache(find)
    places: dict[object, dict[Shape, object]] = {name: {} for name in entries}
    for index, place in fields(table["storage_data"]).items():
        key = fields(index)
        if key.get("offset") is not None:  # pickles have none
            places[only(str, key["fqn"])][_shape(key["offset"])] = place
    return {
        own: _weight(fields(entry), places[name], find)
        for name, own in _own_names(table.get("planner_data"), entries).items()
        # An entry of another class is a pickle, whatever attributes it has been given.
        if isinstance(entry := entries.get(name), Stub) and entry.name == _TENSOR
    }


def _own_names(planner: object, entries: Iterable[object]) -> dict[str, str]:
    """Map the names of the weights in the table to those without the key that they are under."""
    paths = planner if isinstance(planner, dict) else {}
    keys = {n: p[0] for n, p in paths.items() if isinstance(p, tuple) and len(p) > 1}
    under = next((key for key in _KEYS if key in keys.values()), None)
    names = [name for name in entries if isinstance(name, str)]
    if under is None:
        return {name: name for name in names}
    return {name: name.removeprefix(f"{under}.") for name in names if keys.get(name) == under}


def _weight(
    entry: dict[object, object], places: Mapping[Shape, object], find: Callable[[str], Path]
) -> _Weight:
    """Return a weight with all its parts, as the table describes them."""
    chunks, parts = only(list, entry["chunks"]), []
    if len(chunks) != len(places):
        raise ValueError("the parts of a weight are not those in the files")
    for chunk in map(fields, chunks):
        offsets, shape = _shape(chunk["offsets"]), _shape(chunk["sizes"])
        place = fields(places[offsets])
        if place.get("transform_descriptors"):
            raise ValueError("the shards are compressed; save them without extensions")
        file = find(only(str, place["relative_path"]))
        parts.append(_Part(offsets, shape, file, _count(place["offset"]), _count(place["length"])))
    first, *_ = only(tuple, only(Stub, entry["properties"]).state)
    return _Weight(_DTYPES[only(Name, first).name], _shape(entry["size"]), parts)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a size that is none")
    return value


def _shape(value: object) -> Shape:
    (sizes,) = only(Stub, value).args
    return tuple(map(_count, only(tuple, sizes)[:_MOST_DIMENSIONS]))


def _inside(folder: Path, name: str) -> Path:
    """Return a file in the folder; refuse one that is elsewhere or no regular file."""
    path = folder / name
    if ".." in path.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"it names {name!r}, outside of the folder")
    if not path.is_file():
        raise ValueError(f"{name!r} is missing")
    return path


def _check_sizes(weights: Iterable[_Weight]) -> None:
    """Refuse parts that exceed their weight or their file, and bytes that are used twice."""
    sizes: dict[Path, int] = {}
    total = 0
    for dtype, whole, parts in weights:
        for offsets, shape, file, start, length in parts:
            ends = map(sum, zip(offsets, shape, strict=True))
            if any(end > size for end, size in zip(ends, whole, strict=True)):
                raise ValueError("a part reaches beyond its weight")
            size = sizes.setdefault(file, file.stat().st_size)
            if start + length > size or length < math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{file.name!r} is too short")
            total += length
        if sum(math.prod(part.shape) for part in parts) != math.prod(whole):
            raise ValueError("the parts of a weight do not add up to it")
    if total > sum(sizes.values()):
        raise ValueError("several weights share the same bytes")


def _load_whole(folder: Path, weight: _Weight) -> Tensor:
    with explained(folder):
        return _join(weight)


def _join(weight: _Weight) -> Tensor:
    """Return a weight put together from its parts, which have to cover it."""
    tensors = (_load(part, weight.dtype) for part in weight.parts)
    if len(weight.parts) == 1:
        return next(tensors)
    whole = torch.empty(weight.shape, dtype=weight.dtype)
    covered = torch.zeros(weight.shape, dtype=torch.bool)
    for part, tensor in zip(weight.parts, tensors, strict=True):
        box = tuple(slice(o, o + n) for o, n in zip(part.offsets, part.shape, strict=True))
        whole[box], covered[box] = tensor, True
    if not covered.all():
        raise ValueError("the parts of a weight overlap")
    return whole


def _load(part: _Part, dtype: torch.dtype) -> Tensor:
    """Return the tensor that was saved in some bytes, if it is the one that the table says."""
    with part.file.open("rb") as file:
        file.seek(part.start)
        content = BytesIO(file.read(part.length))
    if sum(entry.file_size for entry in ZipFile(content).infolist()) > part.length:
        raise ValueError(f"{part.file.name!r} is compressed")
    content.seek(0)
    tensor: object = torch.load(content, map_location="cpu", weights_only=True)
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{part.file.name!r} holds no plain tensor where its table says so")
    if (tensor.dtype, tuple(tensor.shape)) != (dtype, part.shape):
        raise ValueError(f"{part.file.name!r} holds another tensor than its table says")
    return tensor.detach()
