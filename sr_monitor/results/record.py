"""Keep one measurement at one step of a training in one safetensors file.

It holds each tensor of a part as `<probe>.<field>`, and the rest as JSON in the header.

    record = Record(step=500, parts={"paths": paths})
    record.save(record_path(log_dir, record.step))
    Record.load(list_records(log_dir)[-1]).scalars["stable_regions/max_slope/median"]
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.numpy import save as arrays_to_safetensors
from safetensors.torch import save as tensors_to_safetensors
from torch import Tensor

from sr_monitor.errors import InputError, explained
from sr_monitor.files import write_whole
from sr_monitor.probes.base import Part, Probe, built_in, pack
from sr_monitor.probes.keys import FAILURES, NAME, NUM_POINTS, SECONDS, SHARE_OF_TIME, TOKENS, Key
from sr_monitor.probes.measuring import derived
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.slices import Slices
from sr_monitor.prompts.prompt_set import PromptSet

_DAMAGED = "the file is damaged or cannot be read"
_FORMAT, _SCHEMA = "sr-monitor record", 2
_BITS = 1000  # of a whole number, which numbers with a point reach, too
_FOLDER = NAME
_FILE = re.compile(r"step-(?:\d{9}|[1-9]\d{9,})\.safetensors")


class NewerError(InputError):
    """A newer version has written the record."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What was measured at one step."""

    step: int
    """How many times the optimizer had updated the model."""
    tokens: int | None = None
    """How many tokens it had been trained on; None if that is not known."""
    parts: Mapping[str, Part] = field(default_factory=dict, repr=False)
    """What each probe found, by its name; of an unknown probe, all that its file held."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Anything else that JSON can say; `seconds`, `share_of_time` and `failures` are logged."""
    probes: tuple[Probe, ...] = field(default=(), repr=False)
    """The probes that explain its parts, besides the built-in ones. Not saved."""

    def __post_init__(self) -> None:
        """Refuse what could not be saved, or not be found again."""
        tokens = 0 if self.tokens is None else self.tokens
        for name, value in (("step", self.step), ("tokens", tokens)):
            if not isinstance(value, int) or not 0 <= value < 2**63:  # as TensorBoard's steps
                raise InputError(
                    f"Record({name}={value!r}): pass a whole number, 0 or more, below 2**63"
                )
        if not isinstance(self.metadata, dict):
            raise InputError(f"Record(metadata={self.metadata!r}): pass a dict of plain values")
        _check_plain("metadata", self.metadata)
        for name in self.parts:
            if not name or "." in name:
                raise InputError(f"Record(parts={{{name!r}: ...}}): name a part without a dot")

    @property
    def paths(self) -> Paths:
        """The 1-D measurement."""
        if "paths" not in self.parts:
            raise InputError(f"Record(step={self.step}): it holds no paths; see its parts")
        paths: Paths = self.parts["paths"]
        return paths

    @property
    def slices(self) -> Slices | None:
        """The 2-D measurement, if there was one."""
        slices: Slices | None = self.parts.get("slices")
        return slices

    @property
    def is_of_sweep(self) -> bool:
        """Whether its step is a number of parameters: models of several sizes share its curve."""
        return self.metadata.get("x_axis") == "parameters"

    def known(self) -> Iterator[tuple[Probe, Part]]:
        """Yield each part that a known probe can explain, with that probe.

        A part that lacks some of what the probe holds today is kept, like that of an unknown one.
        """
        probes = _known(self.probes)
        for name, part in self.parts.items():
            if name in probes and set(probes[name].holds) <= pack(part).keys():
                yield probes[name], part

    @property
    def scalars(self) -> dict[str, float]:
        """What is logged as numbers, by name."""
        found: dict[Key, Any] = {}
        for probe, part in self.known():
            found |= probe.scalars(part)
        points = [pack(part).get("num_points") for part in self.parts.values()]
        found[NUM_POINTS] = sum(number for number in points if isinstance(number, int))
        found[TOKENS] = self.tokens
        for key in (SECONDS, SHARE_OF_TIME, FAILURES):
            found[key] = self.metadata.get(key.name.split("/")[-1])
        return {key.name: float(v) for key, v in found.items() if isinstance(v, int | float)}

    @property
    def set_name(self) -> str:
        """Which of several sets of prompts it is of; "" where there is one."""
        return str(self.metadata.get("set", ""))

    def prompts_in(self, given: PromptSet) -> PromptSet:
        """Return the prompts it measured: those given, drawn anew at its step if they were."""
        return given.reordered(self.step) if self.metadata.get("resampled") else given

    def with_derived(self, probes: Sequence[Probe]) -> "Record":
        """Add the parts that `probes` can compute from those it has, and let them explain it."""
        parts = {**self.parts, **derived(probes, dict(self.parts))}
        explaining = {probe.name: probe for probe in (*self.probes, *probes)}
        return replace(self, parts=parts, probes=tuple(explaining.values()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        probes = _known(self.probes)
        tensors: dict[str, Tensor] = {}
        plain: dict[str, dict[str, Any]] = {}
        for name, part in self.parts.items():
            values = probes[name].pack(part) if name in probes else pack(part)
            plain[name] = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
            for key, value in values.items():
                if isinstance(value, Tensor):
                    # NOTE: safetensors takes neither gaps in a tensor nor shared memory.
                    whole = value.detach().cpu().clone(memory_format=torch.contiguous_format)
                    tensors[f"{name}.{key}"] = whole
        _check_plain("parts", plain)
        content = {"step": self.step, "tokens": self.tokens, "metadata": self.metadata}
        content["parts"] = plain
        header = {"format": _FORMAT, "schema": str(_SCHEMA), "record": json.dumps(content)}
        write_whole(Path(path), _to_safetensors(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike[str], probes: Sequence[Probe] = ()) -> "Record":
        """Read a file that `save` wrote; refuse one that is damaged, foreign or newer.

        Built-in probes and `probes` explain their parts. Those of others stay mappings, and come
        back as they were if the record is saved.
        """
        call = f"Record.load({os.fspath(path)!r})"
        with explained(f"{call}: {_DAMAGED}", "measure again"):
            with safe_open(path, "pt") as file:
                content = _content(file.metadata() or {}, call)
                # NOTE: cloned because what safetensors returns lies in the file until it is used.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            parts = _parts(content["parts"], tensors, _known(probes))
            return _record(content, parts=parts, probes=tuple(probes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What the header of a record's file says: all but the tensors."""

    step: int
    metadata: dict[str, Any]
    way: str
    """The way in which its paths were measured, `record.paths.engine`."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Outline":
        """Read the header of a file that `Record.save` wrote, and check that the file is whole."""
        call = f"Outline.load({os.fspath(path)!r})"
        with explained(f"{call}: {_DAMAGED}", "measure again"):
            with safe_open(path, "pt") as file:
                content = _content(file.metadata() or {}, call)
            record = _record(content)
            way = str(content["parts"]["paths"]["engine"])
            return cls(step=record.step, metadata=record.metadata, way=way)

    @classmethod
    def of(cls, record: Record) -> "Outline":
        """Return the outline of a record in memory."""
        return cls(step=record.step, metadata=record.metadata, way=record.paths.engine)


def _to_safetensors(tensors: dict[str, Tensor], header: dict[str, str]) -> bytes:
    """Return the bytes of a file; as arrays, since for tensors each call makes cyclic garbage."""
    try:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    except TypeError:  # NumPy has no bfloat16
        return tensors_to_safetensors(tensors, header)
    return arrays_to_safetensors(arrays, header)


def record_path(log_dir: str | os.PathLike[str], step: int) -> Path:
    """Return where the record of a step lies."""
    return Path(log_dir) / _FOLDER / f"step-{step:09d}.safetensors"


def list_records(folder: str | os.PathLike[str]) -> list[Path]:
    """List the records of a log folder, or of the folder of records in it, by step."""
    inner = Path(folder) / _FOLDER
    files = (inner if inner.is_dir() else inner.parent).glob("step-*")
    return sorted((file for file in files if _FILE.fullmatch(file.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the step of a record, read off its name: step-000000500.safetensors."""
    return int(path.stem.removeprefix("step-"))


def _known(probes: Sequence[Probe]) -> dict[str, Probe]:
    return {**built_in(), **{probe.name: probe for probe in probes}}


def _content(header: Mapping[str, str], call: str) -> dict[str, Any]:
    """Return what the header says, in today's schema."""
    if header.get("format") != _FORMAT:
        raise InputError(f"{call}: this is no file that Record.save wrote")
    schema = int(header.get("schema", 1))
    if schema > _SCHEMA:
        raise NewerError(
            f"{call}: the file has schema {schema}, this sr-monitor reads up to schema {_SCHEMA}; "
            "run: pip install --upgrade sr-monitor"
        )
    content: dict[str, Any] = json.loads(header["record"])
    if schema < 2:  # it knew two parts, and kept their values beside the step
        content["parts"] = {name: content[name] for name in ("paths", "slices") if name in content}
    return content


def _record(content: Mapping[str, Any], **more: Any) -> Record:
    """Make a record of what a file says; raise ValueError if there can be none."""
    metadata = dict(content.get("metadata", {}))
    try:
        _check_plain("parts", content["parts"])
        return Record(step=content["step"], tokens=content.get("tokens"), metadata=metadata, **more)
    except InputError as error:
        raise ValueError(error) from error


def _parts(
    plain: Mapping[str, Any], tensors: Mapping[str, Tensor], probes: Mapping[str, Probe]
) -> dict[str, Part]:
    """Put the tensors and plain values of each part together, and have its probe unpack them."""
    values = {name: dict(part) for name, part in plain.items()}
    for name, tensor in tensors.items():
        probe, dot, key = name.partition(".")
        if not dot:
            raise ValueError(f"the tensor {name!r} belongs to no part")
        values.setdefault(probe, {})[key] = tensor
    return {
        name: probes[name].unpack(part) if name in probes else part for name, part in values.items()
    }


def _check_plain(name: str, value: Any) -> None:
    """Refuse what JSON would not give back as it is."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _check_plain(f"{name}[{index}]", entry)
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, entry in value.items():
            _check_plain(f"{name}[{key!r}]", entry)
    elif isinstance(value, int) and value.bit_length() > _BITS:
        raise InputError(f"Record: {name} has {value.bit_length()} bits; pass at most {_BITS}")
    elif not isinstance(value, str | int | float | None):
        raise InputError(
            f"Record: {name} is a {type(value).__name__}, {value!r}; pass text, numbers, lists, "
            "dicts with text as keys, or None"
        )
