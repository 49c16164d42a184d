"""The real hub client and a hub on this machine: what is listed, what is retried, what is final."""

import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.hub import list_revisions
from sr_monitor.replay.retry import Stopped, retry
from tests.hub_server import Fault, HubServer, hub_server
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
    TORCH,
    downloaded,
    listed,
    tiny_hub,
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with tiny_hub(monkeypatch, tmp_path) as server:
        yield server


# What there is


def test_revisions_are_those_that_the_hub_lists(hub: HubServer) -> None:
    commits = {name.removeprefix("refs/tags/"): hub.commit(REPO, name) for name in REVISIONS}
    assert list_revisions(REPO) == commits


def test_config_and_weights_are_listed_and_nothing_is_downloaded(
    hub: HubServer, tmp_path: Path
) -> None:
    one, sharded, torch_file, empty = listed(ONE_FILE, SHARDED, TORCH, "main")
    assert [file.name for file in one.files] == ["config.json", "model.safetensors"]
    assert [file.size for file in one.files] == [len(CONFIG), len(FIRST)]
    assert one.files[1].hash == sha256(FIRST).hexdigest()
    assert [file.name for file in sharded.files] == sorted(REVISIONS[SHARDED])
    assert sharded.num_bytes == sum(map(len, REVISIONS[SHARDED].values()))
    assert [file.name for file in torch_file.files] == ["config.json", "pytorch_model.bin"]
    assert (one.problem, one.label) == (None, f"{REPO}@{ONE_FILE}")
    assert str(empty.problem).startswith("it holds no weights")
    assert hub.count("resolve") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (
            "config.json model.safetensors model-00001-of-00002.safetensors "
            "model.safetensors.index.json",
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


def test_equal_weights_are_known_by_their_hashes(hub: HubServer) -> None:
    one, sharded, twin, torch_file = listed(ONE_FILE, SHARDED, EQUAL, TORCH)
    assert one.fingerprint == twin.fingerprint
    assert len({one.fingerprint, sharded.fingerprint, torch_file.fingerprint}) == 3
    hub.claimed_hashes["config.json"] = "../../elsewhere"  # it would become a path here
    (unknown,) = listed(ONE_FILE)
    assert (unknown.files[0].hash, unknown.fingerprint) == ("", None)


def test_files_in_the_cache_are_not_missing(hub: HubServer) -> None:
    downloaded(ONE_FILE)
    one, sharded = listed(ONE_FILE, SHARDED)
    assert one.missing_bytes == 0
    # The config and the first shard are blobs of the other revision.
    assert sharded.missing_bytes == len(SECOND) + len(INDEX)


def test_one_that_the_hub_does_not_list_keeps_no_other(hub: HubServer) -> None:
    hub.fail(hub.commit(REPO, SHARDED), Fault("error", status=403, times=9))
    fine, refused = listed(ONE_FILE, SHARDED)
    assert fine.problem is None
    assert f"{REPO}@{SHARDED} cannot be downloaded: " in str(refused.problem)
    assert hub.count("/revision/") == 2
    with pytest.raises(InputError, match="does not give it out"):
        listed(SHARDED)


def test_without_the_client_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[replay\]'"):
        list_revisions(REPO)


# What is retried


def test_a_listing_is_retried(hub: HubServer) -> None:
    hub.fail("GET /api/.*/refs", Fault("drop", times=2))
    hub.fail("GET /api/.*/revision", Fault("error", status=503, times=2))
    assert listed(ONE_FILE)[0].problem is None
    assert hub.count("GET /api/.*/refs") == hub.count("GET /api/.*/revision") == 3


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


def test_the_hub_is_given_the_time_it_asks_for(hub: HubServer) -> None:
    limited = Fault("error", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    busy = Fault("error", status=503, headers={"Retry-After": "7"})
    for fault in (limited, busy):
        hub.fail("GET /api/models/lab/tiny/refs", fault)
    pauses: list[float] = []
    retry(lambda: huggingface_hub.HfApi().list_repo_refs(REPO), REPO, wait=pauses.append)
    assert pauses == [55, 7]


@pytest.mark.parametrize("error", [TypeError("a bug"), Stopped(), InputError("no")])
def test_what_is_no_trouble_of_the_line_is_not_retried(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        retry(failing(error), "it")
    assert caught.value is error


# What is final

REFUSALS: dict[str, tuple[int, dict[str, str], str]] = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}, "the repository is gated; accept its terms"),
    "forbidden": (403, {}, r"the hub does not give it out \(.*403.*\); log in"),
    "no entry": (404, {"X-Error-Code": "EntryNotFound"}, r"the hub refuses it \(.*404.*\); check"),
    "no revision": (
        404,
        {"X-Error-Code": "RevisionNotFound"},
        "the repository has no such revision",
    ),
    "hidden": (401, {"X-Error-Code": "RepoNotFound"}, "the hub has no such repository"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_final(hub: HubServer, name: str) -> None:
    status, headers, words = REFUSALS[name]
    hub.fail("GET /api/.*/revision", Fault("error", status=status, headers=headers))
    with pytest.raises(InputError, match=f"^{REPO}@{EQUAL} cannot be downloaded: {words}"):
        listed(EQUAL)
    assert hub.count("/revision") == 1


@pytest.mark.parametrize(
    ("repo", "constant", "words"),
    [
        ("lab/other", {}, "the hub has no such repository"),
        ("lab/tiny/other", {}, "this is no name of a repository"),
        (REPO, {"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_repository_that_cannot_be_had(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, repo: str, constant: Any, words: str
) -> None:
    for name, value in constant.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    with pytest.raises(InputError, match=f"^{repo} cannot be downloaded: {words}"):
        list_revisions(repo)
    assert len(hub.requests) == (repo == "lab/other")
