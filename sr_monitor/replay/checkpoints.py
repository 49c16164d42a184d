"""The checkpoints in a folder, each recognised by what is there.

Known are a Hugging Face model, a Trainer's `checkpoint-N` (also as FSDP shards), a Lightning
`.ckpt` file or sharded folder, and a folder of any of them. PEFT adapters and DeepSpeed shards are
recognised too, and explained: they have to be converted first.

    for checkpoint in find_checkpoints("runs/gpt2"):
        print(checkpoint.name.step, checkpoint.path)
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Literal

from sr_monitor.errors import InputError
from sr_monitor.replay.names import CheckpointName, read_name
from sr_monitor.replay.reading import METADATA, read_index, read_torch
from sr_monitor.replay.sources import exists, not_found

Kind = Literal["huggingface", "fsdp", "lightning", "sharded", "peft", "deepspeed", "unknown"]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""A Hugging Face model's weights: the first that is there counts."""
FSDP_FOLDER = "pytorch_model_fsdp_0"
"""Where the Trainer puts the shards of an FSDP model."""

_LAST = re.compile(r"last(-v\d+)?\.ckpt")
_LOOKED_FOR = (
    "a Hugging Face model (model.safetensors or pytorch_model.bin), a Trainer's checkpoint-N, "
    f"its FSDP shards ({FSDP_FOLDER}), a Lightning .ckpt file or folder"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One saved state of a model."""

    name: CheckpointName
    """Step, stage and branch: from the name, or else from what is inside."""
    kind: Kind
    """How its weights are kept."""
    path: Path
    """The folder or the file."""
    config: Path | None = None
    """The folder with its config.json; None where the architecture has to be named."""
    problem: str | None = None
    """Why it cannot be read, and what to do; None where it can, as far as one sees from outside."""


def find_checkpoints(source: str | Path) -> list[Checkpoint]:
    """All the checkpoints in a folder, or the one that it is, in order.

    In the output folder of a Trainer, its `checkpoint-N` are taken, and not the final model beside
    them. Lightning's `last.ckpt` is left out where another file has the same step.
    """
    path = _existing(source)
    found = tell_apart(_found(path))
    if not found:
        raise InputError(f"{str(source)!r} holds no known checkpoint; {_hint(path)}")
    if all(checkpoint.problem for checkpoint in found):
        raise InputError(found[0].problem)
    return sorted(found, key=lambda checkpoint: checkpoint.name)


def tell_apart(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """What a training is measured at: each checkpoint once, and no two by the same name.

    One that several links lead to is one; so are Lightning's `last.ckpt` (`last-v1.ckpt` of a
    second training there) and the file that has its step. Two others of the same step are apart.
    """
    return _separate(_without_copies(_once(found)))


def _existing(source: str | Path) -> Path:
    """The path of a checkpoint or a folder of them, if there is one."""
    path = Path(source)
    if not exists(path):
        raise InputError(not_found(source))
    return path.parent if path.resolve().name == FSDP_FOLDER else path


def _found(path: Path) -> list[Checkpoint]:
    kind = _kind_of(path)
    inside = list(_inside(path)) if path.is_dir() else []
    steps = [checkpoint for checkpoint in inside if read_name(checkpoint.path.name)]
    if kind == "unknown":
        return inside
    if not all(checkpoint.problem for checkpoint in steps):  # the final model lies beside them
        return steps
    return [_checkpoint(path, kind)]


def _inside(path: Path) -> Iterator[Checkpoint]:
    """The checkpoints right in a folder, also those that only a step in their name gives away."""
    for entry in sorted(path.iterdir()):
        kind = _kind_of(entry)
        if kind != "unknown" or (entry.is_dir() and read_name(entry.name)):
            yield _checkpoint(entry, kind)


def _kind_of(path: Path) -> Kind:
    """What is there."""
    if path.is_file():
        return "lightning" if path.suffix == ".ckpt" else "unknown"
    # NOTE: transformers, too, takes a folder with an adapter for an adapter, whatever else it has.
    if (path / "adapter_config.json").is_file():
        return "peft"
    if any((path / name).is_file() for name in WEIGHT_FILES):
        return "huggingface"
    if (path / FSDP_FOLDER / METADATA).is_file():
        return "fsdp"
    if (path / METADATA).is_file():
        return "sharded"
    if any(path.glob("*model_states.pt")) or any(path.glob("*/*model_states.pt")):
        return "deepspeed"
    return "unknown"


def _checkpoint(path: Path, kind: Kind) -> Checkpoint:
    resolved = path.resolve()
    name, problem = read_name(resolved.name), _problem(path, kind)
    if name is None:
        step: int | None = None
        try:
            step = _step_inside(path, kind)
        except InputError as error:
            problem = str(error)
        name = CheckpointName(resolved.name, step=step or 0)
    places = (place for place in (path, resolved.parent) if (place / "config.json").is_file())
    return Checkpoint(name=name, kind=kind, path=path, config=next(places, None), problem=problem)


def _step_inside(path: Path, kind: Kind) -> int | None:
    """The step that a checkpoint itself says it is at."""
    if kind in ("lightning", "sharded"):
        file = path if kind == "lightning" else path / "meta.pt"
        step = read_torch(file).get("global_step") if file.exists() else None
    else:
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        step = state.get("global_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None


def _problem(path: Path, kind: Kind) -> str | None:
    """Why this cannot be read, and the command that makes it readable."""
    here, merged = f"{path}", f"{path}-merged"
    if kind == "peft":
        return f"{here!r} holds a PEFT adapter, not a whole model; merge it: python -c " + quote(
            f"from peft import AutoPeftModelForCausalLM as M; "
            f"M.from_pretrained({here!r}).merge_and_unload().save_pretrained({merged!r})"
        )
    if kind == "deepspeed":
        script = path / "zero_to_fp32.py"
        run = quote(f"{script}") if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
        return (
            f"{here!r} holds DeepSpeed shards, which only DeepSpeed reads; convert them: "
            f"python {run} {quote(here)} {quote(merged)}"
        )
    if kind == "unknown":
        return f"{here!r} holds no weights that are known; looked for {_LOOKED_FOR}"
    return _missing_part(path) if kind == "huggingface" else None


def _missing_part(path: Path) -> str | None:
    """That a file is not there which the index of the weights names."""
    weights = next(path / name for name in WEIGHT_FILES if (path / name).is_file())
    try:
        parts = read_index(weights) if weights.suffix == ".json" else []
    except InputError as error:
        return str(error)
    missing = next((part for part in parts if not part.is_file()), None)
    return None if missing is None else f"{str(missing)!r} is missing; copy or download it again"


def _once(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Each by one name, where links give it several: by one that says a step, or its own."""

    def is_worse(checkpoint: Checkpoint) -> tuple[bool, bool]:
        return read_name(checkpoint.path.name) is None, checkpoint.path.is_symlink()

    by_place: dict[Path, Checkpoint] = {}
    for checkpoint in sorted(found, key=is_worse):
        by_place.setdefault(checkpoint.path.resolve(), checkpoint)
    return list(by_place.values())


