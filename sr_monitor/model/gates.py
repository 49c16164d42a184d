"""Find the gates of a feed-forward: what its activation function takes, before the function.

gates = find_gates_among(calls)              # the calls that make up the feed-forward
gates.of(seen.taps["gates 3"])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from sr_monitor.model.calls import Call
from sr_monitor.model.outputs import Tap

_FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(F.silu, F.gelu, partial(F.gelu, approximate="tanh"), torch.relu, torch.sigmoid, torch.tanh),
    lambda gate: gate.relu().square(),
)


@dataclass(frozen=True)
class Gates:
    """Where gates are read: in some columns of what a tap reads."""

    tap: Tap
    start: int = 0
    stop: int | None = None

    def of(self, tapped: Shaped[Tensor, "*batch width"]) -> Shaped[Tensor, "*batch gate"]:
        """Return the gates among what the tap has read."""
        return tapped[..., self.start : self.stop]


def find_gates_among(calls: Sequence[Call]) -> Gates | None:
    """Return the gates of the feed-forward that these calls make up; None where it shows none."""
    return _taken_by_module(calls) or _between_linear_maps(calls)


def _taken_by_module(calls: Sequence[Call]) -> Gates | None:
    """Return what the widest activation function takes, if that is a module."""
    functions = [call for call in calls if _is_activation(call)]
    if not functions:
        return None
    return Gates(Tap(max(functions, key=lambda call: len(call.made)).module, before=True))


def _is_activation(call: Call) -> bool:
    """Whether a module takes each number by itself, and not in proportion."""
    module, given, made = call.module, call.given.float(), call.made.float()
    has_parts = call.has_weights or any(True for _ in module.children())
    if has_parts or given.shape != made.shape or not len(made):
        return False
    half = torch.arange(len(given)) % 2 == 0
    try:
        alone, opposite = module(torch.where(half, given, 0.0)), module(-given)
    except Exception:  # it takes more than a vector
        return False
    by_itself = torch.allclose(alone[half], made[half], rtol=1e-2, atol=1e-3)
    return by_itself and not torch.allclose(opposite, -made, rtol=1e-2, atol=1e-3)


def _between_linear_maps(calls: Sequence[Call]) -> Gates | None:
    """Return what a mere function takes: what comes out of a linear map before the last one.

    Of two factors, the gate is the one that one of the usual functions was applied to.
    """
    linear = [call for call in calls if _is_linear(call)]
    linear = [
        call
        for call in linear
        if not any(call.is_within(other) for other in linear if other is not call)
    ]
    if len(linear) < 2:
        return None
    product = linear[-1].given
    found = [piece for call in linear[:-1] for piece in _pieces(call, len(product))]
    if len(found) == 2:
        (first, p), (second, q) = found
        return first if _misfit(p, q, product) <= _misfit(q, p, product) else second
    return found[0][0] if len(found) == 1 else None


def _pieces(call: Call, width: int) -> list[tuple[Gates, Tensor]]:
    """Cut what a call made into pieces of a width, if it is that of one or of several."""
    if len(call.made) % width:
        return []
    places = [(start, start + width) for start in range(0, len(call.made), width)]
    return [(Gates(Tap(call.module), start, stop), call.made[start:stop]) for start, stop in places]


def _misfit(gate: Tensor, factor: Tensor, product: Tensor) -> float:
    return min(float((product - each(gate) * factor).norm()) for each in _FUNCTIONS)


def _is_linear(call: Call) -> bool:
    weight = getattr(call.module, "weight", None)
    is_map = hasattr(call.module, "in_features") or getattr(weight, "ndim", 0) == 2
    return is_map and len(call.given) > 0 and len(call.made) > 0
