"""Checkpoints are found by what is there, in folders as real frameworks leave them."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from tests.trained import (
    save_folder,
    save_shards,
    tiny_model,
    train_with_lightning,
    train_with_trainer,
)


@pytest.fixture(scope="module")
def trainer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "run"
    train_with_trainer(folder)
    return folder


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lightning") / "checkpoints"
    train_with_lightning(folder, save_last=True)
    return folder


@pytest.fixture
def copy(trainer_run: Path, tmp_path: Path) -> Path:
    """A copy of the Trainer's folder that a test may change."""
    return Path(shutil.copytree(trainer_run, tmp_path / "run"))


def steps_of(found: list[LocalCheckpoint]) -> list[tuple[str, int]]:
    return [(checkpoint.path.name, checkpoint.name.step) for checkpoint in found]


def kind_of(checkpoint: LocalCheckpoint) -> str:
    return type(checkpoint.reader).__name__


def branches_of(found: list[LocalCheckpoint]) -> list[str]:
    return [checkpoint.name.branch for checkpoint in found]


def test_a_trainers_folder_is_its_checkpoints(trainer_run: Path) -> None:
    assert (trainer_run / "model.safetensors").is_file()
    found = find_checkpoints(trainer_run)
    assert steps_of(found) == [("checkpoint-2", 2), ("checkpoint-4", 4)]
    for checkpoint in found:
        assert (kind_of(checkpoint), checkpoint.config) == ("HuggingFaceFolder", checkpoint.path)
        assert (checkpoint.problem, checkpoint.name.branch) == (None, "")


def test_one_checkpoint_can_be_named_by_itself(trainer_run: Path) -> None:
    assert steps_of(find_checkpoints(str(trainer_run / "checkpoint-2"))) == [("checkpoint-2", 2)]


def test_the_name_of_the_working_folder_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save_folder(tiny_model(), tmp_path / "checkpoint-7"))
    assert find_checkpoints(".")[0].name.step == 7


def test_the_step_is_taken_from_the_state_where_the_name_has_none(copy: Path) -> None:
    (copy / "checkpoint-4").rename(copy / "best")
    assert find_checkpoints(copy / "best")[0].name.step == 4
    only = copy.parent / "only"
    only.mkdir()
    (copy / "checkpoint-2").rename(only / "early")
    (copy / "best").rename(only / "best")
    found = find_checkpoints(only)
    assert steps_of(found) == [("early", 2), ("best", 4)]
    assert branches_of(found) == ["", ""]


def test_a_state_that_cannot_be_read_tells_no_step(copy: Path) -> None:
    (copy / "checkpoint-4").rename(copy.parent / "best")
    for content in ("{", "[]", '{"global_step": "x"}'):
        (copy.parent / "best" / "trainer_state.json").write_text(content)
        assert find_checkpoints(copy.parent / "best")[0].name.step == 0


def test_models_without_a_step_are_runs_of_their_own(tmp_path: Path) -> None:
    model = tiny_model()
    save_folder(model, tmp_path / "models" / "small")
    assert steps_of(find_checkpoints(tmp_path / "models" / "small")) == [("small", 0)]
    assert branches_of(find_checkpoints(tmp_path / "models")) == [""]
    save_folder(model, tmp_path / "models" / "large-0.5B")
    found = find_checkpoints(tmp_path / "models")
    assert steps_of(found) == [("large-0.5B", 0), ("small", 0)]
    assert len(set(branches_of(found))) == 2


def test_lightning_files_are_found_and_copies_are_left_out(lightning_run: Path) -> None:
    assert (lightning_run / "last.ckpt").is_file()
    found = find_checkpoints(lightning_run)
    assert steps_of(found) == [("epoch=0-step=2.ckpt", 2), ("epoch=0-step=4.ckpt", 4)]
    assert {(kind_of(c), c.config, c.name.branch) for c in found} == {("LightningFile", None, "")}
    assert steps_of(find_checkpoints(lightning_run / "last.ckpt")) == [("last.ckpt", 4)]


