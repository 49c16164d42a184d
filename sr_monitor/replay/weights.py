"""The weights of a checkpoint, put into a model.

Names in a checkpoint are those of the model behind a prefix: that of the trainer's module, of a
compiled or a sharded wrapper. It is found by matching them with the model's own names. Nothing
is changed in the model before everything is known to fit.

    model = build_model(config_of(checkpoint, Loading()), torch.float32)
    load_into(model, checkpoint)
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.loading import quiet, require_transformers
from sr_monitor.replay.discover import FSDP_FOLDER, WEIGHT_FILES, LocalCheckpoint
from sr_monitor.replay.reading import read_index, read_safetensors, read_sharded, read_torch

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_USUAL = ("", "model.", "net.", "module.", "lm.")
"""Prefixes that win where several fit equally well, as a teacher's or an average's may."""
_SHOWN = 3


def read_weights(checkpoint: LocalCheckpoint) -> dict[str, Tensor]:
    """All its weights, under the names that they were saved with, on the CPU."""
    if checkpoint.problem is not None:
        raise InputError(checkpoint.problem)
    if checkpoint.kind == "fsdp":
        return read_sharded(checkpoint.path / FSDP_FOLDER)
    if checkpoint.kind == "sharded":
        return read_sharded(checkpoint.path)
    if checkpoint.kind == "lightning":
        return _tensors(read_torch(checkpoint.path))
    there = (checkpoint.path / name for name in WEIGHT_FILES)
    file = next((path for path in there if path.is_file()), None)
    if file is None:
        raise InputError(
            f"{str(checkpoint.path)!r}: its weights are gone since the listing; if a training that "
            "keeps only its last checkpoints goes on there (save_total_limit), copy them first"
        )
    files = read_index(file) if file.suffix == ".json" else [file]
    if files[0].suffix == ".safetensors":
        return read_safetensors(files)
    return {name: t for file in files for name, t in _tensors(read_torch(file)).items()}


def load_into(model: nn.Module, checkpoint: LocalCheckpoint) -> None:
    """Replaces all the weights of a model by those of a checkpoint, or refuses them all."""
    put_weights(model, read_weights(checkpoint), str(checkpoint.path))


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Replaces all the weights of a model; `source` is what an error calls them."""
    fit = _match(weights, model, source)
    if (fit.missing or fit.unexpected) and hasattr(model, "from_pretrained"):
        fit = _converted(fit, model)
    _check(fit, model, source)
    own = _own(model)
    with torch.no_grad():
        for name, tensor in fit.weights.items():
            own[name].copy_(tensor)


@dataclass
class _Fit:
    """Weights by the model's names, and where the two sides differ."""

    weights: dict[str, Tensor]
    """By the names of the model, without wrappers."""
    missing: list[str] = field(default_factory=list)
    unexpected: dict[str, Tensor] = field(default_factory=dict)
    """By the names of the file, without prefix."""


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a torch file; a trainer's are under "state_dict"."""
    inner = content.get("state_dict", content)
    return {name: tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights as they are in memory, by their names without wrappers."""
    state = model.state_dict().items()
    return {_WRAPPERS.sub("", name): t for name, t in state if isinstance(t, Tensor)}


def _match(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> _Fit:
    """Finds the prefix, and tells what does not fit under it."""
    own = _own(model)
    clean = {_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    prefix = _find_prefix(clean, own, source)
    bare = {n.removeprefix(prefix): t for n, t in clean.items() if n.startswith(prefix)}
    fit = _Fit({name: tensor for name, tensor in bare.items() if name in own})
    there = {_place(own[name]) for name in fit.weights}
    fit.missing = [name for name, tensor in own.items() if _place(tensor) not in there]
    ignored = _ignored(model)
    unexpected = (name for name in bare if name not in own and not ignored.search(name))
    fit.unexpected = {name: bare[name] for name in unexpected}
    return fit


def _find_prefix(names: Iterable[str], own: Iterable[str], source: str) -> str:
    """What the most names have before a name of the model, and the fewest before another."""
    known, names = set(own), list(names)
    counts = Counter(name[: -len(end)] for name in names for end in _ends(name) if end in known)
    if not counts:
        return ""
    most = max(counts.values())
    under = {
        prefix: sum(name.startswith(prefix) for name in names)
        for prefix, count in counts.items()
        if count == most
    }
    best = [prefix for prefix, count in under.items() if count == min(under.values())]
    usual = [prefix for prefix in _USUAL if prefix in best]
    if len(best) > 1 and not usual:
        raise InputError(
            f"{source!r} holds the model {len(best)} times, under {', '.join(map(repr, best))}; "
            "save the one that is meant by itself, with save_pretrained"
        )
    return (usual or best)[0]


def _ends(name: str) -> Iterable[str]:
    """The name, and what is left of it after each of its dots."""
    parts = name.split(".")
    return (".".join(parts[index:]) for index in range(len(parts)))


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for tied weights only."""
    return tensor.data_ptr() or id(tensor), tuple(tensor.shape)


def _ignored(model: Any) -> re.Pattern[str]:
    """Names of what older versions saved, and what a model makes by itself."""
    kept = set(model.state_dict())
    made = {name for name, _ in model.named_buffers() if name not in kept}
    patterns = {*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())}
    patterns |= {re.escape(".".join(name.split(".")[-2:])) + "$" for name in made}
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)")


