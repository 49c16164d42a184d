"""The real hub client and a hub on this machine: listing, the bill, downloads, and their end."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import huggingface_hub
import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.cache import Journal, check_disk, take_out_leftovers
from sr_monitor.replay.downloads import discard, fetch
from sr_monitor.replay.hub import File, Item, Revision, bill, list_revisions, needed
from sr_monitor.replay.patience import PAUSES, Stopped
from tests.hub_server import Fault, HubServer, hub_server

REPO = "lab/tiny"
CONFIG = b'{"model_type": "olmo"}'
FIRST, SECOND = bytes(range(250)) * 40, bytes(range(250)) * 40 + b"later"
REVISIONS: Mapping[str, Mapping[str, bytes]] = {
    "main": {"README.md": b"# tiny", "tokenizer.json": b"{}"},
    "step0-tokens0B": {
        "config.json": CONFIG,
        "model.safetensors": FIRST,
        "pytorch_model.bin": b"pickled",
        "model.fp16.safetensors": b"half",
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "optimizer/model.safetensors": b"moments",
    },
    "step1000-tokens2B": {
        "config.json": CONFIG,
        "model-00001-of-00002.safetensors": FIRST,
        "model-00002-of-00002.safetensors": SECOND,
        "model.safetensors.index.json": b'{"weight_map": {}}',
    },
    "step2000-tokens4B": {"config.json": CONFIG, "model.safetensors": FIRST},
    "refs/tags/v1": {"config.json": CONFIG, "pytorch_model.bin": b"pickled"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "")
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION")
    with hub_server({REPO: REVISIONS}) as server:
        server.use(monkeypatch, tmp_path)
        yield server


def revision(hub: HubServer, name: str) -> Revision:
    return Revision(name.removeprefix("refs/tags/"), hub.commit(REPO, name))


def blobs(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tmp_path.glob("hub/models--*/blobs/*")}


def entries(tmp_path: Path) -> set[str]:
    found = tmp_path.glob("hub/models--*/snapshots/*/*")
    return {f"{path.parent.name[:6]}/{path.name}" for path in found}


# What there is


def test_revisions_are_those_that_the_hub_lists(hub: HubServer) -> None:
    listed = list_revisions(REPO)
    names = ["main", "step0-tokens0B", "step1000-tokens2B", "step2000-tokens4B", "refs/tags/v1"]
    assert listed == [revision(hub, name) for name in names]


def test_only_config_and_weights_are_billed(hub: HubServer) -> None:
    one, many, bin_only = bill(
        REPO,
        [revision(hub, name) for name in ("step0-tokens0B", "step1000-tokens2B", "refs/tags/v1")],
    )
    assert [file.name for file in one.files] == ["config.json", "model.safetensors"]
    assert [file.size for file in one.files] == [len(CONFIG), len(FIRST)]
    assert one.files[1].hash == sha256(FIRST).hexdigest()
    assert [file.name for file in many.files] == sorted(REVISIONS["step1000-tokens2B"])
    assert many.num_bytes == sum(map(len, REVISIONS["step1000-tokens2B"].values()))
    assert [file.name for file in bin_only.files] == ["config.json", "pytorch_model.bin"]
    assert hub.count("resolve") == 0
    assert not blobs(Path(os.environ["HF_HOME"]))


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
def test_files_are_chosen_in_the_order_of_transformers(there: str, chosen: str) -> None:
    files = [File(name=name, size=1, hash="") for name in there.split()]
    assert [file.name for file in needed(files)] == chosen.split()


def test_equal_weights_are_known_without_a_download(hub: HubServer) -> None:
    listed = bill(REPO, list_revisions(REPO))
    of = {item.revision.name: item for item in listed}
    assert of["step0-tokens0B"].weights == of["step2000-tokens4B"].weights
    assert of["step0-tokens0B"].config == of["step2000-tokens4B"].config
    assert of["step0-tokens0B"].weights != of["step1000-tokens2B"].weights
    assert of["step0-tokens0B"].weights != of["v1"].weights
    assert hub.count("resolve") == 0


def test_weights_without_a_hash_equal_no_others() -> None:
    file = File(name="model.safetensors", size=1, hash="")
    first, second = (
        Item(repo=REPO, revision=Revision(name, name), files=(file,)) for name in ("a", "b")
    )
    assert first.weights != second.weights


def test_a_revision_without_weights_is_in_the_bill_with_its_problem(hub: HubServer) -> None:
    main, step = bill(REPO, [revision(hub, "main"), revision(hub, "step0-tokens0B")])
    assert main.problem == "it holds no weights (model.safetensors or pytorch_model.bin)"
    assert step.problem == ""
    with pytest.raises(InputError, match=r"lab/tiny@main cannot be measured: it holds no weights"):
        fetch(REPO, main.revision)


def test_the_bill_says_what_is_here_already(hub: HubServer) -> None:
    steps = [revision(hub, name) for name in ("step0-tokens0B", "step1000-tokens2B")]
    fetch(REPO, steps[0])
    first, second = bill(REPO, steps)
    assert first.missing == ()
    # Of the other revision, the config and the first shard are the same blobs.
    assert [file.name for file in second.missing] == [
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert second.missing_bytes == len(SECOND) + len(b'{"weight_map": {}}')


# Downloads


def test_a_checkpoint_comes_into_the_cache_and_goes(hub: HubServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    step = revision(hub, "step1000-tokens2B")
    fetched = fetch(REPO, step, progress=lambda done, total: seen.append((done, total)))
    there = {path.name: path.read_bytes() for path in fetched.folder.iterdir()}
    assert there == REVISIONS["step1000-tokens2B"]
    total = sum(map(len, there.values()))
    assert (fetched.downloaded_bytes, fetched.was_there) == (total, False)
    assert seen[-1] == (total, total)
    assert {total for _, total in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    discard(fetched)
    assert blobs(tmp_path) == {}
    assert entries(tmp_path) == set()
    assert huggingface_hub.scan_cache_dir().warnings == []
    discard(fetched)


def test_what_was_there_before_stays(hub: HubServer, tmp_path: Path) -> None:
    step = revision(hub, "step0-tokens0B")
    huggingface_hub.snapshot_download(REPO, revision=step.name)
    before, listed = blobs(tmp_path), entries(tmp_path)
    assert len(before) == 6  # two of its files are equal
    seen: list[int] = []
    fetched = fetch(REPO, step, progress=lambda done, total: seen.append(total))
    assert (fetched.downloaded_bytes, fetched.was_there, seen) == (0, True, [])
    discard(fetched)
    assert (blobs(tmp_path), entries(tmp_path)) == (before, listed)


def test_of_a_half_cached_checkpoint_the_other_half_goes(hub: HubServer, tmp_path: Path) -> None:
    step = revision(hub, "step1000-tokens2B")
    for name in ("config.json", "model-00002-of-00002.safetensors"):
        huggingface_hub.hf_hub_download(REPO, name, revision=step.commit)
    before, listed = blobs(tmp_path), entries(tmp_path)
    seen: set[int] = set()
    fetched = fetch(REPO, step, progress=lambda done, total: seen.add(done))
    assert not fetched.was_there
    assert seen == {0, len(FIRST), fetched.downloaded_bytes}
    assert fetched.downloaded_bytes == len(FIRST) + len(b'{"weight_map": {}}')
    assert len(entries(tmp_path)) == 4
    discard(fetched)
    assert (blobs(tmp_path), entries(tmp_path)) == (before, listed)


def test_blobs_of_other_revisions_stay(hub: HubServer, tmp_path: Path) -> None:
    mine = fetch(REPO, revision(hub, "step0-tokens0B"))
    other = fetch(REPO, revision(hub, "step2000-tokens4B"))
    assert other.downloaded_bytes == 0
    discard(mine)
    assert (other.folder / "model.safetensors").read_bytes() == FIRST
    assert (other.folder / "config.json").read_bytes() == CONFIG
    discard(other)
    assert blobs(tmp_path) == {}


def test_a_blob_in_the_store_that_repositories_share_goes(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub.utils import _shared_blobs

    fetched = fetch(REPO, revision(hub, "step0-tokens0B"))
    blob = tmp_path / "hub" / "models--lab--tiny" / "blobs" / sha256(FIRST).hexdigest()
    shared = _shared_blobs.publish_blob_to_shared_store(
        blob_path=str(blob),
        xet_hash="a" * 64,
        cache_dir=str(tmp_path / "hub"),
        expected_size=len(FIRST),
    )
    stored = tmp_path / "hub" / "blobs" / "aa" / ("a" * 64)
    assert shared
    assert blob.is_symlink()
    assert stored.is_file()
    discard(fetched)
    assert not stored.exists()
    assert not os.path.lexists(blob)


def test_a_damaged_file_in_the_cache_is_replaced(hub: HubServer) -> None:
    step = revision(hub, "step0-tokens0B")
    folder = fetch(REPO, step).folder
    (folder / "model.safetensors").write_bytes(FIRST[:100])
    fetched = fetch(REPO, step)
    assert (folder / "model.safetensors").read_bytes() == FIRST
    assert fetched.was_there
    assert fetched.downloaded_bytes == len(FIRST)


def test_a_damaged_blob_of_another_revision_is_replaced(hub: HubServer) -> None:
    first = fetch(REPO, revision(hub, "step0-tokens0B")).folder / "model.safetensors"
    first.write_bytes(FIRST[:100])
    pauses: list[float] = []
    fetched = fetch(REPO, revision(hub, "step2000-tokens4B"), sleep=pauses.append)
    assert (fetched.folder / "model.safetensors").read_bytes() == FIRST
    assert pauses == [1]


def test_transformers_is_kept_from_converting_torch_files(hub: HubServer) -> None:
    fetch(REPO, revision(hub, "step0-tokens0B"))
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ
    fetch(REPO, revision(hub, "refs/tags/v1"))
    assert os.environ["DISABLE_SAFETENSORS_CONVERSION"] == "1"


def test_a_blob_that_goes_meanwhile_is_fetched_again(hub: HubServer) -> None:
    """As when another process discards a revision with the same config at that moment."""
    step = revision(hub, "step0-tokens0B")
    gone: list[Path] = []

    def lose_the_config(done: int, total: int) -> None:
        config = Path(os.environ["HF_HUB_CACHE"], "models--lab--tiny/snapshots", step.commit)
        if done == total and not gone:
            gone.append((config / "config.json").resolve())
            gone[0].unlink()

    fetched = fetch(REPO, step, progress=lose_the_config)
    assert len(gone) == 1
    assert (fetched.folder / "config.json").read_bytes() == CONFIG


# What goes wrong


@pytest.mark.parametrize(
    ("request_line", "fault", "name"),
    [
        ("GET /api/models/lab/tiny/revision", Fault("error", times=2, status=503), "info"),
        ("GET /api/models/lab/tiny/revision", Fault("drop", times=2), "info"),
        ("GET .*config.json", Fault("error", times=2), "file"),
        ("GET .*/model.safetensors/", Fault("error", times=2, status=502), "weights"),
        ("GET .*/model.safetensors/", Fault("short", times=2), "weights"),
        ("HEAD .*/model.safetensors", Fault("error", status=504), "head"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else None,
)
def test_a_failed_download_is_retried_with_growing_pauses(
    hub: HubServer, request_line: str, fault: Fault, name: str
) -> None:
    times = fault.times
    hub.fail(request_line, fault)
    pauses: list[float] = []
    fetched = fetch(REPO, revision(hub, "step0-tokens0B"), sleep=pauses.append)
    assert (fetched.folder / "model.safetensors").read_bytes() == FIRST
    assert fault.times == 0
    assert hub.count(request_line) == times + 1
    # The client itself asks for the head again.
    assert pauses == ([] if name == "head" else list(PAUSES[:times]))


@pytest.mark.parametrize("kind", ["truncate", "stall"])
def test_a_line_that_is_cut_or_dead_in_the_middle_is_no_end(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fail("GET .*/model.safetensors/", Fault("truncate" if kind == "truncate" else "stall"))
    fetched = fetch(REPO, revision(hub, "step0-tokens0B"))
    assert (fetched.folder / "model.safetensors").read_bytes() == FIRST
    assert hub.count("GET .*/model.safetensors/") == 2


def test_after_the_last_try_one_error_names_all(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("GET .*/model.safetensors/", Fault("error", times=-1, status=503))
    pauses: list[float] = []
    with pytest.raises(InputError) as caught:
        fetch(REPO, revision(hub, "step0-tokens0B"), sleep=pauses.append)
    assert pauses == [1, 2, 4, 8]
    message = str(caught.value)
    assert message.startswith("lab/tiny@step0-tokens0B could not be downloaded in 5 tries (")
    assert "503" in message
    assert "\n" not in message
    assert blobs(tmp_path) == {}
    assert entries(tmp_path) == set()


def test_a_file_that_is_not_as_large_as_listed_is_an_error(hub: HubServer, tmp_path: Path) -> None:
    hub.claimed_sizes["model.safetensors"] = len(FIRST) + 1
    with pytest.raises(InputError, match=f"should be of size {len(FIRST) + 1} but has size"):
        fetch(REPO, revision(hub, "step0-tokens0B"), sleep=lambda seconds: None)
    assert blobs(tmp_path) == {}


def test_the_hub_is_given_the_time_it_asks_for(hub: HubServer) -> None:
    limited = Fault("error", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    hub.fail("GET /api/models/lab/tiny/refs", limited)
    busy = Fault("error", status=503, headers={"Retry-After": "7"})
    hub.fail("GET /api/models/lab/tiny/refs", busy)
    pauses: list[float] = []
    assert len(list_revisions(REPO, sleep=pauses.append)) == 5
    assert pauses == [55, 7]


def _asks(repo: str, name: str) -> None:
    fetch(repo, Revision(name, "0" * 40), sleep=_no_pause)


def _no_pause(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s for an answer that was final")


def test_a_missing_repository_is_one_clear_error(hub: HubServer) -> None:
    expected = (
        "lab/other@main cannot be downloaded: the hub has no such repository, or does not show "
        r"it; check the name, or log in with an account that may see it \(hf auth login\)"
    )
    with pytest.raises(InputError, match=f"^{expected}$"):
        _asks("lab/other", "main")
    with pytest.raises(InputError, match=r"^lab/other cannot be downloaded: the hub has no such"):
        list_revisions("lab/other", sleep=_no_pause)
    assert hub.count("lab/other") == 2


def test_a_missing_revision_names_the_closest(hub: HubServer) -> None:
    expected = (
        "^lab/tiny@step2000-tokens2B cannot be downloaded: the repository has no such revision; "
        "of its 5 the closest are step2000-tokens4B, step1000-tokens2B, step0-tokens0B$"
    )
    with pytest.raises(InputError, match=expected):
        _asks(REPO, "step2000-tokens2B")
    with pytest.raises(InputError, match=expected):
        bill(REPO, [Revision("step2000-tokens2B", "0" * 40)], sleep=_no_pause)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "the repository is gated; accept its terms on its pa"),
        (403, {}, r"the hub does not give it out \(.*403.*\); log in with"),
        (404, {"X-Error-Code": "EntryNotFound"}, r"the hub refuses it \(.*404.*\); check the name"),
    ],
)
@pytest.mark.parametrize("request_line", ["GET /api/models/.*/revision", "HEAD .*config.json"])
def test_a_refusal_is_final(
    hub: HubServer, request_line: str, status: int, headers: dict[str, str], words: str
) -> None:
    hub.fail(request_line, Fault("error", status=status, headers=headers))
    with pytest.raises(
        InputError, match=rf"^lab/tiny@step0-tokens0B cannot be downloaded: {words}"
    ):
        fetch(REPO, revision(hub, "step0-tokens0B"), sleep=_no_pause)
    assert hub.count(request_line) == 1


def test_a_name_that_is_none_is_refused(hub: HubServer) -> None:
    with pytest.raises(InputError, match="this is no name of a repository"):
        list_revisions("lab/tiny/other", sleep=_no_pause)
    assert hub.requests == []


def test_offline_is_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, so the hub is not asked; unset"):
        list_revisions(REPO, sleep=_no_pause)
    assert hub.requests == []


def test_what_the_disk_cannot_hold_is_not_begun(hub: HubServer, tmp_path: Path) -> None:
    hub.claimed_sizes["model.safetensors"] = 10**18
    expected = r"^lab/tiny@step0-tokens0B needs 1000000000\.0 GB more, and [\d.]+ GB are free at '"
    with pytest.raises(InputError, match=expected) as caught:
        fetch(REPO, revision(hub, "step0-tokens0B"), sleep=_no_pause)
    assert str(tmp_path) in str(caught.value)
    assert hub.count("resolve") == 0
    check_disk(REPO, "", shutil.disk_usage(tmp_path).free // 2)


def test_a_bug_is_not_taken_for_a_bad_line(hub: HubServer, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise TypeError("a bug of the caller")

    with pytest.raises(TypeError, match="a bug of the caller"):
        fetch(REPO, revision(hub, "step0-tokens0B"), progress=progress, sleep=_no_pause)
    assert entries(tmp_path) == set()


def test_a_cache_that_cannot_be_written_is_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(InputError, match=r"step0-tokens0B .* it cannot be written \(.*HF_HOME"):
        fetch(REPO, revision(hub, "step0-tokens0B"), sleep=_no_pause)


def test_without_the_client_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[replay\]'"):
        list_revisions(REPO)


# Ends


def test_a_download_ends_in_the_middle_of_a_file_when_told_to(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.fail("GET .*/model.safetensors/", Fault("slow", seconds=8))
    stop, seen = Event(), list[int]()

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > len(CONFIG):
            stop.set()

    with pytest.raises(Stopped):
        fetch(REPO, revision(hub, "step0-tokens0B"), progress=progress, stop=stop)
    assert seen[-1] < len(FIRST) / 2
    assert blobs(tmp_path) == {}
    assert entries(tmp_path) == set()


def test_a_download_ends_in_a_pause_when_told_to(hub: HubServer, tmp_path: Path) -> None:
    busy = Fault("error", times=-1, status=503, headers={"Retry-After": "60"})
    hub.fail("GET .*/model.safetensors/", busy)
    stop = Event()

    def wait_for_the_refusal() -> None:
        while not hub.count("GET .*/model.safetensors/"):
            time.sleep(0.01)
        stop.set()

    Thread(target=wait_for_the_refusal).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        fetch(REPO, revision(hub, "step0-tokens0B"), stop=stop)
    assert time.monotonic() - began < 30
    assert hub.count("GET .*/model.safetensors/") == 1
    assert entries(tmp_path) == set()


def test_a_run_knows_the_downloads_of_the_one_it_goes_on_with(
    hub: HubServer, tmp_path: Path
) -> None:
    steps = [revision(hub, name) for name in ("step0-tokens0B", "step1000-tokens2B")]
    huggingface_hub.hf_hub_download(REPO, "config.json", revision=steps[1].commit)
    before, listed = blobs(tmp_path), entries(tmp_path)
    for step in steps:
        fetch(REPO, step, journal=Journal(tmp_path / "journal.json"))
    first, second = (
        fetch(REPO, step, journal=Journal(tmp_path / "journal.json")) for step in steps
    )
    assert (first.downloaded_bytes, first.was_there, second.was_there) == (0, False, False)
    discard(first)
    assert not first.folder.exists()
    left = Journal(tmp_path / "journal.json").entries
    assert {entry.parent for entry in left} == {second.folder}
    assert (second.folder / "model-00001-of-00002.safetensors").read_bytes() == FIRST
    take_out_leftovers(Journal(tmp_path / "journal.json"))
    assert (blobs(tmp_path), entries(tmp_path)) == (before, listed)
    assert Journal(tmp_path / "journal.json").entries == {}


def test_a_failed_download_is_struck_from_the_journal(hub: HubServer, tmp_path: Path) -> None:
    hub.claimed_sizes["model.safetensors"] = 1
    journal = Journal(tmp_path / "journal.json")
    with pytest.raises(InputError):
        fetch(REPO, revision(hub, "step0-tokens0B"), journal=journal, sleep=lambda seconds: None)
    assert Journal(tmp_path / "journal.json").entries == {}


def test_a_journal_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"/file/journal.json', where .* cannot be written to \("):
        Journal(tmp_path / "file" / "journal.json").add({tmp_path / "a/b/c": ""})


def test_a_killed_run_leaves_nothing_behind_after_it_went_on(
    hub: HubServer, tmp_path: Path
) -> None:
    step, later = revision(hub, "step0-tokens0B"), revision(hub, "step1000-tokens2B")
    huggingface_hub.hf_hub_download(REPO, "README.md", revision="main")
    before, listed = blobs(tmp_path), entries(tmp_path)
    hub.fail("GET .*/model-00002-of", Fault("stall"))
    _killed_while_fetching(hub, tmp_path, [step, later])
    assert len(blobs(tmp_path)) > len(before) + 2
    assert any(name.endswith(".incomplete") for name in blobs(tmp_path))

    journal = Journal(tmp_path / "journal.json")
    again = fetch(REPO, step, journal=journal)
    assert (again.downloaded_bytes, again.was_there) == (0, False)
    discard(again)
    assert not again.folder.exists()
    take_out_leftovers(journal)
    assert (blobs(tmp_path), entries(tmp_path)) == (before, listed)
    assert journal.entries == {}
    assert Journal(tmp_path / "journal.json").entries == {}


def _killed_while_fetching(hub: HubServer, tmp_path: Path, steps: list[Revision]) -> None:
    """A process whose client is set up by its environment, as a user's is."""
    code = (
        "import sys, pathlib\n"
        "from sr_monitor.replay.cache import Journal\n"
        "from sr_monitor.replay.downloads import fetch\n"
        "from sr_monitor.replay.hub import Revision\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for name, commit in zip(sys.argv[2::2], sys.argv[3::2]):\n"
        f"    fetch({REPO!r}, Revision(name, commit), journal=journal)\n"
    )
    names = [part for step in steps for part in (step.name, step.commit)]
    arguments = [sys.executable, "-c", code, str(tmp_path / "journal.json"), *names]
    process = subprocess.Popen(arguments, env={**os.environ, **hub.environment(tmp_path)})
    while process.poll() is None and not hub.count("GET .*/model-00002-of"):
        time.sleep(0.02)
    process.kill()
    process.wait()
