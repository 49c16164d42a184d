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
    FIRST,
    INDEX,
    ONE_FILE,
    REPO,
    REVISIONS,
    SECOND,
    SHARDED,
    TWIN,
    listed,
    tiny_hub,
)

WEIGHTS = "GET .*/model.safetensors/"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with tiny_hub(monkeypatch, tmp_path) as server:
        yield server


def cache(tmp_path: Path) -> dict[str, bytes]:
    """All files in the client's shared cache."""
    files = (path for path in (tmp_path / "hub").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if ".locks" not in path.parts}


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "out" / "private"


# Into a private folder


def test_a_checkpoint_comes_into_its_folder(hub: HubServer, tmp_path: Path, private: Path) -> None:
    seen: list[tuple[int, int]] = []
    (sharded,) = listed(SHARDED)
    private.mkdir(parents=True)
    (private / "adapter_config.json").write_bytes(b"of a killed process")
    fetch(sharded, private, progress=lambda done, total: seen.append((done, total)))
    assert visible(private) == REVISIONS[SHARDED]
    assert {total for _, total in seen} == {sharded.num_bytes}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == sharded.num_bytes
    assert cache(tmp_path) == {}


@pytest.mark.parametrize(
    ("revision", "cached", "missing"),
    [
        (SHARDED, list(REVISIONS[SHARDED]), 0),
        (SHARDED, ["config.json", "model-00002-of-00002.safetensors"], len(FIRST + INDEX)),
        (TWIN, ["config.json", "model.safetensors"], len(SECOND + INDEX)),
    ],
    ids=["all", "half", "of another revision"],
)
def test_what_is_cached_is_used_and_stays(
    hub: HubServer, tmp_path: Path, private: Path, revision: str, cached: list[str], missing: int
) -> None:
    for name in cached:
        huggingface_hub.hf_hub_download(REPO, name, revision=hub.commit(REPO, revision))
    before, seen = cache(tmp_path), {0}
    hub.requests.clear()
    (sharded,) = listed(SHARDED)
    with temporary_folder(private.parent):
        fetch(sharded, private, progress=lambda done, total: seen.add(total))
        assert visible(private) == REVISIONS[SHARDED]
        assert seen == {0, missing}
        assert cache(tmp_path) == before
    assert not private.parent.exists()
    assert cache(tmp_path) == before
    of_half = {"config.json", *cached} & REVISIONS[SHARDED].keys()
    assert hub.count("HEAD") == 4 - len(of_half) - (revision == TWIN)


def test_what_is_cached_damaged_is_neither_used_nor_touched(
    hub: HubServer, tmp_path: Path, private: Path
) -> None:
    path = Path(huggingface_hub.snapshot_download(REPO, revision=ONE_FILE), "model.safetensors")
    path.write_bytes(FIRST[:100])
    before = cache(tmp_path)
    for name in (ONE_FILE, TWIN):  # whose blob it is, too
        fetch(listed(name)[0], private)
        assert visible(private)["model.safetensors"] == FIRST
    assert cache(tmp_path) == before


def test_two_at_once_do_not_hurt_one_another(hub: HubServer, tmp_path: Path) -> None:
    (one,) = listed(ONE_FILE)
    hub.fail(WEIGHTS, Fault("slow", seconds=0.5))
    ends = {name: Event() for name in "ab"}

    def work(name: str) -> None:
        fetch(one, tmp_path / name)
        ends[name].set()

    for name in ends:
        Thread(target=work, args=name).start()
    assert all(end.wait(20) for end in ends.values())
    shutil.rmtree(tmp_path / "a")
    assert visible(tmp_path / "b")["model.safetensors"] == FIRST


def test_downloads_to_keep_are_the_clients_own(hub: HubServer, private: Path) -> None:
    wanted = {"config.json": CONFIG, "model.safetensors": FIRST}
    for _ in range(2):
        fetch(listed(ONE_FILE)[0], private, keep=True)
        assert visible(private) == wanted
    assert (hub.count("HEAD"), hub.count("GET .*config.json"), hub.count(WEIGHTS)) == (2, 1, 1)
    snapshot = Path(huggingface_hub.snapshot_download(REPO, revision=ONE_FILE))
    assert huggingface_hub.scan_cache_dir().warnings == []
    shutil.rmtree(private)
    assert visible(snapshot).items() >= wanted.items()
    hub.requests.clear()
    for name in (TWIN, ONE_FILE):  # known by its blob, known by its entry
        (snapshot / "model.safetensors").write_bytes(FIRST[:100])
        fetch(listed(name)[0], private, keep=True)
        assert visible(private) == wanted  # and none of the other files in the snapshot
    assert hub.count(WEIGHTS) == 2


# What goes wrong


