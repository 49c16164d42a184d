"""Weights of every kind of checkpoint end up in the model; what does not fit leaves it alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from sr_monitor.replay.readers.saved import held
from sr_monitor.replay.weights import put_weights
from tests.saved import unmapped
from tests.trained import (
    LitModel,
    Weights,
    save_folder,
    save_shards,
    tiny_model,
    weights_of,
)
from tests.zoo import build


def load_into(model: nn.Module, path: Path) -> None:
    (checkpoint,) = find_checkpoints(path)
    put_weights(model, checkpoint.read(None), "here")


def assert_holds(model: nn.Module, expected: Weights) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def refusal(model: nn.Module, given: Weights | LocalCheckpoint) -> str:
    """Return what is said; the model has to be as it was before."""
    before = weights_of(model)
    with pytest.raises(InputError) as caught:
        put_weights(
            model, given.read(None) if isinstance(given, LocalCheckpoint) else held(given), "here"
        )
    if "NaN" not in str(caught.value):
        assert_holds(model, before)
    return str(caught.value)


@pytest.fixture
def model() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return tiny_model()


def save_torch(model: Any, folder: Path, *, in_parts: bool) -> None:
    folder.mkdir()
    weights = weights_of(model)
    places = {name: f"{index % 2}.bin" for index, name in enumerate(sorted(weights))}
    if not in_parts:
        return torch.save(weights, folder / "pytorch_model.bin")
    for file in ("0.bin", "1.bin"):
        part = {name: tensor for name, tensor in weights.items() if places[name] == file}
        torch.save(part, folder / file)
    index = json.dumps({"weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    return None


def save_lightning(model: Any, folder: Path, key: str) -> None:
    module = LitModel()
    module.model = model
    optimizer = {"optimizer_0": {"state": {"model.norm.weight": torch.ones(3)}}}
    save_shards({key: module.state_dict(), **optimizer}, folder)


LAYOUTS: dict[str, Callable[[Any, Path], object]] = {
    "model.safetensors": save_folder,
    "safetensors in parts": lambda model, to: save_folder(model, to, max_shard_size="30KB"),
    "torch file": lambda model, to: save_torch(model, to, in_parts=False),
    "torch files in parts": lambda model, to: save_torch(model, to, in_parts=True),
    "FSDP": lambda m, to: save_shards({"model": m.state_dict()}, to / "pytorch_model_fsdp_0"),
    "Lightning, FSDP": lambda model, to: save_lightning(model, to, "model"),
    "Lightning, sharded": lambda model, to: save_lightning(model, to, "state_dict"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_loaded(tmp_path: Path, model: Any, layout: str) -> None:
    source = tiny_model()
    LAYOUTS[layout](source, tmp_path / "checkpoint-5")
    load_into(model, tmp_path)
    assert_holds(model, weights_of(source))


class Around(nn.Module):
    """A module of somebody who gave the model a name of their own."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)
        self.head = nn.Linear(2, 2)


def around(**models: Any) -> dict[str, Tensor]:
    states = (Around(name, model).state_dict() for name, model in models.items())
    return {name: tensor for state in states for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "own name": lambda model: around(my_network=model),
    "twice": lambda model: around(a=Around("b", model)),
    "compiled": lambda model: around(model=torch.compile(model, backend="eager")),
    "data parallel": lambda model: nn.DataParallel(model).state_dict(),
    "fsdp": lambda model: {
        f"_fsdp_wrapped_module.{name.replace('layers.1.', 'layers.1._fsdp_wrapped_module.')}": t
        for name, t in model.state_dict().items()
    },
    "average": lambda model: around(model=model, ema=tiny_model()),
    "second head": lambda m: around(model=m) | {"other.lm_head.weight": torch.ones(300, 32)},
    "larger teacher": lambda m: around(student=m, model=tiny_model(num_hidden_layers=5)),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_prefixes_are_found_by_matching(tmp_path: Path, model: Any, case: str) -> None:
    source = tiny_model()
    state = WRAPPED[case](source)
    assert state.keys() != source.state_dict().keys()
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "last.ckpt")
    load_into(model, tmp_path)
    assert_holds(model, weights_of(source))
    compiled: Any = torch.compile(tiny_model(), backend="eager")  # what is filled may be wrapped
    load_into(compiled, tmp_path)
    assert_holds(compiled._orig_mod, weights_of(source))


