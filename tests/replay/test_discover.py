"""Checkpoints are found by what is there, in folders as real frameworks leave them."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from sr_monitor.replay.weights import put_weights
from tests.trained import (
    Weights,
    save_folder,
    save_shards,
    tiny_model,
    train_with_lightning,
    train_with_trainer,
)

Run = tuple[Path, dict[int, Weights]]
"""A training's folder, and the weights that were saved at its steps."""


@pytest.fixture(scope="module")
def trainer_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trainer") / "run"
    return folder, train_with_trainer(folder)


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("lightning") / "checkpoints"
    return folder, train_with_lightning(folder, save_last=True)


def assert_loaded(run: Run) -> None:
    """Assert that a model gets the weights that were saved, and none of before."""
    folder, expected = run
    model = tiny_model()
    for found, weights in zip(find_checkpoints(folder), expected.values(), strict=True):
        put_weights(model, found.read(None), "here")
        state = model.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weight) for name, weight in weights.items())


@pytest.fixture
def copy(trainer_run: Run, tmp_path: Path) -> Path:
    """A copy of the Trainer's folder that a test may change."""
    return Path(shutil.copytree(trainer_run[0], tmp_path / "run"))


def steps_in(source: Path | str) -> list[tuple[str, int]]:
    return [(found.path.name, found.name.step) for found in find_checkpoints(source)]


def kind_of(checkpoint: LocalCheckpoint) -> str:
    return type(checkpoint.reader).__name__


