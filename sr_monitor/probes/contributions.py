"""Measure how much each attention and feed-forward adds to the stream it is added to.

    share = ||c s|| / ||x||,    turn = cos(c s, x)

with s what the sublayer puts out, c the factor the block gives it (mostly 1), and x the stream
before, all at the last position of some A prompts as they are. A turn below 0 erases.

    StableRegionCallback(probes=["contributions"])
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.outputs import Tap
from sr_monitor.model.sublayers import find_parts
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Page, Part, Probe, Run
from sr_monitor.probes.clean_runs import run_clean
from sr_monitor.probes.drawing import (
    BLUE,
    LEFT,
    RED,
    SOFT,
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

_KINDS = ("attention", "feed_forward")


@dataclass(frozen=True, kw_only=True)
class Contributions(Probe):
    """How much each attention and feed-forward adds to the stream, and in which direction."""

    name = "contributions"
    holds = (
        "block",
        "attention_share",
        "attention_turn",
        "feed_forward_share",
        "feed_forward_turn",
    )
    keys = (
        ATTENTION := Key.scalar(
            "contributions/attention",
            "What an attention adds, relative to the stream: the mean over the blocks.",
        ),
        FEED_FORWARD := Key.scalar(
            "contributions/feed_forward",
            "What a feed-forward adds, relative to the stream: the mean over the blocks.",
        ),
        BY_BLOCK := Key.image(
            "contributions/by_block", "What each sublayer adds, and whether it builds or erases."
        ),
    )

    num_prompts: int = option(8, "Prompts that are run once more.", least=1, effect="record")

    def measure(self, run: Run) -> Part:
        """Read sublayers, and the stream before and after each block that has some."""
        stream = run.session.stream
        (prompts,) = run.prompts.pairs(min(self.num_prompts, run.prompts.num_pairs))[:1]
        share = run.session.share(prompts)
        parts, around = find_parts(stream), dict[str, Tap]()
        numbers = sorted({int(name.split()[1]) for name in parts})
        for number in numbers:
            block = stream.anatomy.blocks[number - 1]
            around |= {f"into {number}": Tap(block, before=True), f"block {number}": Tap(block)}
        with stream.tapping(parts | around):
            seen = run_clean(share, share.activations()).taps
        of_blocks = [
            shares_and_turns(
                {
                    name: seen[f"{name} {number}"].cpu().double()
                    for name in ("into", "block", *_KINDS)
                    if f"{name} {number}" in seen
                }
            )
            for number in numbers
        ]
        # (prompt, block, kind, 2) -> (block, kind, 2)
        medians = share.gather(torch.stack(of_blocks, dim=1).float()).nanmedian(dim=0).values
        found: dict[str, Any] = {"block": torch.tensor(numbers)}
        for kind, (shares, turns) in zip(_KINDS, medians.permute(1, 2, 0), strict=True):
            found |= {f"{kind}_share": shares, f"{kind}_turn": turns}
        return found

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return means over the blocks of the medians over the prompts."""
        keys = dict(zip(_KINDS, (self.ATTENTION, self.FEED_FORWARD), strict=True))
        means = {keys[kind]: float(part[f"{kind}_share"].nanmean()) for kind in _KINDS}
        return {key: mean for key, mean in means.items() if math.isfinite(mean)}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw shares and turns by block."""
        yield self.BY_BLOCK, pixels(_draw(page.part, page.title))


def shares_and_turns(
    seen: Mapping[str, Float[Tensor, "prompt width"]],
) -> Float[Tensor, "prompt kind 2"]:
    """Return both of both kinds; of a feed-forward against the stream with the attention in it."""
    stream, kinds = seen["into"], [kind for kind in _KINDS if kind in seen]
    # What the block adds is a sum of what the sublayers put out: their factors, by least squares.
    made = torch.stack([seen[kind] for kind in kinds], dim=-1)  # "prompt width kind"
    added = (seen["block"] - stream)[..., None]
    finite = torch.cat([made, added], dim=-1).isfinite().all(dim=-1).all(dim=-1)
    made, added = (each.where(finite[:, None, None], 0.0) for each in (made, added))
    factors = torch.linalg.pinv(made.mT @ made, hermitian=True) @ (made.mT @ added)
    found = stream.new_full((len(stream), len(_KINDS), 2), torch.nan)
    for index, kind in enumerate(kinds):
        given = made[..., index] * factors[:, index]
        lengths = given.norm(dim=1), stream.norm(dim=1)
        turn = (given * stream).sum(dim=1) / (lengths[0] * lengths[1])
        found[:, _KINDS.index(kind)] = torch.stack([lengths[0] / lengths[1], turn], dim=1)
        stream = stream + given
    return found.where(finite[:, None, None], torch.nan)


@own_style()
def _draw(part: Part, title: str) -> Figure:
    """Draw the share of each sublayer by block, and below it the turn."""
    figure = new_page(5.0, 4.6)
    blocks = part["block"].numpy()
    for name, bottom, label in (
        ("share", 2.35, "norm / norm of the stream"),
        ("turn", 0.75, "cosine"),
    ):
        axes = place_axes(figure, LEFT, bottom, WIDTH, 1.4)
        for kind, color in zip(_KINDS, (BLUE, RED), strict=True):
            values = part[f"{kind}_{name}"].numpy()
            axes.plot(blocks, values, "o-", color=color, markersize=3, label=kind.replace("_", "-"))
        axes.set_ylabel(label)
        count_along(axes.xaxis)
        if name == "share":
            axes.set_ylim(bottom=0)
            axes.set_xticklabels([])
        else:
            axes.axhline(0, color=SOFT, linewidth=0.7, linestyle=":")
            axes.set_xlabel("block")
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    write_headline(figure, title, "what each adds to the stream; below 0 it erases")
    return settled(figure)
