"""Measure attention sinks: what the last token's attention pays to the first, and what it gets.

    attention = a_0,    written = ||a_0 v_0|| / ||sum_k a_k v_k||,    value = ||v_0|| / mean ||v_k||

with a_k the last token's attention to token k and v_k that token's values; norms are over all heads
of a block, before the output projection. A sink is paid much and writes little.

    StableRegionCallback(probes=["sinks"])
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.attention import Attended, attend
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Page, Part, Probe, Run
from sr_monitor.probes.drawing import (
    BLUE,
    LEFT,
    RED,
    WIDTH,
    Figure,
    count_along,
    new_page,
    own_style,
    pixels,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.keys import Key

_SINK = 0.3  # of its attention, on average: such a head counts as a sink (arXiv 2410.10781)


@dataclass(frozen=True, kw_only=True)
class Sinks(Probe):
    """How much attention the first token gets, and what it writes."""

    name = "sinks"
    holds = ("block", "attention", "written", "value", "even")
    keys = (
        ATTENTION := Key.scalar(
            "sinks/attention", "The share of its attention that the last token pays to the first."
        ),
        HEADS := Key.scalar(
            "sinks/heads", "The share of heads that pay the first token more than 0.3."
        ),
        WRITTEN := Key.scalar(
            "sinks/written", "How much of what attention writes comes from the first token."
        ),
        VALUE := Key.scalar(
            "sinks/value_norm", "How long the first token's values are, relative to the others'."
        ),
        BY_HEAD := Key.image("sinks/by_head", "What each head pays to the first token, by block."),
    )
    num_prompts: int = option(
        8, "Prompts whose attention is looked at, in one more run.", least=1, effect="record"
    )

    def measure(self, run: Run) -> Part:
        """Run some clean prompts with eager attention."""
        (prompts,) = run.prompts.pairs(min(self.num_prompts, run.prompts.num_pairs))[:1]
        share = run.session.share(prompts)
        blocks = attend(run.session.stream, share.prompts[0])
        paid = [each.weights[:, :, -1, 0] for each in blocks.values()]
        most = max(each.shape[1] for each in paid)
        heads = [share.gather(each).nanmean(dim=0) for each in paid]
        written = [share.gather(_written(each)).nanmean(dim=0) for each in blocks.values()]
        padded = [torch.cat([each, each.new_full((most - len(each),), math.nan)]) for each in heads]
        return {
            "block": torch.tensor(list(blocks)),
            "attention": torch.stack(padded),  # "block head"
            "written": torch.stack(written)[:, 0],
            "value": torch.stack(written)[:, 1],
            "even": 1 / prompts.shape[1],
        }

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return means over blocks and heads."""
        heads = part["attention"][part["attention"].isfinite()]
        found = {
            self.ATTENTION: heads.mean(),
            self.HEADS: (heads > _SINK).double().mean(),
            self.WRITTEN: part["written"].nanmean(),
            self.VALUE: part["value"].nanmean(),
        }
        return {key: float(value) for key, value in found.items() if value.isfinite()}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw what each head pays, and what it gets, by block."""
        yield self.BY_HEAD, pixels(_draw(page.part, page.title))


def _written(attended: Attended) -> Float[Tensor, "prompt 2"]:
    """Return the first token's share of what is written, and how long its values are."""
    if attended.values is None:
        return attended.weights.new_full((len(attended.weights), 2), torch.nan)
    paid = attended.weights[:, :, -1, :, None]  # "prompt head token 1"
    given = paid * attended.values
    # Of all heads together: (prompt, head, width) and (prompt, head, token, width).
    share = given[:, :, 0].flatten(1).norm(dim=1) / given.sum(dim=2).flatten(1).norm(dim=1)
    lengths = attended.values.square().sum(dim=(1, 3)).sqrt()
    return torch.stack([share, lengths[:, 0] / lengths[:, 1:].mean(dim=1)], dim=1)


@own_style()
def _draw(part: Part, title: str) -> Figure:
    """Draw heads as a heat map, each block's strongest payers first, and what is written below."""
    figure = new_page(5.6, 4.6)
    axes = place_axes(figure, LEFT, 2.2, WIDTH, 1.6)
    attention = part["attention"].nan_to_num(-1).sort(dim=1, descending=True).values
    ends = float(part["block"][0]) - 0.5, float(part["block"][-1]) + 0.5
    image = axes.imshow(
        attention.masked_fill(attention < 0, math.nan).mT.numpy(),
        aspect="auto", vmin=0, vmax=1, cmap="magma", extent=(*ends, attention.shape[1] + 0.5, 0.5),
        interpolation="nearest",
    )  # fmt: skip
    axes.set(ylabel="heads, by payment", yticks=[], xticklabels=[])
    figure.colorbar(image, cax=place_axes(figure, LEFT + WIDTH + 0.1, 2.2, 0.1, 1.6))
    axes = place_axes(figure, LEFT, 0.75, WIDTH, 1.25)
    blocks = part["block"].numpy()
    axes.plot(blocks, part["attention"].nanmean(dim=1).numpy(), "o-", color=BLUE, markersize=3)
    axes.plot(blocks, part["written"].numpy(), "s-", color=RED, markersize=3)
    count_along(axes.xaxis)
    axes.set(xlim=ends, ylim=(0, 1.05), xlabel="block", ylabel="share")
    labels = ["attention paid to the first token", "its part of what is written"]
    figure.legend(axes.lines, labels, loc="lower center", ncols=2, frameon=False)
    even = f"even attention would be {part['even']:.2f}"
    write_headline(figure, title, f"attention of the last token to the first; {even}")
    return settled(figure)
