"""One model in memory for all checkpoints of a run.

A checkpoint whose config equals that of the one before gets its weights put into the same model;
any other has a model built for it. Either is equal, bit for bit, to what `from_pretrained` gives.

    keeper = ModelKeeper(Loading(device="auto"))
    models = (keeper.load(checkpoint) for checkpoint in find_checkpoints("runs/gpt2"))
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.devices import find_device, torch_dtype
from sr_monitor.model.loading import load_config, quiet, require_transformers
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.weights import put_weights, read_weights

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""What the weights may be asked for as."""

_BESIDE = ("_name_or_path", "transformers_version", "architectures", "dtype")
"""Entries of a config that make no difference to the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How a checkpoint becomes a model."""

    base: str | None = None
    """A model of the same architecture, for checkpoints without a config."""
    dtype: str = "auto"
    """"auto" is as stored, and float32 on a CPU."""
    device: str = "auto"
    """"auto" is the accelerator if there is one."""
    device_map: str | None = None
    """"auto" spreads a model over all accelerators; None keeps it on one device."""
    trust_remote_code: bool = False
    """Run the code that comes with a model."""

    def __post_init__(self) -> None:
        """Refuses a dtype that there is not; a folder is known by its real path from now on."""
        if self.dtype not in DTYPES:
            raise InputError(f"replay: dtype={self.dtype!r}: pass one of {', '.join(DTYPES)}")
        if self.device_map not in (None, "auto"):
            raise InputError(f"replay: device_map={self.device_map!r}: pass 'auto' or nothing")
        if self.device_map and self.device != "auto":
            raise InputError(
                f"replay: device={self.device!r} and device_map={self.device_map!r}: a model lies "
                "on one device or on all of them; pass one of the two"
            )
        if self.base is not None and Path(self.base).exists():
            object.__setattr__(self, "base", str(Path(self.base).resolve()))

    def check_device(self) -> None:
        """Refuses a device that cannot be used on this machine."""
        find_device(self.device)


def config_of(checkpoint: LocalCheckpoint, loading: Loading) -> Any:
    """The config of its model: its own, or else that of the base."""
    source = loading.base if checkpoint.config is None else str(checkpoint.config)
    if source is None:
        raise InputError(
            f"{str(checkpoint.path)!r} does not say which architecture it is of (no config.json); "
            "name a model of the same one: --base NAME, a folder or a name on the hub"
        )
    return load_config(source, trust_remote_code=loading.trust_remote_code)


def build_model(
    config: Any,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A model whose weights are yet to be put in: they are whatever was in memory."""
    transformers = require_transformers("replaying checkpoints")
    from transformers.initialization import no_init_weights

    with quiet(transformers), torch.random.fork_rng(devices=[]):
        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(
                deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
        for weight in model.state_dict(keep_vars=True).values():
            weight._is_hf_initialized = True
        model.initialize_weights()  # of what is in no file: positions, say, in float32
    built: nn.Module = model.eval().to(device)
    return built


def spread(model: nn.Module) -> nn.Module:
    """The model over all accelerators of this machine, as accelerate places it.

    Weights are replaced where they lie, so all of them have to lie on a device.
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
    spread_out: nn.Module = accelerate.dispatch_model(model, placed)
    return spread_out


class ModelKeeper:
    """Holds one model, and gives it the weights of one checkpoint after the other."""

    def __init__(self, loading: Loading) -> None:
        """A place for one model, which is loaded like this."""
        self.loading = loading
        self._model: nn.Module | None = None
        self._kind: object = None

    def load(self, checkpoint: LocalCheckpoint) -> nn.Module:
        """The model with these weights, in eval mode; the one that was given before is gone."""
        weights = read_weights(checkpoint)
        config = config_of(checkpoint, self.loading)
        dtype = torch_dtype(self.loading.dtype, find_device(self.loading.device))
        if dtype == "auto":
            # NOTE: a config from elsewhere does not know in which format these weights are stored.
            said = config.dtype if checkpoint.config is not None else None
            dtype = said or stored_dtype(weights.values())
        model = self._model_for(config, dtype)
        put_weights(model, weights, str(checkpoint.path))
        return model.eval()

    def _model_for(self, config: Any, dtype: torch.dtype) -> nn.Module:
        """The one at hand if it is of this kind, else a new one in its place."""
        kind = (dtype, {k: v for k, v in config.to_dict().items() if k not in _BESIDE})
        if self._model is None or self._kind != kind:
            self._model = self._kind = None  # two at a time may not fit
            all_over, trust = self.loading.device_map, self.loading.trust_remote_code
            place = "cpu" if all_over else find_device(self.loading.device)
            model = build_model(config, dtype, place, trust_remote_code=trust)
            self._model = spread(model) if all_over else model
            self._kind = kind
        return self._model


def stored_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The first floating one, as `from_pretrained` takes it."""
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return next(floating, torch.float32)
