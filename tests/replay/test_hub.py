"""The real hub client and a hub on this machine: listings, retries, downloads, and one ahead."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Any

import huggingface_hub
import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.fetch import fetch, one_ahead, temporary_folder
from sr_monitor.replay.hub import HubCheckpoint, list_commits, list_files, list_revisions
from sr_monitor.replay.retry import HubGone, Stopped, retry
from tests.hub_server import Fault, HubServer, Window, hub_server

REPO = "lab/tiny"
CONFIG = b'{"model_type": "olmo"}'
INDEX = b'{"weight_map": {}}'
FIRST, SECOND = bytes(range(250)) * 40, bytes(range(250)) * 40 + b"later"
ONE_FILE, SHARDED, EQUAL, TORCH = "step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "v1"
WHOLE = {"config.json": CONFIG, "model.safetensors": FIRST}
REVISIONS: Mapping[str, Mapping[str, bytes]] = {
    "main": {"README.md": b"# tiny", "tokenizer.json": b"{}"},
    ONE_FILE: WHOLE | {"pytorch_model.bin": b"pickled", "tokenizer.json": b"{}"},
    SHARDED: {
        "config.json": CONFIG,
        "model-00001-of-00002.safetensors": FIRST,
        "model-00002-of-00002.safetensors": SECOND,
        "model.safetensors.index.json": INDEX,
    },
    EQUAL: WHOLE,
    f"refs/tags/{TORCH}": {"config.json": CONFIG, "pytorch_model.bin": b"pickled"},
}
WEIGHTS = "GET .*/model.safetensors/"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with a repository of small revisions, none of them a model."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setattr("sr_monitor.replay.retry._FIRST_PAUSE", 0.0)
    with hub_server({REPO: REVISIONS}) as server:
        server.use(monkeypatch, tmp_path)
        yield server


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "out" / "private"


def listed(*names: str) -> list[HubCheckpoint]:
    commits = list_revisions(REPO)
    return list_files([HubCheckpoint(repo=REPO, revision=n, commit=commits[n]) for n in names])


def downloaded(name: str) -> Path:
    """Let the client download a revision; return where its cache holds it."""
    (found,) = listed(name)
    download = huggingface_hub.hf_hub_download
    paths = [download(REPO, file.name, revision=found.commit) for file in found.files]
    return Path(paths[0]).parent


def cache(tmp_path: Path) -> dict[str, bytes]:
    """All files in the client's shared cache."""
    files = (path for path in (tmp_path / "hub").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if ".locks" not in path.parts}


def fetched(revision: str, folder: Path, **options: Any) -> dict[str, bytes]:
    """Fetch a revision; return what is in the folder afterwards."""
    fetch(listed(revision)[0], folder, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done(), "it did not come"


# Listings


def test_config_and_weights_are_listed_and_nothing_is_downloaded(
    hub: HubServer, tmp_path: Path
) -> None:
    commits = {name.removeprefix("refs/tags/"): hub.commit(REPO, name) for name in REVISIONS}
    assert list_revisions(REPO) == commits
    one, sharded, torch_file, twin, empty = listed(ONE_FILE, SHARDED, TORCH, EQUAL, "main")
    assert {file.name: file.size for file in one.files} == {n: len(b) for n, b in WHOLE.items()}
    assert one.files[1].hash == sha256(FIRST).hexdigest()
    assert sharded.num_bytes == sum(map(len, REVISIONS[SHARDED].values()))
    assert (one.problem, one.label) == (None, f"{REPO}@{ONE_FILE}")
    assert str(empty.problem).startswith("it holds no weights")
    assert one.fingerprint == twin.fingerprint
    assert len({one.fingerprint, sharded.fingerprint, torch_file.fingerprint}) == 3
    hub.claimed_hashes["config.json"] = "../../elsewhere"  # it would become a path here
    (unknown,) = listed(ONE_FILE)
    assert (unknown.files[0].hash, unknown.fingerprint) == ("", None)
    assert hub.count("resolve") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (
            "config.json model.safetensors model-00001-of-00002.safetensors model.fp16.safetensors "
            "model.safetensors.index.json optimizer/model.safetensors generation_config.json",
            "config.json model.safetensors",
        ),
        (
            "pytorch_model.bin.index.json pytorch_model-00001-of-00002.bin training_args.bin",
            "pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json",
        ),
        ("config.json modeling_own.py sub/other.py setup.cfg", "config.json modeling_own.py"),
        ("config.json/x xmodel.safetensors", ""),
    ],
)
def test_files_are_chosen_in_the_order_of_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: str, chosen: str
) -> None:
    with hub_server({REPO: {"main": dict.fromkeys(there.split(), b"x")}}) as server:
        server.use(monkeypatch, tmp_path)
        assert [file.name for file in listed("main")[0].files] == chosen.split()


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        ("/refs$", "[]"),
        ("/refs$", '{"branches": [{"name": null, "ref": "", "targetCommit": ""}], "tags": []}'),
        ("/commits/main$", '[{"id": 5}]'),
        ("/revision/", '{"id": "x", "siblings": [{"rfilename": 5}]}'),
        ("/revision/", '{"id": "x", "siblings": [{"rfilename": "a", "lfs": {"size": 5}}]}'),
        ("/revision/", '{"id": "x", "siblings": [{"rfilename": "config.json", "size": "x"}]}'),
        ("/revision/", "[]"),
    ],
)
def test_an_answer_of_another_form_is_one_line(
    hub: HubServer, request_line: str, answer: str
) -> None:
    hub.answers[request_line] = answer
    call = {"/refs$": list_revisions, "/commits/main$": list_commits}.get(request_line)
    told = rf"^{REPO}\S*: the hub's answer is not understood \(\w+: .*\); check HF_ENDPOINT"
    with pytest.raises(InputError, match=told):
        call(REPO) if call else listed(EQUAL)


