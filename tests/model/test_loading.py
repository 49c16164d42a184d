"""Models and tokenizers from folders and by hub names; nothing here reaches a network."""

import json
import logging
import pickle
import shutil
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging.handlers import BufferingHandler
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sr_monitor.errors import InputError
from sr_monitor.model.loading import TokenizerOnDemand, check_hub, load_model, load_tokenizer
from tests.saved import save_model, save_tokenizer


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
    return load_file(folder / "model.safetensors")


def test_a_saved_model_comes_back(saved: Path) -> None:
    model = load_model(str(saved), device="cpu")
    expected = weights_of(saved)
    found = model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert not model.training


def test_half_precision_is_measured_in_float32_on_a_cpu(copy: Path) -> None:
    half = {name: weight.bfloat16() for name, weight in weights_of(copy).items()}
    save_file(half, copy / "model.safetensors", {"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert next(load_model(str(copy), device="cpu").parameters()).dtype == torch.float32
    asked_for = load_model(str(copy), device="cpu", dtype="bfloat16")
    assert next(asked_for.parameters()).dtype == torch.bfloat16


def test_torch_files_are_read_as_weights_only(copy: Path) -> None:
    expected = weights_of(copy)
    (copy / "model.safetensors").unlink()
    torch.save(expected, copy / "pytorch_model.bin")
    found = load_model(str(copy), device="cpu").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_code_in_a_torch_file_is_not_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Trap(marker)))
    assert marker.exists()
    marker.unlink()
    (copy / "model.safetensors").unlink()
    torch.save({"trap": _Trap(marker)}, copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than weights, and is not run; save it as"):
        load_model(str(copy), device="cpu")
    assert not marker.exists()


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


@pytest.fixture
def with_code(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model with code of its own, which leaves a file `ran` behind."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = CONFIGURATION.format(marker=str(copy / "ran"))
    (copy / "configuration_own.py").write_text(code)
    (copy / "modeling_own.py").write_text(MODELING)
    config = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "configuration_own.OwnConfig"}
    own["AutoModelForCausalLM"] = "modeling_own.OwnForCausalLM"
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": own}
    (copy / "config.json").write_text(json.dumps(config))
    before = set(sys.modules)
    yield copy
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


def test_code_of_a_model_is_run_only_when_asked_for(with_code: Path) -> None:
    with pytest.raises(InputError, match="which is run only with --trust-remote-code"):
        load_model(str(with_code), device="cpu")
    assert not (with_code / "ran").exists()
    model = load_model(str(with_code), device="cpu", trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert (with_code / "ran").exists()


def test_a_checkpoint_that_lacks_weights_is_refused(copy: Path) -> None:
    some = {name: weight for name, weight in weights_of(copy).items() if "layers.2" not in name}
    save_file(some, copy / "model.safetensors", {"format": "pt"})
    expected = "lacks 9 of the weights of a LlamaForCausalLM .*layers.2.*; random numbers"
    with pytest.raises(InputError, match=expected):
        load_model(str(copy), device="cpu")


def test_the_unembedding_may_be_missing(copy: Path) -> None:
    some = {name: weight for name, weight in weights_of(copy).items() if name != "lm_head.weight"}
    save_file(some, copy / "model.safetensors", {"format": "pt"})
    assert load_model(str(copy), device="cpu") is not None


def test_damaged_files_are_refused(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"safetensors file is damaged .*; copy or download"):
        load_model(str(copy), device="cpu")
    (copy / "model.safetensors").write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(InputError, match="its weights do not have the shapes"):
        load_model(str(copy), device="cpu")
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "new_kind"}))
    with pytest.raises(InputError, match="try a newer one, pip install --upgrade"):
        load_model(str(copy), device="cpu")
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a valid JSON file"):
        load_model(str(copy), device="cpu")


def test_models_without_a_causal_decoder_are_refused(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 50,
        "d_model": 16,
        "d_ff": 16,
        "d_kv": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    save_model(tmp_path / "t5", "T5", "ForConditionalGeneration", **sizes)
    with pytest.raises(InputError, match="holds a T5ForConditionalGeneration, which is no decoder"):
        load_model(str(tmp_path / "t5"), device="cpu")


def test_folders_without_a_model_are_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="name a folder that save_pretrained wrote"):
        load_model(str(tmp_path / "runs"), device="cpu")
    shutil.copytree(saved, tmp_path / "runs" / "checkpoint-1")
    with pytest.raises(InputError, match=r"there is one in '.*checkpoint-1'$"):
        load_model(str(tmp_path / "runs"), device="cpu")
    shutil.copytree(saved, tmp_path / "runs" / "checkpoint-2")
    with pytest.raises(InputError, match=r"there are some in it, '.*-1', '.*-2'$"):
        load_model(str(tmp_path / "runs"), device="cpu")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("./nowhere", "there is no folder './nowhere'; name a folder that holds a model"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        (
            "somebody/something",
            "no folder 'somebody/something' here, and the hub cannot be",
        ),
        (__file__, "is a file; name the folder it lies in"),
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


class _Hub(BaseHTTPRequestHandler):
    """A hub on this machine: it has "somebody/something", and nothing else."""

    def do_GET(self) -> None:
        there = self.path.endswith("/somebody/something")
        content = b'{"id": "somebody/something", "siblings": []}' if there else b""
        self.send_response(200 if there else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        yield
        server.shutdown()


@pytest.mark.usefixtures("hub")
def test_the_hub_is_asked_before_anything_is_downloaded() -> None:
    check_hub("somebody/something", "model")
    with pytest.raises(InputError, match=r"the hub does not give it out .*404.*; check the name"):
        check_hub("somebody/else", "model")


def test_a_hub_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(InputError, match="no file 'somebody/text' here, and the hub cannot be rea"):
        check_hub("somebody/text", "dataset")


def test_the_tokenizer_is_loaded_when_first_used(saved: Path) -> None:
    expected = load_tokenizer(str(saved))("some text", add_special_tokens=False)["input_ids"]
    tokenizer = TokenizerOnDemand(str(saved))
    assert tokenizer("some text", add_special_tokens=False)["input_ids"] == expected
    assert tokenizer.decode(expected) == "some text"
    nowhere = TokenizerOnDemand("./nowhere")
    with pytest.raises(InputError, match="or name a saved prompts"):
        nowhere("some text", add_special_tokens=False)


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    """What is logged under settings under which loading would say a lot."""
    log: Any = transformers.utils.logging
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    handler = BufferingHandler(capacity=1000)
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    log.enable_progress_bar()
    yield handler.buffer
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.removeHandler(handler)


def test_loading_is_silent_and_leaves_settings_alone(
    saved: Path, said: list[logging.LogRecord], capfd: pytest.CaptureFixture[str]
) -> None:
    load_model(str(saved), device="cpu")
    with pytest.raises(InputError):
        load_model("somebody/something", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert said == []
    log = transformers.utils.logging
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == (logging.INFO, True)
    assert logging.getLogger("huggingface_hub").level == logging.INFO
    transformers.AutoConfig.from_pretrained(saved)
    assert said != []


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'sr-monitor\[transformers\]'"):
        load_model("anything", device="cpu")
