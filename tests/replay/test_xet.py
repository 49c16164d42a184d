"""Transfers by Xet, as from the real hub: its own client, and a hub on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import huggingface_hub
import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.fetch import fetch, temporary_folder
from sr_monitor.replay.hashes import check_downloads, listed_hash
from sr_monitor.replay.hub import HubCheckpoint, list_files, list_revisions
from sr_monitor.replay.retry import Stopped
from sr_monitor.replay.run import replay
from tests.hub_server import Fault, HubServer, hub_server
from tests.replays import FEW, OLMO, STEPS, olmo_repo, some_prompts, talk_to, what_is_in

REPO = "lab/tiny"
WEIGHTS = bytes(range(250)) * 400
WHOLE = {"config.json": b"{}", "model.safetensors": WEIGHTS}
SHARDED = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[1:],
    "model.safetensors.index.json": b"{}",
}
ROUTE, CHUNKS = "GET /xet/", "GET /xorbs/"

pytestmark = pytest.mark.skipif(find_spec("hf_xet") is None, reason="needs hf_xet")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub whose weights come by Xet."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setattr("sr_monitor.replay.retry._FIRST_PAUSE", 0.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    with hub_server({REPO: {"main": WHOLE, "sharded": SHARDED}}) as server:
        server.xet = True
        server.use(monkeypatch, tmp_path / "home")
        yield server


def fetched(folder: Path, revision: str = "main", **options: Any) -> dict[str, bytes]:
    commit = list_revisions(REPO)[revision]
    (found,) = list_files([HubCheckpoint(repo=REPO, revision=revision, commit=commit)])
    fetch(found, folder, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_chunks_come_and_go_with_the_private_folder(hub: HubServer, tmp_path: Path) -> None:
    settings = dict(os.environ)
    with temporary_folder(tmp_path / "out" / ".downloads") as folder:
        assert fetched(folder / "one") == WHOLE
        assert (folder / "one" / ".cache" / "xet").is_dir(), "Xet itself was not asked"
    assert (hub.count(ROUTE), hub.count(CHUNKS), hub.count("GET .*safetensors/")) == (1, 1, 0)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
    assert dict(os.environ) == settings


@pytest.mark.parametrize(
    ("request_line", "kind"),
    [(line, kind) for line in (ROUTE, CHUNKS) for kind in ("error", "drop", "truncate", "stall")]
    + [(CHUNKS, "flip"), (CHUNKS, "short")],
)
def test_what_failed_is_retried(
    hub: HubServer, tmp_path: Path, request_line: str, kind: Any
) -> None:
    hub.fail(request_line, Fault(kind))
    assert fetched(tmp_path / "one") == WHOLE
    assert hub.count(request_line) == 2


def test_other_bytes_than_the_hub_lists_are_not_measured(hub: HubServer, tmp_path: Path) -> None:
    hub.fail(CHUNKS, Fault("flip", times=100))
    with pytest.raises(InputError, match=r"model.safetensors.*its hash differs.*tries: 5"):
        fetched(tmp_path / "one")


def test_client_and_replay_share_one_budget(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sr_monitor.replay.retry._BUDGET", 0.8)
    hub.fail(CHUNKS, Fault("stall", times=100))
    began = time.monotonic()
    with pytest.raises(InputError, match=r"could not be downloaded .*tries: 3") as caught:
        fetched(tmp_path / "one")
    assert time.monotonic() - began < 20
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_transfer_ends_in_the_middle_when_told_to(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    hub.fail(CHUNKS, Fault("slow", seconds=8, times=100))
    stop, seen = Event(), list[int]()

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > 100:
            stop.set()

    began = time.monotonic()
    with pytest.raises(Stopped):
        fetched(tmp_path / "one", progress=progress, stop=stop)
    assert time.monotonic() - began < 6
    assert seen == sorted(seen)
    assert seen[-1] < len(WEIGHTS) / 2
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.rglob("*.incomplete"))


def test_bytes_are_counted_once(hub: HubServer, tmp_path: Path) -> None:
    seen: list[int] = []
    there = fetched(tmp_path / "one", "sharded", progress=lambda done, _: seen.append(done))
    assert there == SHARDED
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, SHARDED.values()))


def test_downloads_to_keep_are_the_clients_own(
    hub: HubServer, tmp_path: Path, logged_warnings: list[str]
) -> None:
    for _ in range(2):
        assert fetched(tmp_path / "one", keep=True) == WHOLE
    assert hub.count(CHUNKS) == 1
    assert huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE).warnings == []
    (kept,) = (tmp_path / "home" / "hub").glob("models--*/snapshots/*/model.safetensors")
    (file,) = (path for path in kept.parent.parent.parent.glob("blobs/*") if len(path.name) == 64)
    assert listed_hash(kept) == file.name
    (tmp_path / "one" / "model.safetensors").resolve().chmod(0o600)
    kept.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors' holds other bytes than the hub"):
        check_downloads([kept], lambda: None)
    assert fetched(tmp_path / "one", keep=True) == WHOLE
    assert "is damaged" in logged_warnings.pop()


@pytest.mark.slow
def test_a_replay_by_xet_is_that_by_plain_downloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = [f"{OLMO}@{step}" for step in STEPS[:2]]
    for xet in (True, False):
        with hub_server(olmo_repo()) as server:
            server.xet = xet
            talk_to(server, monkeypatch, tmp_path / f"home-{xet}")
            report = replay(sources, tmp_path / str(xet), prompts=some_prompts(), **FEW)
        assert (len(report.measured), report.failures) == (2, {})
        assert server.count(CHUNKS) == 2 * xet
        assert not (tmp_path / f"home-{xet}").exists(), "what is in the shared cache"
    assert what_is_in(tmp_path / "True") == what_is_in(tmp_path / "False")


@pytest.mark.slow
def test_an_interrupted_transfer_ends_quietly_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    some_prompts().save(tmp_path / "prompts.safetensors")
    out, home = tmp_path / "out", tmp_path / "home"
    options = "--prompts prompts.safetensors --num-pairs 3 --num-slices 0 --device cpu"
    with hub_server(olmo_repo()) as server:
        server.xet = True
        server.fail(CHUNKS, Fault("slow", seconds=60, times=100))
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sr_monitor",
                "replay",
                f"{OLMO}@{STEPS[0]}",
                "--out",
                str(out),
                *options.split(),
            ],
            env=os.environ | server.environment(home),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not server.count(CHUNKS) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - began < 8) == (130, True), said
    assert "Traceback" not in said
    assert not (out / ".downloads").exists()
    assert not home.exists()
