"""Hold a sublayer at its value for A along the path: who flattens the plateau, who makes the jump.

The *jump* is the slope where the whole path is steepest, relative to the whole path's d(1). The
*plateau* is the mean slope before the whole path first reaches a quarter of d(1), relative to each
path's own end. Both are 1 on a straight line. Points of its own: few pairs, run again for each
sublayer that is held, and for all of a kind.

    StableRegionCallback(probes=["causes"])
    record.parts["causes"].share                # "kind block": of the jump, by attention or not
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.model.outputs import Outputs, Tap
from sr_monitor.model.session import Share
from sr_monitor.model.sublayers import find_parts
from sr_monitor.options import option
from sr_monitor.probes import sharpness
from sr_monitor.probes.base import RGB, Page, Probe, Run, unpack_as
from sr_monitor.probes.causes_pictures import draw_causes
from sr_monitor.probes.depth_pictures import Profile, draw_profile
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.lines import alphas_of, each_chunk, points_between, rounding_of
from sr_monitor.probes.statistics import quartiles

KINDS = "attention", "feed_forward"
_PLATEAU = 0.25


@dataclass(frozen=True, kw_only=True)
class Held:
    """Paths of the whole model, and with sublayers held at their value for A.

    Kinds are attention, then feed-forward. NaN for pairs whose output does not move or is not
    finite, and where a block has no sublayer of a kind.
    """

    blocks: Int[Tensor, " block"]
    whole: Float[Tensor, "pair step"]
    """d(alpha) with nothing held."""
    one: Float[Tensor, "pair 2 block step"]
    """With one sublayer of one block held."""
    all: Float[Tensor, "pair 2 step"]
    """With all sublayers of a kind held."""
    num_points: int

    @property
    def alphas(self) -> Float[Tensor, " step"]:
        """The interpolation coefficients."""
        return alphas_of(self.whole.shape[-1])

    def jump(self, curves: Float[Tensor, "pair *held step"]) -> Float[Tensor, "pair *held"]:
        """Return the slopes of curves where the whole path is steepest."""
        interval = self.whole.diff(dim=-1).nan_to_num(-math.inf).argmax(dim=-1)
        return _slope(curves, interval, interval + 1) / _beside(self.whole[:, -1], curves)

    def plateau(self, curves: Float[Tensor, "pair *held step"]) -> Float[Tensor, "pair *held"]:
        """Return the mean slopes of curves on the whole path's plateau; NaN where it has none."""
        high = self.whole >= _PLATEAU * self.whole[:, -1:]
        before = high.to(torch.uint8).argmax(dim=-1) - 1
        return _slope(curves, torch.zeros_like(before), before) / curves[..., -1]

    def max_slope(self, curves: Float[Tensor, "pair step"]) -> Float[Tensor, " pair"]:
        """Return the steepest rises of curves, each relative to its own end."""
        return sharpness.max_slope(self.alphas, curves / curves[:, -1:])

    @property
    def share(self) -> Float[Tensor, "2 block"]:
        """How much of the jump goes when one sublayer is held: the median over pairs."""
        jump = self.jump(self.whole)[:, None, None]
        return (1 - self.jump(self.one) / jump).nanmedian(dim=0).values

    @property
    def flattening(self) -> Float[Tensor, "2 block"]:
        """How much less flat the plateau is when one sublayer is held: the median over pairs."""
        plateau = self.plateau(self.whole)[:, None, None]
        return (self.plateau(self.one) - plateau).nanmedian(dim=0).values


