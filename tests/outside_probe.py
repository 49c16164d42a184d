"""Probes of another package: one reads the points that paths run, one is derived from paths."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sr_monitor.model.engine import Chunk
from sr_monitor.model.session import Session
from sr_monitor.probes.base import Gather, Part, Probe
from sr_monitor.probes.keys import Key


@dataclass(frozen=True, kw_only=True)
class Norms(Probe):
    """The norm of F at every point."""

    name, rides = "norms", "paths"
    keys = (LARGEST := Key.scalar("norms/largest", "The largest norm of an output."),)
    power: float = 2.0

    def reader(self, session: Session, num_contexts: int, num_places: int) -> "Norms.Reader":
        return self.Reader(torch.full((num_contexts, num_places), torch.nan), self.power)

    def scalars(self, part: Part) -> Mapping[Key, float]:
        return {self.LARGEST: float(part["norm"].nan_to_num(0).max())}

    @dataclass
    class Reader:
        norm: torch.Tensor
        power: float

        def read(self, chunk: Chunk) -> None:
            self.norm[chunk.contexts, chunk.places] = chunk.outputs.norm(self.power, dim=-1).cpu()

        def part(self, gather: Gather) -> Part:
            return {"norm": gather(self.norm)}


@dataclass(frozen=True, kw_only=True)
class Steepness(Probe):
    """The steepest rise between two steps, read off the paths of any record."""

    name = "steepness"
    keys = (MEDIAN := Key.scalar("steepness/median", "The median of the steepest rises."),)

    def derive(self, parts: Mapping[str, Part]) -> Part:
        return {"steepness": parts["paths"].relative.diff(dim=1).nan_to_num(0).amax(dim=1)}

    def scalars(self, part: Part) -> Mapping[Key, float]:
        return {self.MEDIAN: float(part["steepness"].median())}
