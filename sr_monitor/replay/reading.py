"""Files of weights, read without running anything that is in them.

safetensors hold no code. Torch files are read with `weights_only=True`. The table of a sharded
checkpoint (`.metadata`) is a pickle: only the classes that such tables are made of are let in.
Whatever cannot be read is one `InputError` that names the file, the reason and the fix.

    weights = read_safetensors([Path("model.safetensors")])
    weights = read_sharded(Path("checkpoint-500/pytorch_model_fsdp_0"))
"""

import json
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sr_monitor.errors import InputError

METADATA = ".metadata"
"""The table of a sharded checkpoint, which is written last."""

_T = TypeVar("_T")
_COPY_AGAIN = "copy or download it again"
_SAVE_AGAIN = (
    "if you trust it, load it with torch.load(..., weights_only=False) and save its state_dict "
    "alone, as safetensors or with torch.save"
)
_FOREIGN = "GLOBAL"
"""How torch, and the table's reader below, call what a pickle wants to have but may not."""
_ZIP = b"PK\x03\x04"
_WEIGHTS = ("model", "state_dict")
"""Where the weights are in a sharded checkpoint: FSDP's key, and Lightning's other one."""
_DCP = "torch.distributed.checkpoint"
_TABLE_CLASSES = {
    *((f"{_DCP}.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((f"{_DCP}.metadata", f"{kind}StorageMetadata") for kind in ("Bytes", "Chunk", "Tensor")),
    *((f"{_DCP}.metadata", name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(
        (f"pathlib{part}", f"{kind}Path")
        for part in ("", "._local")
        for kind in ("Posix", "Windows")
    ),
}


def read_safetensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All the tensors of some safetensors files."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read(file, load_file)
    return weights


def read_torch(file: Path) -> dict[str, Any]:
    """What a torch file holds, tensors and plain values only."""

    def load(file: Path) -> Any:
        with file.open("rb") as opened:
            mapped = opened.read(len(_ZIP)) == _ZIP  # older files cannot be read in place
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)

    content = _read(file, load)
    if not isinstance(content, dict):
        raise InputError(
            f"{str(file)!r} holds a {type(content).__name__}, not weights by name; save the "
            "model's state_dict"
        )
    return content


def read_index(file: Path) -> list[Path]:
    """The files that an index names, beside it."""

    def load(file: Path) -> list[Path]:
        names = json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
        return [file.with_name(name) for name in sorted(set(names))]  # names, not paths

    return _read(file, load)


def read_sharded(folder: Path) -> dict[str, Tensor]:
    """The weights that `torch.distributed.checkpoint` saved, whole; no process group is needed.

    Those under the key "model" or "state_dict" if there is one, else every tensor.
    """
    table = _read(folder / METADATA, _read_table)
    return _read(folder, lambda folder: _read_tensors(folder, table))


def _read(file: Path, load: Callable[[Path], _T]) -> _T:
    """Calls `load`; whatever goes wrong is about the file."""
    if not file.exists():
        raise InputError(f"{str(file)!r} is missing; {_COPY_AGAIN}")
    if file.is_file() and file.stat().st_size == 0:
        raise InputError(f"{str(file)!r} is empty; {_COPY_AGAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no process group, an old pickle protocol
            return load(file)
    except MemoryError:
        raise
    except PermissionError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}; check its permissions") from error
    except Exception as error:  # damaged files raise nearly anything
        lines = [line.strip() for line in str(error).splitlines()] or [""]
        culprit = next((line for line in lines if _FOREIGN in line), None)
        if culprit is not None:
            raise InputError(
                f"{str(file)!r} holds more than weights ({_short(culprit)}) and is not run; "
                f"{_SAVE_AGAIN}"
            ) from error
        raise InputError(
            f"{str(file)!r} is damaged or no file of weights "
            f"({type(error).__name__}: {_short(lines[0])}); {_COPY_AGAIN}"
        ) from error


def _short(text: str) -> str:
    """The first sentence."""
    return text.split(". ")[0][:160]


class _TableUnpickler(pickle.Unpickler):
    """Lets in the classes of a table of tensors, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        """The class, if it is one of those."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _TABLE_CLASSES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{_FOREIGN} {module}.{name}")


def _read_table(file: Path) -> Any:
    with file.open("rb") as opened:
        table = _TableUnpickler(opened).load()
    if not hasattr(table, "state_dict_metadata"):
        raise ValueError(f"a {type(table).__name__} is no table of tensors")
    return table


def _weights_in(table: Any) -> dict[str, str]:
    """Names of the weights in a table, and without the key that they are under."""
    paths = table.planner_data or {name: (name,) for name in table.state_dict_metadata}
    keys = {path[0] for path in paths.values() if len(path) > 1}
    under = next((key for key in _WEIGHTS if key in keys), None)
    return {
        name: ".".join(map(str, path if under is None else path[1:]))
        for name, path in paths.items()
        if under is None or path[0] == under
    }


def _read_tensors(folder: Path, table: Any) -> dict[str, Tensor]:
    """The weights; entries that are pickles are never asked for."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        """Has its table already."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            """The table as it was read."""
            return table

    kept = _weights_in(table)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in table.state_dict_metadata.items()
        if name in kept and hasattr(entry, "size")
    }
    try:
        load(dict(tensors), storage_reader=Reader(folder), no_dist=True)
    except CheckpointException as error:  # which is no Exception, and wraps even an interrupt
        raise next(iter(error.failures.values()))[0] from None
    return {kept[name]: tensor for name, tensor in tensors.items()}