def _converted(fit: _Fit, model: Any) -> _Fit:
    """The weights after what transformers does to names and shapes of published ones."""
    transformers = require_transformers("loading a model")
    with quiet(transformers):
        try:
            fresh, report = type(model).from_pretrained(
                None,
                config=deepcopy(model.config),
                state_dict=fit.weights | fit.unexpected,
                dtype=model.dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError):  # parts of what would be put together lack
            return fit
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    unexpected = {name: torch.empty(0) for name in sorted(report["unexpected_keys"])}
    if missing or unexpected:
        return _Fit(fit.weights, sorted(missing - fit.weights.keys()), unexpected)
    return _Fit(_own(fresh))


def _check(fit: _Fit, model: nn.Module, source: str) -> None:
    """Refuses weights that are not the model's, with both sides."""
    own, kind = _own(model), type(model).__name__
    shapes = {n: (tuple(t.shape), tuple(own[n].shape)) for n, t in fit.weights.items()}
    wrong = [f"{n} {a} and not {b}" for n, (a, b) in shapes.items() if a != b]
    told = []
    if fit.missing or fit.unexpected:
        told.append(f"it lacks {len(fit.missing)} of {len(own)}{_listed(fit.missing)}")
        told.append(f"it has {len(fit.unexpected)} others{_listed(fit.unexpected)}")
    if wrong:
        told.append(f"{len(wrong)} have other shapes{_listed(wrong)}")
    if told:
        raise InputError(
            f"{source!r} does not hold the weights of this {kind}: {', '.join(told)}; name the "
            "model that it was saved from (its config.json, or --base)"
        )
    _check_values(fit, model, source)


def _check_values(fit: _Fit, model: nn.Module, source: str) -> None:
    """Refuses NaN and Inf, and two weights where the model has one."""
    parameters = {_WRAPPERS.sub("", n) for n, _ in model.named_parameters(remove_duplicate=False)}
    broken = [n for n, t in fit.weights.items() if n in parameters and not _is_finite(t)]
    if broken:
        raise InputError(
            f"{source!r} holds NaN or Inf in {len(broken)} of {len(fit.weights)} weights "
            f"({_some(broken)}); the run had diverged, or the file is damaged: leave it out"
        )
    own, first = _own(model), dict[tuple[object, ...], str]()
    for name, tensor in fit.weights.items():
        other = first.setdefault(_place(own[name]), name)
        if other != name and not torch.equal(fit.weights[other], tensor):
            raise InputError(
                f"{source!r} holds two different weights, {other} and {name}, which are one and "
                "the same in this model; set tie_word_embeddings to false in its config.json"
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether neither NaN nor Inf is in it; both show in the extremes."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _listed(names: Collection[str]) -> str:
    return f" ({_some(list(names))})" if names else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
