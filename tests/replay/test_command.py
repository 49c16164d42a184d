"""The command `sr-monitor replay`, as a user types it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sr_monitor import Record
from sr_monitor.cli import main
from sr_monitor.results.record import list_records
from tests.hub_server import Fault, HubServer, Revision, hub_server
from tests.replays import (
    OLMO,
    STEPS,
    TWIN,
    checkpoints,
    olmo_files,
    olmo_repo,
    put,
    some_prompts,
    steps_in,
    talk_to,
)
from tests.saved import save_tokenizer
from tests.trained import save_folder, tiny_model

FEW = ("--num-pairs", "3", "--num-steps", "4", "--num-slices", "0", "--device", "cpu")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead into a folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server(olmo_repo(**{TWIN: olmo_files(1)})) as server:
        talk_to(server, monkeypatch, tmp_path / "home")
        yield server


def command(*words: str | Path) -> int:
    return main(["replay", *map(str, words), "--out", "out", *FEW])


def said(capsys: Capture) -> str:
    """What went to stdout; stderr has a line for each checkpoint that is done, and no more."""
    out, err = capsys.readouterr()
    assert all(re.search(r": done, \d of \d$", line) for line in err.splitlines()), err
    return out


def test_a_folder_of_checkpoints(tmp_path: Path, capsys: Capture) -> None:
    checkpoints(tmp_path / "source", 1, 2)
    options = ("--dtype", "bfloat16", "--sampling", "adaptive", "--probe", "divergence")
    assert command("source", *options) == 0
    out, err = capsys.readouterr()
    assert [line[-12:] for line in err.splitlines()] == ["done, 1 of 2", "done, 2 of 2"]
    assert "wrote out: 2 measured, 0 failed" in out
    assert steps_in(Path("out")) == [1, 2]
    record = Record.load(list_records("out")[0])
    assert set(record.parts) == {"paths", "divergence"}
    metadata = record.metadata
    assert metadata["source"] == str(tmp_path / "source/checkpoint-1")
    assert metadata["dtype"] == "bfloat16"
    assert metadata["config"]["sampling"] == "adaptive"
    assert command("source") == 2
    assert "sampling is 'adaptive' there and 'grid' now" in capsys.readouterr().err


def test_files_of_lightning_need_a_base(tmp_path: Path, capsys: Capture) -> None:
    state = {f"model.{name}": weight for name, weight in tiny_model().state_dict().items()}
    (tmp_path / "source").mkdir()
    torch.save({"global_step": 3, "state_dict": state}, tmp_path / "source/step=3.ckpt")
    assert command("source") == 2
    refused = capsys.readouterr()
    assert "--base NAME, a folder or a name on the hub" in refused.err
    assert command("source", "--dry-run") == 2
    assert capsys.readouterr() == refused
    save_tokenizer(save_folder(tiny_model(), tmp_path / "model"))
    assert command("source", "--base", "model", "--dry-run") == 0
    assert "1 checkpoints, 1 to measure" in said(capsys)
    assert command("source", "--base", "model") == 0
    assert steps_in(Path("out")) == [3]
    checkpoints(tmp_path / "run", 1)
    assert command("source", "run", "--dry-run") == 1
    out = said(capsys)
    assert "step=3.ckpt (cannot be measured: it has no config.json; " in out
    assert "2 checkpoints, 1 to measure" in out


def test_a_choice_of_revisions(hub: HubServer, capsys: Capture, tmp_path: Path) -> None:
    assert command(f"{OLMO}@step[0-3]*", "--num", "2") == 0
    assert "wrote out: 2 measured, 0 failed" in said(capsys)
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert command(f"{OLMO}@step[0-3]*", "--tokens", "4B,5.9B", "--keep-downloads") == 0
    assert "1 measured, 1 measured before, 0 failed" in said(capsys)
    assert steps_in(Path("out")) == [0, 2000, 3000]
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 1


def test_a_dry_run_tells_what_it_would_cost(
    hub: HubServer, capsys: Capture, tmp_path: Path
) -> None:
    hub.claimed_sizes["model.safetensors"] = 5_120_000_000
    bare = Revision("f" * 40, {"model.safetensors": b"alone"})
    hub.repos[OLMO] = {**hub.repos[OLMO], "step9000-tokens18B": bare}
    assert main(["replay", f"{OLMO}@step[014]*", "--dry-run"]) == 0
    assert [" ".join(line.split()) for line in said(capsys).splitlines()] == [
        "run step tokens size to download checkpoint",
        f"- 0 0B 5.12 GB 5.12 GB {OLMO}@{STEPS[0]}",
        f"- 1000 2B 5.12 GB 5.12 GB {OLMO}@{STEPS[1]}",
        f"- 4000 8B 5.12 GB 0 bytes {OLMO}@{TWIN} (the same weights as {OLMO}@{STEPS[1]})",
        "3 checkpoints, 2 to measure: 10.24 GB, 10.24 GB of it to download",
    ]
    assert main(["replay", f"{OLMO}@step[09]*", "--dry-run"]) == 1
    *_, row, last = said(capsys).splitlines()
    assert row.endswith("(cannot be measured: it holds no config.json)")
    assert last == "2 checkpoints, 1 to measure: 5.12 GB, 5.12 GB of it to download"
    assert main(["replay", f"{OLMO}@step*", "--dry-run", "--tokens", "3.5B,0.004T"]) == 0
    _, row, _ = said(capsys).splitlines()
    assert row.endswith(f"{OLMO}@{STEPS[2]} (nearest to 3.5B, 4B: it has seen 4B)")
    assert hub.count("/resolve/") == 0
    assert not Path("out").exists()
    assert not (tmp_path / "home").exists()


def test_a_listing_is_counted_where_there_is_no_terminal(
    hub: HubServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_monitor.replay.hub._SILENCE", -1.0)
    assert main(["replay", f"{OLMO}@step[01]*", "--dry-run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["listing: 1 of 2 revisions", "listing: 2 of 2 revisions"]


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_gated_repository_is_refused_before_anything_is_downloaded(
    hub: HubServer, capsys: Capture, more: list[str]
) -> None:
    hub.gated = {OLMO}
    page = f"accept its terms at {hub.endpoint}/{OLMO}, then log in"
    prompts = put({"p.json": some_prompts().to_json().encode()}, Path("prompts")) / "p.json"
    words = ["replay", f"{OLMO}@step[01]*", "--out", "out", "--prompts", f"{prompts}", *FEW, *more]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert page in line
    assert "(hf auth login)" in line
    assert (hub.count("/auth-check"), hub.count("GET .*/resolve/")) == (1, 0)


def test_equal_weights_and_failures_are_named_at_the_end(hub: HubServer, capsys: Capture) -> None:
    hub.repos[OLMO] = {**hub.repos[OLMO], "step9000-tokens18B": hub.repos[OLMO][TWIN]}
    gone = hub.commit(OLMO, STEPS[2])
    code = {"X-Error-Code": "RevisionNotFound"}
    hub.fail(f"/resolve/{gone}/", Fault("error", status=404, times=99, headers=code))
    assert command(f"{OLMO}@step*") == 1
    out, err = capsys.readouterr()
    assert f"{OLMO}@{TWIN}: the same weights as {OLMO}@{STEPS[1]}, and 1 more like it\n" in out
    assert "wrote out: 3 measured, 2 with the weights of another, 1 failed" in out
    failed = f"{OLMO}@{STEPS[2]}: "
    assert [line.startswith(failed) for line in err.splitlines()] == [i == 2 for i in range(7)]
    assert err.splitlines()[-1].startswith(f"sr-monitor: error: {failed}")
    assert steps_in(Path("out")) == [0, 1000, 3000, 4000, 9000]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "Missing argument 'SOURCE...'"),
        ("run", "--out DIR (or ask --dry-run)"),
        ("run --out run/checkpoint-1/config.json", "is not a folder; name another"),
        (f"run --out {'x' * 300}", "File name too long; name another"),
        ("run --out=", "Invalid value for '--out': it is empty; name a folder"),
        ("run --out out --ray-address X", "ray_address='X' is for engine='ray', and the engine"),
        (f"{'x' * 300} --out out", "there is no folder 'xxx"),
        ("run --out out --num 1", "--num=1: pass 2 or more"),
        ("run --out out --tokens many", "'many' is no number of tokens"),
        ("run --out out --engine shared", "--engine='shared': pass one of local, ray"),
        ("run --out out --layer 9", "layer=9"),
        ("run --out run --num-pairs 3", "was not written by a replay"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: Capture, words: str, told: str) -> None:
    checkpoints(tmp_path / "run", 1)
    put({"step-000000001.safetensors": b"live"}, tmp_path / "run/stable_regions")
    assert main(["replay", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.startswith("sr-monitor: error: ")
    assert err.count("\n") == 1
