"""One model for a whole run, equal to what `from_pretrained` gives."""

import json
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

from sr_monitor import measure_paths
from sr_monitor.errors import InputError
from sr_monitor.model.loading import load_model
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.replay import replay
from sr_monitor.replay.discover import find_checkpoints
from sr_monitor.replay.models import (
    Loading,
    ModelKeeper,
    build_model,
    config_of,
    spread,
    stored_dtype,
)
from tests.trained import save_folder, tiny_model, train_with_lightning
from tests.zoo import ARCHITECTURES, build

HUB_SPECIES = [name for name in ARCHITECTURES if name not in ("nano_gpt", "lecture_gpt", "lit_gpt")]
SOME_SPECIES = ["gpt2", "gptj", "gpt_neox", "olmo", "olmo3_window", "mixtral", "mamba", "bloom"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything in it, also what is in no file."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    return weights | dict(model.named_buffers(remove_duplicate=False))


def assert_equal(found: Any, expected: Any) -> None:
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].device) == (tensor.dtype, tensor.device), name
        assert torch.equal(ours[name], tensor), name
    prompts = torch.arange(14).view(2, 7)
    with torch.no_grad():
        assert torch.equal(found(prompts).logits, expected(prompts).logits)
    assert found.config._attn_implementation == expected.config._attn_implementation
    assert not any(module.training for module in found.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "species",
    [
        pytest.param(name, marks=[] if name in SOME_SPECIES else [pytest.mark.slow])
        for name in HUB_SPECIES
    ],
)
def test_it_is_equal_to_from_pretrained(tmp_path: Path, species: str, dtype: str) -> None:
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    for seed, folder in enumerate(folders):
        save_folder(build(species, seed=seed).model, folder)
    keeper = ModelKeeper(Loading(dtype=dtype, device="cpu"))
    for checkpoint, folder in zip(find_checkpoints(tmp_path), folders, strict=True):
        expected = load_model(str(folder), dtype=dtype, device="cpu")
        assert_equal(keeper.load(checkpoint), expected)


def test_one_model_is_kept_while_configs_are_equal(tmp_path: Path) -> None:
    for step, sizes in ((1, USUAL), (2, USUAL), (3, LONGER), (4, USUAL)):
        save_folder(tiny_model(rope_parameters=sizes), tmp_path / f"checkpoint-{step}")
    rename_in_config(tmp_path / "checkpoint-2")
    keeper = ModelKeeper(Loading(device="cpu"))
    kept: list[nn.Module] = []
    for checkpoint in find_checkpoints(tmp_path):
        kept.append(keeper.load(checkpoint))
        expected = load_model(str(checkpoint.path), device="cpu")
        assert_equal(kept[-1], expected)
    assert kept[0] is kept[1]
    assert kept[1] is not kept[2]
    assert kept[2] is not kept[3]


USUAL = {"rope_type": "default", "rope_theta": 10_000.0}
LONGER = {"rope_type": "default", "rope_theta": 500_000.0}


