"""The mates of a rank: those that make each forward together with it, of the same prompts.

Ranks that FSDP divides the weights among may run prompts of their own, as each gathers the weights
whole. Ranks over which weights are spread in any other way, as in tensor parallelism, may not.

    mates = find_mates(model)
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from torch import nn

from sr_monitor.errors import InputError
from sr_monitor.model.wrappers import fsdp1_placements, fsdp2_groups

_Placed: TypeAlias = tuple[Any, Sequence[Any]]
"""A device mesh, and how a weight is placed along each of its dimensions."""


def find_mates(model: nn.Module) -> frozenset[int]:
    """Return this rank and its mates; an empty set where no weight is spread.

    They are the ranks along each dimension of a mesh on which a weight is not replicated, other
    than those that FSDP shards over; no dimension needs a name.
    """
    gathered = {
        ranks
        for module in model.modules()
        for group in fsdp2_groups(module)
        for weight in group.fsdp_params
        for ranks in _along(weight.mesh_info.mesh)
    }
    spread = {
        ranks
        for mesh, placements in _placed(model)
        for ranks, placement in zip(_along(mesh), placements, strict=True)
        if not placement.is_replicate()
    }
    return frozenset().union(*spread - gathered)


def _placed(model: nn.Module) -> Iterator[_Placed]:
    weight: Any
    for weight in model.parameters():
        if hasattr(weight, "placements"):
            yield weight.device_mesh, weight.placements
        elif hasattr(weight, "_st_info"):
            raise InputError(
                f"{type(model).__name__} is tensor parallel inside DistributedDataParallel("
                "device_mesh=...), which makes new parameters in each forward; use FSDP2 "
                "(fully_shard) around tensor parallelism, or measure saved checkpoints instead"
            )
    for module in model.modules():
        for spec in fsdp1_placements(module):
            yield spec.mesh, spec.placements


def _along(mesh: Any) -> list[frozenset[int]]:
    """Return the ranks along each dimension of a mesh, from this rank's place in it."""
    place = mesh.get_coordinate()
    if place is None:
        return [frozenset()] * mesh.ndim
    lines = [(*place[:dim], slice(None), *place[dim + 1 :]) for dim in range(mesh.ndim)]
    return [frozenset(mesh.mesh[line].tolist()) for line in lines]