def _without_copies(found: list[Checkpoint]) -> list[Checkpoint]:
    """Leaves out a `last.ckpt` that is another file's copy."""
    others = {other.name.step for other in found if not _LAST.fullmatch(other.path.name)}
    return [
        checkpoint
        for checkpoint in found
        if checkpoint.problem
        or not _LAST.fullmatch(checkpoint.path.name)
        or checkpoint.name.step not in others
    ]


def _separate(found: list[Checkpoint]) -> list[Checkpoint]:
    """Makes a run of its own of what has another's step, and no step in its name."""

    def place(name: CheckpointName) -> tuple[int | None, str, int]:
        return name.stage, name.branch, name.step

    taken = Counter(place(checkpoint.name) for checkpoint in found)
    return [
        replace(checkpoint, name=replace(checkpoint.name, rest=checkpoint.path.stem))
        if taken[place(checkpoint.name)] > 1 and read_name(checkpoint.path.name) is None
        else checkpoint
        for checkpoint in found
    ]


def _hint(path: Path) -> str:
    """Where there are some, or what there should be."""
    if path.is_file():
        return "name the folder that it lies in"
    deeper = (entry for depth in ("*/*", "*/*/*") for entry in sorted(path.glob(depth)))
    place = next((entry.parent for entry in deeper if _kind_of(entry) != "unknown"), None)
    if place is not None:
        return f"there are some in {str(place)!r}"
    return f"looked, in it and in the folders in it, for {_LOOKED_FOR}"
