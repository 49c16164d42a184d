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
from sr_monitor.replay.discover import LocalCheckpoint, find_checkpoints
from sr_monitor.replay.models import (
    ModelKeeper,
    _make_weights,
    build_model,
    config_of,
    spread,
    to_device,
)
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.readers.saved import held
from sr_monitor.replay.weights import put_weights
from tests.saved import save_folder, tiny_model
from tests.zoo import ARCHITECTURES, OWN, build

HUB_SPECIES = [name for name in ARCHITECTURES if name not in OWN]
SOME_SPECIES = ["gpt2", "gptj", "olmo3_window", "mixtral", "mamba", "bloom"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
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


def keeper_on_cpu(**loading: Any) -> ModelKeeper:
    return ModelKeeper(ReplayOptions(device="cpu", **loading))


def saved(folder: Path, **config: Any) -> LocalCheckpoint:
    """A tiny model as checkpoint 1."""
    (checkpoint,) = find_checkpoints(save_folder(tiny_model(**config), folder / "checkpoint-1"))
    return checkpoint


def edit_config(checkpoint: LocalCheckpoint, **entries: Any) -> None:
    file = checkpoint.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"num_hidden_layers": 9_000}, "9,000 blocks"),
        ({"vocab_size": 10**8}, "an embedding of"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"vocab_size": -4}, "vocab_size=-4"),
    ],
)
def test_a_config_of_another_size_is_refused_before_a_model_is_built(
    entry: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(tmp_path)
    edit_config(checkpoint, **entry)
    monkeypatch.setattr("sr_monitor.replay.models.build_model", None)
    with pytest.raises(InputError, match=said):
        keeper_on_cpu().load(checkpoint)


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
    keeper = keeper_on_cpu(dtype=dtype)
    for checkpoint, folder in zip(find_checkpoints(tmp_path), folders, strict=True):
        expected = load_model(str(folder), dtype=dtype, device="cpu")
        assert_equal(keeper.load(checkpoint), expected)


def test_one_model_is_kept_while_configs_are_equal(tmp_path: Path) -> None:
    for step, theta in enumerate((1e4, 1e4, 5e5, 1e4)):
        rope = {"rope_type": "default", "rope_theta": theta}
        save_folder(tiny_model(rope_parameters=rope), tmp_path / f"checkpoint-{step}")
    found = find_checkpoints(tmp_path)
    edit_config(found[1], transformers_version="4.0.0", _name_or_path="elsewhere")
    keeper, kept = keeper_on_cpu(), []
    for checkpoint in found:
        kept.append(keeper.load(checkpoint))
        assert_equal(kept[-1], load_model(str(checkpoint.path), device="cpu"))
    assert [model is kept[0] for model in kept] == [True, True, False, False]
    assert kept[2] is not kept[3]


def test_checkpoints_without_a_config_need_a_base(tmp_path: Path) -> None:
    source = tiny_model()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "step=2.ckpt")
    (found,) = find_checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"step=2.ckpt' does not say which .*--base NAME"):
        keeper_on_cpu().load(found)
    same, other = saved(tmp_path / "same"), saved(tmp_path / "other", num_hidden_layers=2)
    assert_equal(keeper_on_cpu(base=str(same.path)).load(found), source)
    with pytest.raises(InputError, match="does not hold the weights of this LlamaForCausalLM"):
        keeper_on_cpu(base=str(other.path)).load(found)
    with pytest.raises(InputError, match=r"there is no folder './nowhere'"):
        keeper_on_cpu(base="./nowhere").load(found)
    assert config_of(other, ReplayOptions(base="./nowhere")).num_hidden_layers == 2  # its own first


def test_code_of_a_model_is_not_run(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    code = "from pathlib import Path\nPath(__file__ + '.ran').touch()\n"
    (checkpoint.path / "own.py").write_text(code)
    edit_config(checkpoint, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    with pytest.raises(InputError, match="which is run only with --trust-remote-code"):
        keeper_on_cpu().load(checkpoint)
    assert not list(tmp_path.rglob("*.ran"))


def test_auto_is_float32_on_a_cpu_and_else_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder(tiny_model().to(torch.float16), tmp_path / "checkpoint-1")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert keeper_on_cpu().load(checkpoint).dtype == torch.float32
    monkeypatch.setattr("sr_monitor.replay.models.torch_dtype", lambda *_: "auto")
    assert keeper_on_cpu().load(checkpoint).dtype == torch.float16
    bare = {f"net.{name}": t.bfloat16() for name, t in tiny_model().state_dict().items()}
    torch.save({"seen": torch.ones(2, dtype=torch.int64)} | bare, tmp_path / "bare.ckpt")
    (found,) = find_checkpoints(tmp_path / "bare.ckpt")
    assert keeper_on_cpu(base=str(checkpoint.path)).load(found).dtype == torch.bfloat16


def test_building_leaves_the_config_and_the_global_seed_alone() -> None:
    config, state = tiny_model(tie_word_embeddings=True).config, torch.get_rng_state()
    before = dict(config.to_dict())
    model: Any = build_model(config, torch.bfloat16)
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_device_map_holds_the_same_weights_again_and_again(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_folder(build("olmo", seed=seed).model, tmp_path / f"checkpoint-{seed}")
    keeper, plain = ModelKeeper(ReplayOptions(device_map="auto")), keeper_on_cpu()
    for checkpoint in find_checkpoints(tmp_path):
        found, expected = keeper.load(checkpoint), plain.load(checkpoint)
        for name, weight in tensors_of(expected).items():
            assert torch.equal(tensors_of(found)[name].cpu(), weight)


@pytest.mark.parametrize("name", ["olmo", "gpt2"])
def test_a_model_for_a_device_takes_no_memory_before_it_is_there(name: str) -> None:
    """Its buffers are computed all the same, and tied weights stay tied."""
    expected: Any = build(name).model
    expected.config.tie_word_embeddings = tied = name == "gpt2"
    expected.tie_weights()
    model: Any = build_model(expected.config, torch.float32, without_weights=True)
    assert all(weight.is_meta for weight in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    there: Any = to_device(model, torch.device("cpu"))
    assert (there.lm_head.weight is there.get_input_embeddings().weight) == tied
    put_weights(there, held(tensors_of(expected)), "it")
    assert_equal(there, expected)


def test_weights_are_made_on_the_device_of_the_innermost_part_that_is_placed() -> None:
    model: Any = build_model(build("olmo").model.config, torch.float32, without_weights=True)
    _make_weights(model, {"": "meta", "model.layers.1": "cpu", "model.layers.1.mlp": "meta"})
    there = {name for name, weight in model.named_parameters() if not weight.is_meta}
    layer = {f"model.layers.1.{name}" for name, _ in model.model.layers[1].named_parameters()}
    assert there == {name for name in layer if ".mlp." not in name} != set()


@pytest.mark.parametrize("engine", ["shared", "plain"])
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto'.*one of the"),
        ({"device_map": "cuda"}, "device_map='cuda': pass 'auto'"),
        ({"engine": "ray", "device_map": "auto"}, "engine='ray' gives each checkpoint one"),
    ],
)
def test_a_device_or_all_of_them_but_not_both(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replay([], "out", **given)
