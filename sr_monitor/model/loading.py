"""Load models and tokenizers by name, and find devices and dtypes, for the command line.

Safe on files from strangers: safetensors first, torch files with `weights_only=True`, and a model's
own code is run only when asked for.

    model = load_model("runs/demo/model", dtype="auto", device="auto")
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from sr_monitor.errors import InputError, explained, first_line, reason_of
from sr_monitor.options import Options, option

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Far above any model's; a model of more would be built for hours.
_MOST = {"num_hidden_layers": 10_000, "hidden_size": 10**6, "vocab_size": 10**8}
_HUB_SECONDS = 10.0
# What transformers' errors mean, by a part of their text or their class.
_REASONS = {
    "trust_remote_code": "it has code of its own, which is run only with --trust-remote-code",
    "instantiate the backend tokenizer": "there are no tokenizer files (tokenizer.json and others)",
    "does not recognize this architecture": "{}; try pip install --upgrade transformers",
    "ignore_mismatched_sizes": "its weights do not have the shapes that its config.json says",
    "UnpicklingError": "its torch file holds more than weights; save it as safetensors",
    "SafetensorError": "its safetensors file is damaged ({}); copy or download it again",
}


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Options):
    """How saved weights become a model."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "The type of the weights; auto: as stored, but float32 on a CPU."
    )
    device: str = option(
        "auto", "cpu, cuda, cuda:1, ...; auto: the accelerator if there is one.", effect="nothing"
    )
    trust_remote_code: bool = option(
        False, "Run the code that comes with a model.", effect="nothing"
    )


def load_model(
    source: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> nn.Module:
    """Load the causal language model in a folder or on the hub, ready to be measured."""
    place = find_device(device)
    config = load_config(source, trust_remote_code=trust_remote_code)
    with explained(f"{source!r} cannot be loaded"):
        _check_size(config, Path(source))  # both before anything is built
    # Otherwise a model without safetensors is sent to a converter on the hub.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    model, report = _load(
        "AutoModelForCausalLM",
        source,
        trust_remote_code=trust_remote_code,
        dtype=torch_dtype(dtype, place),
        output_loading_info=True,
        weights_only=True,
    )
    _check_complete(model, report["missing_keys"], source)
    with explained(f"{source!r} cannot be moved to {place}"):
        return model.eval().to(place)  # type: ignore[no-any-return]


def load_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """Load the config of a causal language model, and no weights."""
    require_transformers("loading a model")
    _check_source(source)
    config = _load("AutoConfig", source, trust_remote_code=trust_remote_code)
    _check_config(config, source)
    return config


def make_config(entries: dict[str, Any], source: str) -> Any:
    """Make the config of a causal language model from its entries, as a config.json holds them."""
    transformers = require_transformers("loading a model")
    with explained(f"{source!r} describes no {entries['model_type']}"), quiet(transformers):
        config = transformers.AutoConfig.for_model(**entries)
    _check_config(config, source)
    return config


