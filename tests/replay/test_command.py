"""The command `sr-monitor replay`, as a user types it."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sr_monitor import Record
from sr_monitor.cli import main
from sr_monitor.replay.progress import replay_bars
from sr_monitor.results.record import list_records
from tests.hub_server import Fault, HubServer, Revision, hub_server
from tests.replays import (
    OLMO,
    STEPS,
    checkpoints,
    olmo_files,
    olmo_repo,
    put,
    steps_in,
    talk_to,
    tokenizer_files,
    what_is_in,
)
from tests.saved import save_tokenizer
from tests.trained import (
    save_folder,
    save_shards,
    tiny_model,
    train_with_lightning,
    train_with_trainer,
)

FEW = ("--num-pairs", "3", "--num-steps", "4", "--num-slices", "0", "--device", "cpu")
TWIN = "step4000-tokens8B"

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
    """What went to stdout, and nothing to stderr."""
    out, err = capsys.readouterr()
    assert err == ""
    return out


# Every kind of source


def trained_by_trainer(folder: Path) -> list[int]:
    train_with_trainer(folder)
    save_tokenizer(folder)
    return [2, 4]


def one_of_them(folder: Path) -> list[int]:
    put(olmo_files(0) | tokenizer_files(), folder)
    return [0]


def a_folder_of_them(folder: Path) -> list[int]:
    checkpoints(folder, 1, 2)
    return [1, 2]


def shards_of_fsdp(folder: Path) -> list[int]:
    checkpoints(folder, 3)
    checkpoint = folder / "checkpoint-3"
    (checkpoint / "model.safetensors").unlink()
    model = tiny_model("Olmo")
    save_shards({"model": model.state_dict()}, checkpoint / "pytorch_model_fsdp_0")
    return [3]


@pytest.mark.parametrize(
    "make", [trained_by_trainer, one_of_them, a_folder_of_them, shards_of_fsdp]
)
def test_a_source_is_known_by_what_is_there(
    tmp_path: Path, make: Callable[[Path], list[int]], capsys: Capture
) -> None:
    steps = make(tmp_path / "source")
    assert command("source") == 0
    assert steps_in(Path("out")) == steps
    assert f"wrote out: {len(steps)} measured, 0 failed" in said(capsys)


def base(folder: Path) -> Path:
    return save_tokenizer(save_folder(tiny_model(), folder))


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
def test_files_of_lightning_need_a_base(tmp_path: Path, capsys: Capture) -> None:
    train_with_lightning(tmp_path / "source")
    assert command("source") == 2
    assert "--base NAME, a folder or a name on the hub" in capsys.readouterr().err
    base(tmp_path / "model")
    assert command("source", "--base", "model") == 0
    assert steps_in(Path("out")) == [2, 4]


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_sharded_folders_of_lightning(tmp_path: Path, key: str) -> None:
    base(tmp_path / "model")
    state = {f"model.{name}": weight for name, weight in tiny_model().state_dict().items()}
    folder = tmp_path / "source" / "epoch=0-step=6.ckpt"
    save_shards({key: state}, folder)
    torch.save({"global_step": 6}, folder / "meta.pt")
    assert command("source", "--base", "model") == 0
    assert steps_in(Path("out")) == [6]


def test_adapters_and_shards_of_deepspeed_are_explained(tmp_path: Path, capsys: Capture) -> None:
    put({"adapter_config.json": b"{}"}, tmp_path / "peft")
    put({"mp_rank_00_model_states.pt": b"x"}, tmp_path / "deep" / "global_step5")
    assert command("peft") == 2
    assert "merge_and_unload" in capsys.readouterr().err
    assert command("deep") == 2
    assert "zero_to_fp32" in capsys.readouterr().err


# The hub


def test_a_choice_of_revisions(hub: HubServer, capsys: Capture) -> None:
    assert command(f"{OLMO}@step[0-3]*", "--num", "3") == 0
    assert steps_in(Path("out")) == [0, 1000, 3000]
    out = said(capsys)
    assert "wrote out: 3 measured, 0 failed" in out
    assert command(f"{OLMO}@step[0-3]*", "--tokens", "4B,5.9B") == 0
    assert "2 measured, 0 failed" not in (out := said(capsys))
    assert "1 measured, 1 had been before, 0 failed" in out
    assert steps_in(Path("out")) == [0, 1000, 2000, 3000]


def test_a_dry_run_tells_what_it_would_cost(
    hub: HubServer, capsys: Capture, tmp_path: Path
) -> None:
    hub.claimed_sizes["model.safetensors"] = 5_120_000_000
    hub.repos[OLMO] = {**hub.repos[OLMO], "step9000-tokens18B": hub.repos[OLMO][STEPS[0]]}
    assert main(["replay", f"{OLMO}@step*", "--dry-run"]) == 0
    header, *rows, last = said(capsys).splitlines()
    assert header.split() == ["run", "step", "tokens", "GB", "to", "download", "checkpoint"]
    assert [row.split()[:6] for row in rows] == [
        ["-", "0", "0B", "5.12", "5.12", f"{OLMO}@{STEPS[0]}"],
        ["-", "1000", "2B", "5.12", "5.12", f"{OLMO}@{STEPS[1]}"],
        ["-", "2000", "4B", "5.12", "5.12", f"{OLMO}@{STEPS[2]}"],
        ["-", "3000", "6B", "5.12", "5.12", f"{OLMO}@{STEPS[3]}"],
        ["-", "4000", "8B", "5.12", "0.00", f"{OLMO}@{TWIN}"],
        ["-", "9000", "18B", "5.12", "0.00", f"{OLMO}@step9000-tokens18B"],
    ]
    assert rows[4].endswith(f"(the same weights as {OLMO}@{STEPS[1]})")
    assert last == "6 checkpoints, 4 to measure: 20.48 GB, 20.48 GB of it to download"
    assert hub.count("/resolve/") == 0
    assert not Path("out").exists()
    assert not (tmp_path / "home").exists()


def test_what_cannot_be_measured_costs_nothing(hub: HubServer, capsys: Capture) -> None:
    hub.claimed_sizes["model.safetensors"] = 5_120_000_000
    weights = {"model.safetensors": b"alone"}
    hub.repos[OLMO] = {**hub.repos[OLMO], "step9000-tokens18B": Revision("f" * 40, weights)}
    assert main(["replay", f"{OLMO}@step[09]*", "--dry-run"]) == 1
    *_, row, last = said(capsys).splitlines()
    assert row.endswith("(cannot be measured: it holds no config.json)")
    assert last == "2 checkpoints, 1 to measure: 5.12 GB, 5.12 GB of it to download"


def test_a_dry_run_over_folders(tmp_path: Path, capsys: Capture) -> None:
    checkpoints(tmp_path / "run", 1, 2)
    assert main(["replay", "run", "--dry-run"]) == 0
    assert "2 checkpoints, 2 to measure: " in said(capsys)
    (tmp_path / "run/checkpoint-2/model.safetensors").unlink()
    assert main(["replay", "run", "--dry-run"]) == 1
    out = said(capsys)
    assert str(tmp_path / "run/checkpoint-1") in out
    assert "checkpoint-2 (cannot be measured: " in out
    assert "2 checkpoints, 1 to measure: " in out


def test_a_dry_run_asks_for_a_base_as_the_run_does(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bare").mkdir()
    torch.save({"global_step": 3, "state_dict": {}}, tmp_path / "bare/step=3.ckpt")
    assert main(["replay", "bare", "--dry-run"]) == 2
    refused = capsys.readouterr()
    assert command("bare") == 2
    assert capsys.readouterr() == refused
    checkpoints(tmp_path / "run", 1)
    assert main(["replay", "bare", "run", "--dry-run"]) == 1
    out = said(capsys)
    assert "step=3.ckpt (cannot be measured: it has no config.json; " in out
    assert "2 checkpoints, 1 to measure" in out
    assert main(["replay", "bare", "--dry-run", "--base", "run/checkpoint-1"]) == 0
    assert "1 checkpoints, 1 to measure" in said(capsys)
    assert main(["replay", "bare", "--dry-run", "--base", "run"]) == 2
    assert "the folder 'run' holds no model" in capsys.readouterr().err.replace(f"{tmp_path}/", "")


def test_equal_weights_are_named(hub: HubServer, capsys: Capture) -> None:
    assert command(f"{OLMO}@step[14]*") == 0
    assert f"{OLMO}@{TWIN}: the same weights as {OLMO}@{STEPS[1]}\n" in said(capsys)


def test_downloads_are_kept_on_request(hub: HubServer, tmp_path: Path) -> None:
    assert command(f"{OLMO}@step0*") == 0
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert command(f"{OLMO}@step1*", "--keep-downloads") == 0
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 1


def test_what_fails_is_named_at_the_end(hub: HubServer, capsys: Capture) -> None:
    gone = hub.commit(OLMO, STEPS[2])
    code = {"X-Error-Code": "RevisionNotFound"}
    hub.fail(f"/resolve/{gone}/", Fault("error", status=404, times=99, headers=code))
    assert command(f"{OLMO}@step[0-3]*") == 1
    out, err = capsys.readouterr()
    assert "wrote out: 3 measured, 1 failed" in out
    assert err.startswith(f"sr-monitor: error: {OLMO}@{STEPS[2]}: ")
    assert err.count("\n") == 1
    assert steps_in(Path("out")) == [0, 1000, 3000]


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: Capture) -> None:
    checkpoints(tmp_path / "run", 1, 2)
    weights = tmp_path / "run/checkpoint-1/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert command("run") == 1
    out, err = capsys.readouterr()
    assert "1 measured, 1 failed" in out
    assert err.count("\n") == 1
    assert "checkpoint-1/model.safetensors' is damaged" in err
    assert command("run") == 1
    assert "0 measured, 1 had been before, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "Missing argument 'SOURCE...'"),
        ("run", "--out DIR (or ask --dry-run)"),
        ("run --out run/checkpoint-1/config.json", "is not a folder; name another"),
        (f"run --out {'x' * 300}", "File name too long; name another"),
        ("run --out=", "Invalid value for '--out': it is empty; name a folder"),
        ("run --out out --ray-address X", "--ray-address 'X' is for --engine ray, and the engine"),
        (f"{'x' * 300} --out out", "there is no folder 'xxx"),
        (f"./{'x' * 300}/{'x' * 300} --out out", "there is no folder './xxx"),
        ("run --out out --num 1", "Invalid value for '--num'"),
        ("run --out out --tokens many", "'many' is no number of tokens"),
        ("run --out out --tokens 4B", "no name says how many tokens it has seen"),
        ("run --out out --engine spark", "Invalid value for '--engine'"),
        ("run --out out --prompts none.txt", "--prompts 'none.txt': there is no such file"),
        ("run --out out --device gpu", "device 'gpu' cannot be used here"),
        ("run --out out --layer 9", "layer=9"),
        ("runn --out out", "there is no folder 'runn'; the closest in '.': run"),
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


@pytest.mark.parametrize("name", ["measure run/checkpoint-1", "demo"])
def test_no_command_writes_to_a_folder_without_a_name(
    tmp_path: Path, capsys: Capture, name: str
) -> None:
    checkpoints(tmp_path / "run", 1)
    assert main([*name.split(), "--out", ""]) == 2
    assert "Invalid value for '--out': it is empty; name a folder" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    checkpoints(tmp_path / "run", 1)
    code = "import sys; from sr_monitor.cli import main; sys.exit(main())"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "replay", "run", "--dry-run"],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("sr-monitor: error: [Errno 28] No space left on device; make ")
    assert done.stderr.count("\n") == 1


def test_other_options_are_refused_with_both_sides(tmp_path: Path, capsys: Capture) -> None:
    checkpoints(tmp_path / "run", 1)
    assert command("run") == 0
    capsys.readouterr()
    assert command("run", "--layer", "2") == 2
    assert "layer is 1 there and 2 now" in capsys.readouterr().err
    assert command("run", "--seed", "1") == 2
    assert f"prompts of {tmp_path / 'run'} is '" in capsys.readouterr().err


# Killed, as by somebody else


def test_a_killed_command_goes_on(hub: HubServer, tmp_path: Path) -> None:
    assert command(f"{OLMO}@step[0-3]*") == 0
    home = tmp_path / "fresh"
    slow = Fault("slow", seconds=60, times=1)
    hub.fail(f"GET /{OLMO}/model.safetensors/{_hash_of(hub, STEPS[2])}", slow)
    words = ["replay", f"{OLMO}@step[0-3]*", "--out", "other", *FEW]
    code = "import sys; from sr_monitor.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=os.environ | hub.environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while len(list_records("other")) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert (out, err) == (b"", b"")  # no bars where there is no terminal
    assert steps_in(Path("other")) == [0, 1000]
    assert list(home.rglob("*.incomplete"))
    before = [path.stat().st_mtime_ns for path in list_records("other")]
    with pytest.MonkeyPatch.context() as patch:
        talk_to(hub, patch, home)
        assert main(words) == 0
    assert what_is_in(Path("other")).keys() == what_is_in(Path("out")).keys()
    for one, other in zip(list_records("other"), list_records("out"), strict=True):
        found, expected = Record.load(one).paths, Record.load(other).paths
        # The way to run points was timed in each process, and the ways differ in the last bits.
        torch.testing.assert_close(found.distance, expected.distance, rtol=1e-5, atol=1e-6)
    assert [path.stat().st_mtime_ns for path in list_records("other")][:2] == before
    assert not list(home.rglob("*.incomplete"))
    assert not list(home.rglob("*.safetensors"))


def _hash_of(hub: HubServer, name: str) -> str:
    return sha256(hub.repos[OLMO][name].files["model.safetensors"]).hexdigest()


def test_interrupted_by_the_user(tmp_path: Path, capsys: Capture) -> None:
    checkpoints(tmp_path / "run", 1, 2)

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # What runs in the background, as tests may, ignores an interrupt.
    restore = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        many = ["--num-pairs", "2000", "--num-steps", "2001", "--device", "cpu"]
        assert main(["replay", "run", "--out", "out", *many]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, restore)
    assert "Traceback" not in capsys.readouterr().err


# What is shown


def drawn(*, is_terminal: bool) -> str:
    """What is drawn while a checkpoint is downloaded and measured."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    with replay_bars(console) as bar:
        whole = bar("checkpoints")
        whole(3, 20)
        bar("download")(2_560_000_000, 5_120_000_000)
        for name in ("loading", "paths"):
            bar(name)(1, 2)
            time.sleep(0.15)
        whole(4, 20)
        time.sleep(0.15)
    return screen.getvalue()


