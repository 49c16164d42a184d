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
from sr_monitor.model.session import SessionOptions, Share, open_session
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
        share = run.session.share(*run.prompts.triples(num_slices))
        return _measure(share, self.slice_resolution, _SPAN, run.riders, run.progress)

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
        share, riders = session.share(*prompts), Riders(session, ())
        return _measure(share, plane.slice_resolution, span, riders, progress or no_progress)


def _measure(
    share: Share, resolution: int, span: tuple[float, float], riders: Riders, progress: Progress
) -> Slices:
    """Measure this rank's triples, one after the other, and gather all."""
    session, engine = share.session, share.session.engine
    coordinates = torch.linspace(*span, resolution, dtype=torch.float64)
    corners = torch.stack(share.activations(), dim=1)
    prompts = torch.stack(share.prompts, dim=1)
    maps = corners.new_empty(len(corners), 3, resolution**2)
    feet = _foot(corners)
    weights = _weights(coordinates.to(corners), feet)
    riders.begin(3 * len(corners), resolution**2, share.gather)

    def measure_triple(triple: int, weight: Float[Tensor, "point 3"]) -> None:
        # No matrix product: autocast and TF32 would round the points. Weights are "point 1".
        of_a, of_b, of_c = weight[..., None].unbind(dim=1)
        plane = of_a * corners[triple, 0] + of_b * corners[triple, 1] + of_c * corners[triple, 2]
        # Each corner's own activation comes first: its output is what distances are taken to.
        points = torch.cat([corners[triple][:, None], plane.expand(3, -1, -1)], dim=1)

        def measure(chosen: slice) -> None:
            def see(chunk: Chunk) -> None:
                shown = chunk.some(chunk.places > 0)  # without the corners' own activations
                corner, place = shown.contexts + chosen.start, shown.places - 1
                maps[triple, corner, place] = shown.distance.to(maps.device)
                riders.read(replace(shown, contexts=3 * triple + corner, places=place))

            engine.run(engine.open(prompts[triple, chosen]), points[chosen], see)

        in_chunks(3, tokens_each=prompts.shape[2], budget=engine.budget, work=measure)
        progress(triple + 1, len(corners))

    with session.tf32_products() as arithmetic:
        for triple, weight in enumerate(weights):
            measure_triple(triple, weight)
    distance = share.gather(maps.nan_to_num(nan=torch.inf, posinf=torch.inf))
    return Slices(
        coordinates=coordinates.float(),
        # "triple corner point" to "triple corner row column".
        distance=distance.reshape(-1, 3, resolution, resolution),
        foot=share.gather(feet),
        num_points=distance.numel() + 3 * len(distance),
        engine=engine.way,
        arithmetic=arithmetic,
    )


def _foot(corners: Float[Tensor, "triple 3 d_model"]) -> Float[Tensor, " triple"]:
    """Return t; 0 where A and B coincide and every t gives the same plane."""
    a, b, c = corners.unbind(dim=1)
    along = b - a
    return ((c - a) * along).sum(-1) / (along * along).sum(-1).clamp_min(1e-30)


def _weights(
    coordinates: Float[Tensor, " row"], foot: Float[Tensor, " triple"]
) -> Float[Tensor, "triple point 3"]:
    """Return the weights of a, b and c at each point of the plane, row by row."""
    v, u = torch.meshgrid(coordinates, coordinates, indexing="ij")
    u, v = u.flatten(), v.flatten()
    weight_b = u - v * foot[:, None]
    weight_c = v.expand_as(weight_b)
    return torch.stack([1 - weight_b - weight_c, weight_b, weight_c], dim=-1)
