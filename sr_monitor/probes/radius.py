"""Measure how far an activation can be pushed before the next-token prediction changes.

The radius along a direction u is the length r at which KL(p(a) || p(a + r u)) first passes a
threshold. Those along two orthogonal directions and their equal mixture give the exponent of the
norm that ends the plateau, p = 1 / (1/2 - log2(r_mix / r_pure)): 2 for a ball, more for a cube.

    StableRegionCallback(probes=["radius"])
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.model.engine import Chunk
from sr_monitor.model.memory import in_chunks
from sr_monitor.model.stream import Stream
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Page, Probe, Run, unpack_as
from sr_monitor.probes.crossing import NUM_ROUNDS, first_crossing
from sr_monitor.probes.directions import KINDS, Around, look_around, typical, unit
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.next_tokens import NextTokens
from sr_monitor.probes.radius_pictures import draw_radii
from sr_monitor.probes.statistics import Summary, summarise

_OF_KIND = {
    "random": "in random directions",
    "activations": "toward the activations of other prompts",
    "swaps": "toward other last tokens",
    "mixtures": "along random mixtures of activations",
    "output": "of the final vector in random directions",
}
_EDGES = {
    "median": "The median plateau radius {}, relative to how far vectors lie apart.",
    "q25": "A quarter of the radii {} are below.",
    "q75": "A quarter of the radii {} are above.",
}
_EXPONENTS = {
    "median": "The exponent p of the norm that ends the plateau {}; 2 is a ball.",
    "median_low": "The lower end of the 95% interval of p {}.",
    "median_high": "The upper end of the 95% interval of p {}.",
}
RADIUS = {
    (kind, edge): Key.scalar(f"radius/{kind}/{edge}", text.format(where))
    for kind, where in _OF_KIND.items()
    for edge, text in _EDGES.items()
}
EXPONENT = {
    (kind, edge): Key.scalar(f"exponent/{kind}/{edge}", text.format(_OF_KIND[kind]))
    for kind in KINDS
    for edge, text in _EXPONENTS.items()
}
CLOSED_FORM = Key.scalar(
    "radius/output/closed_form", "The median of sqrt(2 eps / u'Gu), the same to second order."
)
CENSORED = Key.scalar(
    "radius/censored", "The share of directions along which the threshold was never passed."
)
PICTURE = Key.image("radius", "The plateau radii by kind of direction, and their exponents.")

# Named here, since an annotation in a function makes a class at each call: cyclic garbage.
_PerLine: TypeAlias = Float[Tensor, "prompt line"]


@dataclass(frozen=True, kw_only=True)
class Radii:
    """What `radius` found; Inf where the threshold was not passed, NaN where there is nothing."""

    radius: Float[Tensor, "prompt kind direction"]
    """Along each direction, of kinds random, activations, swaps and mixtures."""
    across: Float[Tensor, "prompt kind pair"]
    """Along the part of every second direction that is orthogonal to the one before it."""
    mixed: Float[Tensor, "prompt kind pair"]
    """Along the equal mixtures of those two."""
    output_radius: Float[Tensor, "prompt direction"]
    """Of the final vector, in random directions."""
    closed_form: Float[Tensor, "prompt direction"]
    """sqrt(2 eps / u'Gu) in the same ones, G = W'(diag p - pp')W."""
    scale: float
    """The median distance between activations."""
    output_scale: float
    """The same of final vectors."""
    reach: float
    """The longest length that was tried, in these units."""
    threshold: float
    """eps, in nats."""
    num_points: int
    """How many points were run."""

    def relative(self, kind: str) -> Float[Tensor, " radius"]:
        """Return the radii of a kind, or of "output", relative to how far vectors lie apart.

        Those that were not reached count as `reach`: quartiles below it are exact.
        """
        if kind == "output":
            found = self.output_radius / self.output_scale
        else:
            found = self.radius[:, KINDS.index(kind)] / self.scale
        return found.flatten().clamp(max=self.reach)

    def exponent(self, kind: str) -> Summary:
        """Summarise p of a kind: the median over prompts, and how sure it is.

        Each prompt's log2(r_mix / r_pure) is the mean over its pairs of directions. Of two radii,
        r_pure is the geometric mean: mixtures of random directions are random directions, so that
        p is 2 there, however much radii vary.
        """
        of = summarise(self.log_ratio(kind))
        edges: Any = {
            edge: exponent_of(getattr(of, edge)) for edge in ("median", "q25", "q75", "low", "high")
        }
        return replace(of, **edges)

    def log_ratio(self, kind: str) -> Float[Tensor, " prompt"]:
        """Return each prompt's mean of log2(r_mix / r_pure) where all three radii were found."""
        number, (_, _, pairs) = KINDS.index(kind), self.across.shape
        one, other = self.radius[:, number, 0 : 2 * pairs : 2], self.across[:, number]
        ratio = (self.mixed[:, number] / (one * other).sqrt()).log2()
        return ratio.masked_fill(~(one + other + ratio).isfinite(), torch.nan).nanmean(dim=1)

    @property
    def censored(self) -> Float[Tensor, " kind"]:
        """The share of the directions of each kind along which the threshold was not passed."""
        there = ~self.radius.isnan()
        return (self.radius.isinf().sum(dim=(0, 2)) / there.sum(dim=(0, 2))).float()


def exponent_of(log_ratio: float) -> float:
    """Return p of log2(r_mix / r_pure); Inf for a cube and what bulges beyond."""
    return math.inf if log_ratio >= 0.5 else 1 / (0.5 - log_ratio)


@dataclass(frozen=True, kw_only=True)
class Radius(Probe):
    """How far activations can be pushed, in which directions, before the prediction changes."""

    name = "radius"
    keys = (*RADIUS.values(), CLOSED_FORM, *EXPONENT.values(), CENSORED, PICTURE)

    num_prompts: int = option(16, "Prompts whose activations are pushed.", least=1)
    num_directions: int = option(4, "Directions of each kind, from each prompt.", least=2)
    threshold: float = option(0.1, "The KL divergence, in nats, at which a plateau ends.")
    reach: float = option(
        4.0, "The longest push, relative to the distance between two prompts' activations."
    )

    def __post_init__(self) -> None:
        """Refuse what no radius can be measured with."""
        super().__post_init__()
        for name in ("threshold", "reach"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name}={value!r}: pass a positive number, such as 0.1")

    def measure(self, run: Run) -> Radii:
        """Bisect along all directions at once, some prompts at a time."""
        around = look_around(run, self.num_prompts, self.num_directions)
        return _Push(self, run, around).run()

    def scalars(self, part: Radii) -> Mapping[Key, float]:
        """Return medians and quartiles of the radii, and the exponents with their intervals."""
        found: dict[Key, float] = {}
        for kind in _OF_KIND:
            of = summarise(part.relative(kind))
            found |= {RADIUS[kind, edge]: getattr(of, edge) for edge in _EDGES}
        found[CLOSED_FORM] = summarise(part.closed_form.flatten() / part.output_scale).median
        for kind in KINDS:
            of = part.exponent(kind)
            found |= {EXPONENT[kind, "median"]: of.median, EXPONENT[kind, "median_low"]: of.low}
            found |= {EXPONENT[kind, "median_high"]: of.high}
        there = (~part.radius.isnan()).sum()
        return found | {CENSORED: float(part.radius.isinf().sum() / there)}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the radii by kind of direction, and their exponents."""
        yield PICTURE, pixels(draw_radii(page.part, title=page.title))

    def facts(self, part: Radii) -> Mapping[str, str]:
        """Return one line for each kind of direction."""
        lines = {}
        for kind in _OF_KIND:
            of = summarise(part.relative(kind))
            lines[f"radius {kind}"] = f"{of.median:.3f} ({of.q25:.3f} to {of.q75:.3f})"
            if kind in KINDS:
                p = part.exponent(kind)
                lines[f"radius {kind}"] += f", p {p.median:.2f} ({p.low:.2f} to {p.high:.2f})"
        lines["radius output"] += f", closed form {self.scalars(part)[CLOSED_FORM]:.3f}"
        of_kinds = zip(KINDS, part.censored.tolist(), strict=True)
        censored = ", ".join(f"{kind} {share:.0%}" for kind, share in of_kinds if share > 0)
        return lines | {"radius beyond reach": censored or "none"}

    def unpack(self, values: Mapping[str, Any]) -> Radii:
        """Make `Radii` of what a record kept."""
        return unpack_as(Radii, values)


class _Push:
    """This rank's prompts on their way to `Radii`."""

    def __init__(self, options: Radius, run: Run, around: Around) -> None:
        self.options, self.around, self.progress = options, around, run.progress
        self.engine = run.session.engine
        directions = around.directions
        pairs = directions.shape[2] // 2
        one, other = directions[:, :, 0 : 2 * pairs : 2], directions[:, :, 1 : 2 * pairs : 2]
        # Twice: after once, rounding leaves a part along the first that a near-parallel one shows.
        across = _orthogonal(one, _orthogonal(one, other))
        is_pair = across.any(dim=-1, keepdim=True) & one.any(dim=-1, keepdim=True)
        mixed = torch.where(is_pair, unit(one + across), 0.0)
        # "prompt kind line d_model": the directions, then the others of each pair, the mixtures.
        self.lines = torch.cat([directions, across, mixed], dim=2)
        self.sizes = [directions.shape[2], pairs, pairs]
        self.found = self.lines.new_empty(self.lines.shape[:3])
        self.cleans: dict[int, Tensor] = {}

    def run(self) -> Radii:
        share, (count, num_tokens) = self.around.share, self.around.share.prompts[0].shape
        num_lines = self.lines.shape[1] * self.lines.shape[2]

        def measure(prompts: slice) -> None:
            self._measure(prompts)
            self.progress(prompts.stop, count)

        # A prompt's points are made at once; a point takes about an eighth of a token's memory.
        each = num_tokens + num_lines // 8
        in_chunks(count, tokens_each=each, budget=self.engine.budget, work=measure)
        final = torch.cat(list(self.cleans.values()))
        outputs = share.gather(final)
        gaps = (outputs - outputs.roll(1, dims=0)).norm(dim=-1)
        output_scale = typical(gaps, outputs)
        output_radius, closed_form = self._in_output_space(final, output_scale)
        radius, across, mixed = torch.split(share.gather(self.found), self.sizes, dim=2)
        return Radii(
            radius=radius,
            across=across,
            mixed=mixed,
            output_radius=share.gather(output_radius),
            closed_form=share.gather(closed_form),
            scale=self.around.scale,
            output_scale=output_scale,
            reach=self.options.reach,
            threshold=self.options.threshold,
            num_points=len(radius) * (num_lines * NUM_ROUNDS + 1),
        )

    def _measure(self, prompts: slice) -> None:
        """Find the radii along all lines of some prompts."""
        starts = self.around.starts[prompts, None]  # "prompt 1 d_model"
        lines = self.lines[prompts].flatten(1, 2)  # "prompt kind line d_model" to "prompt line …"
        context = self.engine.open(self.around.share.prompts[0][prompts])
        clean = self.engine.run(context, starts, lambda _: None)
        divergence = _Divergence(self.engine.stream, clean.final)

        def kl_at(length: _PerLine) -> _PerLine:
            found = torch.full_like(length, torch.nan)

            def see(chunk: Chunk) -> None:
                kl = divergence(chunk.contexts, chunk.outputs)
                found[chunk.contexts, chunk.places] = kl.to(found)

            # "prompt line 1" times "prompt line d_model".
            self.engine.run(context, starts + length[..., None] * lines, see, clean)
            return found

        radius = self._crossing(kl_at, lines, self.around.scale)
        is_finite = clean.final.isfinite().all(dim=-1).to(radius.device)
        radius = radius.masked_fill(~is_finite[:, None], torch.nan)
        self.found[prompts] = radius.view(self.found[prompts].shape)
        self.cleans[prompts.start] = clean.final.float()

    def _in_output_space(
        self, final: Float[Tensor, "prompt d_output"], scale: float
    ) -> tuple[Float[Tensor, "prompt direction"], Float[Tensor, "prompt direction"]]:
        """Return the radii of the final vectors, and their closed form."""
        share, num = self.around.share, self.options.num_directions
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(share.count, num, final.shape[1], generator=generator)
        lines = unit(noise[share.session.ranks.share(share.count)].to(final))
        divergence = _Divergence(self.engine.stream, final)
        owners = torch.arange(len(final)).repeat_interleave(num)

        def kl_at(length: _PerLine) -> _PerLine:
            # "prompt direction d_output" to "row d_output", and "row" back.
            moved = (final[:, None] + length[..., None] * lines).flatten(0, 1)
            return divergence(owners, moved).view(length.shape)

        radius = self._crossing(kl_at, lines, scale)
        curvature = divergence.curvature(owners, lines.flatten(0, 1)).view(radius.shape)
        return radius, (2 * self.options.threshold / curvature).sqrt()

    def _crossing(
        self, value_at: Callable[[Tensor], Tensor], lines: Float[Tensor, "..."], scale: float
    ) -> Float[Tensor, "prompt line"]:
        reach = lines.new_full(lines.shape[:2], self.options.reach * scale)
        radius = first_crossing(value_at, reach, threshold=self.options.threshold)
        return torch.where(lines.any(dim=-1), radius, torch.nan)


class _Divergence:
    """KL from the predictions at some final vectors, and its curvature there; logits in pieces."""

    def __init__(self, stream: Stream, final: Float[Tensor, "prompt d_output"]) -> None:
        self.final, self.next_tokens = final, NextTokens(stream)
        self.own = self.next_tokens.logits(final).log_softmax(dim=-1)  # "prompt token"

    def __call__(
        self, owners: Tensor, outputs: Float[Tensor, "row d_output"]
    ) -> Float[Tensor, " row"]:
        """Return KL(p of each row's owner || p of the row)."""
        found = []
        for piece in self.next_tokens.pieces(len(outputs)):
            own = self.own[owners[piece]]
            here = self.next_tokens.logits(outputs[piece]).log_softmax(dim=-1)
            # Tokens to which the owner gives no probability add nothing.
            terms = torch.where(own.isneginf(), 0.0, own.exp() * (own - here))
            found.append(terms.sum(dim=-1))
        return torch.cat(found)

    def curvature(
        self, owners: Tensor, lines: Float[Tensor, "row d_output"]
    ) -> Float[Tensor, " row"]:
        """Return u'Gu: the variance, under p, of how fast the logits change along u."""
        found = []
        logits = self.next_tokens.logits
        for piece in self.next_tokens.pieces(len(lines)):
            final = self.final[owners[piece]]
            step = 0.01 * final.norm(dim=-1, keepdim=True) * lines[piece]  # "row d_output"
            up, down = logits(final + step), logits(final - step)
            slope = (up - down) / (2 * step.norm(dim=-1, keepdim=True))
            p = self.own[owners[piece]].exp()
            mean = (p * slope).sum(dim=-1, keepdim=True)
            found.append((p * (slope - mean).square()).sum(dim=-1))
        return torch.cat(found)


def _orthogonal(
    one: Float[Tensor, "*shape d_model"], other: Float[Tensor, "*shape d_model"]
) -> Float[Tensor, "*shape d_model"]:
    """Return the part of `other` that is orthogonal to `one`, at length 1."""
    along = (one * other).sum(dim=-1, keepdim=True) * one
    return unit(other - along, shortest=1e-4)
