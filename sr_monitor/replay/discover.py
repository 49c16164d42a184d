"""What a source names: a repository on the hub, or the checkpoints in a folder.

What exists as a path is that path; other names of the form `owner/name` are the hub's. In a folder,
a checkpoint is recognised by its files: a Hugging Face model, a Trainer's `checkpoint-N` (also as
FSDP shards), a Lightning `.ckpt` file or sharded folder. PEFT adapters and DeepSpeed shards are
recognised too, and refused with the command that converts them.

    for checkpoint in find_checkpoints("runs/gpt2"):
        print(checkpoint.name.step, checkpoint.path)
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Literal

from sr_monitor.errors import InputError
from sr_monitor.replay.names import CheckpointName, closest, read_name
from sr_monitor.replay.readers.sharded import METADATA
from sr_monitor.replay.reading import read_index, read_torch

Kind = Literal["huggingface", "fsdp", "lightning", "sharded", "peft", "deepspeed", "unknown"]

REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""The name of a repository."""
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""A Hugging Face model's weights: the first that is there counts."""
FSDP_FOLDER = "pytorch_model_fsdp_0"
"""Where the Trainer puts the shards of an FSDP model."""

_ADDRESS = re.compile(rf"https?://[^/]+/(?P<repo>{REPO.pattern})(/tree/(?P<revision>[^/?#]+))?.*")
_GLOB = re.compile(r"[*?\[]")
_LAST = re.compile(r"last(-v\d+)?\.ckpt")
_LOOKED_FOR = (
    "a Hugging Face model (model.safetensors or pytorch_model.bin), a Trainer's checkpoint-N, "
    f"its FSDP shards ({FSDP_FOLDER}), a Lightning .ckpt file or folder"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCheckpoint:
    """One saved state of a model, on this machine."""

    name: CheckpointName
    """Step, stage and branch: from the name, or else from what is inside."""
    kind: Kind
    """How its weights are kept."""
    path: Path
    """The folder or the file."""
    config: Path | None = None
    """The folder with its config.json; None where the architecture has to be named."""
    problem: str | None = None
    """Why it cannot be read, and what to do; None if nothing is known against it."""

    @property
    def num_bytes(self) -> int:
        """Its size, without the optimizer's state where that lies apart."""
        path = self.path / FSDP_FOLDER if self.kind == "fsdp" else self.path
        files = path.rglob("*") if path.is_dir() else [path]
        if self.kind == "huggingface":
            stems = {name.split(".")[0] for name in WEIGHT_FILES}
            files = (file for stem in stems for file in path.glob(f"{stem}*"))
        return sum(file.stat().st_size for file in files if file.is_file())


def is_repo(source: str) -> bool:
    """Return whether a source is a repository of the hub, perhaps with `@` and revisions."""
    return bool(REPO.fullmatch(source.partition("@")[0])) and not _exists(Path(source))


def find_checkpoints(source: str | Path) -> list[LocalCheckpoint]:
    """Return the checkpoints in a folder, or the one that it is, in the order of their steps.

    In the output folder of a Trainer, its `checkpoint-N` are taken, and not the final model beside
    them. Lightning's `last.ckpt` is left out where another file has the same step.
    """
    path = Path(source)
    if not _exists(path):
        raise InputError(describe_missing(source))
    path = path.parent if path.resolve().name == FSDP_FOLDER else path
    found = distinct(_inside(path))
    if not found:
        raise InputError(f"{str(source)!r} holds no known checkpoint; {_hint(path)}")
    if all(checkpoint.problem for checkpoint in found):
        raise InputError(found[0].problem)
    return sorted(found, key=lambda checkpoint: checkpoint.name)


def distinct(found: Iterable[LocalCheckpoint]) -> list[LocalCheckpoint]:
    """Return each checkpoint of a training once, and no two under the same name.

    Several links to a checkpoint are one checkpoint; so are Lightning's `last.ckpt` (`last-v1.ckpt`
    of a second training there) and the file with its step. Other checkpoints of the same step are
    told apart by the names of their files.
    """
    return _told_apart(_without_copies(_without_links(found)))


def describe_missing(source: str | Path) -> str:
    """Return the message for a path that does not exist: the closest that do, the likeliest fix."""
    path = Path(source)
    siblings = [entry.name for entry in path.parent.glob("*")] if _exists(path.parent) else []
    there = ", ".join(closest(path.name, siblings)) or "nothing there"
    message = f"there is no folder {str(source)!r}; the closest in {str(path.parent)!r}: {there}"
    return "; ".join(filter(None, [message, _fix(str(source))]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any disk
        return False


def _fix(source: str) -> str:
    """Return how to write what was probably meant, if that is known."""
    if address := _ADDRESS.fullmatch(source):
        name = "@".join(filter(None, address.group("repo", "revision")))
        return f"for that address on the hub, name {name}"
    if source.startswith("~"):
        return "the shell puts the home folder in place of ~: leave the quotes out"
    if _GLOB.search(source):
        return "the shell expands a pattern: leave the quotes out (if there are none, nothing fits)"
    if "/" in source and not source.startswith("http"):
        return ""
    return "a repository on the hub is named owner/name, such as openai-community/gpt2"


def _inside(path: Path) -> list[LocalCheckpoint]:
    """Return the checkpoints right in a folder, or the folder itself if it is the only one."""
    inside = []
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        kind = _kind_of(entry)
        # A step in the name gives a checkpoint away even where its files do not.
        if kind != "unknown" or (entry.is_dir() and read_name(entry.name)):
            inside.append(_checkpoint(entry, kind))
    if (kind := _kind_of(path)) == "unknown":
        return inside
    steps = [checkpoint for checkpoint in inside if read_name(checkpoint.path.name)]
    if any(not checkpoint.problem for checkpoint in steps):  # the final model lies beside them
        return steps
    return [_checkpoint(path, kind)]


def _kind_of(path: Path) -> Kind:
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


def _checkpoint(path: Path, kind: Kind) -> LocalCheckpoint:
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
    config = next(places, None)
    return LocalCheckpoint(name=name, kind=kind, path=path, config=config, problem=problem)


def _step_inside(path: Path, kind: Kind) -> int | None:
    """Return the step that a checkpoint itself says it is at."""
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
    """Return why a checkpoint cannot be read, with the command that makes it readable."""
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
    return _missing_shard(path) if kind == "huggingface" else None


def _missing_shard(path: Path) -> str | None:
    """Return that a file named by the index of the weights is missing, if one is."""
    weights = next(path / name for name in WEIGHT_FILES if (path / name).is_file())
    try:
        shards = read_index(weights) if weights.suffix == ".json" else []
    except InputError as error:
        return str(error)
    missing = next((shard for shard in shards if not shard.is_file()), None)
    return None if missing is None else f"{str(missing)!r} is missing; copy or download it again"


def _without_links(found: Iterable[LocalCheckpoint]) -> list[LocalCheckpoint]:
    """Return each under one of its names: one that says a step if there is one, or its own."""

    def is_worse(checkpoint: LocalCheckpoint) -> tuple[bool, bool]:
        return read_name(checkpoint.path.name) is None, checkpoint.path.is_symlink()

    by_place: dict[Path, LocalCheckpoint] = {}
    for checkpoint in sorted(found, key=is_worse):
        by_place.setdefault(checkpoint.path.resolve(), checkpoint)
    return list(by_place.values())


def _without_copies(found: list[LocalCheckpoint]) -> list[LocalCheckpoint]:
    """Leave out a `last.ckpt` that is a copy of another file."""
    others = {other.name.step for other in found if not _LAST.fullmatch(other.path.name)}
    return [
        checkpoint
        for checkpoint in found
        if checkpoint.problem
        or not _LAST.fullmatch(checkpoint.path.name)
        or checkpoint.name.step not in others
    ]


def _told_apart(found: list[LocalCheckpoint]) -> list[LocalCheckpoint]:
    """Give a checkpoint with the step of another one, and no step in its name, its own branch."""

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
    """Return where there are checkpoints, or what was looked for."""
    if path.is_file():
        return "name the folder that it lies in"
    deeper = (entry for depth in ("*/*", "*/*/*") for entry in sorted(path.glob(depth)))
    place = next((entry.parent for entry in deeper if _kind_of(entry) != "unknown"), None)
    if place is not None:
        return f"there are some in {str(place)!r}"
    return f"looked, in it and in the folders in it, for {_LOOKED_FOR}"
