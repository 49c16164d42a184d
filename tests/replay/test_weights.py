"""Weights of every kind of checkpoint end up in the model, all of them or none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from sr_monitor.replay.weights import load_into, put_weights, read_weights
from tests.trained import (
    LitModel,
    Weights,
    save_folder,
    save_shards,
    tiny_model,
    train_with_lightning,
    train_with_trainer,
    weights_of,
)
from tests.zoo import build


def assert_holds(model: nn.Module, expected: Weights) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def only(path: Path) -> LocalCheckpoint:
    (checkpoint,) = find_checkpoints(path)
    return checkpoint


@pytest.fixture
def model() -> Any:
    """A model with weights of its own, to be replaced."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return tiny_model()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Weights]:
    """A folder and the weights in it."""
    source = tiny_model()
    return save_folder(source, tmp_path / "saved"), weights_of(source)


def test_checkpoints_of_the_trainer_are_loaded(tmp_path: Path, model: Any) -> None:
    expected = train_with_trainer(tmp_path / "run")
    found = find_checkpoints(tmp_path / "run")
    assert [checkpoint.name.step for checkpoint in found] == [2, 4] == sorted(expected)
    for checkpoint in found:
        load_into(model, checkpoint)
        assert_holds(model, expected[checkpoint.name.step])


def test_checkpoints_of_lightning_are_loaded(tmp_path: Path, model: Any) -> None:
    expected = train_with_lightning(tmp_path / "run")
    found = find_checkpoints(tmp_path / "run")
    assert [checkpoint.name.step for checkpoint in found] == [2, 4] == sorted(expected)
    for checkpoint in found:
        assert any(name.startswith("probe.") for name in read_weights(checkpoint))
        load_into(model, checkpoint)
        assert_holds(model, expected[checkpoint.name.step])


def test_weights_that_have_gone_since_they_were_found_are_told(saved: tuple[Path, Weights]) -> None:
    folder, _ = saved
    found = only(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"^'{folder}': its weights are gone since the listing; "):
        read_weights(found)


@pytest.mark.parametrize("size", ["50GB", "30KB"])
def test_safetensors_are_loaded_whole_and_in_parts(tmp_path: Path, model: Any, size: str) -> None:
    source = tiny_model()
    folder = save_folder(source, tmp_path / "saved", max_shard_size=size)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (size == "30KB")
    load_into(model, only(folder))
    assert_holds(model, weights_of(source))


