"""Measure how far the next-token distribution moves from A's own along each path, in nats.

KL(alpha) = sum of p_A (log p_A - log p),    p = softmax of the logits at alpha
JS(alpha) = (KL(p_A || m) + KL(p || m)) / 2,    m = (p_A + p) / 2
l(alpha)  = the logit of the top token at alpha = 0, minus that of the top token at alpha = 1

record.parts["divergence"]["js"]              # "pair step"; NaN where it did not look
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.outputs import Outputs
from sr_monitor.model.session import Session
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Gather, Page, Part, Probe
from sr_monitor.probes.divergence_pictures import draw_divergence
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.next_tokens import NextTokens, top_tokens
from sr_monitor.probes.statistics import quartiles

END = Key.scalar("divergence/end", "How far B's activation moves A's next-token distribution: KL.")
MAX_SLOPE = Key.scalar(
    "divergence/max_slope", "How steeply that divergence rises at most, relative to its end."
)
JS_END = Key.scalar("divergence/js_end", "The same as JS, which is at most ln 2 = 0.69.")
JS_MAX_SLOPE = Key.scalar(
    "divergence/js_max_slope", "How steeply JS rises at most, relative to its end."
)
LOGIT_MAX_SLOPE = Key.scalar(
    "divergence/logit_max_slope",
    "How steeply the logits of the two top tokens trade places at most: 1 is a straight line.",
)
TOP_CHANGES = Key.scalar(
    "divergence/top_changes", "The share of paths with another top token at their end."
)
FLIPS = Key.scalar(
    "divergence/flips_at_slope",
    "The share of paths whose top token flips in the interval where the distance rises most.",
)
CURVES = Key.image(
    "divergence/curves", "Distance, divergences, logits and top token, around the boundary too."
)

_ROWS_ON_A_CPU = 4

# Named here, since an annotation in a function makes a class at each call: cyclic garbage.
_PerPair: TypeAlias = Float[Tensor, " pair"]


@dataclass(frozen=True, kw_only=True)
class Divergence(Probe):
    """Divergences from A's next-token distribution along each path, and its top tokens."""

    name = "divergence"
    rides = "paths"
    holds = ("kl", "js", "logit_difference", "top_token", "kept", "flips_at_slope")
    keys = (*(END, MAX_SLOPE, JS_END, JS_MAX_SLOPE, LOGIT_MAX_SLOPE, TOP_CHANGES, FLIPS, CURVES),)
    every: int = option(
        2, "Look at every n-th pair: the unembedding is what it costs.", least=1, effect="record"
    )

    def reader(self, session: Session, num_contexts: int, num_places: int) -> "_Reader":
        """Read the distribution at every point of every n-th path."""
        # Counted among all ranks' pairs.
        numbers = torch.arange(num_contexts) + session.ranks.team * num_contexts
        chosen = numbers % self.every == 0
        return _Reader(NextTokens(session.stream), chosen, num_places, in_step=session.in_step)

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Part:
        """Note which pairs count, and whose top token flips where the distance rises most."""
        paths = parts["paths"]
        steepest = paths.relative.diff(dim=1).nan_to_num(nan=-torch.inf).argmax(dim=1)
        ends = torch.stack([steepest, steepest + 1], dim=1)
        before, after = part["top_token"].gather(1, ends).unbind(dim=1)
        kept = paths.kept & (part["top_token"] >= 0).any(dim=1)
        return part | {"kept": kept, "flips_at_slope": before != after}

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return medians over the pairs that count, and shares of them."""
        kept, top = part["kept"], part["top_token"]
        logits = part["logit_difference"]

        def median(values: _PerPair) -> float:
            return quartiles(values, kept)[1]

        return {
            END: median(part["kl"][:, -1]),
            MAX_SLOPE: median(_max_slope(part["kl"])),
            JS_END: median(part["js"][:, -1]),
            JS_MAX_SLOPE: median(_max_slope(part["js"])),
            LOGIT_MAX_SLOPE: median(_max_slope(logits[:, :1] - logits)),
            TOP_CHANGES: float((top[:, 0] != top[:, -1])[kept].float().mean()),
            FLIPS: float(part["flips_at_slope"][kept].float().mean()),
        }

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the median curves, along the path and around the boundary."""
        if "paths" in page.parts:
            yield CURVES, pixels(draw_divergence(page.part, page.parts["paths"], page.title))


def _max_slope(rising: Float[Tensor, "pair step"]) -> Float[Tensor, " pair"]:
    """Return the largest rise between neighbouring alphas, relative to the end, times (S - 1)."""
    rises = (rising / rising[:, -1:]).diff(dim=1).nan_to_num(nan=-torch.inf)
    return rises.amax(dim=1) * (rising.shape[1] - 1)


