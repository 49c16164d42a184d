"""What all commands share: help, refusals, an end by Ctrl-C, and an output that nobody reads."""

import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest

from sr_monitor.cli import main
from sr_monitor.options import declared
from sr_monitor.watch.config import MonitorConfig
from tests.replays import checkpoints

Capture = pytest.CaptureFixture[str]
MANY = ("--num-pairs", "2000", "--num-steps", "2001", "--device", "cpu")  # takes minutes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a training."""
    return checkpoints(tmp_path_factory.mktemp("run"), 1, 2)


@pytest.fixture(autouse=True)
def _elsewhere(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead into a folder of the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run)


def test_help_lists_the_commands(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sr-monitor"])
    assert main() == 0
    out, err = capsys.readouterr()
    assert err == ""
    listed = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line]
    assert listed == ["measure", "demo", "replay", "report", "export", "doctor"]


def test_bash_completes_commands_and_their_options(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script that is printed, sourced by a bash, and by what that script asks for."""
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash", raising=False)
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    assert main(["--show-completion"]) == 0
    script = capsys.readouterr().out
    bash = ["bash", "-c", f"{script}\ncomplete -p sr-monitor"]
    told = subprocess.run(bash, capture_output=True, text=True, check=True).stdout
    assert told.split()[-3:] == ["-F", "_sr_monitor_completion", "sr-monitor"]
    (variable, value) = re.findall(r"(_\w+)=(complete_bash)", script)[0]
    monkeypatch.setenv(variable, value)

    def candidates(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        assert main([]) == 0
        return capsys.readouterr().out.split()

    assert candidates("sr-monitor re") == ["replay", "report"]
    assert candidates("sr-monitor measure run --num-s") == ["--num-steps", "--num-slices"]
    assert candidates("sr-monitor export run --w") == ["--wandb"]


@pytest.mark.parametrize("name", ["measure", "replay"])
def test_help_says_what_every_option_is(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    options = declared(MonitorConfig)
    del options["call"]  # a function
    for option, field in options.items():
        flag = {"engine": "way", "probes": "probe"}.get(option, option).replace("_", "-")
        assert f" --{flag} " in said
        assert field.metadata["doc"] in said
        assert (
            isinstance(field.default, tuple | bool | None) or f"[default: {field.default}" in said
        )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("measure", "Missing argument"),
        ("measure run", "holds no model (no config.json)"),
        ("mesure x", "No such command 'mesure'"),
        ("demo --out run/checkpoint-1/config.json", "is not a folder; name another"),
        (f"demo --out {300 * 'a'}", "File name too long; name another"),
        ("measure run/checkpoint-1 --out=", "Invalid value for '--out': it is empty"),
        ("measure run/checkpoint-1 --layer -1", "--layer=-1: pass 0 or more"),
        (
            "measure run/checkpoint-1 --sampling random",
            "--sampling='random': pass one of grid, adaptive",
        ),
        ("measure run/checkpoint-1 --dtype fp16", "--dtype='fp16': pass one of auto, float32,"),
        ("measure run/checkpoint-1 --num-pairs many", "--num-pairs='many': pass a whole number"),
        ("measure run/checkpoint-1 --way fast", "--way='fast': pass one of auto, shared,"),
        ("replay run --out out --probe regoins", "there is no probe 'regoins'"),
        ("measure run/checkpoint-1 --out a\0b", "'a\\x00b': an argument cannot hold a NUL byte"),
        ("replay run --out a\udcff", "'a\\udcff': a name has to be UTF-8; rename it"),
        ("measure \33[2J", "there is no folder '\\x1b[2J'"),
    ],
)
def test_mistakes_are_one_line(capsys: Capture, command: str, told: str) -> None:
    assert main(command.split(" ")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sr-monitor: error: ")
    assert told in err
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("command", ["measure run/checkpoint-1", "replay run"])
def test_interrupted_by_the_user(capsys: Capture, command: str) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        assert main([*command.split(), "--out", "out", *MANY]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "becomes"),
    [("sr_monitor.cli.demo_training", KeyboardInterrupt), ("sr_monitor.cli.demo", ImportError)],
)
def test_interrupted_while_it_imports(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, module: str, becomes: type[BaseException]
) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == module:
                raise becomes from KeyboardInterrupt()

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (PermissionError(13, "Permission denied", "a.json"), 2, "error: [Errno 13] Permission den"),
        (RuntimeError("CUDA out of memory"), 2, "error: memory ran out (CUDA out of memory); pass"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError(), None, ""),  # a bug of ours is not hidden
    ],
)
def test_what_goes_wrong_is_one_line_after_the_warnings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    error: BaseException,
    status: int | None,
    told: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("the fast way\ndiffers", stacklevel=1)
        raise error

    monkeypatch.setattr("sr_monitor.cli.measure.take_record", fail)
    with pytest.raises(ZeroDivisionError) if status is None else nullcontext():
        assert main(["measure", "run/checkpoint-1", "--device", "cpu"]) == status
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "sr-monitor: warning: the fast way differs"
    assert [line.startswith(f"sr-monitor: {told}") for line in others] == [True] * bool(told)


@pytest.mark.parametrize("command", ["--help", "replay run --dry-run"])
def test_an_output_that_nobody_reads_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, command: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -1` does once it has its line
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(command.split()) == 0
    assert capsys.readouterr().err == ""


def test_an_output_that_does_not_fit_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["replay", "run", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sr-monitor: error: [Errno 28] No space left on device; make room there")
