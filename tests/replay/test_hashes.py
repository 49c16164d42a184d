"""Local files that the hub's client has kept a hash of."""

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.hashes import check_downloads, listed_hash
from tests.hub_server import HubServer, hub_server

REPO = "lab/tiny"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server({REPO: {"main": FILES}}) as server:
        server.use(monkeypatch, tmp_path / "home")
        yield server


def check(path: Path) -> None:
    check_downloads([path], lambda: None)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_in_cache", [False, True])
def test_a_download_that_changed_is_refused(
    hub: HubServer, tmp_path: Path, name: str, is_in_cache: bool
) -> None:
    folder = None if is_in_cache else tmp_path / "here"
    path = Path(huggingface_hub.hf_hub_download(REPO, name, local_dir=folder))
    before = path.stat()
    check(path)
    path.write_bytes(FILES[name][:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # as a disk does, almost
    with pytest.raises(InputError, match=f"{name}' holds other bytes than the hub listed"):
        check(path)


def test_files_with_no_hash_are_taken_as_they_are(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    path = Path(huggingface_hub.hf_hub_download(REPO, "config.json", local_dir=folder))
    note = folder / ".cache/huggingface/download/config.json.metadata"
    told = note.read_text()
    for damaged in ("", "\0", "a b c", told.replace(told.split()[1], "../../etag"), "x\n" * 99):
        note.write_text(damaged)
        assert listed_hash(path) == ""
    note.write_text(told)
    assert listed_hash(path) == told.split()[1]
    later = path.stat().st_mtime + 10
    path.write_bytes(b"trained on")
    os.utime(path, (later, later))
    check(path)
    assert listed_hash(path) == ""
    check(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"saved by a trainer")
    check(tmp_path / "model.safetensors")
