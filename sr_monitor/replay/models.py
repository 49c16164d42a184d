"""Keep one model in memory for all checkpoints of a run.

Another config gets a new one. Both equal, bit for bit, what `from_pretrained` returns.

    keeper = ModelKeeper(ReplayOptions(device="auto"))
    model = keeper.load(checkpoint)
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sr_monitor.errors import InputError
from sr_monitor.model.loading import (
    find_device,
    load_config,
    make_config,
    quiet,
    require_transformers,
    torch_dtype,
)
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.weights import Weights, put_weights

_IRRELEVANT = ("_name_or_path", "transformers_version", "architectures", "dtype")
"""Entries of a config that make no difference to the model."""


class ModelKeeper:
    """One model, filled with the weights of one checkpoint after the other."""

    def __init__(self, loading: ReplayOptions) -> None:
        """Start without a model."""
        self.loading = loading
        self._model: nn.Module | None = None
        self._kind: object = None

    def load(self, checkpoint: LocalCheckpoint) -> nn.Module:
        """Return the model with these weights, in eval mode, in place of its earlier weights."""
        config = config_of(checkpoint, self.loading)
        weights = checkpoint.read(config)
        _check_size(config, weights, checkpoint)
        dtype = torch_dtype(self.loading.dtype, find_device(self.loading.device))
        if dtype == "auto":
            # NOTE: a config from elsewhere does not know in which format these weights are stored;
            # the first floating tensor does, as in `from_pretrained`.
            kinds = (saved.like.dtype for saved in weights.values())
            floating = (kind for kind in kinds if kind.is_floating_point)
            stored = config.dtype if checkpoint.config is not None else None
            dtype = stored or next(floating, torch.float32)
        model = self._model_for(config, dtype)
        put_weights(model, weights, str(checkpoint.path))
        return model.eval()

    def _model_for(self, config: Any, dtype: torch.dtype) -> nn.Module:
        kind = (dtype, {k: v for k, v in config.to_dict().items() if k not in _IRRELEVANT})
        if self._model is None or self._kind != kind:
            self._model = self._kind = None  # two at a time may not fit
            place = find_device(self.loading.device)
            is_whole = self.loading.device_map is None
            model = build_model(
                config,
                dtype,
                trust_remote_code=self.loading.trust_remote_code,
                # A large model is not to be held here before it is on the devices.
                without_weights=not is_whole or place.type != "cpu",
            )
            self._model, self._kind = to_device(model, place) if is_whole else spread(model), kind
        return self._model


def _check_size(config: Any, weights: Weights, checkpoint: LocalCheckpoint) -> None:
    """Refuse a config that does not fit the weights before a model is built from it."""
    text = config.get_text_config(decoder=True)
    blocks, embedding = text.num_hidden_layers, text.vocab_size * text.hidden_size
    stored = sum(saved.like.numel() for saved in weights.values())
    if blocks > len(weights) or embedding > stored:
        raise InputError(
            f"{str(checkpoint.path)!r} holds {len(weights):,} weights of {stored:,} numbers, and "
            f"its config asks for {blocks:,} blocks and an embedding of {embedding:,} numbers; the "
            "config is of another model, or damaged"
        )


def config_of(checkpoint: LocalCheckpoint, loading: ReplayOptions) -> Any:
    """Return the config of its model: its own, or else that of the base."""
    if checkpoint.problem is not None:
        raise InputError(checkpoint.problem)
    if checkpoint.config is None and loading.base is None:
        raise InputError(
            f"{str(checkpoint.path)!r} does not say which architecture it is of (no config.json); "
            "name a model of the same one: --base NAME, a folder or a name on the hub"
        )
    if (entries := checkpoint.architecture()) is not None:
        return make_config(entries, str(checkpoint.path))
    source = str(checkpoint.config or loading.base)
    return load_config(source, trust_remote_code=loading.trust_remote_code)


def build_model(
    config: Any,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    without_weights: bool = False,
) -> nn.Module:
    """Build a model with uninitialised weights, for `put_weights` to fill.

    `without_weights` leaves them on the meta device; buffers, which no file holds, are computed.
    """
    transformers = require_transformers("replaying checkpoints")
    from transformers.initialization import no_init_weights

    with quiet(transformers), torch.random.fork_rng(devices=[]):
        with no_init_weights(), _on_meta() if without_weights else nullcontext():
            model = transformers.AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
        for weight in model.state_dict(keep_vars=True).values():
            weight._is_hf_initialized = True
        model.initialize_weights()  # buffers that no file holds, such as positions, in float32
    return model.eval()  # type: ignore[no-any-return]


def _on_meta() -> AbstractContextManager[Any]:
    accelerate: Any = import_module("accelerate")
    return accelerate.init_empty_weights(include_buffers=False)  # type: ignore[no-any-return]


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device; allocate, uninitialised, what is on the meta device."""
    _make_weights(model, {"": device})
    return model.to(device)


def _make_weights(model: nn.Module, placed: Mapping[str, Any]) -> None:
    """Allocate the weights that are on the meta device, each where its module is placed."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # one for all names of tied weights
    for name, weight in list(model.named_parameters(remove_duplicate=False)):
        if weight.is_meta:
            inside = [part for part in placed if not part or f"{name}.".startswith(f"{part}.")]
            place = placed[max(inside, key=len)]
            if weight not in made:
                made[weight] = nn.Parameter(torch.empty_like(weight, device=place))
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, made[weight])


def spread(model: nn.Module) -> nn.Module:
    """Place a model over all accelerators of this machine, as accelerate does.

    Weights are replaced in place, so none may be offloaded to the CPU or the disk.
    """
    accelerate: Any = import_module("accelerate")
    whole = list(getattr(model, "_no_split_modules", None) or ())
    placed = accelerate.infer_auto_device_map(model, no_split_module_classes=whole)
    if len(set(placed.values())) > 1 and {"cpu", "disk"} & set(placed.values()):
        raise InputError(
            f"device_map='auto': the accelerators here do not hold a {type(model).__name__} of "
            f"{sum(weight.numel() for weight in model.parameters()):,} parameters; pass "
            "dtype='bfloat16', or device='cpu' without device_map"
        )
    _make_weights(model, placed)
    return accelerate.dispatch_model(model, placed)  # type: ignore[no-any-return]
