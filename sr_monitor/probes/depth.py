"""Read the path after every block: where through the depth a smooth path turns into a step.

    d_k(alpha) = || h_k(x(alpha)) - h_k(a) ||,    h_k the last position's stream after block k,

relative to d_k(1), and its maximum slope by block. The points are those of paths, in one pass.

    StableRegionCallback(probes=["depth"])
    record.parts["depth"].max_slope             # "pair block"
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.errors import MissingPartError
from sr_monitor.model.engine import Chunk
from sr_monitor.model.outputs import Tap
from sr_monitor.model.session import Session
from sr_monitor.model.stream import Stream
from sr_monitor.probes import sharpness
from sr_monitor.probes.base import RGB, Gather, Page, Part, Probe, unpack_as
from sr_monitor.probes.depth_pictures import Profile, draw_along, draw_profile
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.statistics import median_curve, quartiles

# Named here, since an annotation in a function makes a class at each call: cyclic garbage.
_PerBlock: TypeAlias = Float[Tensor, "pair block"]


@dataclass(frozen=True, kw_only=True)
class Depths:
    """The paths as they are after each block."""

    blocks: Int[Tensor, " block"]
    """The numbers of the blocks after the cut."""
    max_slope: Float[Tensor, "pair block"]
    """The steepest rise after each block; NaN for pairs that do not count, or do not move there."""
    location: Float[Tensor, "pair block"]
    """The alpha of that rise."""
    end_distance: Float[Tensor, "pair block"]
    """d_k(1), how far the stream moves in all."""
    curves: Float[Tensor, "block step"]
    """The median relative distance."""

    @property
    def median(self) -> Float[Tensor, " block"]:
        """The median maximum slope by block."""
        return self.max_slope.nanmedian(dim=0).values


@dataclass(frozen=True, kw_only=True)
class Depth(Probe):
    """The path after every block."""

    name = "depth"
    rides = "paths"
    keys = (
        STEEPEST := Key.scalar(
            "depth/max_slope", "The highest of the blocks' median maximum slopes."
        ),
        STEEPEST_BLOCK := Key.scalar("depth/steepest_block", "The block after which it is found."),
        TURN := Key.scalar(
            "depth/turn", "The first block after which paths are half as much steeper than a line."
        ),
        CURVES := Key.image("depth/curves", "The median curve after each block."),
        TRAINING := Key.image("depth/slopes", "Maximum slopes by block, over training."),
    )

    def taps(self, stream: Stream) -> Mapping[str, Tap]:
        """Read the stream after each block behind the cut."""
        blocks = stream.anatomy.blocks
        if stream.layer == len(blocks):
            raise MissingPartError(
                f"{type(stream.anatomy.core).__name__} has no block after layer={stream.layer}; "
                "pass a lower layer="
            )
        return {
            f"block {number}": Tap(block)
            for number, block in enumerate(blocks, start=1)
            if number > stream.layer
        }

    def reader(self, session: Session, num_contexts: int, num_places: int) -> "_Reader":
        """Read the distance after each block at every point."""
        return _Reader(list(self.taps(session.stream)), num_contexts, num_places)

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Depths:
        """Take slopes and medians of the pairs that count."""
        distance: Float[Tensor, "pair block step"] = part["distance"]
        alphas, kept = parts["paths"].alphas, parts["paths"].kept
        relative = distance / distance[..., -1:]
        flat = relative.flatten(0, 1)  # "pair·block step"
        shape = distance.shape[:2]
        # A pair that does not move after some block, such as one a later block makes move.
        counts = (distance[..., -1] > 0) & ~distance.isinf().any(dim=-1) & kept[:, None]

        def of(measure: Any) -> _PerBlock:
            found: Tensor = measure(alphas, flat).view(shape)
            return found.where(counts, math.nan)

        curves = [
            median_curve(sharpness.fill_gaps(alphas, relative[:, block]), counts[:, block])[1]
            for block in range(shape[1])
        ]
        return Depths(
            blocks=part["blocks"],
            max_slope=of(sharpness.max_slope),
            location=of(sharpness.slope_location),
            end_distance=distance[..., -1],
            curves=torch.stack(curves),
        )

    def scalars(self, part: Depths) -> Mapping[Key, float]:
        """Return the steepest block, and the one at which paths turn into steps."""
        median = part.median.nan_to_num(-math.inf)
        steepest, place = median.max(dim=0)
        if not steepest.isfinite():
            return dict.fromkeys((self.STEEPEST, self.STEEPEST_BLOCK, self.TURN), math.nan)
        turned = (median - 1 >= (steepest - 1) / 2).nonzero()
        return {
            self.STEEPEST: float(steepest),
            self.STEEPEST_BLOCK: float(part.blocks[place]),
            self.TURN: float(part.blocks[turned[0]]),
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the curves after each block, and the slopes by block over training."""
        part: Depths = page.part
        alphas = page.parts["paths"].alphas
        yield (
            self.CURVES,
            pixels(draw_along(part.blocks, alphas, part.curves, page.title, "after block")),
        )
        pages = [
            each for each in (*earlier, page) if torch.equal(each.part.blocks, page.part.blocks)
        ]
        profile = Profile(
            numbers=part.blocks,
            titles=[each.title for each in pages],
            values=torch.stack([each.part.median for each in pages]),
            value="maximum slope (median)",
            place="read after block",
        )
        final = quartiles(page.parts["paths"].max_slope)[1]
        yield self.TRAINING, pixels(draw_profile(profile, page.title, self._in_words(part, final)))

    def _in_words(self, part: Depths, final: float) -> str:
        found = self.scalars(part)
        if math.isnan(found[self.STEEPEST]):
            return "no pair counts"
        return (
            f"turns at block {found[self.TURN]:.0f}, steepest after block "
            f"{found[self.STEEPEST_BLOCK]:.0f} ({found[self.STEEPEST]:.2f}); output {final:.2f}"
        )

    def unpack(self, values: Mapping[str, Any]) -> Depths:
        """Make `Depths` of what a record kept."""
        return unpack_as(Depths, values)


class _Reader:
    """The distance after each block, at each point of this rank's pairs."""

    def __init__(self, names: Sequence[str], num_contexts: int, num_places: int) -> None:
        self._names = names
        self._distance = torch.full((num_contexts, len(names), num_places), torch.nan)

    def read(self, chunk: Chunk) -> None:
        for number, name in enumerate(self._names):
            gap = (chunk.taps[name].float() - chunk.clean_tap(name).float()).norm(dim=-1)
            finite = gap.nan_to_num(nan=torch.inf, posinf=torch.inf)
            self._distance[chunk.contexts, number, chunk.places] = finite.cpu()

    def part(self, gather: Gather) -> Part:
        numbers = [int(name.split()[1]) for name in self._names]
        return {"blocks": torch.tensor(numbers), "distance": gather(self._distance)}