def rename_in_config(folder: Path) -> None:
    """Another place and version, which make no difference."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "4.0.0", "_name_or_path": "elsewhere"}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_refused_checkpoint_does_not_spoil_the_next(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_folder(tiny_model(), tmp_path / f"checkpoint-{step}")
    damaged = tmp_path / "checkpoint-2" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    first, second, third = find_checkpoints(tmp_path)
    keeper = ModelKeeper(Loading(device="cpu"))
    model = keeper.load(first)
    with pytest.raises(InputError, match="is damaged"):
        keeper.load(second)
    assert_equal(model, load_model(str(first.path), device="cpu"))
    assert keeper.load(third) is model
    assert_equal(model, load_model(str(third.path), device="cpu"))


def test_it_stays_in_eval_mode_and_leaves_the_global_seed_alone(tmp_path: Path) -> None:
    save_folder(tiny_model(), tmp_path / "checkpoint-1")
    (checkpoint,) = find_checkpoints(tmp_path)
    keeper = ModelKeeper(Loading(device="cpu"))
    state = torch.get_rng_state()
    keeper.load(checkpoint).train()
    assert torch.equal(torch.get_rng_state(), state)
    assert not keeper.load(checkpoint).training


def test_lightning_needs_the_name_of_a_model(tmp_path: Path) -> None:
    expected = train_with_lightning(tmp_path / "run")
    found = find_checkpoints(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"step=2.ckpt' does not say which .*--base NAME, a folder"
    ):
        ModelKeeper(Loading(device="cpu")).load(found[0])
    base = save_folder(tiny_model(), tmp_path / "base")
    keeper = ModelKeeper(Loading(base=str(base), device="cpu"))
    for checkpoint in found:
        model = keeper.load(checkpoint)
        state = model.state_dict()
        weights = expected[checkpoint.name.step]
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    other = save_folder(tiny_model(num_hidden_layers=2), tmp_path / "other")
    with pytest.raises(InputError, match="does not hold the weights of this LlamaForCausalLM"):
        ModelKeeper(Loading(base=str(other), device="cpu")).load(found[0])
    with pytest.raises(InputError, match=r"there is no folder './nowhere'"):
        ModelKeeper(Loading(base="./nowhere", device="cpu")).load(found[0])


def test_a_config_of_its_own_comes_first(tmp_path: Path) -> None:
    save_folder(tiny_model(num_hidden_layers=2), tmp_path / "checkpoint-1")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert config_of(checkpoint, Loading(base="./nowhere")).num_hidden_layers == 2


def test_models_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    save_folder(build("t5").model, tmp_path / "checkpoint-1")
    (checkpoint,) = find_checkpoints(tmp_path)
    with pytest.raises(InputError, match="holds a T5ForConditionalGeneration, which is no decoder"):
        config_of(checkpoint, Loading())
    (tmp_path / "checkpoint-1" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be loaded: .*not a valid JSON file"):
        config_of(checkpoint, Loading())


def test_half_precision_is_measured_in_float32_on_a_cpu(tmp_path: Path) -> None:
    save_folder(tiny_model().to(torch.float16), tmp_path / "checkpoint-1")
    (checkpoint,) = find_checkpoints(tmp_path)
    model = ModelKeeper(Loading(device="cpu")).load(checkpoint)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_stored_format_is_that_of_the_first_floating_weight() -> None:
    whole, half = torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.float16)
    assert stored_dtype([whole, half, torch.ones(2)]) == torch.float16
    assert stored_dtype([whole]) == torch.float32


def test_building_takes_no_notice_of_what_was_in_memory(tmp_path: Path) -> None:
    config = tiny_model(tie_word_embeddings=True).config
    before = dict(config.to_dict())
    model: Any = build_model(config, torch.bfloat16)
    assert config.to_dict() == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_code_of_a_model_is_run_only_when_asked_for(tmp_path: Path) -> None:
    folder = save_folder(tiny_model(), tmp_path / "checkpoint-1")
    (folder / "own.py").write_text("from pathlib import Path\nPath(__file__ + '.ran').touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (checkpoint,) = find_checkpoints(tmp_path)
    with pytest.raises(InputError, match="which is run only with --trust-remote-code"):
        ModelKeeper(Loading(device="cpu")).load(checkpoint)
    assert not list(tmp_path.rglob("*.ran"))


def test_a_device_map_holds_the_same_weights_again_and_again(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_folder(build("olmo", seed=seed).model, tmp_path / f"checkpoint-{seed}")
    keeper, plain = ModelKeeper(Loading(device_map="auto")), ModelKeeper(Loading(device="cpu"))
    for checkpoint in find_checkpoints(tmp_path):
        found, expected = keeper.load(checkpoint), plain.load(checkpoint)
        for name, weight in tensors_of(expected).items():
            assert torch.equal(tensors_of(found)[name].cpu(), weight)


@pytest.mark.parametrize("engine", ["shared", "rows", "plain"])
def test_a_model_that_is_spread_out_is_measured_as_a_whole_one(engine: EngineName) -> None:
    """With the hooks that move a model's tensors from part to part; here all on one device."""
    ids = torch.arange(20).view(4, 5)
    model: Any = build("olmo").model
    expected = measure_paths(model, ids[:-1], ids[1:], num_steps=9, engine=engine)
    names = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    names += [f"model.layers.{k}" for k in range(model.config.num_hidden_layers)]
    # NOTE: what fromkeys gives is of a narrower type than what is taken.
    parts: dict[str, str | int | torch.device] = {name: "cpu" for name in names}  # noqa: C420
    spread_out: Any = accelerate.dispatch_model(model, parts, force_hooks=True)
    assert hasattr(spread_out.model.layers[0], "_hf_hook")
    found = measure_paths(spread_out, ids[:-1], ids[1:], num_steps=9, engine=engine)
    assert torch.equal(found.distance, expected.distance)
    assert hasattr(spread_out.model.layers[0], "_hf_hook")


def test_accelerators_that_do_not_hold_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "accelerate.infer_auto_device_map", lambda *_, **__: {"model": 0, "lm_head": "disk"}
    )
    with pytest.raises(InputError, match=r"do not hold a OlmoForCausalLM of .* dtype='bfloat16'"):
        spread(build("olmo").model)


def test_a_device_or_all_of_them_but_not_both() -> None:
    with pytest.raises(InputError, match=r"device='cpu' and device_map='auto'.*one of the two"):
        Loading(device="cpu", device_map="auto")
    with pytest.raises(InputError, match=r"device_map='cuda': pass 'auto'"):
        Loading(device_map="cuda")
    with pytest.raises(InputError, match=r"engine='ray' gives each checkpoint one accelerator"):
        replay([], "out", engine="ray", device_map="auto")
