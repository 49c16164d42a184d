"""Models and tokenizers from folders and by hub names; nothing here reaches a network."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import save_file

from sr_monitor.errors import InputError
from sr_monitor.model.loading import (
    TokenizerOnDemand,
    check_hub,
    find_device,
    load_model,
    load_tokenizer,
    torch_dtype,
)
from tests.hub_server import hub_server
from tests.saved import save_model, save_tokenizer, unmapped


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("saved")))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return unmapped(folder / "model.safetensors")


def save_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def test_a_saved_model_comes_back(copy: Path) -> None:
    expected = weights_of(copy)
    for in_torch_file in (False, True):
        if in_torch_file:
            (copy / "model.safetensors").unlink()
            torch.save(expected, copy / "pytorch_model.bin")
        model = load_model(str(copy), device="cpu")
        found = model.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        assert not model.training


def test_half_precision_is_measured_in_float32_on_a_cpu(copy: Path) -> None:
    save_weights({name: weight.bfloat16() for name, weight in weights_of(copy).items()}, copy)
    edit_config(copy, dtype="bfloat16")
    assert next(load_model(str(copy), device="cpu").parameters()).dtype == torch.float32
    asked_for = load_model(str(copy), device="cpu", dtype="bfloat16")
    assert next(asked_for.parameters()).dtype == torch.bfloat16
    assert torch_dtype("auto", torch.device("cuda")) == "auto"


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert find_device("auto").type == ("cuda" if torch.accelerator.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(InputError, match=f"device '{name}' cannot be .*; name one that can: c"):
            find_device(name)


CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_is_run_only_when_asked_for(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    ran = copy / "ran"
    (copy / "configuration_own.py").write_text(CONFIGURATION.format(marker=str(ran)))
    (copy / "modeling_own.py").write_text(MODELING)
    own = {"AutoConfig": "configuration_own.OwnConfig"}
    own["AutoModelForCausalLM"] = "modeling_own.OwnForCausalLM"
    edit_config(copy, model_type="own", architectures=["OwnForCausalLM"], auto_map=own)
    with pytest.raises(InputError, match="which is run only with --trust-remote-code"):
        load_model(str(copy), device="cpu")
    assert not ran.exists()
    model = load_model(str(copy), device="cpu", trust_remote_code=True)
    assert (type(model).__name__, ran.exists()) == ("OwnForCausalLM", True)


def test_code_in_a_torch_file_is_not_run(copy: Path, trap: object) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"trap": trap}, copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than weights"):
        load_model(str(copy), device="cpu")


def test_a_checkpoint_that_lacks_weights_is_refused_unless_it_is_the_unembedding(
    copy: Path,
) -> None:
    whole = weights_of(copy)
    save_weights({n: weight for n, weight in whole.items() if n != "lm_head.weight"}, copy)
    load_model(str(copy), device="cpu")
    save_weights({n: weight for n, weight in whole.items() if "layers.2" not in n}, copy)
    expected = "lacks 9 of the weights of a LlamaForCausalLM .*layers.2.*; random numbers"
    with pytest.raises(InputError, match=expected):
        load_model(str(copy), device="cpu")


def halve(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (halve, "safetensors file is damaged .*; copy or download"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json.*save_pretrained wrote"),
        (lambda folder: edit_config(folder, hidden_size=64), "weights do not have the shapes"),
        (lambda folder: edit_config(folder, model_type="new"), "pip install --upgrade"),
        (lambda folder: edit_config(folder, model_type=["llama"]), "cannot be loaded: TypeError"),
        (
            lambda folder: edit_config(folder, num_hidden_layers="two"),
            "expected (int, got str|a whole number)",
        ),
        (lambda folder: edit_config(folder, vocab_size=10**8), "weights are .* bytes; the config"),
        (lambda folder: edit_config(folder, intermediate_size=10**12), "have the shapes|memory"),
        (lambda folder: edit_config(folder, text_config="x"), "cannot be loaded: AttributeError"),
        (lambda folder: edit_config(folder, model_type="t5"), "is no decoder-only"),
    ],
)
def test_damaged_and_other_models_are_refused(
    copy: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(copy)
    with pytest.raises(InputError, match=said):
        load_model(str(copy), device="cpu")


def test_models_inside_a_folder_are_pointed_to(saved: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(saved, tmp_path / f"checkpoint-{step}")
    with pytest.raises(InputError, match=r"in it, such as '.*checkpoint-1', '.*checkpoint-2'$"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("./nowhere", "there is no folder './nowhere'; name a folder"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("somebody/something", "no folder 'somebody/something' here, and the hub cannot be"),
        (__file__, "is a file; name the folder"),
    ],
)
def test_names_of_nothing_are_refused(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(source, device="cpu")


def test_a_model_in_the_cache_needs_no_hub(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    assert type(load_model("somebody/something", device="cpu")).__name__ == "LlamaForCausalLM"


def test_the_hub_is_asked_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no file 'somebody/text' here, and the hub cannot be rea"):
        check_hub("somebody/text", "dataset")
    with hub_server({"somebody/something": {"main": {}}}) as server:
        server.use(monkeypatch, tmp_path)
        check_hub("somebody/something", "model")
        with pytest.raises(InputError, match=r"the hub does not give it out .*401"):
            check_hub("somebody/else", "model")


def test_the_tokenizer_is_loaded_when_first_used(saved: Path) -> None:
    expected = load_tokenizer(str(saved))("some text", add_special_tokens=False)["input_ids"]
    tokenizer = TokenizerOnDemand(str(saved))
    assert tokenizer("some text", add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.decode(expected) == "some text"
    nowhere = TokenizerOnDemand("./nowhere")
    with pytest.raises(InputError, match="or name a saved prompts"):
        nowhere("some text", add_special_tokens=False)


def test_loading_is_silent_and_leaves_settings_alone(
    saved: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under settings under which it would say a lot."""
    log: Any = transformers.utils.logging
    handler = BufferingHandler(capacity=1000)
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
        monkeypatch.setattr(logger, "handlers", [handler])
        logger.manager._clear_cache()  # type: ignore[attr-defined]  # of what each level shows
    log.enable_progress_bar()
    load_model(str(saved), device="cpu")
    with pytest.raises(InputError):
        load_model("somebody/something", device="cpu")
    assert (capfd.readouterr(), handler.buffer) == (("", ""), [])
    assert [logger.level for logger in loggers] == [logging.INFO] * 2
    assert log.is_progress_bar_enabled()
    transformers.AutoConfig.from_pretrained(saved)
    assert handler.buffer != []


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[transformers\]'"):
        load_model("anything", device="cpu")
