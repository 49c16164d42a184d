"""Draw sharpness against meaning: a column of dots for each label, a cloud for each similarity.

image = pixels(draw_meaning(part, estimates, "step 500", "slope"))
"""

from collections.abc import Mapping
from typing import Any

import torch

from sr_monitor.probes.correlation import Estimate
from sr_monitor.probes.drawing import (
    BLUE,
    INK,
    LEFT,
    RED,
    SOFT,
    Axes,
    Figure,
    new_page,
    own_style,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.statistics import quartiles

_AXES = {
    "divergence": "divergence of predictions",
    "activations": "cosine of activations",
    "finals": "cosine of final vectors",
    "embeddings": "cosine of embeddings",
}
_SIDE, _APART = 1.85, 0.3


@own_style()
def draw_meaning(
    part: Mapping[str, Any], estimates: Mapping[str, Estimate], title: str, of: str
) -> Figure:
    """Draw a panel for each estimate, pairs coloured by their label."""
    figure = new_page(LEFT + max(2, len(estimates)) * (_SIDE + _APART) + 0.1, 3.4)
    colours = [{1: BLUE, 0: RED}.get(label, SOFT) for label in part["label"].tolist()]
    for number, (what, estimate) in enumerate(estimates.items()):
        axes = place_axes(figure, LEFT + number * (_SIDE + _APART), 0.6, _SIDE, 1.85)
        if what == "labels":
            _draw_labels(axes, part)
            name = "effect"
        else:
            y = part["sharpness"].numpy()
            axes.scatter(part[what].numpy(), y, s=8, c=colours, linewidths=0, alpha=0.8)
            axes.set_xlabel(_AXES[what])
            name = "correlation"
        axes.set_title(f"{name} {estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]")
        axes.title.set(fontsize=7.5, color=INK)
        if number == 0:
            axes.set_ylabel("maximum slope" if of == "slope" else "whether there is a step")
        else:
            axes.set_yticklabels([])
    write_headline(figure, title, "are boundaries sharper where the meaning differs?")
    return settled(figure)


def _draw_labels(axes: Axes, part: Mapping[str, Any]) -> None:
    """Draw a column of dots for each label, spread evenly, and its median."""
    for place, (label, colour) in enumerate(((1, BLUE), (0, RED))):
        values = part["sharpness"][part["label"] == label]
        across = place + torch.linspace(-0.25, 0.25, max(1, len(values)))[: len(values)]
        axes.scatter(across.numpy(), values.numpy(), s=8, c=colour, linewidths=0, alpha=0.8)
        axes.hlines(quartiles(values)[1], place - 0.35, place + 0.35, color=INK, linewidth=1.5)
    axes.set_xticks([0, 1], ["similar", "dissimilar"])
