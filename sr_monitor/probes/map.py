"""Cut each slice into regions, by nearest corner and by top predicted token.

The nearest corner of a point is the one whose own output is closest, each distance in that corner's
own context. Top tokens are those of each corner's context: three maps a slice.

    part = record.parts["map"]
    part["nearest"]        # "triple row column": 0, 1, 2 for A, B, C; -1 where not finite
    part["top_token"]      # "triple corner row column"
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.session import Session
from sr_monitor.probes.base import RGB, Gather, Page, Part, Probe
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.map_pictures import draw_map
from sr_monitor.probes.next_tokens import NextTokens, top_tokens
from sr_monitor.probes.segments import (
    boundary_length,
    boundary_sharpness,
    connected_regions,
    count_regions,
    region_areas,
)

REGIONS = Key.scalar("map/regions", "Connected regions of a slice by nearest corner, on average.")
BOUNDARY = Key.scalar(
    "map/boundary", "The length of their boundaries; a cut from side to side of a slice is 1."
)
SHARPNESS = Key.scalar(
    "map/sharpness",
    "How much the distances change across these boundaries, relative to everywhere.",
)
TOKEN_REGIONS = Key.scalar(
    "map/token_regions", "Connected regions by top token in one corner's context, on average."
)
TOKEN_BOUNDARY = Key.scalar("map/token_boundary", "The length of their boundaries.")
TOKEN_SHARPNESS = Key.scalar(
    "map/token_sharpness",
    "How much that corner's distance changes across these boundaries, relative to everywhere.",
)
AREAS = Key.histogram("map/areas", "The areas of the regions by nearest corner.")
TOKEN_AREAS = Key.histogram("map/token_areas", "The areas of the regions by top token.")
MAP = Key.image("map/<k>", "A slice with its boundaries, and the top tokens in each context.")


@dataclass(frozen=True, kw_only=True)
class Map(Probe):
    """Slices cut into regions."""

    name = "map"
    rides = "slices"
    holds = ("top_token", "nearest", "sharpness", "token_sharpness")
    keys = (
        *(REGIONS, BOUNDARY, SHARPNESS, TOKEN_REGIONS, TOKEN_BOUNDARY, TOKEN_SHARPNESS),
        *(AREAS, TOKEN_AREAS, MAP),
    )

    def reader(self, session: Session, num_contexts: int, num_places: int) -> "_Reader":
        """Read the top token at every point of the slices."""
        tops = torch.full((num_contexts, num_places), -1, dtype=torch.int32)
        return _Reader(NextTokens(session.stream), tops)

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Part:
        """Add the nearest corners, and how sharp the boundaries of both kinds are."""
        distance = parts["slices"].distance
        finite = distance.isfinite()
        # "context place" to "triple corner row column"
        tops = part["top_token"].view(distance.shape).masked_fill(~finite, -1)
        nearest = distance.argmin(dim=1).masked_fill(~finite.all(dim=1), -1)
        shades = distance / distance.where(finite, 0).amax(dim=(2, 3), keepdim=True)
        # each corner's map by itself: "triple corner row column" to "map field row column"
        by_token = boundary_sharpness(shades.flatten(0, 1)[:, None], tops.flatten(0, 1))
        return {
            "top_token": tops,
            "nearest": nearest.to(torch.int8),
            "sharpness": boundary_sharpness(shades, nearest),
            "token_sharpness": by_token.view(-1, 3),
        }

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return means over the slices, and over the corners' contexts."""
        nearest, tops = part["nearest"], part["top_token"].flatten(0, 1)
        return {
            REGIONS: _mean(count_regions(connected_regions(nearest))),
            BOUNDARY: _mean(boundary_length(nearest)),
            SHARPNESS: _mean(part["sharpness"]),
            TOKEN_REGIONS: _mean(count_regions(connected_regions(tops))),
            TOKEN_BOUNDARY: _mean(boundary_length(tops)),
            TOKEN_SHARPNESS: _mean(part["token_sharpness"]),
        }

    def histograms(self, part: Part) -> Mapping[Key, Float[Tensor, " region"]]:
        """Return the areas of all regions, as shares of a slice."""
        tops = part["top_token"].flatten(0, 1)
        return {
            AREAS: region_areas(connected_regions(part["nearest"])),
            TOKEN_AREAS: region_areas(connected_regions(tops)),
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw each slice with its boundaries, and its top tokens in the three contexts."""
        if "slices" in page.parts:
            for triple in range(len(page.part["nearest"])):
                slices, name = page.parts["slices"], page.prompts.token_name
                picture = draw_map(page.part, slices, triple, page.title, name=name)
                yield MAP.numbered(triple), pixels(picture)


def _mean(values: Tensor) -> float:
    return float(values.double().nanmean())


@dataclass
class _Reader:
    """The top token at each point of this rank's slices."""

    next_tokens: NextTokens
    tops: Int[Tensor, "context place"]

    def read(self, chunk: Chunk) -> None:
        for piece in self.next_tokens.pieces(len(chunk.contexts)):
            tops = top_tokens(self.next_tokens.logits(chunk.outputs[piece]))
            self.tops[chunk.contexts[piece], chunk.places[piece]] = tops.int()

    def part(self, gather: Gather) -> Part:
        return {"top_token": gather(self.tops)}
