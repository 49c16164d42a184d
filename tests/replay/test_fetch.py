"""The real hub client and a hub on this machine: downloads, their end, and one ahead."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import huggingface_hub
import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.fetch import fetch, one_ahead, temporary_folder
from sr_monitor.replay.retry import Stopped
from tests.hub_server import Fault, HubServer
from tests.tiny_hub import (
    CONFIG,
    EQUAL,
    FIRST,
    INDEX,
    ONE_FILE,
    REPO,
    REVISIONS,
    SECOND,
    SHARDED,
    downloaded,
    listed,
    tiny_hub,
)

WEIGHTS = "GET .*/model.safetensors/"
WHOLE = {"config.json": CONFIG, "model.safetensors": FIRST}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with tiny_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "out" / "private"


def cache(tmp_path: Path) -> dict[str, bytes]:
    """All files in the client's shared cache."""
    files = (path for path in (tmp_path / "hub").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if ".locks" not in path.parts}


def fetched(revision: str, folder: Path, **options: Any) -> dict[str, bytes]:
    """What is in the folder afterwards."""
    fetch(listed(revision)[0], folder, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done(), "it did not come"


# What comes


def test_a_checkpoint_comes_into_its_folder(hub: HubServer, tmp_path: Path, private: Path) -> None:
    seen: list[tuple[int, int]] = []
    private.mkdir(parents=True)
    (private / "adapter_config.json").write_bytes(b"of a killed process")
    there = fetched(SHARDED, private, progress=lambda done, total: seen.append((done, total)))
    assert there == REVISIONS[SHARDED]
    size = sum(map(len, there.values()))
    assert {total for _, total in seen} == {size}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == size
    assert cache(tmp_path) == {}


@pytest.mark.parametrize(
    ("revision", "cached", "missing", "heads"),
    [
        (SHARDED, list(REVISIONS[SHARDED]), b"", 0),
        (SHARDED, ["config.json", "model-00002-of-00002.safetensors"], FIRST + INDEX, 2),
        (EQUAL, list(WHOLE), SECOND + INDEX, 2),
    ],
    ids=["all", "half", "of another revision"],
)
def test_what_is_cached_is_used_and_stays(
    hub: HubServer,
    tmp_path: Path,
    private: Path,
    revision: str,
    cached: list[str],
    missing: bytes,
    heads: int,
) -> None:
    for name in cached:
        huggingface_hub.hf_hub_download(REPO, name, revision=hub.commit(REPO, revision))
    before, totals = cache(tmp_path), {0}
    hub.requests.clear()
    with temporary_folder(private.parent):
        there = fetched(SHARDED, private, progress=lambda done, total: totals.add(total))
        assert there == REVISIONS[SHARDED]
        assert (totals, hub.count("HEAD")) == ({0, len(missing)}, heads)
        assert cache(tmp_path) == before
    assert not private.parent.exists()
    assert cache(tmp_path) == before


def test_what_is_cached_damaged_is_neither_used_nor_touched(
    hub: HubServer, tmp_path: Path, private: Path
) -> None:
    path = downloaded(ONE_FILE) / "model.safetensors"
    path.write_bytes(FIRST[:100])
    before = cache(tmp_path)
    for name in (ONE_FILE, EQUAL):  # whose blob it is, too
        assert fetched(name, private) == WHOLE
    assert cache(tmp_path) == before


def test_two_at_once_do_not_hurt_one_another(hub: HubServer, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, Fault("slow", seconds=0.5))
    (one,) = listed(ONE_FILE)
    threads = [Thread(target=fetch, args=(one, tmp_path / name)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    shutil.rmtree(tmp_path / "a")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == FIRST


def test_downloads_to_keep_are_the_clients_own(hub: HubServer, private: Path) -> None:
    for _ in range(2):
        assert fetched(ONE_FILE, private, keep=True) == WHOLE
    assert (hub.count("HEAD"), hub.count("GET .*config.json"), hub.count(WEIGHTS)) == (2, 1, 1)
    snapshot = downloaded(ONE_FILE)
    assert huggingface_hub.scan_cache_dir().warnings == []
    shutil.rmtree(private)
    hub.requests.clear()
    for name in (EQUAL, ONE_FILE):  # known by its blob, known by its entry
        assert (snapshot / "model.safetensors").read_bytes() == FIRST
        (snapshot / "model.safetensors").write_bytes(FIRST[:100])
        assert fetched(name, private, keep=True) == WHOLE  # and no other files of the snapshot
    assert hub.count(WEIGHTS) == 2


# What goes wrong


@pytest.mark.parametrize(
    ("request_line", "kind", "status", "times"),
    [
        ("GET .*config.json", "error", 500, 2),
        (WEIGHTS, "error", 502, 2),
        (WEIGHTS, "short", 0, 2),
        (WEIGHTS, "truncate", 0, 1),
        (WEIGHTS, "stall", 0, 1),
        ("HEAD .*config.json", "drop", 0, 2),
    ],
)
def test_a_failed_download_is_retried(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    private: Path,
    request_line: str,
    kind: Any,
    status: int,
    times: int,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail(request_line, Fault(kind, status=status, times=times))
    assert fetched(ONE_FILE, private) == WHOLE
    assert hub.count(request_line) == times + 1


def test_files_are_as_large_as_listed(hub: HubServer, private: Path) -> None:
    claimed = len(FIRST) + 1
    (one,) = listed(ONE_FILE)
    hub.claimed_sizes["model.safetensors"] = claimed
    with pytest.raises(InputError, match=f"should be of size {claimed}"):
        fetch(one, private)
    (one,), hub.claimed_sizes = listed(ONE_FILE), {}
    with pytest.raises(InputError, match=f"{len(FIRST)} bytes, and the hub lists {claimed}"):
        fetch(one, private)
    with pytest.raises(InputError, match="it holds no weights"):
        fetched("main", private)


@pytest.mark.parametrize(
    ("keep", "place", "fix"), [(False, "/out", "name an --out"), (True, "", "set HF_HOME")]
)
def test_a_disk_that_is_full_or_cannot_be_written_is_told(
    hub: HubServer, tmp_path: Path, private: Path, keep: bool, place: str, fix: str
) -> None:
    private.parent.mkdir()
    hub.claimed_sizes["model.safetensors"] = 10**18
    words = rf"^{REPO}@{ONE_FILE} needs 1000000000\.0 GB .*free at '{tmp_path}{place}'; .*{fix}"
    with pytest.raises(InputError, match=words):
        fetched(ONE_FILE, private, keep=keep)
    assert hub.count("resolve") == 0
    hub.claimed_sizes.clear()
    (tmp_path / "hub").touch()
    with pytest.raises(InputError, match="it cannot be written"):
        fetched(ONE_FILE, private, keep=True)


# Ends


def test_a_download_ends_in_the_middle_of_a_file_when_told_to(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, private: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.fail(WEIGHTS, Fault("slow", seconds=8))
    stop, seen = Event(), list[int]()

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > len(CONFIG):
            stop.set()

    with pytest.raises(Stopped):
        fetched(ONE_FILE, private, progress=progress, stop=stop)
    assert seen[-1] < len(FIRST) / 2


def test_a_download_ends_in_a_pause_when_told_to(hub: HubServer, private: Path) -> None:
    hub.fail(WEIGHTS, Fault("error", times=-1, status=503, headers={"Retry-After": "60"}))
    stop = Event()

    def stop_after_the_refusal() -> None:
        until(lambda: hub.count(WEIGHTS) > 0)
        stop.set()

    Thread(target=stop_after_the_refusal).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        fetched(ONE_FILE, private, stop=stop)
    assert time.monotonic() - began < 30
    assert hub.count(WEIGHTS) == 1


# One ahead


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if "download" in thread.name]


def test_all_come_in_order_and_one_ahead() -> None:
    begun, ended = list[str](), list[str]()

    def fetch(name: str, stop: Event) -> str:
        begun.append(name)
        assert len(begun) == len(ended) + 1, "two at once"
        stop.wait(0.02)
        ended.append(name)
        if name == "b":
            raise InputError("no b")
        return name.upper()

    downloads = one_ahead(iter("abcd"), fetch)
    for number, name in enumerate("abcd"):
        key, download = next(downloads)
        assert key == name
        if name == "b":
            with pytest.raises(InputError, match="no b"):
                download.result()
        else:
            assert download.result() == name.upper()
        until(lambda: len(ended) == min(number + 2, 4))  # noqa: B023
    assert list(downloads) == list(one_ahead((), fetch)) == []
    until(no_thread_is_left)


def test_who_leaves_early_stops_what_is_under_way() -> None:
    stopped = Event()

    def fetch(name: str, stop: Event) -> None:
        if name == "b":
            stop.wait(60)
            stopped.set()

    downloads = one_ahead("abc", fetch)
    next(downloads)
    downloads.close()
    assert stopped.is_set()
    until(no_thread_is_left)


def test_a_line_that_never_answers_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_monitor.replay.fetch._PARTING_SECONDS", 0.1)
    answer = Event()
    downloads = one_ahead("abc", lambda name, stop: name == "a" or answer.wait(60))
    next(downloads)
    began = time.monotonic()
    downloads.close()
    assert time.monotonic() - began < 30
    assert all(t.daemon for t in threading.enumerate() if "download" in t.name)
    answer.set()
