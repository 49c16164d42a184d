"""What the command line shows."""

import io
import sys
import time

import pytest
from rich.console import Console

from sr_monitor.cli.terminal import complain, print_table, progress, say

Capture = pytest.CaptureFixture[str]


def test_a_table_is_aligned_and_cannot_be_broken(capsys: Capture) -> None:
    name = "[b]\\nx\\x1b[31m\\x9b\\ud800\\u202e"
    rows = [("[b]\nx\33[31m\x9b\ud800\u202e", "7"), ("é" + 90 * "x", "100")]
    print_table(rows, "<>", title="a title\n")
    assert capsys.readouterr().out.splitlines() == [
        "a title\\n",
        f"{name:91}    7",
        f"é{90 * 'x'}  100",
    ]


def test_what_an_output_cannot_spell_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_only = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    say("the café", "日本")
    assert raw.getvalue() == b"the caf\\xe9\n\\u65e5\\u672c\n"


@pytest.mark.parametrize("closed", [None, io.StringIO()])
def test_closed_streams_are_no_error(
    closed: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if closed is not None:
        closed.close()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", closed)
    say("nobody is there")
    complain("error", "nobody is there")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_drawn_on_a_terminal_alone(is_terminal: bool) -> None:
    screen = io.StringIO()
    with progress(Console(file=screen, force_terminal=is_terminal, width=100)) as bar:
        whole = bar("checkpoints")
        whole(3, 20)
        bar("download")(2_560_000_000, 5_120_000_000)
        for name in ("loading", "paths"):
            bar(name)(1, 2)
            time.sleep(0.15)
        whole(4, 20)
        time.sleep(0.15)
    shown = screen.getvalue()
    assert bool(shown) is is_terminal
    for words in ("checkpoints", "3/20", "4/20", "2.56 GB/5.12 GB", "loading", "paths", "1/2"):
        assert (words in shown) is is_terminal, words
