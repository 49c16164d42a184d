"""Which records a run goes on with, and that none is ever lost."""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, list_records, step_of
from sr_monitor.results.store import RecordStore
from tests.display.test_album import PROMPTS, make_prompts, make_record

DESCRIBED: dict[str, Any] = {"config": {"layer": 1, "num_steps": 11}, "prompts": "abc"}
NAME = "stable_regions"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    store = RecordStore(tmp_path, NAME)
    yield store
    store.close()


def record_of(step: int, **changes: Any) -> Record:
    return make_record(step, num_slices=0, metadata={**DESCRIBED, "seconds": 1.5, **changes})


def fill(store: RecordStore, *steps: int, **changes: Any) -> None:
    for step in steps:
        store.save(record_of(step, **changes))


def go_on(store: RecordStore, step: int, described: dict[str, Any] = DESCRIBED) -> list[int]:
    return [record.step for record in store.open(step, described)]


def names(folder: Path) -> list[int]:
    """The steps of the records right in a folder."""
    return [step_of(path) for path in list_records(folder)]


def folder_of(store: RecordStore) -> Path:
    assert store.folder is not None
    return store.folder


def test_records_lie_in_the_folder_of_the_name(store: RecordStore, tmp_path: Path) -> None:
    assert go_on(store, 0) == []
    fill(store, 0, 500)
    store.save_prompts(PROMPTS)
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


def test_a_resumed_run_goes_on_with_the_records_up_to_its_step(store: RecordStore) -> None:
    fill(store, 1000, 0, 500, 1500, 2000)
    assert go_on(store, 1000) == [0, 500, 1000]
    assert names(folder_of(store)) == [0, 500, 1000]
    assert names(folder_of(store) / "superseded") == [1500, 2000]


def test_the_records_are_read_whole(store: RecordStore) -> None:
    saved = record_of(500)
    store.save(saved)
    (found,) = store.open(500, DESCRIBED)
    assert found.metadata == saved.metadata
    torch.testing.assert_close(found.paths.distance, saved.paths.distance)


@pytest.mark.parametrize("step", [0, 1])
def test_a_new_run_goes_on_with_nothing(store: RecordStore, step: int) -> None:
    fill(store, 0, 1, 500)
    assert go_on(store, step) == []
    assert names(folder_of(store)) == []
    assert names(folder_of(store) / "superseded") == [0, 1, 500]


def test_nothing_that_was_moved_aside_is_ever_overwritten(store: RecordStore) -> None:
    for number in range(3):
        fill(store, 0, 500, number=number)
        assert go_on(store, 0) == []
    folder = folder_of(store)
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
    store: RecordStore, changes: dict[str, Any], said: str
) -> None:
    fill(store, 0, 500)
    fill(store, 1000, 1500, **changes)
    with pytest.warns(RuntimeWarning, match=re.escape(said)):
        assert go_on(store, 1400) == [0, 500]
    assert names(folder_of(store) / "superseded") == [1000, 1500]


def test_an_option_that_one_version_did_not_have_parts_nobody(store: RecordStore) -> None:
    fill(store, 0, config={"layer": 1})
    fill(store, 500, config={"layer": 1, "num_steps": 11, "of old": 3})
    assert go_on(store, 500) == [0, 500]


def test_a_record_that_cannot_be_read_is_moved_aside(store: RecordStore) -> None:
    fill(store, 0, 500, 1000)
    whole = folder_of(store) / "step-000000500.safetensors"
    torn = whole.read_bytes()[:-40]
    whole.write_bytes(torn)
    assert go_on(store, 1000) == [0, 1000]
    assert (folder_of(store) / "superseded" / whole.name).read_bytes() == torn


def test_prompts_of_another_curve_are_moved_aside(store: RecordStore) -> None:
    go_on(store, 0)
    store.save_prompts(PROMPTS)
    store.save_prompts(PROMPTS)
    assert not (folder_of(store) / "superseded").exists()
    store.save_prompts(make_prompts(5))
    assert PromptSet.load(folder_of(store) / "prompts.json").token_ids.shape[0] == 5
    aside = PromptSet.load(folder_of(store) / "superseded" / "prompts.json")
    assert aside.fingerprint == PROMPTS.fingerprint


def test_a_run_that_moved_brings_its_records_along(store: RecordStore, tmp_path: Path) -> None:
    fill(store, 0, 500, 1000)
    new = RecordStore(tmp_path / "new", NAME)
    new.came_from = str(store.folder)
    assert go_on(new, 500) == [0, 500]
    assert names(folder_of(new)) == [0, 500]
    assert names(folder_of(store)) == [0, 500, 1000]
    new.close()


def test_what_is_there_already_is_not_brought_again(store: RecordStore, tmp_path: Path) -> None:
    fill(store, 0, 500, where="old")
    new = RecordStore(tmp_path / "new", NAME)
    fill(new, 500, where="new")
    new.came_from = str(store.folder)
    assert [record.metadata["where"] for record in new.open(500, DESCRIBED)] == ["old", "new"]
    new.close()


@pytest.mark.parametrize("came_from", ["gone", ".", None])
def test_a_folder_that_is_gone_or_the_same_brings_nothing(
    store: RecordStore, tmp_path: Path, came_from: str | None
) -> None:
    fill(store, 0, 500)
    places = {"gone": str(tmp_path / "gone"), ".": str(store.folder), None: None}
    store.came_from = places[came_from]
    assert go_on(store, 500) == [0, 500]


def test_a_folder_that_vanishes_comes_back_with_its_prompts(store: RecordStore) -> None:
    go_on(store, 0)
    store.save_prompts(PROMPTS)
    fill(store, 0)
    for path in folder_of(store).iterdir():
        path.unlink()
    folder_of(store).rmdir()
    fill(store, 500)
    assert names(folder_of(store)) == [500]
    assert (folder_of(store) / "prompts.json").is_file()


def test_two_at_once_have_folders_of_their_own(store: RecordStore, tmp_path: Path) -> None:
    second, third = RecordStore(tmp_path, NAME), RecordStore(str(tmp_path), NAME)
    assert [store.name, second.name, third.name] == [NAME, f"{NAME}-2", f"{NAME}-3"]
    assert second.folder == tmp_path / f"{NAME}-2"
    other_name, other_place = RecordStore(tmp_path, "deep"), RecordStore(tmp_path / "other", NAME)
    assert [other_name.name, other_place.name] == ["deep", NAME]
    second.close()
    again = RecordStore(tmp_path, NAME)
    assert again.name == f"{NAME}-2"
    second.close()  # twice does no harm to who has the folder now
    fourth = RecordStore(tmp_path, NAME)
    assert fourth.name == f"{NAME}-4"
    for each in (third, other_name, other_place, again, fourth):
        each.close()


def test_a_folder_written_relative_is_the_same(tmp_path: Path, store: RecordStore) -> None:
    second = RecordStore(os.path.relpath(tmp_path), NAME)
    assert second.name == f"{NAME}-2"
    second.close()


def test_whoever_was_never_closed_does_not_keep_the_folder(tmp_path: Path) -> None:
    lost = RecordStore(tmp_path, NAME)
    assert lost.name == NAME
    del lost
    gc.collect()
    found = RecordStore(tmp_path, NAME)
    assert found.name == NAME
    found.close()


def test_without_a_log_folder_nothing_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = RecordStore(None, NAME)
    assert go_on(nowhere, 500) == []
    fill(nowhere, 0, 500)
    nowhere.save_prompts(PROMPTS)
    nowhere.close()
    assert nowhere.folder is None
    assert list(tmp_path.iterdir()) == []