def test_bars_tell_how_far_it_is_and_what_goes_on() -> None:
    shown = drawn(is_terminal=True)
    for words in ("checkpoints", "3/20", "4/20", "2.56/5.12 GB", "loading", "paths", "1/2"):
        assert words in shown, words
    assert drawn(is_terminal=False) == ""


def test_records_tell_where_they_come_from(tmp_path: Path) -> None:
    checkpoints(tmp_path / "run", 1)
    assert command("run", "--dtype", "bfloat16", "--sampling", "adaptive") == 0
    (path,) = list_records("out")
    metadata = Record.load(path).metadata
    assert metadata["source"] == str(tmp_path / "run/checkpoint-1")
    assert metadata["dtype"] == "bfloat16"
    assert metadata["config"]["sampling"] == "adaptive"


def test_help_names_every_option(capsys: Capture) -> None:
    assert main(["replay", "--help"]) == 0
    out = said(capsys)
    options = "prompts num-pairs num-steps num-slices slice-resolution layer sampling dtype device"
    for option in (*options.split(), "num", "tokens", "dry-run", "keep-downloads", "engine"):
        assert f"--{option}" in out


def test_importing_it_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = "transformers", "huggingface_hub", "matplotlib", "tensorboard", "ray", "datasets"
    probe = f"import sys; print([name for name in {heavy} if name in sys.modules])"
    code = f"from sr_monitor.replay import Report, replay; import sr_monitor.cli; {probe}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