def test_tied_weights_count_once(tmp_path: Path) -> None:
    source, target = (tiny_model(tie_word_embeddings=True) for _ in range(2))
    load_into(target, save_folder(source, tmp_path / "whole"))
    assert_holds(target, weights_of(source))
    assert target.lm_head.weight is target.model.embed_tokens.weight
    free = tiny_model()
    two = weights_of(free)
    said = refusal(target, two)
    assert "two different weights, model.embed_tokens.weight and lm_head.weight" in said
    two["lm_head.weight"] = two["model.embed_tokens.weight"].clone()
    put_weights(target, held(two), "here")
    assert_holds(target, two)
    headless = save_folder(source.model, tmp_path / "headless")
    load_into(target, headless)
    assert_holds(target, weights_of(source))
    said = refusal(free, *find_checkpoints(headless))
    assert "it lacks 1 of 30 (lm_head.weight), it has 0 others" in said


@pytest.mark.parametrize("species", ["mixtral", "olmoe", "qwen3_next"])
def test_published_names_of_experts_are_converted(tmp_path: Path, species: str) -> None:
    source, target = build(species, seed=1).model, build(species, seed=2).model
    folder = save_folder(source, tmp_path / "saved")
    stored = unmapped(folder / "model.safetensors")
    assert stored.keys() != source.state_dict().keys()
    load_into(target, folder)
    assert_holds(target, weights_of(source))
    del stored[next(name for name in sorted(stored) if "experts.1." in name)]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    said = refusal(target, *find_checkpoints(folder))
    assert "does not hold the weights" in said
    assert "experts" in said.split("it lacks")[1]


def test_what_older_versions_saved_is_passed_over(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    neox, other = build("gpt_neox", seed=1).model, build("gpt_neox", seed=2).model
    for kind in (type(model), type(other)):
        monkeypatch.setattr(kind, "from_pretrained", None)  # no second model is built for it
    expected = weights_of(tiny_model())
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(3)}
    put_weights(model, held(expected | old), "here")
    assert_holds(model, expected)
    old = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    old |= {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}
    put_weights(other, held(weights_of(neox) | old), "here")
    assert_holds(other, weights_of(neox))


def test_models_of_no_library_are_held_to_the_same_rules() -> None:
    source, target = build("lit_gpt", seed=1).model, build("lit_gpt", seed=2).model
    expected = weights_of(source)
    put_weights(target, held(around(net=source) | {"net.cos": torch.ones(2)}), "here")
    assert_holds(target, expected)
    odd = {"lm_head.weight": expected["lm_head.weight"], "odd": torch.ones(2)}
    said = refusal(target, odd)
    assert f"it lacks {len(expected) - 1} of {len(expected)} (transformer." in said
    assert "it has 1 others (odd)" in said
    tied: Any = build("lit_gpt", seed=2).model
    tied.lm_head.weight = tied.transformer["wte"].weight
    del expected["lm_head.weight"]
    put_weights(tied, held(expected), "here")
    assert torch.equal(tied.lm_head.weight, expected["transformer.wte.weight"])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_hidden_layers": 4}, "lacks 0 of 30, it has 9 others (model.layers.3.input_layern"),
        ({"num_hidden_layers": 2}, "it lacks 9 of 30 (model.layers.2.input_layernorm.weight, mo"),
        ({"vocab_size": 310}, "2 have other shapes (model.embed_tokens.weight (310, 32) and not ("),
        ({}, "holds the model 2 times, under 'ema.', 'live.'; save the one"),
    ],
)
def test_weights_of_another_model_are_refused(model: Any, sizes: dict[str, Any], said: str) -> None:
    other = tiny_model(**sizes)
    assert said in refusal(model, weights_of(other) if sizes else around(ema=other, live=model))


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (-float("inf"), torch.bfloat16)]
)
def test_nan_inf_and_whole_numbers_are_named(model: Any, value: float, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(tiny_model()).items()}
    weights["model.layers.1.mlp.up_proj.weight"][7, 5] = value
    weights["model.norm.weight"][3] = value
    said = refusal(model, weights)
    both = "model.layers.1.mlp.up_proj.weight, model.norm.weight"
    assert f"'here' holds NaN or Inf in 2 of 30 weights ({both}); the run had diverged" in said
    weights["lm_head.weight"] = torch.ones(300, 32, dtype=torch.int8)
    said = refusal(tiny_model(), weights)
    assert "holds whole numbers for 1 of 30 weights (lm_head.weight)" in said


def test_what_cannot_be_read_leaves_the_model_as_it_was(tmp_path: Path, model: Any) -> None:
    for step in (1, 2):
        save_folder(tiny_model(), tmp_path / f"checkpoint-{step}", max_shard_size="30KB")
    (tmp_path / "checkpoint-3").mkdir()
    first, second, third = find_checkpoints(tmp_path)

    *_, part = sorted(first.path.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-10])
    assert f"{part.name}' is damaged" in refusal(model, first)
    part.unlink()
    assert f"{part.name}' is missing; copy or download" in refusal(model, first)
    shutil.rmtree(second.path)
    assert "checkpoint-2': its weights are gone since the listing" in refusal(model, second)
    assert "checkpoint-3' holds no weights that are known" in refusal(model, third)
