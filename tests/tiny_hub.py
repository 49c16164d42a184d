"""A repository of a few small revisions, to list and to download; none of them is a model.

with tiny_hub(monkeypatch, tmp_path) as server:
    (one,) = listed(ONE_FILE)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest

from sr_monitor.replay.hub import HubCheckpoint, list_files, list_revisions
from tests.hub_server import HubServer, hub_server

REPO = "lab/tiny"
CONFIG = b'{"model_type": "olmo"}'
INDEX = b'{"weight_map": {}}'
FIRST, SECOND = bytes(range(250)) * 40, bytes(range(250)) * 40 + b"later"
ONE_FILE, SHARDED, EQUAL, TORCH = "step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "v1"
REVISIONS: Mapping[str, Mapping[str, bytes]] = {
    "main": {"README.md": b"# tiny", "tokenizer.json": b"{}"},
    ONE_FILE: {
        "config.json": CONFIG,
        "model.safetensors": FIRST,
        "pytorch_model.bin": b"pickled",
        "model.fp16.safetensors": b"half",
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "optimizer/model.safetensors": b"moments",
    },
    SHARDED: {
        "config.json": CONFIG,
        "model-00001-of-00002.safetensors": FIRST,
        "model-00002-of-00002.safetensors": SECOND,
        "model.safetensors.index.json": INDEX,
    },
    EQUAL: {"config.json": CONFIG, "model.safetensors": FIRST},
    f"refs/tags/{TORCH}": {"config.json": CONFIG, "pytorch_model.bin": b"pickled"},
}


@contextmanager
def tiny_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """Serves it to this process, which does not wait between its tries."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setattr("sr_monitor.replay.retry._FIRST_PAUSE", 0.0)
    with hub_server({REPO: REVISIONS}) as server:
        server.use(monkeypatch, home)
        yield server


def downloaded(name: str) -> Path:
    """Where the client's cache holds this revision, once it does."""
    (found,) = listed(name)
    download = huggingface_hub.hf_hub_download
    paths = [download(REPO, file.name, revision=found.commit) for file in found.files]
    return Path(paths[0]).parent


def listed(*names: str) -> list[HubCheckpoint]:
    """These revisions, with their files."""
    commits = list_revisions(REPO)
    return list_files(REPO, {name: commits[name] for name in names})