def _check_config(config: Any, source: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.is_encoder_decoder or not (known or own_code):
        kind = (config.architectures or [config.model_type])[0]
        raise InputError(
            f"{source!r} holds a {kind}, which is no decoder-only language model; name a causal "
            "one, such as a GPT, Llama or OLMo"
        )
    for name, most in _MOST.items():
        value = getattr(config.get_text_config(decoder=True), name, 1)
        if not isinstance(value, int) or not 0 < value <= most:
            raise InputError(
                f"{source!r}: its config says {name}={value!r}, expected a whole number from 1 to "
                f"{most:,}; the file is damaged"
            )


def _check_size(config: Any, folder: Path) -> None:
    """Refuse a config whose embedding alone has more numbers than its files have half bytes."""
    files = folder.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    text = config.get_text_config(decoder=True)
    if size and text.vocab_size * text.hidden_size > 2 * size:
        raise InputError(
            f"{str(folder)!r}: its config asks for an embedding of {text.vocab_size:,} x "
            f"{text.hidden_size:,} numbers, and its weights are {size:,} bytes; the config is of "
            "another model, or damaged"
        )


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer that lies beside a model."""
    try:
        return _load("AutoTokenizer", source, trust_remote_code=trust_remote_code)
    except InputError as error:
        raise InputError(
            f"{error}. Its tokenizer is needed to cut prompts from text: put it there "
            "(tokenizer.save_pretrained), or name a saved prompts.json, which holds token ids"
        ) from error


@dataclass(frozen=True)
class TokenizerOnDemand:
    """A tokenizer that is loaded when first used: a saved set of prompts needs none."""

    source: str
    trust_remote_code: bool = False

    @cached_property
    def _loaded(self) -> Any:
        return load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)

    def __call__(self, text: str, /, *, add_special_tokens: bool, verbose: bool = False) -> Any:
        """Return the tokens of a text."""
        return self._loaded(text, add_special_tokens=add_special_tokens, verbose=verbose)

    def decode(self, ids: list[int], /) -> Any:
        """Return the text of tokens."""
        return self._loaded.decode(ids)


def find_device(name: str) -> torch.device:
    """Return the device of this name, after trying it; "auto" is the accelerator, or the CPU."""
    there = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if there else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        count = torch.accelerator.device_count()
        others = [f"{accelerator.type}:{index}" for index in range(count) if accelerator]
        raise InputError(
            f"device {name!r} cannot be used here ({first_line(error)}); "
            f"name one that can: {', '.join(['cpu', *others])}"
        ) from error
    return device


def torch_dtype(name: str, device: torch.device) -> torch.dtype | Literal["auto"]:
    """Return the dtype of this name; "auto" is as stored, and float32 on a CPU."""
    # Half precision is slow on most CPUs, and its noise is amplified by the slope.
    if name == "auto" and device.type == "cpu":
        return torch.float32
    return "auto" if name == "auto" else getattr(torch, name)


def check_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Refuse at once what the hub does not have, or does not give out."""
    from huggingface_hub import HfApi, errors

    try:  # its own libraries would retry for half a minute, and then not say which it was
        HfApi().repo_info(name, repo_type=kind, timeout=_HUB_SECONDS)
    except errors.HfHubHTTPError as error:
        reason = f"the hub does not give it out ({first_line(error)}); check the name"
    except Exception as error:  # its HTTP library's errors have no common base across versions
        reason = f"the hub cannot be reached ({first_line(error)}); check both"
    else:
        return
    place = "folder" if kind == "model" else "file"
    raise InputError(f"there is no {place} {name!r} here, and {reason}")


def require_transformers(call: str) -> ModuleType:
    """Import the library, or say how to install it."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"{call} needs the transformers library: pip install 'sr-monitor[transformers]'"
        ) from error


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """Keep the noise of loading off the terminal, and put the user's settings back."""
    from huggingface_hub.utils.tqdm import enable_progress_bars

    log = transformers.utils.logging
    hub_log = logging.getLogger("huggingface_hub")
    verbosity, bars, hub_level = log.get_verbosity(), log.is_progress_bar_enabled(), hub_log.level
    log.set_verbosity(logging.CRITICAL)
    hub_log.setLevel(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            enable_progress_bars()  # downloads show theirs
            yield
    finally:
        log.set_verbosity(verbosity)
        hub_log.setLevel(hub_level)
        if bars:
            log.enable_progress_bar()


def _check_source(source: str) -> None:
    from huggingface_hub import try_to_load_from_cache

    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(repr(str(config.parent)) for config in path.glob("*/config.json"))
            hint = f"one that is in it, such as {', '.join(inside[:3])}" if inside else ""
            raise InputError(
                f"the folder {source!r} holds no model (no config.json); name "
                f"{hint or 'a folder that save_pretrained wrote'}"
            )
    elif path.exists():
        raise InputError(f"{source!r} is a file; name the folder it lies in, with its config.json")
    elif not _HUB_NAME.fullmatch(source) or source.startswith("."):
        raise InputError(f"there is no folder {source!r}; name a folder that holds a model")
    elif not isinstance(try_to_load_from_cache(source, "config.json"), str):
        check_hub(source, "model")


def _load(auto_class: str, source: str, **options: Any) -> Any:
    """Call `from_pretrained`; whatever it raises is the source's fault."""
    transformers = require_transformers("loading a model")
    with explained(f"{source!r} cannot be loaded", reason=_reason), quiet(transformers):
        return getattr(transformers, auto_class).from_pretrained(source, **options)


def _reason(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    known = next((reason for sign, reason in _REASONS.items() if sign in text), None)
    return reason_of(error) if known is None else known.format(first_line(error))


def _check_complete(model: Any, missing: Any, source: str) -> None:
    """Refuse a checkpoint that lacks weights of the model, except those of the unembedding."""
    unembedding = model.get_output_embeddings()
    aside = set() if unembedding is None else {id(weight) for weight in unembedding.parameters()}
    weights = dict(model.named_parameters(remove_duplicate=False))
    absent = sorted(name for name in missing if id(weights.get(name)) not in aside)
    if absent:
        raise InputError(
            f"{source!r} lacks {len(absent)} of the weights of a {type(model).__name__} "
            f"({absent[0]}, ...); random numbers would be measured, so save the whole model"
        )
