"""How the points of many contexts are run: the plain way, one row a point, or many points a row.

All three give the same distances d = || F(x) - F(x_0) ||, where x_0 is a context's first point:

- `plain`: a whole forward pass a point, the definition;
- `rows`: one token a point, on a copy of the earlier tokens' keys and values;
- `shared`: many points in one row, on one copy, kept apart by a mask.

The fast ways are not believed. The first time a model is measured they are compared with the
plain way on a few points and timed; what was chosen is remembered until the model is put together
differently: a hook, another module, a `forward` of its own.

    engine = choose_engine(stream, prompts_a, prompts_b, wanted="auto", budget=budget)
    context = engine.open(prompts)
    distance = engine.distances(context, points, reference=None)
"""

import sys
import time
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sr_monitor.errors import InputError, PeerError, check_word, is_out_of_memory, warn
from sr_monitor.model.memory import TokenBudget, in_chunks
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.stream import Stream, rows_of, tolerance

EngineName = Literal["auto", "shared", "rows", "plain"]

# Points that share a row also score one another in vain: n each. This many cost a few percent.
_POINTS_PER_ROW = 64
# Sharing rows is never much slower, so one row a point has to win clearly: the choice, and with
# it the last bits of a result, should not hang on a noisy clock.
_CLEARLY_FASTER = 1.5

_OUR_FRAMES = ("sr_monitor", "contextlib")