def test_torch_files_are_loaded_whole_and_in_parts(
    tmp_path: Path, model: Any, saved: tuple[Path, Weights]
) -> None:
    folder, expected = saved
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    load_into(model, only(folder))
    assert_holds(model, expected)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(expected)
    for number, part in enumerate((names[:5], names[5:])):
        torch.save({name: expected[name] + 1 for name in part}, folder / f"{number}.bin")
    places = {name: f"{int(index >= 5)}.bin" for index, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    load_into(model, only(folder))
    assert_holds(model, {name: tensor + 1 for name, tensor in expected.items()})


def test_fsdp_shards_of_the_trainer_are_loaded(tmp_path: Path, model: Any) -> None:
    source = tiny_model()
    content = {"model": source.state_dict()}
    save_shards(content, tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0")
    load_into(model, only(tmp_path))
    assert_holds(model, weights_of(source))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_sharded_folders_of_lightning_are_loaded(tmp_path: Path, model: Any, key: str) -> None:
    module = LitModel()
    state = {f"optimizer_{0}": {"state": {"model.norm.weight": torch.ones(3)}}}
    folder = save_shards({key: module.state_dict(), **state}, tmp_path / "step=3.ckpt")
    torch.save({"global_step": 3}, folder / "meta.pt")
    load_into(model, only(tmp_path))
    assert_holds(model, weights_of(module.model))


class Around(nn.Module):
    """A module of somebody who gave the model a name of their own."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)
        self.head = nn.Linear(2, 2)


WRAPPED: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "own name": lambda model: Around("my_network", model).state_dict(),
    "twice": lambda model: Around("a", Around("b", model)).state_dict(),
    "compiled": lambda model: Around("model", torch.compile(model, backend="eager")).state_dict(),  # type: ignore[arg-type]
    "data parallel": lambda model: nn.DataParallel(model).state_dict(),
    "fsdp": lambda model: {
        f"_fsdp_wrapped_module.{name.replace('layers.1.', 'layers.1._fsdp_wrapped_module.')}": t
        for name, t in model.state_dict().items()
    },
    "teacher": lambda model: {
        **Around("model", model).state_dict(),
        **Around("ema", tiny_model()).state_dict(),
    },
}


@pytest.mark.parametrize("case", WRAPPED)
def test_prefixes_are_found_by_matching(tmp_path: Path, model: Any, case: str) -> None:
    source = tiny_model()
    expected = weights_of(source)
    state = WRAPPED[case](source)
    assert state.keys() != expected.keys()
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "last.ckpt")
    load_into(model, only(tmp_path / "last.ckpt"))
    assert_holds(model, expected)


def test_a_wrapped_model_is_filled_too(saved: tuple[Path, Weights], model: Any) -> None:
    folder, expected = saved
    compiled: Any = torch.compile(model, backend="eager")
    load_into(compiled, only(folder))
    assert_holds(model, expected)


def test_two_models_under_unusual_names_are_refused(tmp_path: Path, model: Any) -> None:
    state = Around("ema", tiny_model()).state_dict() | Around("live", model).state_dict()
    torch.save({"state_dict": state}, tmp_path / "step=1.ckpt")
    expected = r"holds the model 2 times, under '(ema|live)\.', '(ema|live)\.'; save the one that"
    with pytest.raises(InputError, match=expected):
        load_into(model, only(tmp_path))


def test_a_larger_teacher_does_not_win(tmp_path: Path, model: Any) -> None:
    student, teacher = tiny_model(), tiny_model(num_hidden_layers=5)
    state = Around("student", student).state_dict() | Around("model", teacher).state_dict()
    torch.save({"state_dict": state}, tmp_path / "step=1.ckpt")
    load_into(model, only(tmp_path))
    assert_holds(model, weights_of(student))


def test_models_without_a_trainer_of_their_own_kind_are_loaded(tmp_path: Path) -> None:
    source, target = build("nano_gpt", seed=1).model, build("nano_gpt", seed=2).model
    torch.save({"state_dict": Around("net", source).state_dict()}, tmp_path / "step=1.ckpt")
    load_into(target, only(tmp_path))
    assert_holds(target, weights_of(source))


def test_tied_weights_may_be_missing(tmp_path: Path) -> None:
    source, target = (tiny_model(tie_word_embeddings=True) for _ in range(2))
    folder = save_folder(source, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_into(target, only(folder))
    assert_holds(target, weights_of(source))
    assert target.lm_head.weight is target.model.embed_tokens.weight


def test_two_weights_for_a_tied_one_are_refused(tmp_path: Path) -> None:
    tied, free = tiny_model(tie_word_embeddings=True), tiny_model()
    before = weights_of(tied)
    with pytest.raises(InputError, match=r"two different weights, .*embed_tokens.* and lm_head.we"):
        put_weights(tied, weights_of(free), "somewhere")
    assert_holds(tied, before)
    same = weights_of(free)
    same["lm_head.weight"] = same["model.embed_tokens.weight"].clone()
    put_weights(tied, same, "somewhere")
    assert_holds(tied, same)


def test_a_model_saved_without_its_head_is_loaded_where_the_head_is_tied(tmp_path: Path) -> None:
    source, target = (tiny_model(tie_word_embeddings=True) for _ in range(2))
    folder = save_folder(source.model, tmp_path / "saved")
    assert "embed_tokens.weight" in load_file(folder / "model.safetensors")
    load_into(target, only(folder))
    assert_holds(target, weights_of(source))
    untied = tiny_model()
    with pytest.raises(InputError, match=r"it lacks 1 of \d+ \(lm_head.weight\), it has 0 others"):
        load_into(untied, only(folder))


@pytest.mark.parametrize("species", ["mixtral", "olmoe", "qwen3_next"])
def test_published_names_of_experts_are_converted(tmp_path: Path, species: str) -> None:
    source, target = build(species, seed=1).model, build(species, seed=2).model
    folder = save_folder(source, tmp_path / "saved")
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() != source.state_dict().keys()
    load_into(target, only(folder))
    assert_holds(target, weights_of(source))
    lost = next(name for name in sorted(stored) if "experts.1." in name)
    del stored[lost]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    before = weights_of(target)
    with pytest.raises(InputError, match=r"does not hold the weights .*: it lacks .*experts"):
        load_into(target, only(folder))
    assert_holds(target, before)


def test_what_older_versions_saved_is_passed_over(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    neox, other = build("gpt_neox", seed=1).model, build("gpt_neox", seed=2).model
    for kind in (type(model), type(other)):
        monkeypatch.setattr(kind, "from_pretrained", None)  # no second model is built for it
    expected = weights_of(tiny_model())
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}
    put_weights(model, expected | old, "somewhere")
    assert_holds(model, expected)
    old = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    old |= {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}
    put_weights(other, weights_of(neox) | old, "somewhere")
    assert_holds(other, weights_of(neox))


def test_models_of_no_library_are_held_to_the_same_rules() -> None:
    source, target = build("lit_gpt", seed=1).model, build("lit_gpt", seed=2).model
    expected = weights_of(source)
    put_weights(target, expected | {"cos": torch.ones(2)}, "somewhere")
    assert_holds(target, expected)
    said = refusal(target, {"lm_head.weight": expected["lm_head.weight"], "odd": torch.ones(2)})
    assert f"it lacks {len(expected) - 1} of {len(expected)} (transformer." in said
    assert "it has 1 others (odd)" in said
    tied: Any = build("lit_gpt", seed=2).model
    tied.lm_head.weight = tied.transformer["wte"].weight
    del expected["lm_head.weight"]
    put_weights(tied, expected, "somewhere")
    assert torch.equal(tied.lm_head.weight, expected["transformer.wte.weight"])


def test_weights_are_cast_to_the_models_dtype(saved: tuple[Path, Weights], model: Any) -> None:
    folder, expected = saved
    half = model.to(torch.bfloat16)
    load_into(half, only(folder))
    assert_holds(half, {name: tensor.bfloat16() for name, tensor in expected.items()})


def refusal(model: nn.Module, weights: Weights) -> str:
    """What is said; the model is as it was before."""
    before = weights_of(model)
    with pytest.raises(InputError) as caught:
        put_weights(model, weights, "here")
    assert_holds(model, before)
    return str(caught.value)


def test_missing_and_unexpected_weights_are_refused_with_both_sides(model: Any) -> None:
    deeper = weights_of(tiny_model(num_hidden_layers=4))
    assert refusal(model, deeper) == (
        "'here' does not hold the weights of this LlamaForCausalLM: it lacks 0 of 30, it has 9 "
        "others (model.layers.3.input_layernorm.weight, model.layers.3.mlp.down_proj.weight, "
        "model.layers.3.mlp.gate_proj.weight, ...); name the model that it was saved from (its "
        "config.json, or --base)"
    )
    shallower = weights_of(tiny_model(num_hidden_layers=2))
    expected = "it lacks 9 of 30 (model.layers.2.input_layernorm.weight, model.layers.2."
    assert expected in refusal(model, shallower)
    assert "it has 0 others; name" in refusal(model, shallower)
    gpt_2 = weights_of(build("gpt2").model)
    said = refusal(model, gpt_2)
    assert "it lacks 29 of 30 (" in said
    assert "(transformer.h.0.attn.c_attn.bias, " in said
    assert "1 have other shapes (lm_head.weight (61, 32) and not (300, 32))" in said
    assert "it lacks 30 of 30 (" in refusal(model, {})


def test_wrong_shapes_are_refused_with_both_sides(model: Any) -> None:
    wider = weights_of(tiny_model(vocab_size=310))
    assert (
        "2 have other shapes (model.embed_tokens.weight (310, 32) and not (300, 32), "
        "lm_head.weight (310, 32) and not (300, 32)); name the model"
    ) in refusal(model, wider)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_inf_are_named(model: Any, value: float, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(tiny_model()).items()}
    weights["model.layers.1.mlp.up_proj.weight"][7, 5] = value
    weights["model.norm.weight"][3] = value
    assert refusal(model, weights) == (
        "'here' holds NaN or Inf in 2 of 30 weights (model.layers.1.mlp.up_proj.weight, "
        "model.norm.weight); the run had diverged, or the file is damaged: leave it out"
    )


def test_a_damaged_part_leaves_the_model_as_it_was(tmp_path: Path, model: Any) -> None:
    folder = save_folder(tiny_model(), tmp_path / "saved", max_shard_size="30KB")
    before, parts = weights_of(model), sorted(folder.glob("*.safetensors"))
    parts[-1].write_bytes(parts[-1].read_bytes()[:-10])
    with pytest.raises(InputError, match=f"{parts[-1].name}' is damaged"):
        load_into(model, only(folder))
    parts[-1].unlink()
    with pytest.raises(InputError, match=f"{parts[-1].name}' is missing; copy or download"):
        load_into(model, only(folder))
    assert_holds(model, before)


def test_what_cannot_be_read_says_so_when_it_is_read(
    saved: tuple[Path, Weights], tmp_path: Path, model: Any
) -> None:
    shutil.copytree(saved[0], tmp_path / "run" / "checkpoint-1")
    (tmp_path / "run" / "checkpoint-2").mkdir()
    good, bad = find_checkpoints(tmp_path / "run")
    load_into(model, good)
    with pytest.raises(InputError, match="checkpoint-2' holds no weights that are known"):
        load_into(model, bad)