def test_a_trainers_folder_is_its_checkpoints(
    trainer_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trainer_run
    assert (folder / "model.safetensors").is_file()
    assert steps_in(folder) == [("checkpoint-2", 2), ("checkpoint-4", 4)]
    for found in find_checkpoints(folder):
        assert (kind_of(found), found.config) == ("HuggingFaceFolder", found.path)
        assert found.problem is None
    assert_loaded(trainer_run)
    monkeypatch.chdir(folder / "checkpoint-2")
    assert steps_in(".") == [("", 2)]


def test_the_step_is_taken_from_the_state_where_the_name_has_none(copy: Path) -> None:
    only = copy.parent / "only"
    only.mkdir()
    (copy / "checkpoint-2").rename(only / "early")
    (copy / "checkpoint-4").rename(only / "best")
    assert steps_in(only) == [("early", 2), ("best", 4)]
    save_folder(tiny_model(), only / "none")
    assert steps_in(only) == [("none", 0), ("early", 2), ("best", 4)]
    assert steps_in(only / "best") == [("best", 4)]


def test_lightning_files_are_found_and_copies_are_left_out(
    lightning_run: Run, tmp_path: Path
) -> None:
    folder, _ = lightning_run
    assert (folder / "last.ckpt").is_file()
    assert steps_in(folder) == [("epoch=0-step=2.ckpt", 2), ("epoch=0-step=4.ckpt", 4)]
    assert steps_in(folder / "last.ckpt") == [("last.ckpt", 4)]
    found = find_checkpoints(folder)
    assert {(kind_of(c), c.config) for c in found} == {("LightningFile", None)}
    assert_loaded(lightning_run)
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    for name in ("epoch=0-step=2", "epoch=0-step=4", "last"):  # of a second training
        shutil.copy(run / f"{name}.ckpt", run / f"{name}-v1.ckpt")
    tiny_model().config.save_pretrained(run)
    found = find_checkpoints(run)
    assert [(c.name.step, c.name.branch) for c in found] == [(2, ""), (4, ""), (2, "v1"), (4, "v1")]
    assert {checkpoint.config for checkpoint in found} == {run}
    for name in ("epoch=0-step=4", "epoch=0-step=4-v1", "last"):
        (run / f"{name}.ckpt").unlink()
    assert ("last-v1.ckpt", 4) in steps_in(run)  # no other has its step
    (run / "last-v1.ckpt").write_bytes(b"")
    problems = [checkpoint.problem for checkpoint in find_checkpoints(run)]
    assert ["is empty; copy or" in str(problem) for problem in problems] == [True, False, False]


def test_a_link_is_no_second_checkpoint(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name, place in {"best": 4, "checkpoint-4": 4, "a": 2, "b": 2}.items():
        (tmp_path / "links" / name).symlink_to(copy / f"checkpoint-{place}")
    assert steps_in(tmp_path / "links") == [("a", 2), ("checkpoint-4", 4)]


def test_sharded_checkpoints_are_found(tmp_path: Path) -> None:
    model, run = tiny_model(), tmp_path / "run"
    for step in (500, 1000):
        folder = run / f"checkpoint-{step}" / "pytorch_model_fsdp_0"
        save_shards({"model": model.state_dict()}, folder)
    assert steps_in(run) == [("checkpoint-500", 500), ("checkpoint-1000", 1000)]
    found = find_checkpoints(run)
    assert {(kind_of(c), c.config) for c in found} == {("HuggingFaceFolder", None)}
    model.config.save_pretrained(run)
    assert {checkpoint.config for checkpoint in find_checkpoints(run)} == {run}
    assert steps_in(run / "checkpoint-500" / "pytorch_model_fsdp_0") == [("checkpoint-500", 500)]
    folder = save_shards({"state_dict": {"model.w": torch.ones(2)}}, tmp_path / "last.ckpt")
    torch.save({"global_step": 7}, folder / "meta.pt")
    assert kind_of(find_checkpoints(folder)[0]) == "ShardedFolder"
    assert steps_in(folder) == [("last.ckpt", 7)]
    (folder / "meta.pt").unlink()
    assert steps_in(folder) == [("last.ckpt", 0)]


def refused(source: Path, words: str) -> str:
    with pytest.raises(InputError, match=words) as caught:
        find_checkpoints(source)
    return str(caught.value)


def test_an_adapter_is_refused_with_what_merges_it(tmp_path: Path) -> None:
    folder = tmp_path / "my run" / "checkpoint-5"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").touch()  # an adapter is one whatever lies beside it
    for source in (folder, folder.parent):
        told = refused(source, "holds a PEFT adapter, not a whole model")
        (code,) = shlex.split(told.split("merge it: python -c ")[1])
        compile(code, "command", "exec")
        assert f"from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(" in code


def test_deepspeed_shards_are_refused_with_what_converts_them(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-5"
    (folder / "global_step5").mkdir(parents=True)
    (folder / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    (folder / "config.json").write_text("{}")
    command = f"python -m deepspeed.utils.zero_to_fp32 {folder} {folder}-merged$"
    for source in (folder, folder.parent):
        refused(source, f"holds DeepSpeed shards.* convert them: {command}")
    (folder / "zero_to_fp32.py").touch()
    refused(folder, f"python {folder}/zero_to_fp32.py {folder} {folder}-merged$")
    save_folder(tiny_model(), folder)  # whole weights beside the shards
    assert [kind_of(checkpoint) for checkpoint in find_checkpoints(folder)] == ["HuggingFaceFolder"]


def test_those_that_cannot_be_read_are_listed_beside_those_that_can(copy: Path) -> None:
    for step, file in ((3, "optimizer.pt"), (5, "adapter_config.json")):
        (copy / f"checkpoint-{step}").mkdir()
        (copy / f"checkpoint-{step}" / file).touch()
    found = {checkpoint.name.step: checkpoint for checkpoint in find_checkpoints(copy)}
    assert list(found) == [2, 3, 4, 5]
    assert (kind_of(found[3]), kind_of(found[5])) == ("NoneType", "PeftAdapter")
    assert "checkpoint-3' holds no weights that are known; looked for" in str(found[3].problem)


def test_a_part_that_the_index_names_has_to_be_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        save_folder(tiny_model(), run / f"checkpoint-{step}", max_shard_size="30KB")
    *_, part = sorted((run / "checkpoint-2").glob("model-*.safetensors"))
    part.unlink()
    (run / "checkpoint-3" / "model.safetensors.index.json").write_text("{")
    fine, lacking, damaged = [checkpoint.problem for checkpoint in find_checkpoints(run)]
    assert fine is None
    assert lacking == refused(run / "checkpoint-2", re.escape(f"{str(part)!r} is missing; copy or"))
    assert "index.json' is damaged" in str(damaged)


def test_where_nothing_is_found_it_is_told_what_was_looked_for(
    lightning_run: Run, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, r"no known checkpoint; looked, .* \(model.safetensors .* a Lightning .ckpt")
    refused(tmp_path / "notes.txt", "no known checkpoint; name the folder")
    shutil.copytree(lightning_run[0], tmp_path / "logs/version_0")
    refused(tmp_path, r"there are some in '.*/logs/version_0'$")
    refused(tmp_path / "log", r"there is no folder '.*/log'; the closest in '.*': logs, notes.txt")
    refused(Path("nowhere/model"), "the closest in 'nowhere': nothing there")
