"""Run the points of many contexts, in one of three ways that give the same outputs F(x).

`plain` is the definition, a whole forward pass for each point. `rows` runs one token for each point
on a copy of the earlier tokens' keys and values; `shared` many in a row, kept apart by a mask.

    context = engine.open(prompts)
    engine.run(context, points, lambda chunk: print(chunk.distance))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sr_monitor.model.cache import rows_of
from sr_monitor.model.memory import TokenBudget
from sr_monitor.model.outputs import Outputs
from sr_monitor.model.stream import Stream

Way = Literal["shared", "rows", "plain"]

# Points that share a row also attend to one another, in vain. This many cost a few percent.
POINTS_PER_ROW = 64


@dataclass(frozen=True)
class Chunk:
    """The outputs F of some points, on the device; their numbers, on the CPU.

    A *context* is a prompt whose last activation is replaced: of a pair of paths, or of a corner of
    a slice, counted within this rank's share. A *place* is a point's number within its context: the
    step of a path, or row times resolution plus column of a slice.
    """

    contexts: Int[Tensor, " point"]
    places: Int[Tensor, " point"]
    seen: Outputs
    """F and the taps at each point."""
    cleans: Outputs
    """The same of the clean contexts, of which `owners` says which is each point's."""
    owners: Int[Tensor, " point"]

    @property
    def outputs(self) -> Float[Tensor, "point d_output"]:
        """F at each point."""
        return self.seen.final

    @property
    def taps(self) -> Mapping[str, Shaped[Tensor, "point width"]]:
        """What each tap saw at each point."""
        return self.seen.taps

    @cached_property
    def clean(self) -> Float[Tensor, "point d_output"]:
        """F of each context as it is: the output at the first point of a path, or at the corner."""
        return self.cleans.final[self.owners]

    def clean_tap(self, name: str) -> Shaped[Tensor, "point width"]:
        """Return what a tap saw in each point's clean context."""
        return self.cleans.taps[name][self.owners]

    @cached_property
    def distance(self) -> Float[Tensor, " point"]:
        """||F - F of the clean context||, in float32."""
        gap: Tensor = (self.outputs.float() - self.clean.float()).norm(dim=-1)
        return gap

    def some(self, chosen: Bool[Tensor, " point"]) -> "Chunk":
        """Return some of the points."""
        contexts, places, owners = (
            each[chosen] for each in (self.contexts, self.places, self.owners)
        )
        return Chunk(contexts, places, self.seen[chosen], self.cleans, owners)


@dataclass(frozen=True)
class Context:
    """Prompts whose last activation will be replaced, and the cache of their earlier tokens."""

    prompts: Int[Tensor, "context token"]
    cache: Any
    """Keys and values of the earlier tokens; None in the plain way."""

    def some(self, chosen: Int[Tensor, " some"]) -> "Context":
        """Return some of the contexts."""
        if len(chosen) == len(self.prompts):
            return self
        return Context(self.prompts[chosen], rows_of(self.cache, chosen))


@dataclass(frozen=True)
class Engine:
    """One way of running points, on one stream, within a token budget."""

    stream: Stream
    way: Way
    budget: TokenBudget

    def open(self, prompts: Int[Tensor, "context token"]) -> Context:
        """Run the earlier tokens, once for all points of these contexts."""
        return Context(prompts, None if self.way == "plain" else self.stream.prefill(prompts))

    def run(
        self,
        context: Context,
        points: Float[Tensor, "context point d_model"],
        see: Callable[[Chunk], None],
        clean: Outputs | None = None,
        *,
        held: Sequence[str] = (),
    ) -> Outputs:
        """Run every point, hand the outputs to `see` as they come, and return each context's.

        They are `clean` if it was given, or else those at the context's first point, which is run
        before its others. The taps named in `held` keep what they saw in the clean context.
        """
        num_contexts, num_points, _ = points.shape
        width = self._width(context, num_points)
        rows = _in_rows(points, width)
        per_context = len(rows) // num_contexts
        given = clean is not None
        num_tokens = context.prompts.shape[1]
        # A row's copied keys and values take about as much memory as an eighth of their tokens.
        step = self.budget.items(num_tokens if self.way == "plain" else width + num_tokens // 8)
        for start in range(0, len(rows), step):
            numbers = torch.arange(start, min(start + step, len(rows)))
            owner = numbers // per_context
            kept = {name: clean.taps[name][owner] for name in held} if clean else {}
            outputs = self._outputs(context, owner, rows[start : start + step], kept)
            if clean is None:
                clean = outputs.map(lambda rows: rows.new_empty(num_contexts, rows.shape[-1]))
            if not given:
                first = numbers % per_context == 0
                clean.put(owner[first], outputs[first, 0])
            # Row i of a context holds its places i * width to (i + 1) * width - 1: "row width".
            places = (numbers % per_context)[:, None] * width + torch.arange(width)
            real = places < num_points  # the others only fill a row up
            contexts = owner[:, None].expand_as(places)[real]
            # "row width d_output" to "point d_output"; a view where every point is real.
            shown = (
                outputs.map(lambda rows: rows.flatten(0, 1)) if bool(real.all()) else outputs[real]
            )
            see(Chunk(contexts, places[real], shown, clean, contexts))
        assert clean is not None
        return clean

    def distances(
        self,
        context: Context,
        points: Float[Tensor, "context point d_model"],
        clean: Outputs | None = None,
        *,
        held: Sequence[str] = (),
    ) -> tuple[Float[Tensor, "context point"], Outputs]:
        """Return how far each point's output is from the clean one, and the clean ones."""
        distance = points.new_empty(points.shape[:2], dtype=torch.float32)

        def see(chunk: Chunk) -> None:
            # A model may lie on several devices: its outputs need not be where its inputs are.
            distance[chunk.contexts, chunk.places] = chunk.distance.to(distance.device)

        return distance, self.run(context, points, see, clean, held=held)

    def _width(self, context: Context, num_points: int) -> int:
        """Return how many points share a row: more for long prompts, which every row copies."""
        if self.way != "shared":
            return 1
        most = max(POINTS_PER_ROW, context.prompts.shape[1])
        num_rows = -(-num_points // most)
        return min(-(-num_points // num_rows), self.budget.tokens)

    def _outputs(
        self,
        context: Context,
        owner: Int[Tensor, " row"],
        points: Float[Tensor, "row point d_model"],
        held: Mapping[str, Float[Tensor, "row width"]],
    ) -> Outputs:
        """Return "row point ..." of F and the taps."""
        first, last = int(owner[0]), int(owner[-1])
        # Consecutive contexts are a view; only rows that share a context need copies.
        rows = slice(first, last + 1) if last - first + 1 == len(owner) else owner
        prompts = context.prompts[rows]
        if self.way == "plain":
            # "row 1 d_model" to "row d_model", and back for the output.
            return self.stream.continue_plain(prompts, points[:, 0], held)[:, None]
        return self.stream.continue_cached(rows_of(context.cache, rows), prompts, points, held)


def _in_rows(
    points: Float[Tensor, "context point d_model"], width: int
) -> Float[Tensor, "row width d_model"]:
    """Cut each context's points into rows of `width`; fill the last row up with its last point."""
    _, num_points, d_model = points.shape
    missing = -num_points % width
    if missing:
        points = torch.cat([points, points[:, -1:].expand(-1, missing, -1)], dim=1)
    return points.reshape(-1, width, d_model)
