"""The language model inside a `LightningModule`: where it is, and how it is called.

It is called in the precision of the training, through what shards it. A strategy that shards the
whole `LightningModule` has to be called itself; so the forward of the `LightningModule` is for that
moment the model's.

    model = find_language_model(pl_module, None, layer_path=None)
    with as_in_training(model, trainer, pl_module) as callable_model:
        callable_model(token_ids)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from sr_monitor import InputError
from sr_monitor.model.anatomy import dissect
from sr_monitor.model.blocks import LayerPath
from sr_monitor.model.wrappers import (
    CalledThrough,
    class_names,
    inside_fsdp1,
    must_be_called,
    unwrap,
)

Wanted: TypeAlias = str | nn.Module | Callable[[LightningModule], nn.Module]

_LANGUAGE_MODELS = {"PreTrainedModel", "PeftModel"}


def find_language_model(
    pl_module: LightningModule, wanted: Wanted | None, *, layer_path: LayerPath
) -> nn.Module:
    """The module that `wanted` is, names or finds, or the only one that can be meant.

    With a `layer_path`, one that has its blocks there can be meant.
    """
    if wanted is None:
        return _only_language_model(pl_module, layer_path)
    if isinstance(wanted, nn.Module):
        return _as_it_is_called(pl_module, wanted)
    if callable(wanted):
        return wanted(pl_module)
    try:
        return pl_module.get_submodule(wanted)
    except AttributeError as error:
        raise InputError(
            f"StableRegionCallback(model={wanted!r}): {type(pl_module).__name__} has no such "
            f"module; pass one of: {_names(dict(pl_module.named_children()))}"
        ) from error


def _as_it_is_called(pl_module: LightningModule, wanted: nn.Module) -> nn.Module:
    """The module itself, or what FSDP has put around it."""
    for module in pl_module.modules():
        if inside_fsdp1(module) is wanted:
            return module
    raise InputError(
        f"StableRegionCallback(model=): the {type(wanted).__name__} that was passed is not in "
        f"{type(pl_module).__name__}, which is trained; pass one of its modules, or the name of "
        f"one: {_names(dict(pl_module.named_children()))}"
    )


def _only_language_model(pl_module: LightningModule, layer_path: LayerPath) -> nn.Module:
    found = dict(_outermost(pl_module, _is_hugging_face)) or {
        name: child for name, child in pl_module.named_children() if _has_blocks(child, layer_path)
    }
    if not found and _has_blocks(pl_module, layer_path):
        return pl_module
    if len({id(child) for child in found.values()}) != 1:
        given = f"({layer_path=})" if isinstance(layer_path, str) else ""
        raise InputError(
            f"StableRegionCallback{given}: {type(pl_module).__name__} holds {len(found)} language "
            "models, not one; name it with model=, one of: "
            f"{_names(found or dict(pl_module.named_children()))}"
        )
    return next(iter(found.values()))


def _names(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join(map(repr, modules))


def _outermost(
    module: nn.Module, wanted: Callable[[nn.Module], bool], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if wanted(child):
            yield path + name, child
        else:
            yield from _outermost(child, wanted, f"{path}{name}.")


def _is_hugging_face(module: nn.Module) -> bool:
    return bool(class_names(inside_fsdp1(module)) & _LANGUAGE_MODELS)


def _has_blocks(module: nn.Module, layer_path: LayerPath) -> bool:
    if type(module).forward in (nn.Module.forward, LightningModule.forward):
        return False  # it only holds modules
    try:
        dissect(module, layer_path)
    except InputError:
        return False
    return True


@contextmanager
def as_in_training(
    model: nn.Module, trainer: Trainer, pl_module: LightningModule
) -> Iterator[nn.Module]:
    """The model in the precision of the run, called through what shards it."""
    root = _root(trainer, pl_module)
    if root is not None:
        model = root if model is pl_module else CalledThrough(root, pl_module, model)
    with _precision(trainer, unwrap(model)):
        yield model


@contextmanager
def _precision(trainer: Trainer, model: nn.Module) -> Iterator[None]:
    """Autocast as in training; its default type for new tensors only while the model runs."""
    outside = torch.get_default_dtype()
    with trainer.precision_plugin.forward_context():
        inside = torch.get_default_dtype()
        hooks = (
            model.register_forward_pre_hook(lambda *_: torch.set_default_dtype(inside)),
            model.register_forward_hook(
                lambda *_: torch.set_default_dtype(outside), always_call=True
            ),
        )
        try:
            torch.set_default_dtype(outside)
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _root(trainer: Trainer, pl_module: LightningModule) -> nn.Module | None:
    """Return what has to be called instead of the model inside, if anything."""
    outer = trainer.strategy.model
    if outer is not None and must_be_called(outer):
        return outer
    return pl_module if must_be_called(pl_module) else None
