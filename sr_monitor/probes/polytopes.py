"""Count the linear pieces on each path: the gates of feed-forwards whose sign changes on the way.

    N = sum over blocks, gates n, neighbouring alphas of [sign g_n(alpha_i) != sign g_n(alpha_i+1)]

where g is what the activation function takes. Regions of the output are far larger. Signs are kept
as bits, and only until a point's neighbours have come.

    StableRegionCallback(probes=["polytopes"])
    record.parts["polytopes"].crossings.sum(dim=1)      # N, "pair"
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.gates import Gates
from sr_monitor.model.outputs import Tap
from sr_monitor.model.session import Session
from sr_monitor.model.stream import Stream
from sr_monitor.model.sublayers import find_gates
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Gather, Page, Part, Probe, unpack_as
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.polytopes_pictures import draw_polytopes
from sr_monitor.probes.regions import Regions
from sr_monitor.probes.statistics import quartiles

_TAP = "gate signs"


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """How many gates change their sign; NaN for pairs that do not count."""

    blocks: Int[Tensor, " block"]
    crossings: Float[Tensor, "pair interval"]
    """Between neighbouring alphas; where adaptive sampling left a gap, its share of the gap's."""
    by_block: Float[Tensor, "pair block"]
    near: Float[Tensor, " pair"]
    """Per alpha, around the steepest rise."""
    far: Float[Tensor, " pair"]
    """Per alpha, elsewhere."""
    regions: Float[Tensor, " pair"]
    """The number of regions on the same path."""

    @property
    def count(self) -> Float[Tensor, " pair"]:
        """N, all along each path."""
        return self.crossings.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Polytopes(Probe):
    """Sign changes of gates along each path."""

    name = "polytopes"
    rides = "paths"
    keys = (
        COUNT := Key.scalar("polytopes/crossings", "The median number of sign changes on a path."),
        RATIO := Key.scalar(
            "polytopes/near_to_far",
            "The median density of sign changes near the steepest rise, over that elsewhere.",
        ),
        PER_REGION := Key.scalar(
            "polytopes/per_region", "The median number of sign changes for each region on a path."
        ),
        WHERE := Key.image(
            "polytopes/where", "Sign changes by block, and along the path around its steepest rise."
        ),
    )
    near: float = option(
        0.1, "How far from the steepest rise, in alpha, still counts as near.", effect="record"
    )

    def taps(self, stream: Stream) -> Mapping[str, Tap]:
        """Read the signs of the gates of each block behind the cut."""
        return {
            f"{_TAP} {number}": Tap(gates.tap.module, gates.tap.before, partial(pack_signs, gates))
            for number, gates in find_gates(stream).items()
        }

    def reader(self, session: Session, num_contexts: int, num_places: int) -> "_Reader":
        """Compare the signs of neighbouring points."""
        return _Reader(num_contexts, num_places)

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Crossings:
        """Sum up along paths that count, near their steepest rise and far from it."""
        paths: Paths = parts["paths"]
        changes: Float[Tensor, "pair block interval"] = part["changes"]
        changes = changes.where(paths.kept[:, None, None], math.nan)
        crossings = changes.sum(dim=1)
        num_intervals = crossings.shape[1]
        steepest = (paths.location * num_intervals - 0.5).nan_to_num(0).round()
        # "interval" against "pair 1"
        away = (torch.arange(num_intervals) - steepest[:, None]).abs()
        is_near = away <= round(self.near * num_intervals)
        near, far = (
            crossings.where(chosen, 0).sum(dim=1) / chosen.sum(dim=1) * num_intervals
            for chosen in (is_near, ~is_near)
        )
        counted = Regions().derive({"paths": paths}) or {}
        return Crossings(
            blocks=part["blocks"],
            crossings=crossings,
            by_block=changes.sum(dim=2),
            near=near,
            far=far,
            regions=counted["count"].float(),
        )

    def scalars(self, part: Crossings) -> Mapping[Key, float]:
        """Return medians over the pairs that count."""
        return {
            self.COUNT: quartiles(part.count)[1],
            self.RATIO: quartiles(part.near / part.far)[1],
            self.PER_REGION: quartiles(part.count / part.regions)[1],
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw where gates change their sign."""
        found = self.scalars(page.part)
        note = (
            f"{found[self.COUNT]:.0f} sign changes on a path (median), "
            f"{found[self.PER_REGION]:.0f} for each region"
        )
        yield self.WHERE, pixels(draw_polytopes(page.part, page.parts["paths"], page.title, note))

    def unpack(self, values: Mapping[str, Any]) -> Crossings:
        """Make `Crossings` of what a record kept."""
        return unpack_as(Crossings, values)


def pack_signs(gates: Gates, tapped: Float[Tensor, "*batch width"]) -> UInt8[Tensor, "*batch byte"]:
    """Return which gates are above 0, eight in a byte."""
    signs = gates.of(tapped) > 0
    if signs.device.type == "cpu":  # several times as fast
        return torch.from_numpy(np.packbits(signs.numpy(), axis=-1, bitorder="little"))
    return pack_anywhere(signs)


def pack_anywhere(signs: Bool[Tensor, "*batch gate"]) -> UInt8[Tensor, "*batch byte"]:
    """Pack eight signs in a byte on any device, the first one lowest."""
    signs = torch.nn.functional.pad(signs, (0, -signs.shape[-1] % 8))
    # "... byte·8" to "... byte 8"
    bits = signs.to(torch.uint8).view(*signs.shape[:-1], -1, 8)
    worth = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    packed: Tensor = (bits * worth).sum(dim=-1, dtype=torch.uint8)
    return packed


class _Reader:
    """Sign changes between neighbouring points, by block; NaN where none were compared."""

    def __init__(self, num_contexts: int, num_places: int) -> None:
        self._shape = num_contexts, num_places - 1
        self._changes: dict[int, Tensor] = {}
        self._waiting: dict[int, dict[int, list[Tensor]]] = {n: {} for n in range(num_contexts)}

    def read(self, chunk: Chunk) -> None:
        contexts, places = chunk.contexts, chunk.places
        order = (contexts * (self._shape[1] + 1) + places).argsort()
        contexts, places = contexts[order], places[order]
        signs = {
            int(name.split()[-1]): packed[order.to(packed.device)]
            for name, packed in chunk.taps.items()
            if name.startswith(_TAP)
        }
        joined = (contexts.diff() == 0) & (places.diff() == 1)
        for number, packed in signs.items():
            if number not in self._changes:
                self._changes[number] = torch.full(self._shape, torch.nan)
            found = _count(packed[1:], packed[:-1]).cpu()[joined]
            self._changes[number][contexts[:-1][joined], places[:-1][joined]] = found
        no, end = torch.tensor([False]), self._shape[1]
        left, right = torch.cat([no, joined]), torch.cat([joined, no])
        edges = (~left & (places > 0)) | (~right & (places < end))
        for row in edges.nonzero().flatten().tolist():
            mine = [packed[row].cpu() for packed in signs.values()]
            self._meet(int(contexts[row]), int(places[row]), mine)

    def _meet(self, context: int, place: int, mine: list[Tensor]) -> None:
        """Compare a point with its neighbours that came in other chunks; keep it for the rest."""
        waiting = self._waiting[context]
        waiting[place] = mine
        for start in (place - 1, place):
            if start in waiting and start + 1 in waiting:
                self._compare(context, start, start + 1)
        first = next(iter(self._changes.values()))[context]
        for each in (place - 1, place, place + 1):
            around = first[max(0, each - 1) : each + 1]
            if each in waiting and not around.isnan().any():
                del waiting[each]

    def _compare(self, context: int, start: int, stop: int) -> None:
        """Count between two points; what lies between them shares it."""
        both = zip(self._waiting[context][start], self._waiting[context][stop], strict=True)
        for changes, (one, other) in zip(self._changes.values(), both, strict=True):
            changes[context, start:stop] = _count(one, other) / (stop - start)

    def part(self, gather: Gather) -> Part:
        for context, waiting in self._waiting.items():
            places = sorted(waiting)
            for start, stop in pairwise(places):
                if next(iter(self._changes.values()))[context, start:stop].isnan().all():
                    self._compare(context, start, stop)
            waiting.clear()
        changes = torch.stack(list(self._changes.values()), dim=1)
        return {"blocks": torch.tensor(list(self._changes)), "changes": gather(changes)}


def _count(
    one: UInt8[Tensor, "*batch byte"], other: UInt8[Tensor, "*batch byte"]
) -> Shaped[Tensor, "*batch"]:
    """Return in how many bits they differ."""
    bits = one ^ other
    # Each byte's bits, summed up in pairs, in fours, and all eight.
    bits = (bits & 0x55) + ((bits >> 1) & 0x55)
    bits = (bits & 0x33) + ((bits >> 2) & 0x33)
    bits = (bits & 0x0F) + (bits >> 4)
    return bits.sum(dim=-1, dtype=torch.long).float()
