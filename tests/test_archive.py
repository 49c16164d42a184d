"""Which records a run goes on with, and that none is ever lost."""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_monitor.archive import Archive
from sr_monitor.prompts import PromptSet
from sr_monitor.records import Record, list_records, step_of
from tests.test_album import PROMPTS, make_prompts, make_record

DESCRIBED: dict[str, Any] = {"config": {"layer": 1, "num_steps": 11}, "prompts": "abc"}
NAME = "stable_regions"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    archive = Archive(tmp_path, NAME)
    yield archive
    archive.close()


def record_of(step: int, **changes: Any) -> Record:
    return make_record(step, num_slices=0, metadata={**DESCRIBED, "seconds": 1.5, **changes})


def fill(archive: Archive, *steps: int, **changes: Any) -> None:
    for step in steps:
        archive.save(record_of(step, **changes))


def go_on(archive: Archive, step: int, described: dict[str, Any] = DESCRIBED) -> list[int]:
    return [record.step for record in archive.open(step, described)]


def names(folder: Path) -> list[int]:
    """The steps of the records right in a folder."""
    return [step_of(path) for path in list_records(folder)]


def folder_of(archive: Archive) -> Path:
    assert archive.folder is not None
    return archive.folder


def test_records_lie_in_the_folder_of_the_name(archive: Archive, tmp_path: Path) -> None:
    assert go_on(archive, 0) == []
    fill(archive, 0, 500)
    archive.save_prompts(PROMPTS)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == [
        NAME,
        f"{NAME}/prompts.json",
        f"{NAME}/step-000000000.safetensors",
        f"{NAME}/step-000000500.safetensors",
    ]
    again = PromptSet.load(tmp_path / NAME / "prompts.json")
    assert again.fingerprint == PROMPTS.fingerprint
    assert again.texts == PROMPTS.texts


def test_a_resumed_run_goes_on_with_the_records_up_to_its_step(archive: Archive) -> None:
    fill(archive, 1000, 0, 500, 1500, 2000)
    assert go_on(archive, 1000) == [0, 500, 1000]
    assert names(folder_of(archive)) == [0, 500, 1000]
    assert names(folder_of(archive) / "superseded") == [1500, 2000]


def test_the_records_are_read_whole(archive: Archive) -> None:
    saved = record_of(500)
    archive.save(saved)
    (found,) = archive.open(500, DESCRIBED)
    assert found.metadata == saved.metadata
    torch.testing.assert_close(found.paths.distance, saved.paths.distance)


@pytest.mark.parametrize("step", [0, 1])
def test_a_new_run_goes_on_with_nothing(archive: Archive, step: int) -> None:
    fill(archive, 0, 1, 500)
    assert go_on(archive, step) == []
    assert names(folder_of(archive)) == []
    assert names(folder_of(archive) / "superseded") == [0, 1, 500]


def test_nothing_that_was_moved_aside_is_ever_overwritten(archive: Archive) -> None:
    for number in range(3):
        fill(archive, 0, 500, number=number)
        assert go_on(archive, 0) == []
    folder = folder_of(archive)
    for number, aside in enumerate(["superseded", "superseded-2", "superseded-3"]):
        kept = [Record.load(path).metadata["number"] for path in list_records(folder / aside)]
        assert kept == [number, number]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": "xyz"}, "prompts was 'xyz' and is 'abc'. A"),
        (
            {"config": {"layer": 2, "num_steps": 11}},
            "another way: layer was 2 and is 1. A new curve",
        ),
        ({"config": None}, "config was None and is {'layer': 1"),
    ],
)
def test_what_was_measured_in_another_way_is_left_behind(
    archive: Archive, changes: dict[str, Any], said: str
) -> None:
    fill(archive, 0, 500)
    fill(archive, 1000, 1500, **changes)
    with pytest.warns(RuntimeWarning, match=re.escape(said)):
        assert go_on(archive, 1400) == [0, 500]
    assert names(folder_of(archive) / "superseded") == [1000, 1500]


def test_an_option_that_one_version_did_not_have_parts_nobody(archive: Archive) -> None:
    fill(archive, 0, config={"layer": 1})
    fill(archive, 500, config={"layer": 1, "num_steps": 11, "of old": 3})
    assert go_on(archive, 500) == [0, 500]


