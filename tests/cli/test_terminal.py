"""What the command line shows."""

import warnings

import pytest

from sr_monitor.cli.terminal import (
    complain,
    one_line_warnings,
    print_facts,
    print_rows,
    progress_bars,
)


def test_a_complaint_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    complain("error", "a first\n   and a second line")
    assert capsys.readouterr() == ("", "sr-monitor: error: a first and a second line\n")


def test_a_warning_is_a_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with one_line_warnings():
        warnings.simplefilter("always")
        warnings.warn("slow\ngoing", stacklevel=1)
    assert capsys.readouterr() == ("", "sr-monitor: warning: slow going\n")
    assert warnings.showwarning is before


def test_tables_show_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts("a [bold] model", {"slope": "1.41 [x]"})
    print_rows("title", ("step", "loss"), [("0", "6.9"), ("200", "4.5")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["a", "[bold]", "model"],
        ["slope", "1.41", "[x]"],
        ["title"],
        ["step", "loss"],
        ["0", "6.9"],
        ["200", "4.5"],
    ]


def test_progress_is_drawn_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> tuple[str, str]:
        with progress_bars() as bar:
            bar("paths")(1, 4)
            bar("paths")(4, 4)
        return capsys.readouterr()

    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert draw() == ("", "")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    out, drawn = draw()
    assert out == ""
    assert "paths" in drawn
    assert "4/4" in drawn
