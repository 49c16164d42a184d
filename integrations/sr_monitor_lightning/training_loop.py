"""What a Lightning trainer reads from, and what it logs to.

parts = parts_of(batch, trainer.train_dataloader)
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.display.writers.wandb import WandbWriter
from sr_monitor.model.wrappers import class_names


def parts_of(given: Any, loaders: Any) -> list[Any]:
    """Return what each loader gave: of several, batches come in a dict or a list, like them."""
    if isinstance(loaders, Mapping) and isinstance(given, Mapping):
        return list(given.values()) if given.keys() == loaders.keys() else [given]
    if isinstance(loaders, list | tuple) and isinstance(given, list | tuple):
        return list(given) if len(given) == len(loaders) else [given]
    return [given]


def datasets_of(loaders: Any) -> Any:
    """Return the data set of a loader; of several, those of each by name or number."""
    if isinstance(loaders, list | tuple):
        loaders = dict(enumerate(loaders)) if len(loaders) > 1 else next(iter(loaders), None)
    if isinstance(loaders, Mapping):
        return {name: datasets_of(loader) for name, loader in loaders.items()}
    return getattr(loaders, "dataset", None)


def num_batches_of(trainer: Trainer) -> int:
    """Return how many ranks have a batch of their own: of those in tensor parallel, one."""
    sampling = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return int(sampling.get("num_replicas", trainer.world_size))


def writers_of(trainer: Trainer) -> list[Writer]:
    """Return the runs of TensorBoard and Weights & Biases that Lightning writes to."""
    found: list[Writer] = []
    logger: Any
    for logger in trainer.loggers:
        names = class_names(logger)
        if "TensorBoardLogger" in names:
            found.append(TensorBoardWriter(logger.experiment))
        if "WandbLogger" in names:
            found.append(WandbWriter(logger.experiment))
    return found
