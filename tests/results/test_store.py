"""Which records a run continues, and that none is ever lost."""

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
from tests.made import PROMPTS, Rise, make_prompts, make_record

DESCRIBED: dict[str, Any] = {"config": {"layer": 1, "num_steps": 11}, "prompts": "abc"}
NAME = "stable_regions"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    store = RecordStore(tmp_path, NAME)
    yield store
    store.close()


def fill(store: RecordStore, *steps: int, **changes: Any) -> None:
    for step in steps:
        metadata = {**DESCRIBED, "seconds": 1.5, **changes}
        store.save(make_record(step, num_slices=0, metadata=metadata))


def go_on(store: RecordStore, step: int) -> list[int]:
    return [record.step for record in store.open(step, DESCRIBED)]


def steps_in(folder: Path) -> list[int]:
    return [step_of(path) for path in list_records(folder)]


def folder_of(store: RecordStore) -> Path:
    assert store.folder is not None
    return store.folder


def test_a_resumed_run_continues_the_records_up_to_its_step(store: RecordStore) -> None:
    assert go_on(store, 0) == []
    fill(store, 1000, 0, 500, 1500, 2000, noted=7)
    found = list(store.open(1000, DESCRIBED))
    assert [record.step for record in found] == steps_in(folder_of(store)) == [0, 500, 1000]
    assert steps_in(folder_of(store) / "superseded") == [1500, 2000]
    assert found[1].metadata["noted"] == 7
    loaded = store.load(500)
    assert loaded is not None
    assert torch.equal(loaded.paths.distance, make_record(500).paths.distance)


def test_a_new_run_continues_nothing_and_nothing_moved_aside_is_overwritten(
    store: RecordStore,
) -> None:
    for number in range(3):
        fill(store, 0, 1, 500, number=number)
        assert go_on(store, number % 2) == steps_in(folder_of(store)) == []
    for number, aside in enumerate(["superseded", "superseded-2", "superseded-3"]):
        kept = map(Record.load, list_records(folder_of(store) / aside))
        assert [record.metadata["number"] for record in kept] == [number] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": "xyz"}, "prompts was 'xyz' and is 'abc'"),
        ({"config": {"layer": 2, "num_steps": 11}}, "another way: layer was 2 and is 1. A"),
    ],
)
def test_what_was_measured_in_another_way_is_superseded(
    store: RecordStore, changes: dict[str, Any], said: str
) -> None:
    """An option that only one version had parts nobody."""
    fill(store, 0, config={"layer": 1})
    fill(store, 500, config={"layer": 1, "num_steps": 11, "of old": 3})
    fill(store, 1000, 1500, **changes)
    with pytest.warns(RuntimeWarning, match=re.escape(said)):
        assert go_on(store, 1400) == [0, 500]
    assert steps_in(folder_of(store) / "superseded") == [1000, 1500]


def test_a_record_that_cannot_be_read_is_moved_aside(store: RecordStore) -> None:
    fill(store, 0, 500, 1000)
    whole = folder_of(store) / "step-000000500.safetensors"
    whole.write_bytes(torn := whole.read_bytes()[:-40])
    assert [record.step for record in store.records()] == go_on(store, 1000) == [0, 1000]
    assert (folder_of(store) / "superseded" / whole.name).read_bytes() == torn


def test_prompts_of_another_curve_are_moved_aside(store: RecordStore) -> None:
    go_on(store, 0)
    assert store.load_prompts() is None
    for _ in range(2):
        store.save_prompts(PROMPTS)
    store.save_prompts(make_prompts(4), step=500)
    assert not (folder_of(store) / "superseded").exists()
    store.save_prompts(make_prompts(5))
    for step, num_prompts in ((None, 5), (500, 4)):
        found = store.load_prompts(step)
        assert found is not None
        assert len(found.token_ids) == num_prompts
    aside = PromptSet.load(folder_of(store) / "superseded" / "prompts.json")
    assert aside.fingerprint == PROMPTS.fingerprint


def test_records_come_with_what_the_probes_derive(store: RecordStore) -> None:
    fill(store, 0)
    probing = RecordStore.at(folder_of(store), probes=[Rise()])
    for record in (next(probing.records()), probing.load(0)):
        assert record is not None
        assert list(record.parts) == ["paths", "rise"]


def test_a_run_that_moved_brings_its_records_along(store: RecordStore, tmp_path: Path) -> None:
    """But not over those that are there already, nor from a folder that is gone or its own."""
    fill(store, 0, 500, 1000, where="old")
    new = RecordStore(tmp_path / "new", NAME)
    fill(new, 500, where="new")
    for came_from in (None, str(tmp_path / "gone"), str(new.folder), str(store.folder)):
        new.came_from = came_from
        found = [record.metadata["where"] for record in new.open(500, DESCRIBED)]
    assert found == ["old", "new"]
    assert steps_in(folder_of(new)) == [0, 500]
    assert steps_in(folder_of(store)) == [0, 500, 1000]
    new.close()


def test_a_folder_that_vanishes_comes_back_with_its_prompts(store: RecordStore) -> None:
    go_on(store, 0)
    store.save_prompts(PROMPTS)
    (folder_of(store) / "prompts.json").unlink()
    folder_of(store).rmdir()
    fill(store, 500)
    assert steps_in(folder_of(store)) == [500]
    assert store.load_prompts() is not None


def test_two_at_once_have_folders_of_their_own(store: RecordStore, tmp_path: Path) -> None:
    second, third = RecordStore(os.path.relpath(tmp_path), NAME), RecordStore(str(tmp_path), NAME)
    assert [store.name, second.name, third.name] == [NAME, f"{NAME}-2", f"{NAME}-3"]
    assert second.folder == tmp_path / f"{NAME}-2"
    other_name, other_place = RecordStore(tmp_path, "deep"), RecordStore(tmp_path / "other", NAME)
    assert [other_name.name, other_place.name] == ["deep", NAME]
    second.close()
    again = RecordStore(tmp_path, NAME)
    second.close()  # twice does no harm to who has the folder now
    fourth = RecordStore(tmp_path, NAME)
    assert [again.name, fourth.name] == [f"{NAME}-2", f"{NAME}-4"]
    assert RecordStore.at(tmp_path / NAME).folder == store.folder  # claims nothing


def test_a_claim_ends_with_the_training_or_the_store(tmp_path: Path) -> None:
    first = RecordStore(tmp_path, NAME, run="first")
    assert RecordStore(tmp_path, NAME, run="first").name == f"{NAME}-2"
    second = RecordStore(tmp_path, NAME, run="second")
    assert first.name == second.name == NAME
    del second
    gc.collect()
    assert RecordStore(tmp_path, NAME).name == NAME


def test_without_a_log_folder_nothing_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = RecordStore(None, NAME)
    assert go_on(nowhere, 500) == []
    fill(nowhere, 0, 500)
    nowhere.save_prompts(PROMPTS)
    nowhere.close()
    assert (nowhere.folder, nowhere.load_prompts(), list(nowhere.records())) == (None, None, [])
    assert list(tmp_path.iterdir()) == []
