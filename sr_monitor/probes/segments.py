"""Cut maps of labels into connected regions, and measure the boundaries between them.

A label below 0 is no label: such a cell belongs to no region, and has no boundary.

    regions = connected_regions(labels)      # "map row column"; cells of one region have one number
    areas = region_areas(regions)            # of every region of every map, as shares of its map
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# Steps to a neighbour: by rows and columns.
_BESIDE = ((0, 1), (1, 0))
_DIAGONAL = ((1, 1), (1, -1))


def connected_regions(labels: Int[Tensor, "map row column"]) -> Int[Tensor, "map row column"]:
    """Return the number of each cell's region, that of its first cell; -1 without a label.

    Cells of one label that share a side are of one region.
    """
    num_maps, num_rows, num_columns = labels.shape
    regions = torch.arange(num_rows * num_columns).repeat(num_maps, 1)  # "map cell"
    while True:
        before = regions.clone()
        for step in _BESIDE:
            # "map cell" to "map row column": views, so that what is put there stays
            here, there = _neighbours(regions.view(labels.shape), step)
            one, other = _neighbours(labels, step)
            lowest = torch.minimum(here, there)
            for cells in (here, there):
                cells.copy_(torch.where(one == other, torch.minimum(cells, lowest), cells))
        regions = regions.gather(1, regions)  # a cell's number is itself a cell of its region
        if torch.equal(regions, before):
            return regions.view(labels.shape).masked_fill(labels < 0, -1)


def count_regions(regions: Int[Tensor, "map row column"]) -> Int[Tensor, " map"]:
    """Return how many regions each map has."""
    return torch.tensor([len(each[each >= 0].unique()) for each in regions], dtype=torch.long)


def region_areas(regions: Int[Tensor, "map row column"]) -> Float[Tensor, " region"]:
    """Return the area of every region of every map, as a share of its map."""
    sizes = [each[each >= 0].unique(return_counts=True)[1] for each in regions]
    return torch.cat([*sizes, torch.zeros(0, dtype=torch.long)]).float() / regions[0].numel()


def boundary_length(labels: Int[Tensor, "map row column"]) -> Float[Tensor, " map"]:
    """Return the length of all boundaries, in sides of the map: a cut from side to side is 1.

    By Crofton's formula from how often lines in four directions cross a boundary: to 9% for a
    straight one, whichever way it runs.
    """
    weights = dict.fromkeys(_BESIDE, 1.0) | dict.fromkeys(_DIAGONAL, 1 / math.sqrt(2))
    crossings = [w * _crossed(labels, step).sum(dim=(1, 2)) for step, w in weights.items()]
    length: Tensor = math.pi / 8 * torch.stack(crossings).sum(dim=0) / labels.shape[-1]
    return length


def boundary_sharpness(
    fields: Float[Tensor, "map field row column"], labels: Int[Tensor, "map row column"]
) -> Float[Tensor, " map"]:
    """Return how much the fields change across boundaries, relative to everywhere.

    Between neighbouring cells: 1 where they change as much elsewhere. NaN without a boundary.
    """
    changes = [_change(fields, step).flatten(1) for step in _BESIDE]  # "map neighbours"
    change = torch.cat(changes, dim=1)
    crossed = torch.cat([_crossed(labels, step).flatten(1) for step in _BESIDE], dim=1)
    change = change.masked_fill(~change.isfinite(), torch.nan)
    ratio: Tensor = change.where(crossed, torch.nan).nanmean(dim=1) / change.nanmean(dim=1)
    return ratio


def _neighbours(grid: Shaped[Tensor, "*map row column"], step: tuple[int, int]) -> tuple[Any, Any]:
    """Return views of all cells that have a neighbour one step away, and of those neighbours."""
    (up, right), (num_rows, num_columns) = step, grid.shape[-2:]
    here = grid[..., : num_rows - up, max(0, -right) : num_columns - max(0, right)]
    there = grid[..., up:, max(0, right) : num_columns - max(0, -right)]
    return here, there


def _crossed(
    labels: Int[Tensor, "map row column"], step: tuple[int, int]
) -> Bool[Tensor, "map some_row some_column"]:
    one, other = _neighbours(labels, step)
    crossed: Tensor = (one != other) & (one >= 0) & (other >= 0)
    return crossed


def _change(
    fields: Float[Tensor, "map field row column"], step: tuple[int, int]
) -> Float[Tensor, "map some_row some_column"]:
    here, there = _neighbours(fields, step)
    change: Tensor = (here - there).abs().sum(dim=1)
    return change