def test_without_the_client_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[replay\]'"):
        list_revisions(REPO)


def many(num: int) -> list[HubCheckpoint]:
    """As many revisions to list, all of one commit."""
    commit = list_revisions(REPO)[EQUAL]
    names = (f"step{number}" for number in range(num))
    return [HubCheckpoint(repo=REPO, revision=name, commit=commit) for name in names]


def test_a_listing_keeps_to_the_limit_that_the_hub_tells(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    logged_warnings: list[str],
) -> None:
    wanted, counts = many(40), list[tuple[int, int]]()
    monkeypatch.setattr("sr_monitor.replay.hub._SILENCE", 0.5)
    caplog.set_level("INFO")
    hub.window = Window(quota=25, seconds=1)
    found = list_files(wanted, lambda done, total: counts.append((done, total)))
    assert [each.revision for each in found] == [each.revision for each in wanted]
    assert counts == [(done, 40) for done in range(1, 41)]
    assert (hub.window.refused, hub.count("/revision/")) == (0, 40)
    assert logged_warnings.pop() in [
        f"the hub takes no more requests for {seconds} s: waiting" for seconds in (1, 2)
    ]
    assert re.search(r"listing: \d+ of 40 revisions", caplog.text)


def test_a_listing_ends_when_the_hub_is_gone_or_nobody_wants_it(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = many(30)
    busy = Fault("error", status=429, times=99, headers={"Retry-After": "90"})
    hub.fail("/revision/", busy)

    def interrupt(*_: object) -> None:
        until(lambda: hub.count("/revision/") == 8)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list_files(wanted)
    busy.times = 0
    monkeypatch.setattr("sr_monitor.replay.retry._FIRST_PAUSE", 0.02)
    hub.fail(".", Fault("drop", times=10**6))
    with pytest.raises(HubGone):
        list_files(wanted)
    assert hub.count("/revision/") <= 8 + 8 * 5, "more than had begun"
    assert time.monotonic() - began < 30


# Retries


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def request() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return request


def test_pauses_grow_until_the_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    assert retry(failing(*[OSError("cut")] * 4), "it", wait=pauses.append) == "answer"
    assert pauses == [1, 2, 4, 8]
    with pytest.raises(InputError, match=r"it could not be downloaded \(cut; tries: 5\); check"):
        retry(failing(*[OSError("cut\nadvice")] * 5), "it", wait=lambda seconds: None)
    monkeypatch.setattr("sr_monitor.replay.retry._BUDGET", 0.0)  # the client has used it up
    with pytest.raises(InputError, match="tries: 1"):
        retry(failing(OSError("cut")), "it", wait=pauses.append)
    for error in (TypeError("a bug"), Stopped(), InputError("no")):
        with pytest.raises(type(error)) as caught:
            retry(failing(error), "it")
        assert caught.value is error


def test_the_hub_is_given_the_time_it_asks_for(hub: HubServer) -> None:
    limited = Fault("error", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    busy = Fault("error", status=503, headers={"Retry-After": "7"})
    for fault in (limited, busy):
        hub.fail("GET /api/models/lab/tiny/refs", fault)
    pauses: list[float] = []
    retry(lambda: huggingface_hub.HfApi().list_repo_refs(REPO), REPO, wait=pauses.append)
    assert pauses == [55, 7]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (
            403,
            "GatedRepo",
            "the repository is gated; accept its terms at http.*/lab/tiny, then log in",
        ),
        (403, "", r"the hub does not give it out \(.*403.*\); log in"),
        (404, "EntryNotFound", r"the hub refuses it \(.*404.*\); check"),
        (404, "RevisionNotFound", "the repository has no such revision"),
        (401, "RepoNotFound", "the hub has no such repository"),
    ],
)
def test_a_refusal_is_final(hub: HubServer, status: int, code: str, words: str) -> None:
    fault = Fault("error", status=status, headers={"X-Error-Code": code} if code else {})
    hub.fail("GET /api/.*/revision", fault)
    with pytest.raises(InputError, match=f"^{REPO}@{EQUAL} cannot be downloaded: {words}"):
        listed(EQUAL)
    assert hub.count("/revision") == 1


