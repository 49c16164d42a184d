"""The callback for Lightning: its events, handed to `sr_monitor.callback`.

Measured are the step that training begins at, each step of the schedule right after the update of
the optimizer, and the last step, all in the precision of the run. The state is part of Lightning's
checkpoints.

    L.Trainer(callbacks=[StableRegionCallback(every=500)]).fit(module)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sr_monitor import InputError, PromptSet
from sr_monitor.anatomy import dissect, unwrap
from sr_monitor.callback import CallbackCore, Prompts
from sr_monitor.dashboards import TensorBoardWriter, WandbWriter
from sr_monitor.distributed import Team
from sr_monitor.fuse import Fuse
from sr_monitor.hooks import forward_replaced
from sr_monitor.training_data import prompts_from_batch, prompts_from_dataset, token_ids_of
from sr_monitor.writers import Writer

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise InputError(
        "sr_monitor_lightning: lightning is not installed; run: pip install 'sr-monitor[lightning]'"
    ) from error

_LANGUAGE_MODELS = {"PreTrainedModel", "PeftModel"}
_FSDP = "FullyShardedDataParallel"
_ROOTS = {_FSDP, "DeepSpeedEngine"}


class StableRegionCallback(CallbackCore, Callback):
    """Watches how stable regions form in a language model inside a `LightningModule`.

        L.Trainer(callbacks=[StableRegionCallback()]).fit(module)

    All arguments but `model` are those of `sr_monitor.callback.CallbackCore`. The step is
    `trainer.global_step`, the number of updates.
    """

    def __init__(
        self,
        prompts: Prompts | None = None,
        *,
        model: str | Callable[[LightningModule], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        """Does nothing until the training begins.

        Args:
            prompts: What is measured; see `CallbackCore`.
            model: The attribute of the `LightningModule` that holds the language model, or a
                function that finds it; by default the one Hugging Face model in it, else the one
                module in it that has a list of blocks, else itself.
            options: See `CallbackCore`.
        """
        super().__init__(prompts, **options)
        self._model = model
        self._found: nn.Module | None = None
        self._state: dict[str, Any] | None = None  # that was restored, or of a training that ended
        self._tokens: int | None = 0  # None: not all of them were counted
        self._wanted = False  # a checkpoint was saved or an evaluation made, and it is to be shown

    @property
    def state_key(self) -> str:
        """What tells this callback's state from that of another one."""
        prompts, config = self._prompts, self.config
        return self._generate_state_key(
            name=self.name,
            model=self._model if isinstance(self._model, str) else None,
            layer=config.layer,
            output=config.output,
            prompts=prompts.fingerprint
            if isinstance(prompts, PromptSet)
            else prompts and str(prompts),
            seed=self.seed,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to go on."""
        if self.monitor is None:
            return self._state or {}
        return self.monitor.state_dict() | {"tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the training begins."""
        self._state = state_dict or None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares everything, and measures the model as it is before the first update."""
        if is_new := trainer.global_step == 0:
            self._state = None  # of a training before this one
        self._tokens = (self._state or {}).get("tokens", 0 if is_new else None)
        self._wanted = False  # by an evaluation before the training, as the sanity check
        if self._begin(trainer, pl_module, None):
            self._measure(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins here where only a batch shows what the model is trained on."""
        waiting = self.monitor is None and not self._fuse.blown
        if self._wanted or (waiting and self._begin(trainer, pl_module, batch)):
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measures if it is time to."""
        if self.monitor is not None and self._tokens is not None:
            more = _count_tokens(batch)
            self._tokens = None if more is None else self._tokens + more * trainer.world_size
        self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that an evaluation was made."""
        self._wanted |= self.with_eval

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes that a checkpoint is saved."""
        self._wanted |= self.with_save

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the last step, and closes the writers."""
        self._measure(trainer, pl_module, last=True)
        self.end()

    def end(self) -> None:
        """Closes everything but the state: a checkpoint may be saved after the training."""
        if self.monitor is not None:
            self._state = self.state_dict()
        self._found = None
        super().end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Shows what there is; other processes may be gone."""
        self.end()

    def _measure(self, trainer: Trainer, pl_module: LightningModule, *, last: bool = False) -> None:
        if self.monitor is None or self._found is None:
            return
        with _callable(self._found, trainer, pl_module) as model:
            self.at_step(
                model,
                trainer.global_step,
                tokens=self._tokens,
                also=self._wanted,
                last=last,
            )
        self._wanted = False

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        self._fuse = Fuse(self._fuse.on_error, tells=trainer.is_global_zero)
        with self._fuse.guarding("starting sr-monitor", final=True):
            with Team.present().together():
                found = self._find(pl_module)
            # NOTE: asked for on every process, because Lightning broadcasts it.
            log_dir = trainer.log_dir or trainer.default_root_dir
            begun = self.begin(
                found,
                trainer.global_step,
                log_dir=log_dir,
                find_writers=lambda: _writers_of(trainer),
                sample=lambda: self._sample(trainer, pl_module, batch),
                find_state=lambda name: self._state,
                is_last_chance=batch is not None,
            )
            self._found = found
            return begun
        return False

    def _sample(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> PromptSet | None:
        """Prompts from the batch, if there is one, or from what the training's loader reads."""
        options: dict[str, Any] = {
            "tokenizer": getattr(pl_module, "tokenizer", None),
            "num_tokens": self.num_tokens,
            "num_prompts": self.config.num_prompts,
            "seed": self.seed,
        }
        if batch is not None:
            return prompts_from_batch(batch, **options)
        loader: Any = trainer.train_dataloader
        collate = getattr(loader, "collate_fn", None)
        return prompts_from_dataset(getattr(loader, "dataset", None), collate=collate, **options)

    def _find(self, pl_module: LightningModule) -> nn.Module:
        """The language model inside."""
        wanted = self._model
        if callable(wanted):
            return wanted(pl_module)
        if wanted is None:
            return _only_language_model(pl_module)
        try:
            return pl_module.get_submodule(wanted)
        except AttributeError as error:
            names = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise InputError(
                f"StableRegionCallback(model={wanted!r}): {type(pl_module).__name__} has no such "
                f"module; pass one of: {names}"
            ) from error


def _count_tokens(batch: Any) -> int | None:
    try:
        ids = token_ids_of(batch)
    except Exception:  # a batch may be anything, and this is about one number
        return None
    return None if ids is None else sum(map(len, ids))


def _only_language_model(pl_module: LightningModule) -> nn.Module:
    found = dict(_outermost(pl_module, _is_hugging_face)) or {
        name: child for name, child in pl_module.named_children() if _has_blocks(child)
    }
    if not found and _has_blocks(pl_module):
        return pl_module
    if len({id(child) for child in found.values()}) != 1:
        names = ", ".join(map(repr, found or dict(pl_module.named_children())))
        raise InputError(
            f"StableRegionCallback: {type(pl_module).__name__} holds {len(found)} language models, "
            f"not one; name it with model=, one of: {names}"
        )
    return next(iter(found.values()))


def _outermost(
    module: nn.Module, wanted: Callable[[nn.Module], bool], path: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if wanted(child):
            yield path + name, child
        else:
            yield from _outermost(child, wanted, f"{path}{name}.")


def _is_hugging_face(module: nn.Module) -> bool:
    return bool(_class_names(_inside_fsdp(module)) & _LANGUAGE_MODELS)


def _class_names(thing: object) -> set[str]:
    return {kind.__name__ for kind in type(thing).__mro__}


def _inside_fsdp(module: Any) -> nn.Module:
    inner: nn.Module = module.module if type(module).__name__ == _FSDP else module
    return inner


def _has_blocks(module: nn.Module) -> bool:
    if type(module).forward in (nn.Module.forward, LightningModule.forward):
        return False  # it only holds modules
    try:
        dissect(module)
    except InputError:
        return False
    return True


@contextmanager
def _callable(
    model: nn.Module, trainer: Trainer, pl_module: LightningModule
) -> Iterator[nn.Module]:
    """The model in the precision of the run, called through what shards it."""
    root = _root(trainer, pl_module)
    if root is not None:
        model = root if model is pl_module else _Through(root, pl_module, model)
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
    """What has to be called instead of the model inside, if anything."""
    outer = trainer.strategy.model
    if type(outer).__name__ in _ROOTS:
        return outer
    return pl_module if hasattr(pl_module, "reshard") else None


class _Through(nn.Module):
    """A model that is called through the module that shards it.

    The forward of the `LightningModule` is for that moment the model's; hooks of the sharding on
    everything around it run as in training.
    """

    def __init__(self, root: nn.Module, pl_module: LightningModule, model: nn.Module) -> None:
        super().__init__()
        self.root = root
        self._inner = (pl_module, model)  # in a tuple: not registered twice

    def get_base_model(self) -> nn.Module:
        """The model itself, as PEFT's wrappers call it."""
        core: Any = _inside_fsdp(self._inner[1])
        base: nn.Module = core.get_base_model() if hasattr(core, "get_base_model") else core
        return base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        pl_module, model = self._inner
        with forward_replaced(pl_module, model):
            return self.root(*args, **kwargs)


def _writers_of(trainer: Trainer) -> list[Writer]:
    """The runs of TensorBoard and Weights & Biases that Lightning writes to."""
    found: list[Writer] = []
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        names = _class_names(logger)
        if "TensorBoardLogger" in names:
            found.append(TensorBoardWriter(logger.experiment))
        if "WandbLogger" in names:
            found.append(WandbWriter(logger.experiment))
    return found