@dataclass(frozen=True, kw_only=True)
class Causes(Probe):
    """Paths with the attention or the feed-forward held, of one block or of all."""

    name = "causes"
    keys = (
        WITHOUT_ATTENTION := Key.scalar(
            "causes/max_slope/attention_held",
            "The median maximum slope of paths with all attention held at its value for A.",
        ),
        WITHOUT_FEED_FORWARD := Key.scalar(
            "causes/max_slope/feed_forward_held",
            "The median maximum slope of paths with all feed-forwards held at their value for A.",
        ),
        JUMP_ATTENTION := Key.scalar(
            "causes/jump/attention", "The share of the jump that goes when all attention is held."
        ),
        JUMP_FEED_FORWARD := Key.scalar(
            "causes/jump/feed_forward",
            "The share of the jump that goes when all feed-forwards are held.",
        ),
        JUMP_BLOCK := Key.scalar(
            "causes/jump_block", "The block whose feed-forward or attention makes most of the jump."
        ),
        JUMP_SHARE := Key.scalar("causes/jump_share", "How much of the jump that one makes."),
        PLATEAU_ATTENTION := Key.scalar(
            "causes/plateau/attention", "How much less flat the plateau is with all attention held."
        ),
        PLATEAU_FEED_FORWARD := Key.scalar(
            "causes/plateau/feed_forward",
            "How much less flat the plateau is with all feed-forwards held.",
        ),
        BLOCKS := Key.image("causes/blocks", "Who makes the jump, and who flattens the plateau."),
        TRAINING := Key.image(
            "causes/training", "The feed-forwards' shares of the jump by block, over training."
        ),
    )
    num_pairs: int = option(8, "Pairs of prompts.", least=1)
    num_steps: int = option(21, "Alphas on a path, both ends included.", least=3)

    def measure(self, run: Run) -> Held:
        """Walk along the same pairs' paths with each sublayer held, and with none."""
        taps = find_parts(run.session.stream)
        pairs = run.prompts.pairs(min(self.num_pairs, run.prompts.num_pairs))
        share = run.session.share(*pairs)
        held: list[Sequence[str]] = [
            (),
            *([name] for name in taps),
            *(_of_kind(taps, kind) for kind in KINDS),
        ]
        found = _walk(share, taps, held, self.num_steps, run)
        distance = share.gather(found)
        blocks = sorted({int(name.split()[1]) for name in taps})
        one = torch.full((len(distance), 2, len(blocks), self.num_steps), torch.nan)
        for place, name in enumerate(taps, start=1):
            kind, block = name.split()
            one[:, KINDS.index(kind), blocks.index(int(block))] = distance[:, place]
        return Held(
            blocks=torch.tensor(blocks),
            whole=distance[:, 0],
            one=one,
            all=distance[:, -2:],
            num_points=distance.numel(),
        )

    def scalars(self, part: Held) -> Mapping[Key, float]:
        """Return what holding all of a kind does, and which sublayer makes most of the jump."""
        jump, plateau = part.jump(part.whole), part.plateau(part.whole)
        share, where = part.share.nan_to_num(-math.inf).flatten().max(dim=0)
        found: dict[Key, float] = {}
        slopes = self.WITHOUT_ATTENTION, self.WITHOUT_FEED_FORWARD
        jumps = self.JUMP_ATTENTION, self.JUMP_FEED_FORWARD
        plateaus = self.PLATEAU_ATTENTION, self.PLATEAU_FEED_FORWARD
        for kind, curves in enumerate(part.all.unbind(dim=1)):
            found[slopes[kind]] = quartiles(part.max_slope(curves))[1]
            found[jumps[kind]] = quartiles(1 - part.jump(curves) / jump)[1]
            found[plateaus[kind]] = quartiles(part.plateau(curves) - plateau)[1]
        block = float(part.blocks[where % len(part.blocks)])
        found[self.JUMP_BLOCK] = block if share.isfinite() else math.nan
        found[self.JUMP_SHARE] = float(share) if share.isfinite() else math.nan
        return found

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw both shares by block, and that of the feed-forwards over training."""
        part: Held = page.part
        yield self.BLOCKS, pixels(draw_causes(part, page.title))
        pages = [each for each in (*earlier, page) if torch.equal(each.part.blocks, part.blocks)]
        profile = Profile(
            numbers=part.blocks,
            titles=[each.title for each in pages],
            values=torch.stack([each.part.share[1] for each in pages]),
            value="share of the jump",
            place="feed-forward of block",
            straight=0.0,
        )
        yield self.TRAINING, pixels(draw_profile(profile, page.title, "held one at a time"))

    def unpack(self, values: Mapping[str, Any]) -> Held:
        """Make `Held` of what a record kept."""
        return unpack_as(Held, values)


def _slope(
    curves: Float[Tensor, "pair *held step"],
    start: Int[Tensor, " pair"],
    stop: Int[Tensor, " pair"],
) -> Float[Tensor, "pair *held"]:
    """Return the mean slope between two steps of each pair; NaN where the second is not later."""
    steps, pair = curves.movedim(-1, 1), torch.arange(len(curves))  # "pair step *held"
    length = (stop - start) / (curves.shape[-1] - 1)
    rise = steps[pair, stop.clamp_min(0)] - steps[pair, start]
    return rise / _beside(length.where(stop > start, math.nan), curves)


def _beside(
    values: Float[Tensor, " pair"], curves: Float[Tensor, "pair *held step"]
) -> Float[Tensor, "pair *ones"]:
    return values.view(-1, *[1] * (curves.ndim - 2))


def _of_kind(taps: Mapping[str, Tap], kind: str) -> list[str]:
    return [name for name in taps if name.split()[0] == kind]


def _walk(
    share: Share, taps: Mapping[str, Tap], held: Sequence[Sequence[str]], num_steps: int, run: Run
) -> Float[Tensor, "mine held step"]:
    """Return each pair's distances with the sublayers held that each of `held` names."""
    stream, engine = share.session.stream, share.session.engine
    prompts, (a, b) = share.prompts[0], share.activations()
    distance = torch.full((len(prompts), len(held), num_steps), torch.nan)
    alphas = alphas_of(num_steps)

    def measure(pairs: slice) -> None:
        context = engine.open(prompts[pairs])
        points = points_between(a[pairs], b[pairs], alphas)
        with stream.tapping(taps):
            clean = engine.run(context, points[:, :1], lambda _: None)
        for place, names in enumerate(held):
            with stream.tapping({name: taps[name] for name in names}):
                found = engine.distances(context, points, clean, held=names)[0]
            distance[pairs, place] = found.cpu()
        _leave_out(distance[pairs], clean, stream.precision)

    each_chunk(share, num_steps, measure, run.progress)
    # A kind that no block has is not held anywhere.
    for place, names in enumerate(held[1:], start=1):
        distance[:, place] = distance[:, place] if names else torch.nan
    return distance


def _leave_out(
    distance: Float[Tensor, "pair held step"], clean: Outputs, precision: torch.dtype
) -> None:
    """Put NaN in place of pairs whose output does not move, or is not finite somewhere."""
    moves = distance[:, 0, -1] > rounding_of(clean.final, precision).cpu()
    distance[~(moves & distance.isfinite().flatten(1).all(dim=1))] = torch.nan