def test_copies_of_a_second_training_are_left_out(lightning_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lightning_run, tmp_path / "run"))
    for name in ("epoch=0-step=2", "epoch=0-step=4", "last"):  # as Lightning names them
        shutil.copy(run / f"{name}.ckpt", run / f"{name}-v1.ckpt")
    found = find_checkpoints(run)
    assert [(c.name.step, c.name.branch) for c in found] == [(2, ""), (4, ""), (2, "v1"), (4, "v1")]
    for name in ("epoch=0-step=4", "epoch=0-step=4-v1", "last"):
        (run / f"{name}.ckpt").unlink()
    assert ("last-v1.ckpt", 4) in steps_of(find_checkpoints(run))  # no other has its step


def test_a_link_is_no_second_checkpoint(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name, place in {
        "best": copy / "checkpoint-4",
        "checkpoint-4": copy / "checkpoint-4",
        "a": copy / "checkpoint-2",
        "b": copy / "checkpoint-2",
    }.items():
        (tmp_path / "links" / name).symlink_to(place)
    found = find_checkpoints(tmp_path / "links")
    assert steps_of(found) == [("a", 2), ("checkpoint-4", 4)]
    assert branches_of(found) == ["", ""]


def test_the_step_of_a_lightning_file_is_read_from_it(lightning_run: Path, tmp_path: Path) -> None:
    shutil.copy(lightning_run / "epoch=0-step=2.ckpt", tmp_path / "epoch=0.ckpt")
    shutil.copy(lightning_run / "epoch=0-step=4.ckpt", tmp_path / "last.ckpt")
    found = find_checkpoints(tmp_path)
    assert steps_of(found) == [("epoch=0.ckpt", 2), ("last.ckpt", 4)]
    assert branches_of(found) == ["", ""]
    shutil.copy(tmp_path / "epoch=0.ckpt", tmp_path / "other.ckpt")
    assert branches_of(find_checkpoints(tmp_path)) == ["", "", "other"]


def test_a_lightning_file_that_cannot_be_read_is_named(lightning_run: Path, tmp_path: Path) -> None:
    shutil.copy(lightning_run / "epoch=0-step=2.ckpt", tmp_path / "epoch=0-step=2.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"")
    found = find_checkpoints(tmp_path)
    assert [bool(checkpoint.problem) for checkpoint in found] == [True, False]
    assert "last.ckpt' is empty; copy or download it again" in str(found[0].problem)


def test_a_config_beside_lightning_files_is_theirs(lightning_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lightning_run, tmp_path / "run"))
    tiny_model().config.save_pretrained(run)
    assert {checkpoint.config for checkpoint in find_checkpoints(run)} == {run}


def test_fsdp_shards_of_a_trainer_are_found(tmp_path: Path) -> None:
    model, run = tiny_model(), tmp_path / "run"
    for step in (500, 1000):
        folder = run / f"checkpoint-{step}" / "pytorch_model_fsdp_0"
        save_shards({"model": model.state_dict()}, folder)
    found = find_checkpoints(run)
    assert steps_of(found) == [("checkpoint-500", 500), ("checkpoint-1000", 1000)]
    assert {(kind_of(c), c.config) for c in found} == {("HuggingFaceFolder", None)}
    model.config.save_pretrained(run)
    assert {checkpoint.config for checkpoint in find_checkpoints(run)} == {run}
    inner = find_checkpoints(run / "checkpoint-500" / "pytorch_model_fsdp_0")
    assert steps_of(inner) == [("checkpoint-500", 500)]


def test_sharded_lightning_folders_are_found(tmp_path: Path) -> None:
    folder = save_shards({"state_dict": {"model.w": torch.ones(2)}}, tmp_path / "step=7.ckpt")
    torch.save({"global_step": 7}, folder / "meta.pt")
    assert steps_of(find_checkpoints(tmp_path)) == [("step=7.ckpt", 7)]
    folder.rename(tmp_path / "last.ckpt")
    (found,) = find_checkpoints(tmp_path / "last.ckpt")
    assert (kind_of(found), found.name.step) == ("ShardedFolder", 7)
    (tmp_path / "last.ckpt" / "meta.pt").unlink()
    assert find_checkpoints(tmp_path / "last.ckpt")[0].name.step == 0


def test_an_adapter_is_refused_with_what_merges_it(tmp_path: Path) -> None:
    folder = tmp_path / "my run" / "checkpoint-5"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").touch()  # an adapter is one whatever lies beside it
    for source in (folder, folder.parent):
        with pytest.raises(InputError, match="holds a PEFT adapter, not a whole model") as caught:
            find_checkpoints(source)
        (code,) = shlex.split(str(caught.value).split("merge it: python -c ")[1])
        compile(code, "command", "exec")
        assert f"from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(" in code


def test_deepspeed_shards_are_refused_with_what_converts_them(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-5"
    (folder / "global_step5").mkdir(parents=True)
    (folder / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    (folder / "config.json").write_text("{}")
    expected = f"convert them: python -m deepspeed.utils.zero_to_fp32 {folder} {folder}-merged"
    for source in (folder, folder.parent):
        with pytest.raises(InputError, match="holds DeepSpeed shards") as caught:
            find_checkpoints(source)
        assert str(caught.value).endswith(expected)
    with pytest.raises(InputError, match="holds DeepSpeed shards"):
        find_checkpoints(folder / "global_step5")
    (folder / "zero_to_fp32.py").touch()
    with pytest.raises(InputError, match=f"python {folder}/zero_to_fp32.py {folder} {folder}-mer"):
        find_checkpoints(folder)


def test_whole_weights_beside_deepspeed_shards_are_taken(tmp_path: Path) -> None:
    folder = save_folder(tiny_model(), tmp_path / "checkpoint-5")
    (folder / "global_step5").mkdir()
    (folder / "global_step5" / "mp_rank_00_model_states.pt").touch()
    assert [kind_of(c) for c in find_checkpoints(folder)] == ["HuggingFaceFolder"]


def test_those_that_cannot_be_read_are_listed_beside_those_that_can(copy: Path) -> None:
    (copy / "checkpoint-3").mkdir()
    (copy / "checkpoint-3" / "optimizer.pt").touch()
    (copy / "checkpoint-5").mkdir()
    (copy / "checkpoint-5" / "adapter_config.json").touch()
    found = find_checkpoints(copy)
    assert [c.name.step for c in found] == [2, 3, 4, 5]
    assert [kind_of(c) for c in found] == [
        "HuggingFaceFolder",
        "NoneType",
        "HuggingFaceFolder",
        "PeftAdapter",
    ]
    assert "checkpoint-3' holds no weights that are known; looked for" in str(found[1].problem)


def test_a_part_that_the_index_names_has_to_be_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        save_folder(tiny_model(), run / f"checkpoint-{step}", max_shard_size="30KB")
    assert [c.problem for c in find_checkpoints(run)] == [None, None, None]
    *_, part = sorted((run / "checkpoint-2").glob("model-*.safetensors"))
    part.unlink()
    (run / "checkpoint-3" / "model.safetensors.index.json").write_text("{")
    fine, lacking, damaged = [checkpoint.problem for checkpoint in find_checkpoints(run)]
    assert fine is None
    assert lacking == f"{str(part)!r} is missing; copy or download it again"
    assert "index.json' is damaged" in str(damaged)
    with pytest.raises(InputError, match=f"{part.name}' is missing"):
        find_checkpoints(run / "checkpoint-2")


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").touch()
    expected = r"no known checkpoint; looked, .* \(model.safetensors .* a Lightning .ckpt file"
    with pytest.raises(InputError, match=expected):
        find_checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"notes.txt' holds no known checkpoint; name the folder"):
        find_checkpoints(tmp_path / "notes.txt")


def test_deeper_checkpoints_are_pointed_to(lightning_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "logs" / "version_0"
    shutil.copytree(lightning_run, place)
    with pytest.raises(InputError, match=r"there are some in '.*/logs/version_0'$"):
        find_checkpoints(tmp_path)


def test_a_path_that_is_not_there_gets_the_closest(trainer_run: Path) -> None:
    expected = r"there is no folder '.*checkpoint-5'; the closest in '.*run': checkpoint-4, chec"
    with pytest.raises(InputError, match=expected):
        find_checkpoints(trainer_run / "checkpoint-5")
    with pytest.raises(InputError, match="the closest in 'nowhere': nothing there"):
        find_checkpoints("nowhere/model")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import json, sys, sr_monitor.replay.discover, sr_monitor.replay.models\n"
        "heavy = {'transformers', 'lightning', 'huggingface_hub', 'tensorboard', 'datasets'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
