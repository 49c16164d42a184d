"""Read a target off the final vectors linearly: labels, belief states, anything known of prompts.

The target has a row for each pair, that of its A prompt: numbers, rows of numbers, or words, which
stand for classes. R2 is that of a cross-validated ridge regression; see `sr_monitor.probes.ridge`.

    StableRegionCallback(prompts=prompts, probes=[Readout(target=beliefs)])
    sr-monitor measure MODEL --prompts prompts.json --probe readout:target=classes.txt
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.errors import InputError, MissingPartError, refused
from sr_monitor.model.session import Session
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Page, Part, Probe, Reader
from sr_monitor.probes.clean_runs import Finals
from sr_monitor.probes.drawing import (
    SOFT,
    Figure,
    new_page,
    own_style,
    pixels,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.keys import Key
from sr_monitor.probes.ridge import cross_predict, r2_of


@dataclass(frozen=True, kw_only=True)
class Readout(Probe):
    """How well a given target can be read off the final vectors, linearly."""

    name = "readout"
    rides = "paths"
    holds = ("target", "predicted")
    keys = (
        R2 := Key.scalar(
            "readout/r2", "How well the target is read off the final vectors: 1 is perfectly."
        ),
        PREDICTED := Key.image(
            "readout/predicted", "The target as it is read off, in its own colours."
        ),
    )
    target: Any = option(
        None,
        "What is read off: a row of numbers, a number or a word for each pair, or a file of one a "
        "line.",
        effect="nothing",
    )

    def __post_init__(self) -> None:
        """Read the target, and keep it as plain rows of numbers."""
        super().__post_init__()
        if self.target is not None:
            object.__setattr__(self, "target", _rows(self.target))

    def reader(self, session: Session, num_contexts: int, num_places: int) -> Reader:
        """Read the final vectors of the clean prompts."""
        if self.target is None:
            raise MissingPartError(
                "nothing to read off; pass Readout(target=...), or --probe readout:target=FILE"
            )
        return Finals(num_contexts)

    def settle(self, part: Float[Tensor, "pair d_output"], parts: Mapping[str, Part]) -> Part:
        """Predict the target of each pair from those of the other folds."""
        if len(self.target) < len(part):
            raise InputError(
                f"readout: the target has {len(self.target)} rows, but {len(part)} pairs are "
                "measured; give one for each pair, or pass a smaller num_pairs="
            )
        target = torch.tensor(self.target[: len(part)], dtype=torch.float32)
        finite = part.isfinite().all(dim=1)
        target[~finite] = torch.nan
        predicted = torch.full_like(target, torch.nan)
        predicted[finite] = cross_predict(part[finite], target[finite])
        return {"target": target, "predicted": predicted}

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return R2."""
        finite = part["target"].isfinite().all(dim=1)
        return {self.R2: r2_of(part["predicted"][finite], part["target"][finite])}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw what is read off, coloured by what is true."""
        yield self.PREDICTED, pixels(_draw(page.part, page.title, self.scalars(page.part)[self.R2]))


def _rows(target: Any) -> tuple[tuple[float, ...], ...]:
    """Return a target as rows of numbers; words become 1 in a column of their own, else 0."""
    fix = "pass a row of numbers, a number or a word for each pair, or a file of one a line"
    if isinstance(target, str | Path) and Path(target).is_file():
        target = Path(target).read_text(encoding="utf-8").split("\n")
        target = [_numbers(line) for line in target if line.strip()]
    given: Any = target
    try:
        entries = given.tolist() if hasattr(given, "tolist") else list(given)
        if all(isinstance(entry, str) for entry in entries) and not isinstance(target, str):
            words = sorted(set(entries))
            entries = [[float(entry == word) for word in words] for entry in entries]
        rows = [entry if isinstance(entry, list | tuple) else [entry] for entry in entries]
        found = tuple(tuple(map(float, row)) for row in rows)
    except (TypeError, ValueError):
        raise refused("target", target, fix) from None
    if len({len(row) for row in found}) != 1 or not found[0]:
        raise refused("target", target, fix)
    return found


def _numbers(line: str) -> list[float] | str:
    try:
        return [float(word) for word in line.replace(",", " ").split()]
    except ValueError:
        return line.strip()


@own_style()
def _draw(part: Part, title: str, r2: float) -> Figure:
    """Draw predictions: a number against its truth, or rows along the target's two main axes."""
    figure = new_page(3.9, 4.0)
    axes = place_axes(figure, 0.72, 0.55, 2.7, 2.7)
    finite = (part["target"].isfinite() & part["predicted"].isfinite()).all(dim=1)
    target, predicted = part["target"][finite].double(), part["predicted"][finite].double()
    centred = target - target.mean(dim=0) if len(target) else target
    if len(target) and int(torch.linalg.matrix_rank(centred)) < 2:  # a number, or one of two words
        axes.plot(target[:, 0], target[:, 0], color=SOFT, linewidth=0.8, linestyle=":")
        axes.scatter(target[:, 0], predicted[:, 0], s=9, c=_colours(target).numpy(), linewidths=0)
        axes.set(xlabel="target", ylabel="read off")
    elif len(target):
        main = torch.linalg.svd(centred, full_matrices=False).Vh[:2].mT
        shown = (predicted - target.mean(dim=0)) @ main
        axes.scatter(shown[:, 0], shown[:, 1], s=9, c=_colours(target).numpy(), linewidths=0)
        axes.set(xlabel="first axis of the target", ylabel="second axis")
    write_headline(figure, title, f"read off with R2 = {r2:.2f}, {len(target)} prompts")
    return settled(figure)


def _colours(target: Float[Tensor, "item out"]) -> Float[Tensor, "item 3"]:
    """Return each row's first three numbers as red, green and blue, each from least to most."""
    low, high = target.amin(dim=0), target.amax(dim=0)
    scaled = (target - low) / (high - low).clamp_min(1e-12)
    missing = scaled.new_full((len(scaled), max(0, 3 - scaled.shape[1])), 0.3)
    return 0.9 * torch.cat([scaled[:, :3], missing], dim=1)
