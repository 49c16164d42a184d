"""Connected regions and their boundaries: equal to a flood fill, and known shapes."""

import math

import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from sr_monitor.probes.segments import (
    boundary_length,
    boundary_sharpness,
    connected_regions,
    count_regions,
    region_areas,
)

SIDE = 40
UP, RIGHT = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")


def _flood(labels: Int[Tensor, "row column"]) -> Int[Tensor, "row column"]:
    """Fill one region after the other, cell by cell, from its first cell."""
    regions = torch.full(labels.shape, -1)
    height, width = labels.shape
    for start in range(height * width):
        row, column = divmod(start, width)
        if regions[row, column] >= 0 or labels[row, column] < 0:
            continue
        waiting = [(row, column)]
        while waiting:
            row, column = waiting.pop()
            regions[row, column] = start
            for r, c in (
                (row + 1, column),
                (row - 1, column),
                (row, column + 1),
                (row, column - 1),
            ):
                inside = 0 <= r < height and 0 <= c < width
                if inside and regions[r, c] < 0 and labels[r, c] == labels[row, column]:
                    waiting.append((r, c))
    return regions


@pytest.mark.parametrize("num_labels", [2, 3, 7])
def test_regions_are_those_of_a_flood_fill(num_labels: int) -> None:
    """Of noise, whose regions wind; some cells have no label."""
    generator = torch.Generator().manual_seed(num_labels)
    labels = torch.randint(-1, num_labels, (3, 13, 13), generator=generator)
    found = connected_regions(labels)
    assert torch.equal(found, torch.stack([_flood(each) for each in labels]))
    counts = [len(set(each[each >= 0].tolist())) for each in found]
    assert count_regions(found).tolist() == counts
    areas = region_areas(found)
    assert len(areas) == sum(counts)
    assert areas.sum() == pytest.approx((labels >= 0).sum() / 13**2)


def test_a_spiral_is_one_region() -> None:
    labels = torch.zeros(1, 9, 9, dtype=torch.int8)
    spiral = [(0, range(9)), (2, range(7)), (4, range(2, 7)), (6, range(2, 9)), (8, range(9))]
    for row, columns in spiral:
        labels[0, row, list(columns)] = 1
    labels[0, 0:9, 8] = 1
    labels[0, 2:5, 6] = labels[0, 2:9, 0] = 1
    regions = connected_regions(labels)
    assert torch.equal(regions[0], _flood(labels[0].long()))
    assert connected_regions(torch.full((1, 3, 3), -1)).eq(-1).all()
    assert region_areas(connected_regions(torch.full((1, 3, 3), -1))).tolist() == []


@pytest.mark.parametrize("angle", range(0, 180, 15))
def test_a_straight_cut_is_as_long_as_it_is(angle: int) -> None:
    """To 9%, whichever way it runs, and a circle to 4%."""
    normal = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across = (RIGHT - SIDE / 2 + 0.3) * normal[0] + (UP - SIDE / 2 + 0.4) * normal[1]
    true = 1 / max(map(abs, normal))
    assert float(boundary_length((across > 0).long()[None])) == pytest.approx(true, rel=0.09)
    circle = (RIGHT - 19.6) ** 2 + (UP - 19.3) ** 2 < 15**2
    length = float(boundary_length(circle.long()[None]))
    assert length == pytest.approx(2 * math.pi * 15 / SIDE, rel=0.04)


def test_what_has_no_label_has_no_boundary() -> None:
    labels = (RIGHT > 20).long()[None]
    assert boundary_length(labels.masked_fill(RIGHT == 20, -1)) == 0
    assert boundary_length(torch.zeros(2, 5, 5, dtype=torch.long)).tolist() == [0, 0]


def test_sharpness_is_1_on_a_slope_and_as_many_as_there_are_steps_on_a_step() -> None:
    labels = (RIGHT >= SIDE / 2).long()[None]
    slope = torch.stack([RIGHT, 2 * UP])[None].float()
    # Up and right change alike on average; a boundary that only steps right are across does 1 of 3.
    assert float(boundary_sharpness(slope, labels)) == pytest.approx(1 / 1.5)
    diagonal = (RIGHT + UP >= SIDE).long()[None]
    assert float(boundary_sharpness(slope, diagonal)) == pytest.approx(1, abs=1e-3)
    step = labels[:, None].float()
    # Of 2 * 40 * 39 neighbours 40 differ.
    assert float(boundary_sharpness(step, labels)) == pytest.approx(2 * 39)
    lost = torch.where(UP == 3, torch.inf, step)
    assert float(boundary_sharpness(lost, labels)) == pytest.approx(2 * 39, rel=0.1)
    assert math.isnan(float(boundary_sharpness(step, labels * 0)))
