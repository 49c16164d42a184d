"""Runs are found wherever they lie, named as shortly as can be, and read one record at a time."""

from pathlib import Path

import pytest

from sr_monitor.errors import InputError
from sr_monitor.results.record import NewerError, list_records
from sr_monitor.results.runs import find_runs
from tests.made import PROMPTS, make_prompts, make_record
from tests.reports import save_run


def names(*folders: Path) -> list[str]:
    return [run.name for run in find_runs(folders)]


def test_a_run_is_found_by_its_log_folder_its_records_and_what_holds_it(tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs" / "demo", [0, 5])
    for folder in (run, run / "stable_regions", tmp_path / "runs", tmp_path):
        (found,) = find_runs(folder)
        assert (found.name, found.steps) == ("demo", [0, 5])
        assert [record.step for record in found.records()] == [0, 5]
        assert [record.step for record in found.records(newest_first=True)] == [5, 0]
    assert names(run, run / "stable_regions") == ["demo"]  # once


def test_names_are_as_short_as_tells_them_apart_and_in_the_order_given(tmp_path: Path) -> None:
    for name in ("a/demo", "b/demo", "b/other"):
        save_run(tmp_path / name, [0])
    assert names(tmp_path / "b", tmp_path / "a") == ["b/demo", "other", "a/demo"]
    save_run(tmp_path / "b", [0])  # a run in a folder that holds others
    assert names(tmp_path / "b") == ["demo", "other", "b"]


def test_what_was_superseded_and_what_is_hidden_is_no_run(tmp_path: Path) -> None:
    save_run(tmp_path / "run", [0])
    for name in ("superseded", "superseded-2", ".downloads"):
        save_run(tmp_path / "run" / "stable_regions" / name, [7])
    assert names(tmp_path) == ["run"]
    second = tmp_path / "run" / "stable_regions-2"
    (save_run(tmp_path / "other", [3]) / "stable_regions").rename(second)
    assert names(tmp_path) == ["run", "stable_regions-2"]


def test_a_damaged_record_is_left_out_and_told(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", [0, 5])
    list_records(run)[0].write_bytes(b"no record")
    (found,) = find_runs(run)
    assert [record.step for record in found.records()] == [5]
    assert list(found.damaged) == ["step-000000000.safetensors"]
    assert "step-000000000.safetensors" in found.damaged["step-000000000.safetensors"]


def test_a_newer_record_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("sr_monitor.results.record._SCHEMA", 99)
        run = save_run(tmp_path / "run", [0])
    (found,) = find_runs(run)
    with pytest.raises(NewerError, match=r"schema 99.*upgrade"):
        list(found.records())


def test_prompts_are_those_of_the_run_or_of_each_model_of_a_sweep(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", [0])
    own = make_prompts(5)
    own.save(run / "stable_regions" / "prompts-000000007.json")
    (found,) = find_runs(run)
    common = found.prompts(make_record(7))
    at_seven = found.prompts(make_record(7, metadata={"x_axis": "parameters"}))
    assert common is not None
    assert at_seven is not None
    assert common.fingerprint == PROMPTS.fingerprint != own.fingerprint == at_seven.fingerprint
    assert found.prompts(make_record(8, metadata={"x_axis": "parameters"})) is None


def test_damaged_prompts_are_told(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", [0])
    (run / "stable_regions" / "prompts.json").write_text("{}")
    (found,) = find_runs(run)
    assert found.prompts(make_record(0)) is None
    assert list(found.damaged) == ["prompts.json"]


@pytest.mark.parametrize(("name", "reason"), [("empty", "holds no records"), ("none", "no folder")])
def test_a_folder_without_records_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"report: .*{name}.* {reason}; name the log folder"):
        find_runs([tmp_path / name], call="report: ")
    with pytest.raises(InputError, match="no folder is given"):
        find_runs([])
