"""What OLMo-core's trainer saves is read as the Hugging Face model of the same weights."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.replay import replay
from sr_monitor.replay.discover import find_checkpoints
from sr_monitor.replay.models import ModelKeeper
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.readers.olmo_core_config import to_hugging_face
from sr_monitor.results.record import Record
from tests.olmo_core_saved import experiment, optimizer_bytes, save_step, tiny_olmo
from tests.replays import FEW, some_prompts
from tests.saved import save_folder

KINDS = ("olmo2", "olmo3", "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_model_as_the_hugging_face_folder(tmp_path: Path, kind: str) -> None:
    model = tiny_olmo(kind)
    save_step(model, tmp_path / "run" / "step500")
    (found,) = find_checkpoints(tmp_path / "run")
    assert (found.name.step, found.needs_base, found.problem) == (500, False, None)
    assert found.tokenizer() == "allenai/dolma2-tokenizer"
    loaded: Any = ModelKeeper(ReplayOptions(device="cpu")).load(found)
    assert type(loaded) is type(model)
    ids = torch.arange(24).view(2, 12) * 7 % 300
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_replay_measures_the_same_as_of_the_hugging_face_folder(tmp_path: Path) -> None:
    model, options = tiny_olmo("olmo2"), {**FEW, "prompts": some_prompts()}
    save_step(model, tmp_path / "ours" / "step500")
    save_folder(model, tmp_path / "theirs" / "step500")
    found = []
    for name in ("ours", "theirs"):
        replay([tmp_path / name], tmp_path / f"{name}-out", **options)
        record = Record.load(tmp_path / f"{name}-out/stable_regions/step-000000500.safetensors")
        found.append(record.paths.distance)
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


def test_what_the_optimizer_saved_is_never_read(tmp_path: Path) -> None:
    model = tiny_olmo("olmo2")
    folder = save_step(model, tmp_path / "step500")
    places = optimizer_bytes(folder)
    assert len(places) > 20
    for file, start, length in places:
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(b"\x80" * length)
    for each in (folder, folder / "model_and_optim"):
        (found,) = find_checkpoints(each)
        loaded: Any = ModelKeeper(ReplayOptions(device="cpu")).load(found)
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    with (folder / "model_and_optim" / "__0_0.distcp").open("r+b") as opened:
        opened.write(b"\x80" * 10**5)
    with pytest.raises(InputError, match="model_and_optim' is damaged or no file of weights"):
        ModelKeeper(ReplayOptions(device="cpu")).load(found)


def test_without_its_config_a_base_is_needed(tmp_path: Path) -> None:
    model = tiny_olmo("olmo2")
    (save_step(model, tmp_path / "run" / "step500") / "config.json").unlink()
    (found,) = find_checkpoints(tmp_path / "run")
    with pytest.raises(InputError, match=r"step500' does not say which .*--base NAME"):
        ModelKeeper(ReplayOptions(device="cpu")).load(found)
    base = str(save_folder(tiny_olmo("olmo2"), tmp_path / "base"))
    loaded: Any = ModelKeeper(ReplayOptions(device="cpu", base=base)).load(found)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"block__feed_forward_moe": {"num_experts": 4}}, "block.feed_forward_moe={"),
    "normalized": ({"name": "normalized"}, "with name='normalized', which"),
    "attention": ({"block__sequence_mixer__name": "fused"}, "attention.name='fused'"),
    "bias": ({"block__sequence_mixer__bias": None}, "attention.bias"),
    "clipping": ({"block__sequence_mixer__clip_qkv": 8.0}, "attention.clip_qkv=8.0"),
    "heads' norms": ({"block__sequence_mixer__use_head_qk_norm": True}, "use_head_qk_norm=True"),
    "no positions": ({"block__sequence_mixer__rope": None}, "rope.name='absent'"),
    "a half": ({"block__sequence_mixer__rope__partial_rotary_factor": 0.5}, "rope.partial_rotary"),
    "scaling": ({"block__sequence_mixer__rope__scaling": {"_CLASS_": "Own"}}, "this rope.scaling"),
    "gelu": ({"block__feed_forward__activation": "gelu_tanh"}, "feed_forward.activation='gelu_ta"),
    "mean": (
        {"block__layer_norm": {"name": "default", "bias": False}},
        "layer_norm.name='default'",
    ),
    "scale": ({"embed_scale": 8.0}, "embed_scale=8.0"),
    "hybrid": ({"block_pattern": ["a", "b"]}, "block_pattern"),
    "order": ({"block__name": "peri_norm"}, "block.name='peri_norm'"),
    "no qk_norm": ({"block__sequence_mixer__qk_norm": None}, "these norms in these blocks"),
    "eps": ({"lm_head__layer_norm": {"name": "rms", "bias": False, "eps": 1e-5}}, "layer_norm.eps"),
    "override": (
        {"block_overrides": {"1": experiment(tiny_olmo("llama"))["model"]["block"]}},
        "[1]",
    ),
    "blocks": ({"n_layers": 10**9}, "n_layers=1000000000"),
}


@pytest.mark.parametrize("case", NAMED)
def test_what_no_hugging_face_model_has_is_refused_by_name(case: str) -> None:
    changed, said = NAMED[case]
    with pytest.raises(InputError) as caught:
        to_hugging_face(experiment(tiny_olmo("olmo2"), **copy.deepcopy(changed))["model"], "here")
    assert said in str(caught.value)
    assert "measure it while it trains (sr_monitor_olmo_core)" in str(caught.value)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"_CLASS_": "x.ABFRoPEScalingConfig", "new_theta": 8}, {"rope_theta": 8}),
        ({"_CLASS_": "x.PIRoPEScalingConfig", "factor": 2.0}, {"rope_type": "linear"}),
        (
            {"_CLASS_": "x.YaRNRoPEScalingConfig", "factor": 8, "old_context_len": 64}
            | {"beta_fast": 32, "beta_slow": 2},
            {"rope_type": "yarn", "beta_fast": 32, "beta_slow": 2, "factor": 8},
        ),
        (
            {"_CLASS_": "x.StepwiseRoPEScalingConfig", "factor": 32.0, "old_context_len": 8192}
            | {"low_freq_proportion": 0.0, "high_freq_proportion": 0.25},
            {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
    ],
)
def test_scaled_positions_are_told_in_the_words_of_transformers(
    scaling: dict[str, Any], said: dict[str, Any]
) -> None:
    changed = {"block__sequence_mixer__rope__scaling": scaling}
    model = experiment(tiny_olmo("llama"), **changed)["model"]
    assert said.items() <= to_hugging_face(model, "here")["rope_parameters"].items()


def test_a_damaged_config_is_named_and_older_words_are_understood(tmp_path: Path) -> None:
    folder = save_step(tiny_olmo("olmo2"), tmp_path / "step500")
    entries = json.loads((folder / "config.json").read_text())
    block = entries["model"]["block"]
    block["attention"] = block.pop("sequence_mixer")
    (folder / "config.json").write_text(json.dumps(entries))
    assert find_checkpoints(folder)[0].problem is None
    del block["attention"]
    for content in (json.dumps(entries), "{", "[]", '{"model": 3}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config.json' is damaged or no file of weights"):
            find_checkpoints(folder)