def test_a_repository_that_cannot_be_had(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="this is no name of a repository"):
        list_revisions("lab/tiny/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        list_revisions(REPO)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("request_line", "kind", "times"),
    [
        ("GET /api/.*/refs", "drop", 2),
        ("GET /api/.*/revision", "error", 2),
        ("GET .*config.json", "error", 2),
        (WEIGHTS, "error", 2),
        (WEIGHTS, "short", 2),
        (WEIGHTS, "truncate", 1),
        (WEIGHTS, "flip", 2),
        ("GET .*config.json", "flip", 1),
        (WEIGHTS, "stall", 1),
        ("HEAD .*config.json", "drop", 2),
    ],
)
def test_what_failed_is_retried(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    private: Path,
    request_line: str,
    kind: Any,
    times: int,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail(request_line, Fault(kind, times=times))
    assert fetched(ONE_FILE, private) == WHOLE
    assert hub.count(request_line) == times + 1


# Downloads


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
    assert not private.parent.exists()
    assert cache(tmp_path) == before


def test_what_is_cached_damaged_is_neither_used_nor_touched(
    hub: HubServer, tmp_path: Path, private: Path
) -> None:
    (downloaded(ONE_FILE) / "model.safetensors").write_bytes(FIRST[:100])
    before = cache(tmp_path)
    for name in (ONE_FILE, EQUAL):  # whose blob it is, too
        assert fetched(name, private) == WHOLE
    assert cache(tmp_path) == before


def test_other_bytes_of_the_same_size_in_the_cache_are_not_used(
    hub: HubServer, tmp_path: Path, private: Path, logged_warnings: list[str]
) -> None:
    weights = downloaded(ONE_FILE) / "model.safetensors"
    weights.write_bytes(FIRST[:-1] + b"x")
    before = cache(tmp_path)
    for name in (ONE_FILE, EQUAL):
        assert fetched(name, private) == WHOLE
        assert "is damaged (its hash differs)" in logged_warnings.pop()
    assert cache(tmp_path) == before
    assert fetched(ONE_FILE, private, keep=True) == WHOLE
    assert weights.read_bytes() == FIRST
    logged_warnings.clear()


def test_what_is_cached_is_compared_once(
    hub: HubServer, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded(ONE_FILE)
    assert fetched(ONE_FILE, private) == WHOLE
    monkeypatch.setattr("hashlib.sha256", None)
    assert fetched(ONE_FILE, private) == WHOLE


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
    assert huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE).warnings == []
    shutil.rmtree(private)
    hub.requests.clear()
    for name in (EQUAL, ONE_FILE):  # known by its blob, known by its entry
        assert (snapshot / "model.safetensors").read_bytes() == FIRST
        (snapshot / "model.safetensors").write_bytes(FIRST[:100])
        assert fetched(name, private, keep=True) == WHOLE  # and no other files of the snapshot
    assert hub.count(WEIGHTS) == 2


def test_other_bytes_than_the_hub_lists_are_not_measured(hub: HubServer, private: Path) -> None:
    hub.fail(WEIGHTS, Fault("flip", times=100))
    with pytest.raises(InputError, match=r"model.safetensors.*its hash differs.*tries: 5"):
        fetched(ONE_FILE, private)


@pytest.mark.parametrize(("kind", "status"), [("error", 500), ("error", 403), ("short", 0)])
def test_no_signature_is_shown(
    hub: HubServer, private: Path, caplog: pytest.LogCaptureFixture, kind: Any, status: int
) -> None:
    hub.fail(WEIGHTS, Fault(kind, times=100, status=status))
    hub.fail("GET .*config.json", Fault("drop"))  # which the client logs
    with pytest.raises(InputError, match="be downloaded") as caught:
        fetched(ONE_FILE, private)
    assert "Signature" not in f"{caught.value} {caplog.text}"
    assert hub.count("Signature=secret") > 0


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


def downloads_under_way() -> list[Thread]:
    return [thread for thread in threading.enumerate() if "download" in thread.name]


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
        told = str(download.exception() or download.result())
        assert told == ("no b" if name == "b" else name.upper())
        until(lambda: len(ended) == min(number + 2, 4))  # noqa: B023
    assert list(downloads) == list(one_ahead((), fetch)) == []
    until(lambda: not downloads_under_way())


def test_who_leaves_early_stops_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, answer = Event(), Event()

    def fetch(name: str, stop: Event) -> None:
        if name == "b":
            stop.wait(60)
            stopped.set()

    downloads = one_ahead("abc", fetch)
    next(downloads)
    downloads.close()
    assert stopped.is_set()
    until(lambda: not downloads_under_way())
    # A line that never answers holds nobody.
    monkeypatch.setattr("sr_monitor.replay.fetch._PARTING_SECONDS", 0.1)
    answering = one_ahead("abc", lambda name, stop: name == "a" or answer.wait(60))
    next(answering)
    began = time.monotonic()
    answering.close()
    assert time.monotonic() - began < 30
    assert all(thread.daemon for thread in downloads_under_way())
    answer.set()