class _Reader:
    """The divergences, logits and top tokens at each point of the chosen ones of this rank's pairs.

    Ranks in step run all pairs through the unembedding, so that it is called as often on each.
    """

    def __init__(
        self,
        next_tokens: NextTokens,
        chosen: Bool[Tensor, " context"],
        num_places: int,
        *,
        in_step: bool,
    ) -> None:
        self._next_tokens = next_tokens
        self._chosen, self._looked = chosen, chosen | in_step
        unseen = torch.full((len(chosen), num_places), torch.nan)
        self._curves = {name: unseen.clone() for name in ("kl", "js", "logit_difference")}
        self._top = torch.full(unseen.shape, -1, dtype=torch.int32)
        self._ends = torch.full((len(chosen),), -1)
        """The top token at alpha = 1, as soon as it is known."""
        self._waiting: list[Chunk] = []
        """Points of a path whose end is still to come: at most one path, cut by a chunk's end."""

    def read(self, chunk: Chunk) -> None:
        # Without the taps of other probes, which would be copied with what is chosen.
        own = Outputs(chunk.outputs), Outputs(chunk.cleans.final)
        chunk = replace(chunk, seen=own[0], cleans=own[1]).some(self._looked[chunk.contexts])
        begun = chunk.contexts[chunk.places == 0]  # what waits of these comes again
        waiting = [each.some(~torch.isin(each.contexts, begun)) for each in self._waiting]
        self._waiting = []
        through = self._ends >= 0
        through[chunk.contexts[chunk.places == self._top.shape[1] - 1]] = True
        for each in (chunk, *waiting):  # the end of what waits may be in this chunk
            self._read_all(each.some(through[each.contexts]))
            self._wait(each.some(~through[each.contexts]))

    def part(self, gather: Gather) -> Part:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._read_all(each)
        found = {
            name: gather(curve.where(self._chosen[:, None], torch.nan))
            for name, curve in self._curves.items()
        }
        return found | {"top_token": gather(self._top.where(self._chosen[:, None], -1))}

    def _wait(self, chunk: Chunk) -> None:
        if len(chunk.contexts):
            self._waiting.append(chunk)

    def _read_all(self, chunk: Chunk) -> None:
        for piece in self._next_tokens.pieces(len(chunk.contexts)):
            chosen = torch.zeros(len(chunk.contexts), dtype=torch.bool)
            chosen[piece] = True
            self._read(chunk.some(chosen))

    def _read(self, chunk: Chunk) -> None:
        """Read some points, a context at a time: those of one context come together."""
        contexts, places = chunk.contexts, chunk.places
        logits = self._next_tokens.logits(chunk.outputs)
        tops = top_tokens(logits)
        self._top[contexts, places] = tops.int()
        is_end = places == self._top.shape[1] - 1
        self._ends[contexts[is_end]] = tops[is_end]
        self._wait(chunk.some(self._ends[contexts] < 0))  # the end is in the next piece
        found: list[Float[Tensor, "3 point"]] = []
        of_context, counts = torch.unique_consecutive(contexts, return_counts=True)
        firsts = counts.cumsum(0) - counts
        clean = iter(self._cleans(chunk, firsts[places[firsts] > 0]))
        for context, first, here in zip(
            of_context.tolist(), firsts.tolist(), torch.split(logits, counts.tolist()), strict=True
        ):
            own = here[0] if places[first] == 0 else next(clean)
            between = here[:, own.argmax()] - here[:, self._ends[context]]
            found.append(torch.stack([*divergences(own, here), between]))
        values = torch.cat(found, dim=1).cpu()
        for curve, row in zip(self._curves.values(), values, strict=True):
            curve[contexts, places] = row

    def _cleans(
        self, chunk: Chunk, numbers: Int[Tensor, " context"]
    ) -> Float[Tensor, "context token"]:
        """Return the clean logits of contexts of which these are points."""
        if not len(numbers):
            return torch.empty(0, 0)
        return self._next_tokens.logits(chunk.cleans.final[chunk.owners[numbers]])


def divergences(
    own: Float[Tensor, " token"], others: Float[Tensor, "point token"]
) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Return KL and JS between the distribution of some logits and those of others."""
    # Tokens without probability, of logarithm -Inf, add nothing: 0 times a number is 0.
    lowest, tiny = torch.finfo(own.dtype).min, torch.finfo(own.dtype).tiny
    own = own.log_softmax(dim=-1).clamp_min(lowest)
    p = own.exp()
    found: list[Float[Tensor, "2 point"]] = []
    # A few rows at once stay in the cache of a CPU: twice as fast as all of them.
    for rows in torch.split(others, _ROWS_ON_A_CPU if own.device.type == "cpu" else len(others)):
        here = rows.log_softmax(dim=-1).clamp_min_(lowest)
        q = here.exp()
        middle = (p + q).div_(2).clamp_min_(tiny).log_()
        kl = (own - here).mul_(p).sum(dim=-1)
        js = ((own - middle).mul_(p).sum(dim=-1) + (here - middle).mul_(q).sum(dim=-1)) / 2
        found.append(torch.stack([torch.where(kl > -lowest / 1e18, torch.inf, kl), js]))
    both = torch.cat(found, dim=1).clamp_min(0)
    return both[0], both[1]
