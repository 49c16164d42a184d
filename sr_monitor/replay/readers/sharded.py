"""Sharded checkpoints of `torch.distributed.checkpoint`, read without its loader.

Such a folder holds files of tensors, each tensor saved by itself with `torch.save`, and a table
that says which bytes of which file are which part of which weight. FSDP, Lightning's sharded
strategies and accelerate write them. Torch's own loader unpickles the table, runs what some of
its entries hold, and opens whatever paths it names; here the table is data, and each claim in it
is checked against the files in the folder before memory is taken for it.

    folder = Path("checkpoint-500/pytorch_model_fsdp_0")
    weights = read_parts(folder, read_table(folder / METADATA))
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from sr_monitor.replay.readers.inert import Name, Stub, pairs, read_inert, strings, stub

METADATA = ".metadata"
"""The table of a sharded checkpoint, which is written last."""

_WEIGHTS = ("model", "state_dict")
"""Where the weights are: the key of FSDP, and the other one that Lightning uses."""
_DCP = "torch.distributed.checkpoint"
_TABLE, _TENSOR, _PROPERTIES, _CHUNK, _INDEX = (
    f"{_DCP}.metadata.{name}"
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
    )
)
_PLACE = f"{_DCP}.filesystem._StorageInfo"
_SIZE = "torch.Size"
_DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
_PATHS = (f"pathlib{p}.{kind}Path" for p in ("", "._local") for kind in ("Posix", "Windows"))
_NAMES = frozenset(
    [_TABLE, _TENSOR, _PROPERTIES, _CHUNK, _INDEX, _PLACE, _SIZE, *_DTYPES, *_PATHS]
    + [f"{_DCP}.metadata.{n}" for n in ("BytesStorageMetadata", "StorageMeta")]
    + [f"{_DCP}.metadata._MEM_FORMAT_ENCODING", "torch.serialization._get_layout"]
    + ["collections.OrderedDict"]
)
"""All that a table may name."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of a weight, and the bytes of a file that hold it."""

    offsets: Shape
    shape: Shape
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight, in one part or in several."""

    dtype: torch.dtype
    shape: Shape
    parts: list[_Part]


Weights = Mapping[str, _Weight]
"""What the table of a checkpoint lists."""


def read_table(file: Path) -> Weights:
    """Return what the table lists as weights, by their names in the model.

    Those under the key "model" or "state_dict" if there is one, else every tensor.
    """
    table = stub(read_inert(file.read_bytes(), _NAMES)).fields(_TABLE)
    entries, places = strings(table["state_dict_metadata"]), _places(table["storage_data"])
    weights = {}
    for name, own in _weight_names(table.get("planner_data"), entries).items():
        entry = entries.get(name)
        if isinstance(entry, Stub) and entry.name == _TENSOR:  # others are pickles, left alone
            weights[own] = _weight(name, entry, places)
    return weights


def read_parts(folder: Path, weights: Weights) -> dict[str, Tensor]:
    """Return the weights that a table lists, whole; no process group is needed."""
    names = {part.file for weight in weights.values() for part in weight.parts}
    files = {name: _inside(folder, name) for name in names}
    _check_sizes(weights.values(), {name: file.stat().st_size for name, file in files.items()})
    return {name: _join(weight, files) for name, weight in weights.items()}


def _weight_names(planner: object, entries: Iterable[str]) -> dict[str, str]:
    """Map the names of the weights in the table to those without the key that they are under."""
    paths: dict[str, tuple[str, ...]] = {name: (name,) for name in entries}
    if isinstance(planner, Stub) and planner.items:
        paths = {name: _path(path) for name, path in strings(planner).items()}
    keys = {path[0] for path in paths.values() if len(path) > 1}
    under = next((key for key in _WEIGHTS if key in keys), None)
    if under is None:
        return {name: ".".join(path) for name, path in paths.items()}
    return {name: ".".join(path[1:]) for name, path in paths.items() if path[0] == under}


def _path(path: object) -> tuple[str, ...]:
    if not (isinstance(path, tuple) and path and all(type(key) in (str, int) for key in path)):
        raise ValueError("the path of a weight is none")
    return tuple(map(str, path))


def _places(storage: object) -> dict[tuple[str, Shape], Stub]:
    """Map the name and the offsets of each part to its place in the files."""
    found = {}
    for index, place in pairs(storage):
        fields = stub(index).fields(_INDEX)
        if fields.get("offset") is not None:  # pickles have none
            found[str(fields["fqn"]), _shape(fields["offset"])] = stub(place)
    return found


def _weight(name: str, entry: Stub, places: dict[tuple[str, Shape], Stub]) -> _Weight:
    """Return a weight as its entry describes it, with the place of each of its parts."""
    fields = entry.fields(_TENSOR)
    if not isinstance(fields["chunks"], list):
        raise ValueError(f"{name} has no list of chunks")
    parts = [_part(name, stub(chunk).fields(_CHUNK), places) for chunk in fields["chunks"]]
    return _Weight(_dtype(fields["properties"]), _shape(fields["size"]), parts)


def _part(name: str, box: dict[str, object], places: dict[tuple[str, Shape], Stub]) -> _Part:
    offsets, shape = _shape(box["offsets"]), _shape(box["sizes"])
    place = places[name, offsets].fields(_PLACE)
    if place.get("transform_descriptors"):
        raise ValueError(f"{name} is compressed; save it without extensions")
    file = place["relative_path"]
    if not isinstance(file, str):
        raise ValueError(f"{name} is in no file")
    return _Part(offsets, shape, file, _count(place["offset"]), _count(place["length"]))


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a size that is none")
    return value


def _shape(value: object) -> Shape:
    """Return the sizes in a `torch.Size`."""
    args = value.args if isinstance(value, Stub) and value.name == _SIZE else ()
    if not (len(args) == 1 and isinstance(args[0], tuple)):
        raise ValueError("a shape that is none")
    return tuple(map(_count, args[0]))


def _dtype(properties: object) -> torch.dtype:
    """Return the dtype, which comes first in the state of a `TensorProperties`."""
    found = stub(properties)
    first = found.state[0] if isinstance(found.state, tuple) and found.state else None
    if found.name != _PROPERTIES or not isinstance(first, Name) or first.name not in _DTYPES:
        raise ValueError("a dtype that is none")
    return _DTYPES[first.name]


def _inside(folder: Path, name: str) -> Path:
    """Return a file in the folder, or refuse one that is elsewhere or no regular file."""
    path = folder / name
    if ".." in path.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"its table names {name!r}, outside of the folder")
    if not path.is_file():
        raise ValueError(f"{name!r} is missing")
    return path


def _check_sizes(weights: Iterable[_Weight], sizes: Mapping[str, int]) -> None:
    """Refuse parts that exceed their weight or their file, and bytes that are used twice."""
    total = 0
    for weight in weights:
        for part in weight.parts:
            total += part.length
            ends = (o + n for o, n in zip(part.offsets, part.shape, strict=True))
            if any(end > n for end, n in zip(ends, weight.shape, strict=True)):
                raise ValueError("a part reaches beyond its weight")
            needed = math.prod(part.shape) * weight.dtype.itemsize
            if part.start + part.length > sizes[part.file] or part.length < needed:
                raise ValueError(f"{part.file!r} is too short")
        if sum(math.prod(part.shape) for part in weight.parts) != math.prod(weight.shape):
            raise ValueError("the parts of a weight do not add up to it")
    if total > sum(sizes.values()):
        raise ValueError("several weights share the same bytes")


def _join(weight: _Weight, files: Mapping[str, Path]) -> Tensor:
    """Return a weight put together from its parts, which have to cover it."""
    tensors = ((part, _load(files[part.file], part, weight.dtype)) for part in weight.parts)
    if len(weight.parts) == 1:
        return next(tensors)[1]
    whole = torch.empty(weight.shape, dtype=weight.dtype)
    covered = torch.zeros(weight.shape, dtype=torch.bool)
    for part, tensor in tensors:
        box = tuple(slice(o, o + n) for o, n in zip(part.offsets, part.shape, strict=True))
        whole[box] = tensor
        covered[box] = True
    if not covered.all():
        raise ValueError("the parts of a weight overlap")
    return whole


def _load(file: Path, part: _Part, dtype: torch.dtype) -> Tensor:
    """Return the tensor that was saved in these bytes, if it is the one that the table says."""
    with file.open("rb") as opened:
        opened.seek(part.start)
        content = BytesIO(opened.read(part.length))
    if sum(entry.file_size for entry in ZipFile(content).infolist()) > part.length:
        raise ValueError(f"{part.file!r} is compressed")
    content.seek(0)
    tensor: object = torch.load(content, map_location="cpu", weights_only=True)
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{part.file!r} holds no plain tensor where its table says so")
    if (tensor.dtype, tuple(tensor.shape)) != (dtype, part.shape):
        raise ValueError(f"{part.file!r} holds another tensor than its table says")
    return tensor.detach()
