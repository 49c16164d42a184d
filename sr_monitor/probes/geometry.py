"""Measure how many directions the final vectors of the prompts spread over.

With s_1 >= s_2 >= ... the singular values of the vectors F of the A prompts around their mean,

    rank = exp(-sum_i p_i ln p_i),    p_i = s_i / sum s        (RankMe)
    decay = -slope of ln(s_i^2) over ln(i), the first of them and the last half left out

    StableRegionCallback(probes=["geometry"])
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.session import Session
from sr_monitor.probes.base import RGB, Page, Part, Probe, Reader
from sr_monitor.probes.clean_runs import Finals
from sr_monitor.probes.drawing import (
    BLUE,
    LEFT,
    SOFT,
    WIDTH,
    Figure,
    new_page,
    own_style,
    pixels,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.keys import Key


@dataclass(frozen=True, kw_only=True)
class Geometry(Probe):
    """The effective rank and the decay of the spectrum of the final vectors."""

    name = "geometry"
    rides = "paths"
    holds = ("singular_values",)
    keys = (
        RANK := Key.scalar(
            "geometry/rank", "How many directions the final vectors spread over: RankMe."
        ),
        DECAY := Key.scalar(
            "geometry/decay", "How fast their variance falls from one direction to the next: alpha."
        ),
        SPECTRUM := Key.image(
            "geometry/spectrum", "The variance of the final vectors by direction, earlier behind."
        ),
    )

    def reader(self, session: Session, num_contexts: int, num_places: int) -> Reader:
        """Read the final vectors of the clean prompts."""
        return Finals(num_contexts)

    def settle(self, part: Float[Tensor, "pair d_output"], parts: Mapping[str, Part]) -> Part:
        """Take the singular values of the vectors that are finite, in double precision."""
        vectors = part[part.isfinite().all(dim=1)].double()
        centred = vectors - vectors.mean(dim=0) if len(vectors) > 1 else vectors[:0]
        values = torch.linalg.svdvals(centred)
        # One direction is lost to the mean.
        return {"singular_values": values[: max(0, len(centred) - 1)].float()}

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return the effective rank and the decay."""
        values = part["singular_values"]
        return {self.RANK: effective_rank(values), self.DECAY: decay(values)}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw the spectrum, those of earlier steps behind."""
        behind = [each.part["singular_values"] for each in earlier]
        numbers = self.scalars(page.part)
        note = f"effective rank {numbers[self.RANK]:.1f}, decay {numbers[self.DECAY]:.2f}"
        yield (
            self.SPECTRUM,
            pixels(_draw(page.part["singular_values"], behind, page.title, note)),
        )


def effective_rank(singular_values: Float[Tensor, " value"]) -> float:
    """Return exp of the entropy of the singular values' shares; NaN if all are 0."""
    values = singular_values.double()
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp()) if values.sum() > 0 else math.nan


def decay(singular_values: Float[Tensor, " value"]) -> float:
    """Return the alpha of s_i^2 ~ i^-alpha by least squares; NaN for fewer than six values.

    The first direction is often one of its own, and few prompts bend the tail down.
    """
    number = torch.arange(2, max(2, len(singular_values) // 2 + 1))
    values = singular_values[number - 1].double()
    if len(number) < 2 or not bool((values > 0).all()):
        return math.nan
    x, y = number.double().log(), 2 * values.log()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


@own_style()
def _draw(
    values: Float[Tensor, " value"], behind: Sequence[Tensor], title: str, note: str
) -> Figure:
    """Draw each direction's share of the variance, both axes logarithmic; the paler the earlier."""
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    figure = new_page(5.0, 3.5)
    axes = place_axes(figure, LEFT, 0.55, WIDTH, 2.2)
    everything = [*behind, values]
    for place, each in enumerate(everything, start=1):
        is_last = place == len(everything)
        share = (each.double().square() / each.double().square().sum()).numpy()
        color = BLUE if is_last else colormaps["Greys"](0.15 + 0.4 * place / len(everything))
        axes.plot(range(1, len(each) + 1), share, color=color, linewidth=2 if is_last else 1)
    axes.set(xscale="log", yscale="log", xlabel="direction", ylabel="share of the variance")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")  # powers would be formulas
        axis.set_minor_formatter(NullFormatter())
    top = axes.get_ylim()[1]
    axes.set_ylim(max(axes.get_ylim()[0], 1e-6 * top), top)
    for edge in (2, max(2, len(values) // 2)):  # between these the decay is fitted
        axes.axvline(edge, color=SOFT, linewidth=0.7, linestyle=":")
    write_headline(figure, title, note)
    return settled(figure)
