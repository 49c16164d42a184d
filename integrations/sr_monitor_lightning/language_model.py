"""Find the language model inside a `LightningModule`, and call it as the training does.

It is called in the context of the training's precision, through what shards it: where that is a
wrapper of the whole `LightningModule`, the forward of the `LightningModule` is meanwhile the
model's.

    model = find_language_model(pl_module, None, None)
    with as_in_training(model, trainer, pl_module) as callable_model:
        callable_model(token_ids)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from sr_monitor import InputError
from sr_monitor.model.anatomy import LayerPath, dissect
from sr_monitor.model.precision import Precision
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
    pl_module: LightningModule, wanted: Wanted | None, layer_path: LayerPath
) -> nn.Module:
    """Return the module that `wanted` is, names or finds.

    By default it is the one Hugging Face model in the `LightningModule`, else the one child that
    has a list of blocks, at `layer_path` if that is given, else the `LightningModule` itself.
    """
    if wanted is None:
        return _only_language_model(pl_module, layer_path)
    if isinstance(wanted, nn.Module):  # the module itself, or what FSDP has put around it
        found = (module for module in pl_module.modules() if inside_fsdp1(module) is wanted)
        if (module := next(found, None)) is None:
            raise _refusal(pl_module, f"model={type(wanted).__name__}", "does not hold that module")
        return module
    if callable(wanted):
        return wanted(pl_module)
    try:
        return pl_module.get_submodule(wanted)
    except AttributeError as error:
        raise _refusal(pl_module, f"model={wanted!r}", "has no such module") from error


def _only_language_model(pl_module: LightningModule, layer_path: LayerPath) -> nn.Module:
    found = dict(_hugging_face_models(pl_module)) or {
        name: child for name, child in pl_module.named_children() if _has_blocks(child, layer_path)
    }
    if not found and _has_blocks(pl_module, layer_path):
        return pl_module
    if not found and (why := _why_none(pl_module, layer_path)) is not None:
        raise InputError(f"StableRegionCallback(): {type(pl_module).__name__} {why}")
    if len(set(found.values())) != 1:
        call = f"{layer_path=}" if isinstance(layer_path, str) else ""
        raise _refusal(pl_module, call, f"holds {len(found)} language models, not one", *found)
    return next(iter(found.values()))


def _why_none(pl_module: nn.Module, layer_path: LayerPath) -> str | None:
    """Say what is wrong with the largest module inside, which is the one that must be meant."""
    sizes = {
        name: sum(weight.numel() for weight in child.parameters())
        for name, child in pl_module.named_children()
        if _is_run(child)
    }
    if not sizes:
        return None
    name = max(sizes, key=lambda name: sizes[name])
    error = _problem(pl_module.get_submodule(name), layer_path)
    return error and f"holds no language model that can be measured; {name!r}: {error}"


def _is_run(module: nn.Module) -> bool:
    """Whether it does more than hold modules."""
    return type(module).forward not in (nn.Module.forward, LightningModule.forward)


def _refusal(pl_module: LightningModule, call: str, problem: str, *names: str) -> InputError:
    listed = ", ".join(map(repr, names or dict(pl_module.named_children())))
    kind = type(pl_module).__name__
    return InputError(
        f"StableRegionCallback({call}): {kind} {problem}; pass model=, one of: {listed}"
    )


def _hugging_face_models(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost ones, by name."""
    for name, child in module.named_children():
        if class_names(inside_fsdp1(child)) & _LANGUAGE_MODELS:
            yield path + name, child
        else:
            yield from _hugging_face_models(child, f"{path}{name}.")


def _has_blocks(module: nn.Module, layer_path: LayerPath) -> bool:
    return _is_run(module) and _problem(module, layer_path) is None


def _problem(module: nn.Module, layer_path: LayerPath) -> str | None:
    """Say why the blocks of a module cannot be told, if so."""
    try:
        dissect(module, layer_path)
    except InputError as error:
        return str(error)
    return None


@contextmanager
def as_in_training(
    model: nn.Module, trainer: Trainer, pl_module: LightningModule, precision: Precision
) -> Iterator[nn.Module]:
    """Lend the model in the precision of the run, called through what shards it.

    Where float32 arithmetic is wanted, new tensors have no type of 16 bits by default.
    """
    # What has to be called instead of the model inside, if anything.
    outer = (trainer.strategy.model, pl_module)
    root = next((each for each in outer if each is not None and must_be_called(each)), None)
    if root is not None:
        model = root if model is pl_module else CalledThrough(root, pl_module, model)
    with _precision(trainer, unwrap(model), precision):
        yield model


@contextmanager
def _precision(trainer: Trainer, model: nn.Module, wanted: Precision) -> Iterator[None]:
    """Autocast as in training; its default type for new tensors only while the model runs."""
    outside = torch.get_default_dtype()
    with trainer.precision_plugin.forward_context():
        inside = torch.get_default_dtype()
        if wanted != "run" and inside.itemsize < outside.itemsize:
            inside = outside
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
