"""The command `sr-monitor report`, as a user types it."""

from pathlib import Path

import pytest

from sr_monitor.cli import main
from sr_monitor.results.record import list_records, record_path
from tests.reports import PageReader, rising, save_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_run(tmp_path / "run", [0, 10])


def refusal(capsys: Capture, *words: str | Path) -> str:
    """Run a command that has to be refused; the one line it says."""
    assert main(["report", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_the_page_and_the_tables_are_written_and_told(run: Path, capsys: Capture) -> None:
    assert main(["report", "run", "--csv", "numbers"]) == 0
    page = PageReader.of(Path("report.html"))
    assert page.data["runs"][0]["steps"] == [0, 10]
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("wrote report.html: ")
    assert out.splitlines()[1:] == ["wrote numbers: 3 files"]
    assert err == ""


def test_a_probe_derives_its_part_of_records_that_lack_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.made import Rise

    monkeypatch.setattr("sr_monitor.probes.base.available", lambda: ["rise"])
    monkeypatch.setattr("sr_monitor.probes.base.probe_class", lambda name: Rise)
    assert main(["report", "run", "-o", "deep/page.html", "--probe", "rise:at=0.2"]) == 0
    shown = PageReader.of(Path("deep/page.html")).data["runs"][0]
    assert "stable_regions_rise/median" in shown["numbers"]


@pytest.mark.filterwarnings("always:left out")
def test_a_damaged_record_is_one_line_and_the_page_is_written(run: Path, capsys: Capture) -> None:
    list_records(run)[0].write_bytes(b"")
    assert main(["report", "run"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("sr-monitor: warning: left out: ")
    assert err.count("\n") == 1
    assert Path("report.html").is_file()


def test_what_cannot_be_reported_is_refused_in_one_line(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    assert "'empty' holds no records; name the log folder" in refusal(capsys, "empty")
    assert "'none' is no folder" in refusal(capsys, "none")
    assert "this is a folder; name a file" in refusal(capsys, run, "-o", ".")
    Path("file").touch()
    assert "is not a folder" in refusal(capsys, run, "-o", "file/report.html")
    assert "--figures 'file': 'file' is not a folder" in refusal(capsys, run, "--figures", "file")
    assert "--csv 'file': 'file' is not a folder" in refusal(capsys, run, "--csv", "file")
    assert "no probe 'rize'" in refusal(capsys, run, "--probe", "rize")
    with monkeypatch.context() as later:
        later.setattr("sr_monitor.results.record._SCHEMA", 99)
        rising(20).save(record_path(run, 20))
    assert "schema 99" in refusal(capsys, run)
    for path in list_records(run):
        path.write_bytes(b"")
    assert "no record can be read" in refusal(capsys, run)
    assert not Path("report.html").exists()
