"""Measure along straight lines from prompt A's activation to prompt B's, in A's context.

    x(alpha) = (1 - alpha) a + alpha b,    alpha = 0, 1/(S-1), ..., 1
    d(alpha) = || F_A(x(alpha)) - F_A(a) ||

where F_A(x) is the output of A's run with the activation at `layer`, last position, replaced by x.

    paths = measure_paths(model, prompts_a, prompts_b, layer=1, num_steps=51)
    paths.max_slope[paths.kept].median()
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sr_monitor.model.anatomy import LayerPath
from sr_monitor.model.engine import Chunk, Context
from sr_monitor.model.forward import Call
from sr_monitor.model.memory import in_chunks
from sr_monitor.model.outputs import Outputs
from sr_monitor.model.precision import Precision
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.session import SessionOptions, Share, open_session
from sr_monitor.model.stream import Output
from sr_monitor.options import Options, explains, option
from sr_monitor.probes import sharpness
from sr_monitor.probes.base import RGB, Page, Probe, Progress, Riders, Run, no_progress, unpack_as
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths_pictures import draw_curves
from sr_monitor.probes.sampling import Sampling, look_adaptively, look_everywhere
from sr_monitor.probes.statistics import quartiles, summarise

# The ends of a path are in every sample, so these can be repeated whatever the sampling.
_NUM_REPEATED_PAIRS = 8


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What `measure_paths` found; all tensors are on the CPU."""

    alphas: Float[Tensor, " step"]
    """The interpolation coefficients, evenly spaced, 0 and 1 included."""
    distance: Float[Tensor, "pair step"]
    """d(alpha); NaN where adaptive sampling did not look, Inf where the output was not finite."""
    input_distance: Float[Tensor, " pair"]
    """||a - b||, how far apart the two activations are."""
    noise_distance: float
    """The largest distance among repeated points that should be equal."""
    noise_floor: float
    """The same relative to d(1) of the pair it was found on; NaN when no pair could tell."""
    num_points: int
    """How many points were run, all pairs together, repeats for the noise not counted."""
    engine: str
    """The way the points were run: "shared", "rows" or "plain"."""
    noise: Float[Tensor, " pair"] | None = None
    """Each pair's own share of the noise, by the length of its output; None: the same for all."""
    arithmetic: str = ""
    """The coarsest type that anything was rounded to, such as "float32"; "" in old records."""
    weights: str = ""
    """The type of the weights."""

    @property
    def precision(self) -> str:
        """What it was computed in, in words; "" for an old record."""
        same = self.arithmetic == self.weights
        return self.arithmetic if same else f"{self.arithmetic} on {self.weights} weights"

    @property
    def relative(self) -> Float[Tensor, "pair step"]:
        """d(alpha) / d(1), the relative output distance."""
        return self.distance / self.distance[:, -1:]

    @property
    def end_distance(self) -> Float[Tensor, " pair"]:
        """d(1)."""
        return self.distance[:, -1]

    @property
    def kept(self) -> Bool[Tensor, " pair"]:
        """The pairs that count: d(1) above the noise, every output finite."""
        finite = ~self.distance.isinf().any(dim=1)
        noise = self.noise_distance if self.noise is None else self.noise
        return finite & (self.end_distance > noise)

    @property
    def num_left_out(self) -> int:
        """How many pairs do not count."""
        return int((~self.kept).sum())

    @property
    def max_slope(self) -> Float[Tensor, " pair"]:
        """The steepest rise between neighbouring alphas: how sharp the boundary is."""
        return self._of_kept(sharpness.max_slope(self.alphas, self.relative))

    @property
    def location(self) -> Float[Tensor, " pair"]:
        """The alpha of the steepest rise: where the boundary is."""
        return self._of_kept(sharpness.slope_location(self.alphas, self.relative))

    @property
    def width(self) -> Float[Tensor, " pair"]:
        """The alpha from a quarter to three quarters of the way: how wide the boundary is."""
        return self._of_kept(sharpness.boundary_width(self.alphas, self.relative))

    def _of_kept(self, values: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        return torch.where(self.kept, values, torch.nan)


@dataclass(frozen=True, kw_only=True)
class PathsOptions(Options):
    """How many paths are taken, and how closely they are looked at."""

    num_pairs: int = option(
        256, "Pairs of prompts; a saved set that holds fewer is taken whole.", least=1
    )
    num_steps: int = option(51, "Alphas on a path, both ends included.", least=2)
    sampling: Sampling = option(
        "grid",
        "grid looks at every alpha; adaptive only where the steepest rise can be, for the same "
        "slopes from fewer points.",
    )


@dataclass(frozen=True, kw_only=True)
class PathsProbe(PathsOptions, Probe):
    """The 1-D measurement as a probe."""

    name = "paths"

    keys = (
        MAX_SLOPE_MEDIAN := Key.scalar(
            "max_slope/median", "The median maximum slope: 1 is a straight line, no regions."
        ),
        MAX_SLOPE_Q25 := Key.scalar("max_slope/q25", "A quarter of the maximum slopes are below."),
        MAX_SLOPE_Q75 := Key.scalar("max_slope/q75", "A quarter of the maximum slopes are above."),
        MAX_SLOPE_LOW := Key.scalar(
            "max_slope/median_low", "The lower end of the median's 95% interval: how sure it is."
        ),
        MAX_SLOPE_HIGH := Key.scalar("max_slope/median_high", "The upper end of that interval."),
        LOCATION := Key.scalar("paths/location", "The alpha of the steepest rise: the boundary."),
        WIDTH := Key.scalar(
            "paths/width", "The alpha from a quarter to three quarters of the way."
        ),
        END_DISTANCE := Key.scalar("paths/end_distance", "How far the output moves in all: d(1)."),
        INPUT_DISTANCE := Key.scalar(
            "paths/input_distance", "How far the activation moves in all."
        ),
        NOISE_FLOOR := Key.scalar(
            "diagnostics/noise_floor",
            "How far points that should be equal land apart, relative to d(1).",
        ),
        PAIRS_LEFT_OUT := Key.scalar(
            "diagnostics/pairs_left_out",
            "Pairs whose d(1) is noise, or with an output that was not finite.",
        ),
        MAX_SLOPE := Key.histogram("max_slope", "The maximum slopes of the pairs that count."),
        CURVES := Key.image(
            "curves", "The median curve on its quartile band, earlier ones behind."
        ),
    )

    def measure(self, run: Run) -> Paths:
        """Walk along as many paths as there are pairs of prompts, up to `num_pairs`."""
        share = run.session.share(*run.prompts.pairs(min(self.num_pairs, run.prompts.num_pairs)))
        return _Walk(share, self, run.riders).run(run.progress)

    def scalars(self, part: Paths) -> dict[Key, float]:
        """Return medians over the pairs that count, the noise, and how many do not count."""
        slope = summarise(part.max_slope, part.kept)
        return {
            self.MAX_SLOPE_MEDIAN: slope.median,
            self.MAX_SLOPE_Q25: slope.q25,
            self.MAX_SLOPE_Q75: slope.q75,
            self.MAX_SLOPE_LOW: slope.low,
            self.MAX_SLOPE_HIGH: slope.high,
            self.LOCATION: quartiles(part.location, part.kept)[1],
            self.WIDTH: quartiles(part.width, part.kept)[1],
            self.END_DISTANCE: quartiles(part.end_distance, part.kept)[1],
            self.INPUT_DISTANCE: quartiles(part.input_distance, part.kept)[1],
            self.NOISE_FLOOR: part.noise_floor,
            self.PAIRS_LEFT_OUT: part.num_left_out,
        }

    def histograms(self, part: Paths) -> dict[Key, Float[Tensor, " kept"]]:
        """Return the maximum slopes of the pairs that count."""
        return {self.MAX_SLOPE: part.max_slope[part.kept]}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the curves, those of earlier steps behind."""
        behind = [(each.title, each.part) for each in earlier]
        yield self.CURVES, pixels(draw_curves(page.part, title=page.title, earlier=behind))

    def facts(self, part: Paths) -> dict[str, str]:
        """Return the lines of the table, with the interval of the median."""
        slope = summarise(part.max_slope, part.kept)
        return {
            "maximum slope": f"{slope.median:.3f} (median)",
            "quartiles": f"{slope.q25:.3f} to {slope.q75:.3f}",
            "95% interval": f"{slope.low:.3f} to {slope.high:.3f} (of the median)",
            "noise floor": f"{part.noise_floor:.1e}",
            **({"arithmetic": part.precision} if part.precision else {}),
            "pairs left out": f"{part.num_left_out}",
        }

    def unpack(self, values: Mapping[str, Any]) -> Paths:
        """Make `Paths` of what a record kept; old records lack what was added later."""
        later = {"noise_distance": 0.0, "noise_floor": math.nan, "num_points": 0, "engine": ""}
        return unpack_as(Paths, values, **later)


@explains(PathsOptions, SessionOptions)
def measure_paths(
    model: nn.Module,
    prompts_a: Int[Tensor, "pair token"],
    prompts_b: Int[Tensor, "pair token"],
    *,
    layer: int = 1,
    num_steps: int = 51,
    sampling: Sampling = "grid",
    output: Output = "final_norm",
    engine: EngineName = "auto",
    layer_path: LayerPath = None,
    call: Call | None = None,
    max_tokens: int | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
    ranks: RankGroup = ALONE,
) -> Paths:
    """Measure d(alpha) for every pair of prompts; the model comes back exactly as it was.

        paths = measure_paths(model, token_ids[:-1], token_ids[1:])
        paths.max_slope            # near 1: no regions; S - 1: a step

    `prompts_a` are the token ids whose context is used, `prompts_b` those whose activations the
    paths lead to, all of one length. `progress` is called with the number of pairs done and of
    all. Each of the `ranks` makes this call, takes its share of the pairs, and gets all results.
    """
    paths = PathsOptions(num_steps=num_steps, sampling=sampling)
    options = SessionOptions(
        layer=layer,
        output=output,
        engine=engine,
        layer_path=layer_path,
        call=call,
        max_tokens=max_tokens,
        precision=precision,
    )
    with open_session(model, (prompts_a, prompts_b), options, ranks) as session:
        share = session.share(prompts_a, prompts_b)
        return _Walk(share, paths, Riders(session, ())).run(progress or no_progress)


class _Walk:
    """This rank's pairs on their way to `Paths`: from A's activation to B's, in A's context."""

    def __init__(self, share: Share, options: PathsOptions, riders: Riders) -> None:
        session = share.session
        self.share, self.riders, self.engine = share, riders, session.engine
        self.prompts = share.prompts[0]
        self.a, self.b = share.activations()
        self.alphas = torch.linspace(0, 1, options.num_steps, dtype=torch.float64).float()
        # Adaptive sampling chooses per pair: ranks would run different numbers of forwards.
        adaptive = options.sampling == "adaptive" and not session.in_step
        self.sample = look_adaptively if adaptive else look_everywhere
        count, place = len(self.prompts), self.a  # float32, whatever torch's default type is
        self.distance = place.new_full((count, options.num_steps), torch.nan)
        self.noise = place.new_full((count,), torch.nan)
        self.num_points = torch.zeros(count, dtype=torch.long)
        self.lengths = place.new_zeros(count)
        num_repeated = min(share.count, _NUM_REPEATED_PAIRS)
        spread = torch.linspace(0, share.count - 1, num_repeated, dtype=torch.float32)
        first = session.ranks.team * count  # of this rank's pairs, among all
        self.repeated = [n - first for n in spread.round().long().tolist() if n >= first]
        riders.begin(count, options.num_steps, share.gather)

    def run(self, progress: Progress) -> Paths:
        """Measure all pairs, some at a time, and gather what all ranks found."""
        count, num_tokens = self.prompts.shape

        def measure(pairs: slice) -> None:
            self._measure(pairs)
            progress(pairs.stop, count)

        # A pair's points are made at once; a point takes about an eighth of a token's memory.
        each = num_tokens + len(self.alphas) // 8
        in_chunks(count, tokens_each=each, budget=self.engine.budget, work=measure)
        gather = self.share.gather
        distance, noise, lengths = map(gather, (self.distance, self.noise, self.lengths))
        # Noise goes with the length of the output. A pair that is not finite, or that the noise
        # drowns, says nothing about the others.
        ends, measured = distance[:, -1], noise.isfinite() & (lengths > 0)
        share = (noise / lengths)[measured]
        of_pairs = lengths * (share.max() if len(share) else math.nan)
        telling = (noise / ends)[measured & (ends > of_pairs)]
        return Paths(
            alphas=self.alphas,
            distance=distance,
            input_distance=gather((self.a - self.b).norm(dim=-1)),
            noise_distance=float(noise.where(noise.isfinite(), 0).max()),
            noise=of_pairs,
            noise_floor=float(telling.max()) if len(telling) else math.nan,
            num_points=int(gather(self.num_points).sum()),
            engine=self.engine.way,
            arithmetic=self.engine.stream.arithmetic,
            weights=self.engine.stream.anatomy.weights,
        )

    def _measure(self, pairs: slice) -> None:
        """Measure the paths of some pairs, whose contexts are opened once, and their noise."""
        context = self.engine.open(self.prompts[pairs])
        clean: Outputs | None = None
        self.distance[pairs] = torch.nan  # what a piece that ran out of memory has left
        self.num_points[pairs] = 0

        def look(chosen: Tensor, steps: Tensor) -> Tensor:
            nonlocal clean
            numbers = chosen + pairs.start
            distance = self.distance.new_empty(steps.shape)

            def see(chunk: Chunk) -> None:
                # Within this look: "point" numbers of its pairs, and of its steps.
                distance[chunk.contexts, chunk.places] = chunk.distance.to(distance.device)
                places = steps[chunk.contexts, chunk.places]
                self.riders.read(replace(chunk, contexts=numbers[chunk.contexts], places=places))

            points = self._points(numbers, self.alphas[steps])
            given = None if clean is None else clean[chosen]
            found = self.engine.run(context.some(chosen), points, see, given)
            clean = found if clean is None else clean
            # Which pairs, against which steps: "some 1" and "some point".
            self.distance[numbers[:, None], steps] = distance.nan_to_num(
                nan=torch.inf, posinf=torch.inf
            )
            self.num_points[numbers.cpu()] += steps.shape[1]
            return distance

        self.sample(look, len(context.prompts), len(self.alphas))
        assert clean is not None
        # The rounding of a distance goes with the longer of the two outputs it lies between.
        ends = self.distance[pairs, -1]
        lengths = clean.final.float().norm(dim=-1).to(ends.device)
        self.lengths[pairs] = torch.where(ends.isfinite(), torch.maximum(lengths, ends), lengths)
        self._repeat(context, pairs, clean)

    def _repeat(self, context: Context, pairs: slice, clean: Outputs) -> None:
        """Find how far the ends of some paths land from where they landed before.

        The same two points again, one rounding step of the run's precision away and in a batch of
        another shape. Bit-equal points would take bit-equal ways through most kernels, and show
        nothing of what rounding does to the different points of a path.
        """
        mine = [n for n in self.repeated if pairs.start <= n < pairs.stop]
        if not mine and not self.share.session.in_step:
            return
        numbers = torch.tensor(mine or [pairs.start])
        chosen = numbers - pairs.start
        sign = 1 - 2 * (torch.arange(self.a.shape[1], device=self.a.device) % 2)
        nudge = 1 + sign * torch.finfo(self.engine.stream.precision).eps
        ends = self.alphas[[0, -1]].expand(len(numbers), -1)
        points = self._points(numbers, ends)
        again, _ = self.engine.distances(context.some(chosen), points * nudge, clean[chosen])
        before = self.distance[numbers][:, [0, -1]]
        if mine:
            self.noise[numbers] = (again - before).abs().amax(dim=1)

    def _points(
        self, pairs: Int[Tensor, " pair"], alphas: Float[Tensor, "pair point"]
    ) -> Float[Tensor, "pair point d_model"]:
        # "pair point 1" times "pair 1 d_model".
        alphas = alphas.to(self.a.device)[..., None]
        return (1 - alphas) * self.a[pairs, None] + alphas * self.b[pairs, None]
