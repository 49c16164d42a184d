"""Measure paths cut at several layers: where the activation is replaced, not where it is read.

One clean run gives the activations at all layers, and the keys and values of the earlier tokens are
computed once. Few pairs and a coarse grid: points of its own.

    StableRegionCallback(probes=[Layers(num_layers=5)])
    record.parts["layers"].max_slope            # "pair layer"
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.model.engine import Context, Engine, Way
from sr_monitor.model.examination import tolerance
from sr_monitor.model.memory import in_chunks
from sr_monitor.model.outputs import Tap
from sr_monitor.model.session import Session, Share
from sr_monitor.options import option
from sr_monitor.probes import sharpness
from sr_monitor.probes.base import RGB, Page, Probe, Progress, Run, unpack_as
from sr_monitor.probes.depth_pictures import Profile, draw_along, draw_profile
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.lines import alphas_of, each_chunk, points_between, rounding_of
from sr_monitor.probes.statistics import median_curve


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """The paths at several layers."""

    layers: Int[Tensor, " layer"]
    distance: Float[Tensor, "pair layer step"]
    """d(alpha); NaN for pairs whose output does not move, or is not finite somewhere."""
    num_points: int

    @property
    def alphas(self) -> Float[Tensor, " step"]:
        """The interpolation coefficients."""
        return alphas_of(self.distance.shape[-1])

    @property
    def relative(self) -> Float[Tensor, "pair layer step"]:
        """d(alpha) / d(1)."""
        return self.distance / self.distance[..., -1:]

    @property
    def max_slope(self) -> Float[Tensor, "pair layer"]:
        """The steepest rise of each path."""
        slope = sharpness.max_slope(self.alphas, self.relative.flatten(0, 1))
        return slope.view(self.distance.shape[:2])

    @property
    def median(self) -> Float[Tensor, " layer"]:
        """The median maximum slope by layer."""
        return self.max_slope.nanmedian(dim=0).values


@dataclass(frozen=True, kw_only=True)
class Layers(Probe):
    """Paths cut at several layers."""

    name = "layers"
    keys = (
        STEEPEST := Key.scalar(
            "layers/max_slope", "The highest of the layers' median maximum slopes."
        ),
        STEEPEST_LAYER := Key.scalar("layers/steepest_layer", "The cut at which it is found."),
        CURVES := Key.image("layers/curves", "The median curve of each cut."),
        TRAINING := Key.image("layers/slopes", "Maximum slopes by cut, over training."),
    )
    num_layers: int = option(
        9, "Layers to cut at, from the embedding output to the last block.", least=1
    )
    num_pairs: int = option(16, "Pairs of prompts.", least=1)
    num_steps: int = option(21, "Alphas on a path, both ends included.", least=2)

    def measure(self, run: Run) -> Cuts:
        """Walk along the same pairs' paths at every layer."""
        pairs = run.prompts.pairs(min(self.num_pairs, run.prompts.num_pairs))
        share = run.session.share(*pairs)
        most = len(run.session.stream.anatomy.blocks)
        spread = torch.linspace(0, most, min(self.num_layers, most + 1), dtype=torch.float64)
        layers = spread.round().long()
        a, b = (item[:2].to(share.prompts[0]) for item in pairs)
        engines = _engines(run.session, layers.tolist(), a, b)
        distance = share.gather(_walk(share, engines, self.num_steps, run.progress))
        return Cuts(layers=layers, distance=distance, num_points=distance.numel())

    def scalars(self, part: Cuts) -> Mapping[Key, float]:
        """Return the layer whose paths are steepest."""
        steepest, place = part.median.nan_to_num(-math.inf).max(dim=0)
        if not steepest.isfinite():
            return {self.STEEPEST: math.nan, self.STEEPEST_LAYER: math.nan}
        return {self.STEEPEST: float(steepest), self.STEEPEST_LAYER: float(part.layers[place])}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the curves of each cut, and the slopes by cut over training."""
        part: Cuts = page.part
        curves = [
            median_curve(each, each.isfinite().all(dim=1))[1] for each in part.relative.unbind(1)
        ]
        along = draw_along(
            part.layers, part.alphas, torch.stack(curves), page.title, "cut at layer"
        )
        yield self.CURVES, pixels(along)
        pages = [each for each in (*earlier, page) if torch.equal(each.part.layers, part.layers)]
        profile = Profile(
            numbers=part.layers,
            titles=[each.title for each in pages],
            values=torch.stack([each.part.median for each in pages]),
            value="maximum slope (median)",
            place="cut at layer",
        )
        found = self.scalars(part)
        note = f"steepest at layer {found[self.STEEPEST_LAYER]:.0f} ({found[self.STEEPEST]:.2f})"
        yield self.TRAINING, pixels(draw_profile(profile, page.title, note))

    def unpack(self, values: Mapping[str, Any]) -> Cuts:
        """Make `Cuts` of what a record kept."""
        return unpack_as(Cuts, values)


def _engines(
    session: Session,
    layers: Sequence[int],
    a: Int[Tensor, "pair token"],
    b: Int[Tensor, "pair token"],
) -> list[Engine]:
    """Return how points are run from each layer: as in the session, where the plain way agrees.

    The ends of the two paths are compared.
    """
    stream, way, budget = session.stream, session.engine.way, session.engine.budget
    fast = [Engine(stream.at(layer), way, budget) for layer in layers]
    plain = [Engine(stream.at(layer), "plain", budget) for layer in layers]
    agree = [way == "plain"] * len(layers)

    def compare(_: slice) -> None:
        context, alone = session.engine.open(a), plain[0].open(a)
        ends = torch.stack([_activations(session, item, layers) for item in (a, b)], dim=2)
        for place, points in enumerate(ends):  # "pair 2 d_model"
            found = fast[place].distances(context, points)[0]
            expected, clean = plain[place].distances(alone, points)
            scale = float(clean.final.float().norm(dim=-1).max())
            allowed = tolerance(stream.precision) * max(float(expected.max()), 0.05 * scale)
            agree[place] = float((found - expected).abs().max()) <= allowed

    if way != "plain":
        in_chunks(1, tokens_each=1, budget=budget, work=compare)
    agree = session.ranks.broadcast(agree)
    return [fast[place] if agrees else plain[place] for place, agrees in enumerate(agree)]


def _walk(
    share: Share, engines: Sequence[Engine], num_steps: int, progress: Progress
) -> Float[Tensor, "mine layer step"]:
    session, prompts = share.session, share.prompts[0]
    layers = [engine.stream.layer for engine in engines]
    starts, ends = (_activations(session, item, layers) for item in share.prompts)
    distance = torch.full((len(prompts), len(engines), num_steps), torch.nan)
    alphas = alphas_of(num_steps)

    def measure(pairs: slice) -> None:
        contexts: dict[Way, Context] = {}
        for place, engine in enumerate(engines):
            # Keys and values of the earlier tokens are the same wherever the stream is cut.
            context = contexts.get(engine.way) or engine.open(prompts[pairs])
            contexts[engine.way] = context
            points = points_between(starts[place, pairs], ends[place, pairs], alphas)
            found, clean = engine.distances(context, points)
            moves = found[:, -1] > rounding_of(clean.final, session.stream.precision).to(found)
            counts = moves & found.isfinite().all(dim=1)
            distance[pairs, place] = found.where(counts[:, None], math.nan).cpu()

    each_chunk(share, num_steps, measure, progress)
    return distance


def _activations(
    session: Session, prompts: Int[Tensor, "item token"], layers: Sequence[int]
) -> Float[Tensor, "layer item d_model"]:
    """Return each prompt's activations at all layers, from one clean run."""
    stream = session.stream.at(0)
    taps = {str(number): Tap(block) for number, block in enumerate(stream.anatomy.blocks, start=1)}
    pieces: dict[int, Tensor] = {}

    def read(chunk: slice) -> None:
        cut = stream.read(prompts[chunk])
        with stream.tapping({name: tap for name, tap in taps.items() if int(name) in layers}):
            seen = stream.continue_plain(prompts[chunk], cut).taps
        found = [cut if layer == 0 else seen[str(layer)].to(cut) for layer in layers]
        pieces[chunk.start] = torch.stack(found).float()

    budget = session.engine.budget
    in_chunks(len(prompts), tokens_each=prompts.shape[1], budget=budget, work=read)
    return torch.cat(list(pieces.values()), dim=1)
