"""Folders that `save_pretrained` or the Trainer wrote: a whole model, or the Trainer's FSDP shards.

The first of the files below that is there holds the weights; an index names files beside it.
"""

import json
from pathlib import Path

from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.base import CheckpointReader, register
from sr_monitor.replay.readers.files import explained, read_safetensors, read_torch, tensors_in
from sr_monitor.replay.readers.saved import Saved, saved_in
from sr_monitor.replay.readers.sharded import METADATA, read_sharded

FSDP_FOLDER = "pytorch_model_fsdp_0"
"""Where the Trainer puts the shards of an FSDP model."""

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    f"{FSDP_FOLDER}/{METADATA}",
)


@register
class HuggingFaceFolder(CheckpointReader):
    """A Hugging Face model, or a Trainer's `checkpoint-N`."""

    looked_for = (
        "a Hugging Face model (model.safetensors or pytorch_model.bin), a Trainer's checkpoint-N, "
        f"its FSDP shards ({FSDP_FOLDER})"
    )

    inner = FSDP_FOLDER

    def recognises(self, path: Path) -> bool:
        """Return whether there are weights and no adapter, which transformers would prefer."""
        return _weights(path) is not None and not (path / "adapter_config.json").is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the weights, joined if they lie in several files."""
        if (found := _weights(path)) is None:
            raise InputError(
                f"{str(path)!r}: its weights are gone since the listing; if a training that keeps "
                "only its last checkpoints goes on there (save_total_limit), copy them first"
            )
        if found.name == METADATA:
            return read_sharded(found.parent)
        return saved_in(_shards(found), _tensors)

    def problem(self, path: Path) -> str | None:
        """Return which file is missing or damaged, of those that the index names."""
        try:
            missing = [file for file in self.files(path) if not file.is_file()]
        except InputError as error:
            return str(error)
        return f"{str(missing[0])!r} is missing; copy or download it again" if missing else None

    def files(self, path: Path) -> list[Path]:
        """Return the files that hold the weights."""
        found = _weights(path)
        return [] if found is None else _shards(found)


def _tensors(file: Path) -> dict[str, Tensor]:
    is_safe = file.suffix == ".safetensors"
    return read_safetensors(file) if is_safe else tensors_in(read_torch(file))


def _weights(path: Path) -> Path | None:
    return next((path / name for name in _WEIGHTS if (path / name).is_file()), None)


def _shards(file: Path) -> list[Path]:
    """Return the files that hold the weights, beside the index or the table that lists them."""
    if file.name == METADATA:
        return sorted(file.parent.iterdir())
    if file.suffix != ".json":
        return [file]
    with explained(file):
        names = json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
        return [file.with_name(name) for name in sorted(set(names))]  # refuses paths
