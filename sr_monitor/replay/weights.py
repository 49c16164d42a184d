"""Put the weights of a checkpoint into a model, loading one at a time.

Names in a checkpoint may have a prefix (of a trainer's module, or of a wrapper), which is found by
matching them with the model's own. The model changes only once names, shapes and types fit; NaN and
Inf are found while it is filled.

    put_weights(model, checkpoint.read(), str(checkpoint.path))
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.loading import quiet, require_transformers
from sr_monitor.replay.readers.saved import Saved, held

_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_USUAL = ("", "model.", "net.", "module.", "lm.")
"""Prefixes preferred among several that fit equally well (a teacher, a moving average)."""
_SHOWN = 3

Weights = Mapping[str, Saved]
"""The weights of a checkpoint, by name."""
Own = dict[str, Tensor]
"""Those of the model, as they lie in memory."""


def put_weights(model: nn.Module, weights: Weights, source: str) -> None:
    """Replace all the weights of a model; errors call the weights `source`."""
    own = _own(model)
    fit = _match(weights, model, own, source)
    if (fit.missing or fit.unexpected) and hasattr(model, "from_pretrained"):
        fit = _convert(fit, model)
    _check_names(fit, own, f"{source!r} does not hold the weights of this {type(model).__name__}")
    _check_types(fit.weights, own, source)
    _check_tied(fit.weights, own, source)
    _fill(own, fit.weights, source)


class _Fit(NamedTuple):
    """Weights that fit a model, by its names, and where the two sides differ."""

    weights: Weights
    missing: Sequence[str] = ()
    unexpected: Weights = MappingProxyType({})


def _own(model: nn.Module) -> Own:
    """Return the model's weights as they lie in memory, by their names without wrappers."""
    state = model.state_dict(keep_vars=True).items()
    return {_WRAPPERS.sub("", name): t for name, t in state if isinstance(t, Tensor)}


def _match(weights: Weights, model: nn.Module, own: Own, source: str) -> _Fit:
    """Find the prefix, and what does not fit under it."""
    clean = {_WRAPPERS.sub("", name): saved for name, saved in weights.items()}
    prefix = _find_prefix(list(clean), own, source)
    bare = {n.removeprefix(prefix): w for n, w in clean.items() if n.startswith(prefix)}
    fitting = {name: saved for name, saved in bare.items() if name in own}
    given = {_place(own[name]) for name in fitting}
    missing = [name for name, tensor in own.items() if _place(tensor) not in given]
    ignored = _ignored(model)
    others = {n: w for n, w in bare.items() if n not in own and not ignored.search(n)}
    return _Fit(fitting, missing, others)


def _find_prefix(names: Sequence[str], own: Own, source: str) -> str:
    """Find the prefix that maps the most names onto the model, and the fewest onto nothing."""
    starts = ((name, dot.end()) for name in names for dot in re.finditer(r"^|\.", name))
    counts = Counter(name[:start] for name, start in starts if name[start:] in own)
    ranks = {
        prefix: (-count, sum(name.startswith(prefix) for name in names))
        for prefix, count in counts.items()
    }
    best = [prefix for prefix, rank in ranks.items() if rank == min(ranks.values())]
    best = [prefix for prefix in _USUAL if prefix in best][:1] or best
    if len(best) > 1:
        raise InputError(
            f"{source!r} holds the model {len(best)} times, under {', '.join(map(repr, best))}; "
            "save the one that is meant by itself, with save_pretrained"
        )
    return best[0] if best else ""


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Identify the memory of a tensor: equal for tied weights only."""
    return tensor.data_ptr() or id(tensor), tuple(tensor.shape)


def _ignored(model: Any) -> re.Pattern[str]:
    """Match names that older versions saved, and buffers that the model computes."""
    saved = model.state_dict()
    computed = (name for name, _ in model.named_buffers() if name not in saved)
    patterns = {re.escape(".".join(name.split(".")[-2:])) + "$" for name in computed}
    patterns |= set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)")


def _convert(fit: _Fit, model: Any) -> _Fit:
    """Let transformers rename and join weights, as it does for published checkpoints."""
    with quiet(require_transformers("loading a model")):
        try:
            fresh, report = type(model).from_pretrained(
                None,
                config=deepcopy(model.config),
                state_dict={n: w.load() for n, w in {**fit.weights, **fit.unexpected}.items()},
                dtype=model.dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError):  # parts of what would be joined are missing
            return fit
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    unexpected = held({name: torch.empty(0) for name in sorted(report["unexpected_keys"])})
    if missing or unexpected:
        return _Fit(fit.weights, sorted(missing - fit.weights.keys()), unexpected)
    return _Fit(held(_own(fresh)))


def _check_names(fit: _Fit, own: Own, refusal: str) -> None:
    shapes = {n: (tuple(w.like.shape), tuple(own[n].shape)) for n, w in fit.weights.items()}
    wrong = [f"{n} {a} and not {b}" for n, (a, b) in shapes.items() if a != b]
    told = []
    if fit.missing or fit.unexpected:
        told.append(f"it lacks {len(fit.missing)} of {len(own)}{_shown(fit.missing)}")
        told.append(f"it has {len(fit.unexpected)} others{_shown(list(fit.unexpected))}")
    if wrong:
        told.append(f"{len(wrong)} have other shapes{_shown(wrong)}")
    if told:
        raise InputError(
            f"{refusal}: {', '.join(told)}; name the model that it was saved from (its "
            "config.json, or --base)"
        )


def _check_types(weights: Weights, own: Own, source: str) -> None:
    """Refuse whole numbers where the model has floating ones."""
    kinds = {name: saved.like.dtype for name, saved in weights.items()}
    floats = [name for name in kinds if own[name].is_floating_point()]
    if whole := [name for name in floats if not kinds[name].is_floating_point]:
        raise InputError(
            f"{source!r} holds whole numbers for {len(whole)} of {len(weights)} weights"
            f"{_shown(whole)}, which is how quantised ones are kept; save the model in bfloat16"
        )


def _check_tied(weights: Weights, own: Own, source: str) -> None:
    """Refuse two different weights where the model has one."""
    first: dict[tuple[object, ...], str] = {}
    for name, saved in weights.items():
        other = first.setdefault(_place(own[name]), name)
        if other != name and not torch.equal(weights[other].load(), saved.load()):
            raise InputError(
                f"{source!r} holds two different weights, {other} and {name}, which are one and "
                "the same in this model; set tie_word_embeddings to false in its config.json"
            )


def _fill(own: Own, weights: Weights, source: str) -> None:
    """Copy the values; refuse NaN and Inf, which leave the model partly filled."""
    broken = []
    for name, saved in weights.items():
        mine, tensor = own[name], saved.load()
        is_weight = isinstance(mine, nn.Parameter) and mine.is_floating_point()
        if is_weight and not _is_finite(tensor):
            broken.append(name)
        with torch.no_grad():
            mine.copy_(tensor)
    if broken:
        raise InputError(
            f"{source!r} holds NaN or Inf in {len(broken)} of {len(weights)} weights"
            f"{_shown(broken)}; the run had diverged, or the file is damaged: leave it out"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or Inf; both show in the extremes."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _shown(names: Sequence[str]) -> str:
    dots = ", ..." if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{dots})" if names else ""