_Choices = dict[tuple[Any, ...], str]
_chosen: WeakKeyDictionary[nn.Module, tuple[list[Any], _Choices]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Context:
    """Prompts whose last activation will be replaced, and what their earlier tokens left."""

    prompts: Int[Tensor, "context token"]
    cache: Any
    """Keys and values of the earlier tokens; None the plain way."""

    def some(self, chosen: Int[Tensor, " some"]) -> "Context":
        """A part of the contexts; itself when all are chosen."""
        if len(chosen) == len(self.prompts):
            return self
        cache = None if self.cache is None else rows_of(self.cache, chosen)
        return Context(self.prompts[chosen], cache)


@dataclass
class Engine:
    """One way of running points, on one stream, within a token budget."""

    stream: Stream
    name: str
    budget: TokenBudget

    def open(self, prompts: Int[Tensor, "context token"]) -> Context:
        """Prepares contexts: the earlier tokens are run here, once."""
        return Context(prompts, None if self.name == "plain" else self.stream.prefill(prompts))

    def distances(
        self,
        context: Context,
        points: Float[Tensor, "context point d_model"],
        reference: Float[Tensor, "context d_output"] | None = None,
    ) -> tuple[Float[Tensor, "context point"], Float[Tensor, "context d_output"]]:
        """Distances d, and the reference; if none is given, each first point's output is it."""
        num_contexts, num_points, _ = points.shape
        width = self._width(context, num_points)
        points, num_rows = _in_rows(points, width)
        per_context = num_rows // num_contexts
        distance = points.new_empty((num_rows, width), dtype=torch.float32)
        given = reference is not None
        for start in range(0, num_rows, step := self._rows_at_once(context, width)):
            rows = torch.arange(start, min(start + step, num_rows))
            owner = rows // per_context
            outputs = self._outputs(context, owner, points[rows[0] : rows[-1] + 1])
            if reference is None:
                reference = outputs.new_empty(num_contexts, outputs.shape[-1])
            if not given:
                first = rows % per_context == 0
                reference[owner[first]] = outputs[first, 0]
            gap = outputs.float() - reference[owner][:, None].float()
            distance[rows] = gap.norm(dim=-1).to(distance.device)  # a model may lie on several
        assert reference is not None
        return distance.reshape(num_contexts, -1)[:, :num_points], reference

    def _width(self, context: Context, num_points: int) -> int:
        """Points a row. More earlier tokens pay for more sharing: every row copies them."""
        if self.name != "shared":
            return 1
        most = max(_POINTS_PER_ROW, context.prompts.shape[1])
        num_rows = -(-num_points // most)
        return min(-(-num_points // num_rows), self.budget.tokens)

    def _rows_at_once(self, context: Context, width: int) -> int:
        num_tokens = context.prompts.shape[1]
        if self.name == "plain":
            return self.budget.items(num_tokens)
        # A row's copied keys and values take about as much memory as an eighth of their tokens.
        return self.budget.items(width + num_tokens // 8)

    def _outputs(
        self,
        context: Context,
        owner: Int[Tensor, " row"],
        points: Float[Tensor, "row point d_model"],
    ) -> Float[Tensor, "row point d_output"]:
        first, last = int(owner[0]), int(owner[-1])
        # A run of whole contexts is a view; only rows that share a context need copies.
        rows = slice(first, last + 1) if last - first + 1 == len(owner) else owner
        prompts = context.prompts[rows]
        if self.name == "plain":
            return self.stream.continue_plain(prompts, points[:, 0])[:, None]
        return self.stream.continue_cached(rows_of(context.cache, rows), prompts, points)


def _in_rows(
    points: Float[Tensor, "context point d_model"], width: int
) -> tuple[Float[Tensor, "row width d_model"], int]:
    """Each context's points cut into rows of `width`, filled up with its last point."""
    _, num_points, d_model = points.shape
    missing = -num_points % width
    if missing:
        points = torch.cat([points, points[:, -1:].expand(-1, missing, -1)], dim=1)
    rows = points.reshape(-1, width, d_model)
    return rows, len(rows)


# ---- the choice ----------------------------------------------------------------------------------


def choose_engine(
    stream: Stream,
    prompts_a: Int[Tensor, "pair token"],
    prompts_b: Int[Tensor, "pair token"],
    *,
    wanted: EngineName,
    budget: TokenBudget,
    ranks: RankGroup = ALONE,
) -> Engine:
    """The fastest way that agrees with the plain one, or the one wanted if it does.

    Processes of a `ranks` compare in step, and follow its leader in every decision.

    Checked on the first two pairs, the first time a model is measured with this layer, output,
    prompt length, precision and attention, and again once it is put together differently.
    """
    check_word("engine", wanted, EngineName)
    if wanted == "plain":
        return Engine(stream, "plain", budget)
    known = _remembered(stream.anatomy.root)
    key = _circumstances(stream, prompts_a, wanted)
    # A hook may be on one process only, and all of them have to compare in step.
    if not ranks.minimum(int(key in known)):
        found: list[tuple[str, bool]] = []

        def compare(_: slice) -> None:
            few = min(2, budget.items(prompts_a.shape[1]))
            found.append(_compare(stream, prompts_a[:few], prompts_b[:few], wanted, budget, ranks))

        in_chunks(1, tokens_each=1, budget=budget, work=compare)
        name, certain = found[0]
        if not certain:
            return Engine(stream, name, budget)
        known[key] = name
    return Engine(stream, known[key], budget)


def _remembered(model: nn.Module) -> _Choices:
    """What was chosen for a model as it is put together now."""
    wiring = _wiring(model)
    before, choices = _chosen.get(model, (None, {}))
    if before != wiring:
        choices = {}
        _chosen[model] = wiring, choices
    return choices


def _wiring(model: nn.Module) -> list[Any]:
    """Every module with its `forward` and its hooks: what can change how a model mixes tokens."""
    # References, not ids, which come again once something is gone; weak, or the model would stay.
    return [
        (
            ref(module),
            ref(getattr(module.forward, "__func__", module.forward)),
            *module._forward_pre_hooks,
            *module._forward_hooks,
        )
        for module in model.modules()
    ]


def _circumstances(stream: Stream, prompts: Tensor, wanted: str) -> tuple[Any, ...]:
    attention = getattr(stream.anatomy.core, "config", None)
    return (
        wanted,
        stream.layer,
        stream.output,
        stream.dtype,
        stream.precision,
        prompts.shape[1],
        str(prompts.device),
        getattr(attention, "_attn_implementation", None),
    )


def _compare(
    stream: Stream,
    prompts_a: Tensor,
    prompts_b: Tensor,
    wanted: str,
    budget: TokenBudget,
    ranks: RankGroup,
) -> tuple[str, bool]:
    """The way to go, and whether the comparison could be made at all (NaN weights forbid it)."""
    points = _check_points(stream, prompts_a, prompts_b)
    plain = Engine(stream, "plain", budget)
    expected, reference = plain.distances(plain.open(prompts_a), points)
    telling = ranks.broadcast(expected.isfinite().all(dim=1).cpu())
    if not bool(telling.any()):
        return "plain", False
    prompts_a, points = prompts_a[telling], points[telling]
    expected, scale = expected[telling], reference[telling].float().norm(dim=-1).max()
    agreeing, complaints = [], []
    for name in _candidates(stream, prompts_a, wanted):
        engine = Engine(stream, name, budget)
        complaint = _complaint(engine, prompts_a, points, expected, float(scale), ranks)
        if complaint is None:
            agreeing.append(engine)
        elif wanted != "auto":
            raise InputError(f"engine={wanted!r}: {complaint}; pass engine='auto' or 'plain'")
        else:
            complaints.append(complaint)
    if complaints:
        text = f"{'; '.join(complaints)}; a slower way that agrees is used instead"
        warn(text, category=UserWarning, stacklevel=_level_of_caller())
    if not agreeing:
        return "plain", True
    fastest = _fastest(agreeing, prompts_a, points)
    return agreeing[ranks.broadcast_number(fastest)].name, True


def _check_points(
    stream: Stream, prompts_a: Tensor, prompts_b: Tensor
) -> Float[Tensor, "pair point d_model"]:
    a, b = stream.read(prompts_a).float(), stream.read(prompts_b).float()
    return torch.stack([a, (a + b) / 2, b], dim=1)


def _candidates(stream: Stream, prompts: Tensor, wanted: str) -> list[str]:
    cache = stream.prefill(prompts)
    possible = []
    if cache is not None:
        shares = stream.can_share_rows(cache, prompts.shape[1] - 1)
        possible = ["shared", "rows"] if shares else ["rows"]
    if wanted == "auto":
        return possible
    if wanted not in possible:
        raise InputError(
            f"engine={wanted!r} cannot run {type(stream.anatomy.core).__name__} on prompts of "
            f"{prompts.shape[1]} tokens: "
            + (
                "it keeps no keys and values of earlier tokens; pass engine='plain' or 'auto'"
                if cache is None
                else "its attention takes no mask of ours there (a sliding window shorter than the "
                "prompt, ALiBi, or flash attention); pass engine='rows' or 'auto'"
            )
        )
    return [wanted]


def _complaint(
    engine: Engine,
    prompts: Tensor,
    points: Tensor,
    expected: Float[Tensor, "pair point"],
    scale: float,
    ranks: RankGroup,
) -> str | None:
    """What is wrong with a fast way: it fails, or its distances are others; None if nothing is.

    First with few points, then with as many as share a row: some models run out of positions.
    """
    for more in (0, max(0, min(_POINTS_PER_ROW, engine.budget.tokens) - points.shape[1])):
        tried = torch.cat([points, points[:, -1:].expand(-1, more, -1)], dim=1)
        wanted = torch.cat([expected, expected[:, -1:].expand(-1, more)], dim=1)
        try:
            measured, _ = engine.distances(engine.open(prompts), tried)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, PeerError):
                raise
            ranks.all_failed(error)
            reason = str(error).strip().split("\n")[0]
            return f"the {engine.name!r} way of measuring fails on this model, {reason!r}"
        complaint = _disagreement(engine, wanted, measured, scale)
        if ranks.broadcast_number(int(complaint is not None)):
            return complaint or f"the {engine.name!r} way disagrees on the leading process"
    return None


def _disagreement(engine: Engine, expected: Tensor, measured: Tensor, scale: float) -> str | None:
    gap = (expected - measured).abs()
    # Pairs that hardly move are measured against the output's own length: rounding is no mistake.
    largest = max(float(expected.max()), 0.05 * scale)
    allowed = tolerance(engine.stream.precision)
    if float(gap.max()) <= allowed * largest:
        return None
    worst, relative = int(gap.argmax()), float(gap.max() / largest)
    return (
        f"the {engine.name!r} way of measuring disagrees with the plain way on this model: a "
        f"distance of {float(measured.flatten()[worst]):.6g} against "
        f"{float(expected.flatten()[worst]):.6g}, {relative:.2g} of the largest where "
        f"{allowed:.2g} is allowed"
    )


def _level_of_caller() -> int:
    """The `stacklevel` of the line that asked for the measurement: the first that is not ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(_OUR_FRAMES):
        frame, level = frame.f_back, level + 1
    return level


def _fastest(engines: list[Engine], prompts: Tensor, points: Tensor) -> int:
    """The number of the engine to take."""
    if len(engines) == 1:
        return 0
    num_points = min(_POINTS_PER_ROW, engines[0].budget.tokens)
    many = points[:, :1].expand(-1, num_points, -1)
    # In turns, so that a busy moment of the machine does not fall on one of them alone.
    trials = [[_seconds(engine, prompts, many) for engine in engines] for _ in range(3)]
    shared, rows = map(min, zip(*trials, strict=True))
    return int(rows * _CLEARLY_FASTER < shared)


def _seconds(engine: Engine, prompts: Tensor, points: Tensor) -> float:
    """How long one run takes, the device's queue included."""
    start = time.perf_counter()
    engine.distances(engine.open(prompts), points)
    if prompts.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
