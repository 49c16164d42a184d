"""Files of weights, read without running anything that is in them.

safetensors hold no code. Torch files are read with `weights_only=True`. The table of a sharded
checkpoint (`.metadata`) is a pickle, which is read as data: see `readers/`.
Whatever cannot be read is one `InputError` that names the file, the reason and the fix.

    weights = read_safetensors([Path("model.safetensors")])
    weights = read_sharded(Path("checkpoint-500/pytorch_model_fsdp_0"))
"""

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.inert import REFUSED
from sr_monitor.replay.readers.sharded import METADATA, read_parts, read_table

_T = TypeVar("_T")
_COPY_AGAIN = "copy or download it again"
_SAVE_AGAIN = (
    "if you trust it, load it with torch.load(..., weights_only=False) and save its state_dict "
    "alone, as safetensors or with torch.save"
)
_ZIP = b"PK\x03\x04"


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
    table = _read(folder / METADATA, read_table)
    return _read(folder, lambda folder: read_parts(folder, table))


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
        culprit = next((line for line in lines if REFUSED in line), None)
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
