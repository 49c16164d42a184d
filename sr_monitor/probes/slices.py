"""Measure the plane through three prompts' activations, seen from each of them.

A lies at (0, 0), B at (1, 0) and C at (t, 1), with orthogonal axes:

    t = <c - a, b - a> / <b - a, b - a>
    x(u, v) = a + u (b - a) + v (c - a - t (b - a))

The distance map of corner k is || F_k(x(u, v)) - F_k(k's own activation) ||, in k's own context.

    slices = measure_slices(model, prompts_a, prompts_b, prompts_c, resolution=41)
    slices.rgb[0]                        # red where the output is A's, green B's, blue C's
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor.errors import InputError
from sr_monitor.model.anatomy import LayerPath
from sr_monitor.model.engine import Chunk
from sr_monitor.model.forward import Call
from sr_monitor.model.memory import in_chunks
from sr_monitor.model.precision import Precision
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.session import Session, SessionOptions, open_session
from sr_monitor.model.stream import Output
from sr_monitor.options import Options, explains, option
from sr_monitor.probes.base import Page, Probe, Progress, Riders, Run, no_progress, unpack_as
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.slices_pictures import draw_frame, draw_slice, join_frames

_SPAN = (-0.25, 1.25)


@dataclass(frozen=True, kw_only=True)
class Slices:
    """What `measure_slices` found; all tensors are on the CPU."""

    coordinates: Float[Tensor, " row"]
    """Both axes' coordinates, lowest first; the axes are sampled alike."""
    distance: Float[Tensor, "triple 3 row row"]
    """Distance to corner A, B, C's own output in its own context; row 0 has the lowest second
    coordinate, column 0 the lowest first; Inf where an output was not finite."""
    foot: Float[Tensor, " triple"]
    """t, the first coordinate of C."""
    num_points: int
    """How many points were run."""
    engine: str
    """The way the points were run: "shared", "rows" or "plain"."""
    arithmetic: str = ""
    """The coarsest type of rounding: TF32 on a GPU, unless float32 is asked for."""

    @property
    def rgb(self) -> Float[Tensor, "triple row row 3"]:
        """Red, green and blue: 1 minus A's, B's and C's map, each divided by its own maximum.

        A map that is 0 everywhere is full colour; a point that is not finite is black.
        """
        finite = torch.where(self.distance.isfinite(), self.distance, 0.0)
        top = finite.amax(dim=(2, 3), keepdim=True)
        shade = torch.where(top > 0, self.distance / top, 0.0)
        return (1 - shade.nan_to_num(1.0).clamp(0, 1)).permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class SlicesOptions(Options):
    """How many slices are taken, and how finely."""

    num_slices: int = option(4, "Slices to take; 0 for none.", least=0, effect="record")
    slice_resolution: int = option(41, "Points along a side of a slice.", least=2, effect="record")


@dataclass(frozen=True, kw_only=True)
class SlicesProbe(SlicesOptions, Probe):
    """The 2-D measurement as a probe."""

    name = "slices"

    keys = (
        SLICE := Key.image("slice/<k>", "The plane through three prompts, which are marked."),
        FILM := Key.image("film/<k>", "The same slice at chosen steps, side by side."),
        ANIMATION := Key.animation("video/<k>", "The same slice at chosen steps, as a GIF."),
    )

    def measure(self, run: Run) -> Slices | None:
        """Measure as many slices as there are triples of prompts, up to `num_slices`."""
        num_slices = min(self.num_slices, run.prompts.num_triples)
        if num_slices == 0:
            return None
        triples = run.prompts.triples(num_slices)
        return _measure(
            run.session, triples, self.slice_resolution, _SPAN, run.riders, run.progress
        )

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, Any]]:
        """Draw each slice, and its film with earlier steps."""
        slices: Slices = page.part
        for triple in range(len(slices.foot)):
            having = [each for each in (*earlier, page) if triple < len(each.part.foot)]
            for each in having:  # a frame is drawn once, and shown in every later film
                if triple not in each.memo:
                    each.memo[triple] = pixels(draw_frame(each.part, triple, each.title))
            frames = [each.memo[triple] for each in having]
            prompts = page.prompts.texts_of_triple(triple)
            picture = pixels(draw_slice(slices, triple, prompts=prompts))
            yield self.SLICE.numbered(triple), picture
            yield self.FILM.numbered(triple), join_frames(frames)
            yield self.ANIMATION.numbered(triple), np.stack(frames)

    def unpack(self, values: Mapping[str, Any]) -> Slices:
        """Make `Slices` of what a record kept; old records lack what was added later."""
        return unpack_as(Slices, values, num_points=0, engine="")


@explains(SessionOptions)
def measure_slices(
    model: nn.Module,
    prompts_a: Int[Tensor, "triple token"],
    prompts_b: Int[Tensor, "triple token"],
    prompts_c: Int[Tensor, "triple token"],
    *,
    layer: int = 1,
    resolution: int = 41,
    span: tuple[float, float] = _SPAN,
    output: Output = "final_norm",
    engine: EngineName = "auto",
    layer_path: LayerPath = None,
    call: Call | None = None,
    max_tokens: int | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
    ranks: RankGroup = ALONE,
) -> Slices:
    """Measure the plane through every triple of prompts; the model comes back exactly as it was.

        slices = measure_slices(model, token_ids[:-2], token_ids[1:-1], token_ids[2:])
        slices.rgb[0]

    `prompts_a`, `prompts_b` and `prompts_c` are token ids of one length: the corners at (0, 0),
    (1, 0) and (t, 1). Both axes have `resolution` points, from the first to the second coordinate
    of `span`. `progress` and `ranks` are as in `measure_paths`.
    """
    plane = SlicesOptions(num_slices=len(prompts_a), slice_resolution=resolution)
    if len(span) != 2 or not -math.inf < span[0] < span[1] < math.inf:
        raise InputError(f"span={span}: pass the lowest coordinate, then a higher one")
    options = SessionOptions(
        layer=layer,
        output=output,
        engine=engine,
        layer_path=layer_path,
        call=call,
        max_tokens=max_tokens,
        precision=precision,
    )
    prompts = prompts_a, prompts_b, prompts_c
    with open_session(model, prompts, options, ranks) as session:
        riders, show = Riders(session, ()), progress or no_progress
        return _measure(session, prompts, plane.slice_resolution, span, riders, show)