def test_a_record_that_cannot_be_read_is_moved_aside(archive: Archive) -> None:
    fill(archive, 0, 500, 1000)
    whole = folder_of(archive) / "step-000000500.safetensors"
    torn = whole.read_bytes()[:-40]
    whole.write_bytes(torn)
    assert go_on(archive, 1000) == [0, 1000]
    assert (folder_of(archive) / "superseded" / whole.name).read_bytes() == torn


def test_prompts_of_another_curve_are_moved_aside(archive: Archive) -> None:
    go_on(archive, 0)
    archive.save_prompts(PROMPTS)
    archive.save_prompts(PROMPTS)
    assert not (folder_of(archive) / "superseded").exists()
    archive.save_prompts(make_prompts(5))
    assert PromptSet.load(folder_of(archive) / "prompts.json").token_ids.shape[0] == 5
    aside = PromptSet.load(folder_of(archive) / "superseded" / "prompts.json")
    assert aside.fingerprint == PROMPTS.fingerprint


def test_a_run_that_moved_brings_its_records_along(archive: Archive, tmp_path: Path) -> None:
    fill(archive, 0, 500, 1000)
    new = Archive(tmp_path / "new", NAME)
    new.came_from = str(archive.folder)
    assert go_on(new, 500) == [0, 500]
    assert names(folder_of(new)) == [0, 500]
    assert names(folder_of(archive)) == [0, 500, 1000]
    new.close()


def test_what_is_there_already_is_not_brought_again(archive: Archive, tmp_path: Path) -> None:
    fill(archive, 0, 500, where="old")
    new = Archive(tmp_path / "new", NAME)
    fill(new, 500, where="new")
    new.came_from = str(archive.folder)
    assert [record.metadata["where"] for record in new.open(500, DESCRIBED)] == ["old", "new"]
    new.close()


@pytest.mark.parametrize("came_from", ["gone", ".", None])
def test_a_folder_that_is_gone_or_the_same_brings_nothing(
    archive: Archive, tmp_path: Path, came_from: str | None
) -> None:
    fill(archive, 0, 500)
    places = {"gone": str(tmp_path / "gone"), ".": str(archive.folder), None: None}
    archive.came_from = places[came_from]
    assert go_on(archive, 500) == [0, 500]


def test_a_folder_that_vanishes_comes_back_with_its_prompts(archive: Archive) -> None:
    go_on(archive, 0)
    archive.save_prompts(PROMPTS)
    fill(archive, 0)
    for path in folder_of(archive).iterdir():
        path.unlink()
    folder_of(archive).rmdir()
    fill(archive, 500)
    assert names(folder_of(archive)) == [500]
    assert (folder_of(archive) / "prompts.json").is_file()


def test_two_at_once_have_folders_of_their_own(archive: Archive, tmp_path: Path) -> None:
    second, third = Archive(tmp_path, NAME), Archive(str(tmp_path), NAME)
    assert [archive.name, second.name, third.name] == [NAME, f"{NAME}-2", f"{NAME}-3"]
    assert second.folder == tmp_path / f"{NAME}-2"
    other_name, other_place = Archive(tmp_path, "deep"), Archive(tmp_path / "other", NAME)
    assert [other_name.name, other_place.name] == ["deep", NAME]
    second.close()
    again = Archive(tmp_path, NAME)
    assert again.name == f"{NAME}-2"
    second.close()  # twice does no harm to who has the folder now
    fourth = Archive(tmp_path, NAME)
    assert fourth.name == f"{NAME}-4"
    for each in (third, other_name, other_place, again, fourth):
        each.close()


def test_a_folder_written_relative_is_the_same(tmp_path: Path, archive: Archive) -> None:
    second = Archive(os.path.relpath(tmp_path), NAME)
    assert second.name == f"{NAME}-2"
    second.close()


def test_whoever_was_never_closed_does_not_keep_the_folder(tmp_path: Path) -> None:
    lost = Archive(tmp_path, NAME)
    assert lost.name == NAME
    del lost
    gc.collect()
    found = Archive(tmp_path, NAME)
    assert found.name == NAME
    found.close()


def test_without_a_log_folder_nothing_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = Archive(None, NAME)
    assert go_on(nowhere, 500) == []
    fill(nowhere, 0, 500)
    nowhere.save_prompts(PROMPTS)
    nowhere.close()
    assert nowhere.folder is None
    assert list(tmp_path.iterdir()) == []
