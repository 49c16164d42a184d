"""Hold what a forward gives at some points: F, and what is tapped on the way there.

with stream.tapping({"block 3": Tap(stream.anatomy.blocks[2])}):
    stream.continue_plain(prompts, activations).taps["block 3"]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """A module after the cut whose output is read at each point, too."""

    module: nn.Module
    before: bool = False
    """Read its input instead."""
    keep: Callable[[Tensor], Tensor] | None = None
    """Makes what is kept of "... width", at once: less memory where a module is wide."""


@dataclass(frozen=True)
class Outputs:
    """F at some points, and what the taps saw there: rows of equal number."""

    final: Shaped[Tensor, "row ..."]
    taps: Mapping[str, Shaped[Tensor, "row ..."]] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """Return the same with each tensor changed."""
        return Outputs(change(self.final), {name: change(tap) for name, tap in self.taps.items()})

    def __getitem__(self, index: Any) -> "Outputs":
        """Return the rows at an index, of each tensor."""
        return self.map(lambda tensor: tensor[index])

    def put(self, index: Any, rows: "Outputs") -> None:
        """Write rows at an index, into each tensor."""
        self.final[index] = rows.final
        for name, tap in self.taps.items():
            tap[index] = rows.taps[name]

    @staticmethod
    def cat(pieces: Sequence["Outputs"]) -> "Outputs":
        """Join rows."""
        names = pieces[0].taps
        taps = {name: torch.cat([piece.taps[name] for piece in pieces]) for name in names}
        return Outputs(torch.cat([piece.final for piece in pieces]), taps)