def _measure(
    session: Session,
    prompts: Sequence[Int[Tensor, "triple token"]],
    resolution: int,
    span: tuple[float, float],
    riders: Riders,
    progress: Progress,
) -> Slices:
    """Measure this rank's bands of the corners' maps, and gather all."""
    engine, (num_triples, num_tokens) = session.engine, prompts[0].shape
    num_maps, num_points = 3 * num_triples, resolution**2
    # Who rides on the points of a map is to see all of them.
    num_bands = 1 if riders else _num_bands(session.ranks, num_maps, num_points, num_tokens)
    width = -(-num_points // num_bands)
    # Band by band, corner by corner, triple by triple: "triple·corner·band token".
    share = session.share(*(each.repeat_interleave(3 * num_bands, dim=0) for each in prompts))
    bands = session.ranks.share(share.count)
    # "band point"; the last band is filled up with its last point.
    places = (bands % num_bands * width)[:, None] + torch.arange(width)
    places = places.clamp_max(num_points - 1)
    corners = torch.stack(share.activations(), dim=1)
    own = torch.arange(len(bands)), bands // num_bands % 3
    contexts = torch.stack(share.prompts, dim=1)[own]
    coordinates, feet = torch.linspace(*span, resolution, dtype=torch.float64), _foot(corners)
    maps = corners.new_empty(len(bands), width)
    riders.begin(len(bands), num_points, share.gather)

    def measure(chosen: slice) -> None:
        u, v = _plane(coordinates.to(corners), places[chosen])
        # No matrix product: autocast and TF32 would round the points. Weights are "band point 1".
        of_a, of_b, of_c = _weights(u, v, feet[chosen, None])[..., None].unbind(dim=2)
        a, b, c = corners[chosen, :, None].unbind(dim=1)
        plane = of_a * a + of_b * b + of_c * c
        # Each corner's own activation comes first: its output is what distances are taken to.
        points = torch.cat([corners[own][chosen, None], plane], dim=1)

        def see(chunk: Chunk) -> None:
            shown = chunk.some(chunk.places > 0)  # without the corners' own activations
            band, place = shown.contexts + chosen.start, shown.places - 1
            maps[band, place] = shown.distance.to(maps.device)
            riders.read(replace(shown, contexts=band, places=place))

        engine.run(engine.open(contexts[chosen]), points, see)

    with session.tf32_products() as arithmetic:
        for first in range(0, len(bands), 3):  # points of a few maps lie in memory at once
            few = bands[first : first + 3]

            def some(chunk: slice, first: int = first) -> None:
                measure(slice(first + chunk.start, first + chunk.stop))

            in_chunks(len(few), tokens_each=num_tokens, budget=engine.budget, work=some)
            progress(-(-(first + len(few)) // 3), -(-len(bands) // 3))  # three maps are a slice
    # "triple·corner·band point" to "triple corner row column".
    distance = share.gather(maps.nan_to_num(nan=torch.inf, posinf=torch.inf))
    distance = distance.reshape(num_triples, 3, -1)[..., :num_points]
    return Slices(
        coordinates=coordinates.float(),
        distance=distance.reshape(num_triples, 3, resolution, resolution),
        foot=share.gather(feet)[:: 3 * num_bands],
        num_points=distance.numel() + 3 * num_triples,
        engine=engine.way,
        arithmetic=arithmetic,
    )


def _num_bands(ranks: RankGroup, num_maps: int, num_points: int, num_tokens: int) -> int:
    """Return how many bands to cut a map into, so that no rank runs more points than it must.

    Each band runs its prompt and its corner's own point again.
    """

    def points_of_a_rank(num_bands: int) -> int:
        each = -(-num_maps * num_bands // ranks.num_teams)
        return each * (-(-num_points // num_bands) + num_tokens)

    return min(range(1, min(ranks.num_teams, num_points) + 1), key=points_of_a_rank)


def _foot(corners: Float[Tensor, "item 3 d_model"]) -> Float[Tensor, " item"]:
    """Return t; 0 where A and B coincide and every t gives the same plane."""
    a, b, c = corners.unbind(dim=1)
    along = b - a
    return ((c - a) * along).sum(-1) / (along * along).sum(-1).clamp_min(1e-30)


def _plane(
    coordinates: Float[Tensor, " row"], places: Int[Tensor, "item point"]
) -> tuple[Float[Tensor, "item point"], Float[Tensor, "item point"]]:
    """Return u and v of places that are counted row by row."""
    return coordinates[places % len(coordinates)], coordinates[places // len(coordinates)]


def _weights(
    u: Float[Tensor, "item point"], v: Float[Tensor, "item point"], foot: Float[Tensor, "item 1"]
) -> Float[Tensor, "item point 3"]:
    """Return the weights of a, b and c at each point of the plane."""
    weight_b = u - v * foot
    return torch.stack([1 - weight_b - v, weight_b, v], dim=-1)
