"""What replays are tried on: tiny OLMo models under real revision names; and what one leaves.

with hub_server(olmo_repo()) as server:
    talk_to(server, monkeypatch, tmp_path / "home")
    replay([f"{OLMO}@step*"], tmp_path / "out", **FEW)
assert what_is_in(tmp_path / "out") == what_is_in(tmp_path / "other")
"""

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from sr_monitor import Record
from sr_monitor.prompts.prompt_set import PromptSet
from tests.hub_server import HubServer, Repos
from tests.saved import save_tokenizer
from tests.trained import save_folder, tiny_model

FEW: dict[str, Any] = {"num_pairs": 3, "num_steps": 4, "num_slices": 0, "device": "cpu"}
"""Options for a measurement that takes hardly any time."""

OLMO = "allenai/OLMo-1B-0724-hf"
STEPS = ("step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "step3000-tokens6B")
TWIN = "step4000-tokens8B"
"""A revision to add with the weights of STEPS[1]."""

_NAMED_BY_THE_CLOCK = re.compile(r"(events\.out\.tfevents)\..*")


@cache
def olmo_files(seed: int, kind: str = "Olmo") -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _read(save_folder(tiny_model(kind), Path(folder)))


@cache
def tokenizer_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return _read(save_tokenizer(Path(folder)))


def olmo_repo(**more: dict[str, bytes]) -> Repos:
    """Four steps of OLMo and main, which is the last; and more revisions, by their names."""
    steps = {name: olmo_files(seed) for seed, name in enumerate(STEPS)}
    return {OLMO: {"main": olmo_files(3) | tokenizer_files(), **steps, **more}}


def talk_to(server: HubServer, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let this process ask the server, and wait little between its tries."""
    server.use(monkeypatch, home)
    # Instances that live on know another address: that of the real hub, or of an earlier server.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setattr("sr_monitor.replay.retry._FIRST_PAUSE", 0.0)


def put(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def checkpoints(folder: Path, *steps: int) -> Path:
    """A Trainer's output folder, as it were: `checkpoint-N`, and a tokenizer in each."""
    for step in steps:
        put(olmo_files(step) | tokenizer_files(), folder / f"checkpoint-{step}")
    return folder


def some_prompts(num: int = 4) -> PromptSet:
    ids = torch.randint(300, (num, 5), generator=torch.Generator().manual_seed(0))
    return PromptSet.from_token_ids(ids)


def what_is_in(out: Path) -> dict[str, Any]:
    """All files by their names; of records the content without the time it took."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            name = _NAMED_BY_THE_CLOCK.sub(r"\1", str(path.relative_to(out)))
            # A replay that goes on begins another event file.
            assert name not in found or "tfevents" in name, f"two of {name}"
            found[name] = numbers(Record.load(path)) if path.suffix == ".safetensors" else None
            if path.suffix == ".json":
                found[name] = path.read_text()
    return found


def numbers(record: Record) -> dict[str, Any]:
    metadata = {name: value for name, value in record.metadata.items() if name != "seconds"}
    return measured(record) | {"step": record.step, "tokens": record.tokens, "metadata": metadata}


def measured(record: Record) -> dict[str, Any]:
    """What was measured, bit for bit."""
    found: dict[str, Any] = {}
    for part in (record.paths, record.slices):
        for name in () if part is None else part.__dataclass_fields__:
            value = getattr(part, name)
            is_tensor = isinstance(value, torch.Tensor)
            found[f"{type(part)}.{name}"] = value.numpy().tobytes() if is_tensor else value
    return found


def steps_in(out: Path) -> list[int]:
    return [Record.load(path).step for path in sorted((out / "stable_regions").glob("step-*"))]


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