@pytest.mark.parametrize(
    ("request_line", "kind", "status", "times"),
    [
        ("GET .*config.json", "error", 500, 2),
        (WEIGHTS, "error", 502, 2),
        (WEIGHTS, "error", 429, 1),
        (WEIGHTS, "short", 0, 2),
        (WEIGHTS, "truncate", 0, 1),
        (WEIGHTS, "stall", 0, 1),
        ("HEAD .*/model.safetensors", "error", 504, 1),
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
    fault = Fault(kind, status=status, times=times)
    hub.fail(request_line, fault)
    fetch(listed(ONE_FILE)[0], private)
    assert visible(private)["model.safetensors"] == FIRST
    assert fault.times == 0
    assert hub.count(request_line) == times + 1


def test_after_the_last_try_one_line_names_all(hub: HubServer, private: Path) -> None:
    hub.fail(WEIGHTS, Fault("error", times=-1, status=503))
    with pytest.raises(InputError, match=rf"^{REPO}@{ONE_FILE} .*503.*tries: 5\)") as caught:
        fetch(listed(ONE_FILE)[0], private)
    assert "\n" not in str(caught.value)
    assert hub.count(WEIGHTS) == 5


def test_a_file_that_is_not_as_large_as_listed_is_an_error(hub: HubServer, private: Path) -> None:
    (one,) = listed(ONE_FILE)
    hub.claimed_sizes["model.safetensors"] = len(FIRST) + 1
    with pytest.raises(InputError, match=f"should be of size {len(FIRST) + 1}"):
        fetch(one, private)
    (one,), hub.claimed_sizes = listed(ONE_FILE), {}
    with pytest.raises(InputError, match=f"{len(FIRST)} bytes, and the hub lists {len(FIRST) + 1}"):
        fetch(one, private)


def test_a_refusal_is_final(hub: HubServer, private: Path) -> None:
    hub.fail("HEAD .*config.json", Fault("error", status=403, headers={"X-Error-Code": "Gated"}))
    (one, empty) = listed(ONE_FILE, "main")
    with pytest.raises(InputError, match=f"{REPO}@{ONE_FILE} .*the hub does not give it out"):
        fetch(one, private)
    assert hub.count("HEAD") == 1
    with pytest.raises(InputError, match="it holds no weights"):
        fetch(empty, private)


@pytest.mark.parametrize(
    ("keep", "place", "fix"), [(False, "/out", "name an --out"), (True, "", "set HF_HOME")]
)
def test_what_the_disk_cannot_hold_is_not_begun(
    hub: HubServer, tmp_path: Path, private: Path, keep: bool, place: str, fix: str
) -> None:
    private.parent.mkdir()
    hub.claimed_sizes["model.safetensors"] = 10**18
    words = rf"^{REPO}@{ONE_FILE} needs 1000000000\.0 GB .*free at '{tmp_path}{place}'; .*{fix}"
    with pytest.raises(InputError, match=words):
        fetch(listed(ONE_FILE)[0], private, keep=keep)
    assert hub.count("resolve") == 0


def test_a_cache_that_cannot_be_written_is_said(
    hub: HubServer, tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = listed(ONE_FILE)
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(InputError, match="it cannot be written"):
        fetch(one, private, keep=True)


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
        fetch(listed(ONE_FILE)[0], private, progress=progress, stop=stop)
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
        fetch(listed(ONE_FILE)[0], private, stop=stop)
    assert time.monotonic() - began < 30
    assert hub.count(WEIGHTS) == 1


# One ahead

NAMES = ("step0", "step1", "step2", "step3")


class Shelf:
    """Fetches by name when it is allowed to, and notes what it began and ended."""

    def __init__(self, *allowed: str, bad: str = "") -> None:
        self.begun: list[str] = []
        self.fetched: list[str] = []
        self.allowed, self.bad = set(allowed), bad

    def __call__(self, name: str, stop: Event) -> str:
        self.begun.append(name)
        assert len(self.begun) == len(self.fetched) + 1, "two at once"
        while name not in self.allowed:
            if stop.wait(0.01):
                raise Stopped
        stop.wait(0.02)
        self.fetched.append(name)
        if name == self.bad:
            raise InputError(f"no {name}")
        return name.upper()


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done(), "it did not come"


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if "download" in thread.name]


def test_all_come_in_order_and_one_ahead() -> None:
    shelf, asked = Shelf(*NAMES), list[str]()

    def names() -> Iterator[str]:
        for name in NAMES:
            asked.append(name)
            yield name

    for number, (name, download) in enumerate(one_ahead(names(), shelf)):
        assert download.result() == NAMES[number].upper() == name.upper()
        until(lambda: len(shelf.fetched) == min(number + 2, 4))  # noqa: B023
        assert asked == list(NAMES[: number + 2])
    assert number == 3
    assert list(one_ahead((), shelf)) == []
    until(no_thread_is_left)


def test_an_error_is_raised_by_its_own_result() -> None:
    first, second, *rest = one_ahead(NAMES, Shelf(*NAMES, bad="step1"))
    assert first[1].result() == "STEP0"
    with pytest.raises(InputError, match="no step1"):
        second[1].result()
    assert [download.result() for _, download in rest] == ["STEP2", "STEP3"]


def test_who_leaves_early_stops_what_is_under_way() -> None:
    shelf = Shelf("step0")
    downloads = one_ahead(NAMES, shelf)
    assert next(downloads)[1].result() == "STEP0"
    until(lambda: shelf.begun == ["step0", "step1"])
    downloads.close()
    assert (shelf.begun, shelf.fetched) == (["step0", "step1"], ["step0"])
    assert no_thread_is_left()


def test_a_line_that_never_answers_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_monitor.replay.fetch._PARTING_SECONDS", 0.1)
    answer = Event()
    downloads = one_ahead(NAMES, lambda name, stop: name == "step0" or answer.wait(60))
    next(downloads)
    began = time.monotonic()
    downloads.close()
    assert time.monotonic() - began < 30
    assert all(t.daemon for t in threading.enumerate() if "download" in t.name)
    answer.set()
