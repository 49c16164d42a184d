"""What a reader is: one kind of checkpoint, recognised by its files and read without running them.

A new kind is one file in this folder, which is found by itself:

    @register
    class OurTrainer(CheckpointReader):
        looked_for = "our trainer's weights.pt"

        def recognises(self, path):
            return path.name == "weights.pt"

        def read(self, path):
            return saved_in([path], lambda file: tensors_in(read_torch(file)["model"]))
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.saved import Saved

READERS: list["CheckpointReader"] = []
"""The kinds of checkpoint that are known."""

_LARGEST_STEP = 2**63 - 1


@dataclass(frozen=True)
class CheckpointReader(ABC):
    """One kind of checkpoint; except in `recognises`, each `path` is one of its kind."""

    looked_for: ClassVar[str] = ""
    """What it is recognised by, for the error that says what was looked for."""

    inner: ClassVar[str] = ""
    """The name of the folder inside that the weights lie in, if they do."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Return whether a file or a folder is a checkpoint of this kind, by its name and files."""

    def read(self, path: Path) -> dict[str, Saved]:
        """Return all the weights, by the names they were saved under, not loaded yet.

        A kind that does not override this is recognised only to explain, in `problem`, what to do.
        """
        raise InputError(self.problem(path))

    def problem(self, path: Path) -> str | None:
        """Return why it cannot be read and what to do; None if nothing is known against it."""
        return None

    def step(self, path: Path) -> int | None:
        """Return the step it was saved at, if its files say so."""
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except Exception:  # a damaged or deeply nested file is no reason to refuse the weights
            return None
        return step_in(state)

    def config(self, path: Path) -> Path | None:
        """Return the folder whose config.json describes the model, if there is one."""
        places = (path, path.resolve().parent)
        return next((place for place in places if (place / "config.json").is_file()), None)

    def architecture(self, path: Path) -> dict[str, Any] | None:
        """Return the entries of a Hugging Face config, where its own is of another form."""
        return None

    def named(self, weights: Mapping[str, Saved], config: Any) -> Mapping[str, Saved]:
        """Return the weights by the names that a Hugging Face model of this config has for them."""
        return weights

    def tokenizer(self, path: Path) -> str | None:
        """Return the name of the tokenizer that it was trained with, if its files say so."""
        return None

    def files(self, path: Path) -> Iterable[Path]:
        """Return the files that hold the weights."""
        return path.rglob("*") if path.is_dir() else [path]


_Reader = TypeVar("_Reader", bound=CheckpointReader)


def register(kind: type[_Reader]) -> type[_Reader]:
    """Add a kind of checkpoint to those that are known.

    Kinds that can be read are asked first, and of those the ones that refine another.
    """
    READERS.append(kind())
    READERS.sort(key=lambda reader: (_is_unreadable(reader), -len(type(reader).mro())))
    return kind


def _is_unreadable(reader: CheckpointReader) -> bool:
    return type(reader).read is CheckpointReader.read


def step_in(state: object) -> int | None:
    """Return the `global_step` of a trainer's state, if it is a step."""
    return to_step(state.get("global_step") if isinstance(state, dict) else None)


def to_step(value: object) -> int | None:
    """Return the value if it is a step."""
    return value if type(value) is int and 0 <= value <= _LARGEST_STEP else None
