"""Files of weights, read without running anything that is in them.

safetensors hold no code; torch files are read with `weights_only=True`. Whatever cannot be read is
one `InputError` that names the file, the reason and the fix.

    weights = read_safetensors(Path("model.safetensors"))
    with explained(Path("meta.json")) as file:
        content = json.loads(file.read_text())
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sr_monitor import errors
from sr_monitor.errors import InputError
from sr_monitor.replay.readers.inert import REFUSED

_ZIP = b"PK\x03\x04"
_MOST_CHARACTERS = 160


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return all the tensors of a safetensors file."""
    from safetensors.torch import load_file

    with explained(file):
        return load_file(file)


def read_torch(file: Path) -> dict[str, object]:
    """Return what a torch file holds, tensors and plain values only."""
    with explained(file):
        with file.open("rb") as opened:
            mapped = opened.read(len(_ZIP)) == _ZIP  # older files cannot be read in place
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(
            f"{str(file)!r} holds a {kind}, not weights by name; save the model's state_dict"
        )
    return content


def tensors_in(content: object) -> dict[str, Tensor]:
    """Return the tensors of a torch file; those of a trainer are under "state_dict"."""
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


@contextmanager
def explained(path: Path) -> Iterator[Path]:
    """Turn any error while a file or a folder is read into one line about it."""
    if not path.exists():
        raise InputError(f"{str(path)!r} is missing; copy or download it again")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{str(path)!r} is empty; copy or download it again")
    what = f"{str(path)!r} is damaged or no file of weights"
    with errors.explained(what, "copy or download it again"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old pickle protocol
        try:
            yield path
        except PermissionError as error:
            told = f"{str(path)!r} cannot be read: {error}; check its permissions"
            raise InputError(told) from error
        except Exception as error:
            _refuse_code(path, error)
            raise


def _refuse_code(path: Path, error: Exception) -> None:
    """Say that a file holds more than weights, if that is why it was not read."""
    lines = [line.strip().split(". ")[0][:_MOST_CHARACTERS] for line in str(error).splitlines()]
    if found := [line for line in lines if REFUSED in line]:
        raise InputError(
            f"{str(path)!r} holds more than weights ({found[0]}) and is not run; if you trust it, "
            "load it with torch.load(..., weights_only=False) and save its state_dict alone, as "
            "safetensors or with torch.save"
        ) from error
