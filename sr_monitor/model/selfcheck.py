"""Choose the way to run points: the fastest one that agrees with the plain way.

A rule, not a clock, so that the bits are the same every time: `shared` if it agrees, else `rows`,
else `plain`. Every session compares anew, as hooks, adapters and patched forwards come and go.

    engine = choose_engine(stream, prompts_a, prompts_b, wanted="auto", budget=budget)
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr_monitor.errors import (
    InputError,
    PeerError,
    first_line,
    is_out_of_memory,
    level_of_caller,
    warn,
)
from sr_monitor.model.cache import can_share_rows
from sr_monitor.model.engine import POINTS_PER_ROW, Engine, Way
from sr_monitor.model.examination import tolerance
from sr_monitor.model.memory import TokenBudget, in_chunks
from sr_monitor.model.ranks import ALONE, RankGroup
from sr_monitor.model.stream import Stream

EngineName = Literal["auto", "shared", "rows", "plain"]

_WAYS: tuple[Way, ...] = get_args(Way)


def choose_engine(
    stream: Stream,
    prompts_a: Int[Tensor, "pair token"],
    prompts_b: Int[Tensor, "pair token"],
    *,
    wanted: EngineName,
    budget: TokenBudget,
    way: Way | None = None,
    ranks: RankGroup = ALONE,
) -> Engine:
    """Return the fastest way that agrees with the plain one; refuse a wanted one that does not.

    The first two pairs are compared. No way faster than `way`, which an earlier measurement of the
    run took, is considered; all ranks take the leader's. With a fixed budget ranks run equally many
    forwards, and so compare together.
    """
    chosen: list[Way] = []

    def compare(_: slice) -> None:
        few = min(2, budget.items(prompts_a.shape[1]))
        together = ranks if budget.fixed else ALONE
        check = _Check(stream, prompts_a[:few], prompts_b[:few], budget, together)
        chosen.append(check.choose(wanted, _WAYS[_WAYS.index(way or "shared") :]))

    if wanted == "plain":
        return Engine(stream, "plain", budget)
    # As one piece of work, so that running out of memory halves the budget and compares again.
    in_chunks(1, tokens_each=1, budget=budget, work=compare)
    return Engine(stream, ranks.broadcast(chosen[-1]), budget)


class _Check:
    """A comparison with the plain way, on the ends and middles of some paths."""

    def __init__(
        self,
        stream: Stream,
        prompts_a: Int[Tensor, "pair token"],
        prompts_b: Int[Tensor, "pair token"],
        budget: TokenBudget,
        ranks: RankGroup,
    ) -> None:
        self.stream, self.budget, self.ranks = stream, budget, ranks
        a, b = stream.read(prompts_a).float(), stream.read(prompts_b).float()
        points = torch.stack([a, (a + b) / 2, b], dim=1)  # "pair point d_model"
        plain = Engine(stream, "plain", budget)
        expected, clean = plain.distances(plain.open(prompts_a), points)
        finite = ranks.broadcast(expected.isfinite().all(dim=1).cpu())
        self.prompts, self.points = prompts_a[finite], points[finite]
        self.expected: Float[Tensor, "pair point"] = expected[finite]
        self.scale = float(clean.final[finite].float().norm(dim=-1).amax()) if finite.any() else 0.0

    def choose(self, wanted: EngineName, ways: tuple[Way, ...]) -> Way:
        if not len(self.prompts):  # weights of NaN: there is nothing to compare
            return "plain"
        complaints = []
        for way in self._candidates(wanted, ways):
            complaint = self._complaint(Engine(self.stream, way, self.budget))
            if complaint is None:
                break
            complaints.append(complaint)
        else:
            way = "plain"
        if complaints and wanted != "auto":
            raise InputError(f"engine={wanted!r}: {complaints[0]}; pass engine='auto' or 'plain'")
        if complaints:
            text = f"{'; '.join(complaints)}; the slower way {way!r} is used instead"
            warn(text, category=UserWarning, stacklevel=level_of_caller())
        return way

    def _candidates(self, wanted: EngineName, ways: tuple[Way, ...]) -> list[Way]:
        """Return the fast ways to try; refuse a wanted one that the model cannot take."""
        anatomy, num_tokens = self.stream.anatomy, self.prompts.shape[1]
        cache = self.stream.prefill(self.prompts)
        possible: tuple[Way, ...] = ("shared", "rows")
        reason = ""
        if cache is None:
            possible = ()
            reason = "it keeps no keys and values of earlier tokens; pass engine='plain' or 'auto'"
        elif not can_share_rows(anatomy, cache, num_tokens - 1):
            possible = ("rows",)
            reason = (
                "its attention cannot take a mask of shared rows (a sliding window shorter than "
                "the prompt, ALiBi, or flash attention); pass engine='rows' or 'auto'"
            )
        if wanted != "auto" and wanted not in possible:
            raise InputError(
                f"engine={wanted!r} cannot run {type(anatomy.core).__name__} on prompts of "
                f"{num_tokens} tokens: {reason}"
            )
        return [way for way in possible if way in (ways if wanted == "auto" else (wanted,))]

    def _complaint(self, engine: Engine) -> str | None:
        """Say what is wrong with a fast way, if it fails or its distances differ.

        Try a few points first, then as many as share a row: some models run out of positions.
        """
        most = min(POINTS_PER_ROW, self.budget.tokens)
        for more in (0, max(0, most - self.points.shape[1])):
            # "pair point d_model" and "pair point", the last point repeated `more` times.
            tried = torch.cat([self.points, self.points[:, -1:].expand(-1, more, -1)], dim=1)
            expected = torch.cat([self.expected, self.expected[:, -1:].expand(-1, more)], dim=1)
            try:
                measured, _ = engine.distances(engine.open(self.prompts), tried)
            except Exception as error:
                if is_out_of_memory(error) or isinstance(error, PeerError):
                    raise
                self.ranks.all_failed(error)
                reason = first_line(error)
                return f"the {engine.way!r} way of measuring fails on this model, {reason!r}"
            complaint = self._disagreement(engine.way, expected, measured)
            if self.ranks.broadcast(complaint is not None):
                return complaint or f"the {engine.way!r} way disagrees on the leading rank"
        return None

    def _disagreement(
        self, way: Way, expected: Float[Tensor, "pair point"], measured: Float[Tensor, "pair point"]
    ) -> str | None:
        gap = (expected - measured).abs()
        # Where no pair moves far, rounding goes with the length of the output itself.
        largest = max(float(expected.max()), 0.05 * self.scale)
        allowed = tolerance(self.stream.precision)
        if float(gap.max()) <= allowed * largest:
            return None
        worst, relative = int(gap.argmax()), float(gap.max() / largest)
        return (
            f"the {way!r} way of measuring disagrees with the plain way on this model: a distance "
            f"of {float(measured.flatten()[worst]):.6g} against "
            f"{float(expected.flatten()[worst]):.6g}, {relative:.2g} of the largest where "
            f"{allowed:.2g} is allowed"
        )
