"""One measurement at one step of a training, as one file.

The file is in the safetensors format: the tensors of the paths and slices, and the rest as JSON in
its header. It is there whole or not at all, whenever the process that writes it is stopped.

    record = Record(step=500, tokens=None, paths=paths)
    record.save(record_path(log_dir, record.step))
    Record.load(list_records(log_dir)[-1]).scalars[keys.MAX_SLOPE_MEDIAN.name]
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.files import write_whole
from sr_monitor.probes import keys
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.slices import Slices
from sr_monitor.probes.statistics import Summary, summarise

_FORMAT, _SCHEMA = "sr-monitor record", 1
_FOLDER = "stable_regions"
_FILE = re.compile(r"step-(\d{9}|[1-9]\d{9,})\.safetensors")
_FROM_METADATA = (keys.SECONDS, keys.SHARE_OF_TIME, keys.FAILURES)

# The tensors of a file, and a letter for each of their dimensions: equal letters, equal sizes.
_PATHS_SHAPES = {"alphas": "S", "distance": "PS", "input_distance": "P", "noise": "P"}
_SLICES_SHAPES = {"coordinates": "R", "distance": "TCRR", "foot": "T"}
# What a file may lack.
_DEFAULTS: dict[str, Any] = {
    "noise": None,
    "noise_distance": 0.0,
    "noise_floor": math.nan,
    "num_points": 0,
    "engine": "",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What was measured at one step."""

    step: int
    """How many times the optimizer had updated the model."""
    tokens: int | None = None
    """How many tokens it had been trained on; None if that is not known."""
    paths: Paths = field(repr=False)
    """The 1-D measurement."""
    slices: Slices | None = field(default=None, repr=False)
    """The 2-D measurement, if there was one."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, as JSON can say it: text, numbers, lists, dicts, None.
    `seconds`, `share_of_time` and `failures` are logged."""

    def __post_init__(self) -> None:
        """Refuse what could not be saved, or not be found again."""
        for name, value in (("step", self.step), ("tokens", self.tokens)):
            is_known = name == "step" or value is not None
            if is_known and (not isinstance(value, int) or value < 0):
                raise InputError(f"Record({name}={value!r}): pass a whole number, 0 or more")
        if not isinstance(self.metadata, dict):
            raise InputError(f"Record(metadata={self.metadata!r}): pass a dict of plain values")
        _check_plain("metadata", self.metadata)

    @property
    def scalars(self) -> dict[str, float]:
        """What is logged as numbers, by its name in `sr_monitor.probes.keys`."""
        paths, slices = self.paths, self.slices
        slope = _summary(paths.max_slope, paths)
        found: dict[keys.Key, Any] = {
            keys.MAX_SLOPE_MEDIAN: slope.median,
            keys.MAX_SLOPE_Q25: slope.q25,
            keys.MAX_SLOPE_Q75: slope.q75,
            keys.LOCATION: _summary(paths.location, paths).median,
            keys.WIDTH: _summary(paths.width, paths).median,
            keys.END_DISTANCE: _summary(paths.end_distance, paths).median,
            keys.INPUT_DISTANCE: _summary(paths.input_distance, paths).median,
            keys.NOISE_FLOOR: paths.noise_floor,
            keys.PAIRS_LEFT_OUT: paths.num_left_out,
            keys.NUM_POINTS: paths.num_points + (slices.num_points if slices else 0),
            keys.TOKENS: self.tokens,
            **{
                key: self.metadata.get(key.name.removeprefix(keys.PREFIX)) for key in _FROM_METADATA
            },
        }
        numbers = {k.name: v for k, v in found.items() if isinstance(v, int | float)}
        return {name: float(number) for name, number in numbers.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all: under a temporary name, then renamed."""
        parts = {"paths": self.paths} | ({"slices": self.slices} if self.slices else {})
        values = {name: _values(part) for name, part in parts.items()}
        content = {"step": self.step, "tokens": self.tokens, "metadata": self.metadata, **values}
        header = {"format": _FORMAT, "schema": str(_SCHEMA), "record": json.dumps(content)}
        tensors = {k: v for name, part in parts.items() for k, v in _tensors(name, part).items()}
        write_whole(Path(path), to_safetensors(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Record":
        """Read a file that `save` wrote; one that is damaged, foreign or newer is refused."""
        call = f"Record.load({os.fspath(path)!r})"
        try:
            with safe_open(path, "pt") as file:
                content = _content(file.metadata() or {}, call)
                # NOTE: cloned because what safetensors returns lies in the file until it is used.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return _record(content, tensors)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{call}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise InputError(f"{call}: no whole safetensors file ({error})") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{call}: the file is damaged ({error!r}); measure again") from error


def record_path(log_dir: str | os.PathLike[str], step: int) -> Path:
    """Where the record of a step lies."""
    return Path(log_dir) / _FOLDER / f"step-{step:09d}.safetensors"


def list_records(folder: str | os.PathLike[str]) -> list[Path]:
    """The records of a log folder, or of the folder of records in it, by step.

    By their names only: what a killed process left half-written has another name.
    """
    inner = Path(folder) / _FOLDER
    files = (inner if inner.is_dir() else inner.parent).glob("step-*")
    return sorted((file for file in files if _FILE.fullmatch(file.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step of a record, read off its name."""
    found = _FILE.fullmatch(path.name)
    if found is None:
        raise InputError(f"step_of({str(path)!r}): a record is named step-000000500.safetensors")
    return int(found[1])


def _summary(values: Float[Tensor, " pair"], paths: Paths) -> Summary:
    return summarise(values, paths.kept, num_resamples=1)  # nobody logs the interval


def _tensors(name: str, part: Paths | Slices) -> dict[str, Tensor]:
    found = {f"{name}.{field.name}": getattr(part, field.name) for field in fields(part)}
    # NOTE: safetensors takes neither gaps in a tensor nor tensors that share their memory.
    whole = {"memory_format": torch.contiguous_format}
    return {k: v.detach().cpu().clone(**whole) for k, v in found.items() if isinstance(v, Tensor)}


def _values(part: Paths | Slices) -> dict[str, Any]:
    found = {field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value for name, value in found.items() if not isinstance(value, Tensor)}


def _content(header: Mapping[str, str], call: str) -> dict[str, Any]:
    """What the header says, if this version can read it."""
    if header.get("format") != _FORMAT:
        raise InputError(f"{call}: this is no file that Record.save wrote")
    if int(header.get("schema", _SCHEMA)) > _SCHEMA:
        raise InputError(
            f"{call}: the file has schema {header['schema']}, this sr-monitor reads up to schema "
            f"{_SCHEMA}; run: pip install --upgrade sr-monitor"
        )
    content: dict[str, Any] = json.loads(header["record"])
    for name, values in (("step", content["step"]), ("tokens", content.get("tokens", 0) or 0)):
        if not isinstance(values, int):
            raise TypeError(f"{name} is {values!r}")
    return content


def _record(content: dict[str, Any], tensors: dict[str, Tensor]) -> Record:
    has_slices = "slices.distance" in tensors
    return Record(
        step=content["step"],
        tokens=content.get("tokens"),
        paths=Paths(**_arguments(Paths, "paths", _PATHS_SHAPES, content, tensors)),
        slices=Slices(**_arguments(Slices, "slices", _SLICES_SHAPES, content, tensors))
        if has_slices
        else None,
        metadata=dict(content.get("metadata", {})),
    )


def _arguments(
    kind: type[Paths | Slices],
    name: str,
    shapes: Mapping[str, str],
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """What a `Paths` or `Slices` is made of: its values, its tensors, and what the file lacks."""
    values = _DEFAULTS | content.get(name, {})
    found = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    sizes = {"C": 3}
    for part, letters in shapes.items():
        if f"{name}.{part}" not in tensors and part in _DEFAULTS:
            continue
        tensor = tensors[f"{name}.{part}"]
        expected = [sizes.setdefault(*size) for size in zip(letters, tensor.shape, strict=True)]
        if list(tensor.shape) != expected or not tensor.is_floating_point():
            raise ValueError(f"{name}.{part} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        found[part] = tensor
    return found


def _check_plain(name: str, value: Any) -> None:
    """Refuse what JSON would not give back as it is."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _check_plain(f"{name}[{index}]", entry)
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, entry in value.items():
            _check_plain(f"{name}[{key!r}]", entry)
    elif not isinstance(value, str | int | float | None):
        raise InputError(
            f"Record: {name} is a {type(value).__name__}, {value!r}; metadata is text, numbers, "
            "lists, dicts with text as keys, and None"
        )
