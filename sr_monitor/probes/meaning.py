"""Measure whether boundaries are sharper between prompts that differ in meaning.

The slopes of the pairs of paths are compared between labels ("similar", "dissimilar"), and ranked
against what tells prompts apart: the Jensen-Shannon divergence of their own predictions, the cosine
of their activations at the layer, of their final vectors, and of embeddings you give.

    StableRegionCallback(prompts=PromptSet.from_meaning(tokenizer), probes=["meaning"])
    Meaning(embed=lambda texts: encoder.encode(texts))
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sr_monitor.errors import MissingPartError, refused
from sr_monitor.options import option
from sr_monitor.probes.base import RGB, Page, Part, Probe, Run
from sr_monitor.probes.clean_runs import run_clean
from sr_monitor.probes.correlation import Estimate, effect_size, rank_correlation
from sr_monitor.probes.drawing import pixels
from sr_monitor.probes.keys import Key
from sr_monitor.probes.meaning_pictures import draw_meaning
from sr_monitor.probes.regions import Regions

_PAIRS_AT_ONCE = 64  # whose logits are held
_WHAT = {
    "labels": "How surely a dissimilar pair is sharper than a similar one: Cliff's delta.",
    "divergence": "The rank correlation of sharpness with the divergence of the predictions.",
    "activations": "The rank correlation of sharpness with the cosine of the activations.",
    "finals": "The rank correlation of sharpness with the cosine of the final vectors.",
    "embeddings": "The rank correlation of sharpness with the cosine of the given embeddings.",
}
_ENDS = {
    "low": "The lower end of the 95% interval of that.",
    "high": "The upper end of it.",
}


@dataclass(frozen=True, kw_only=True)
class Meaning(Probe):
    """Whether prompts that differ in meaning have sharper boundaries between them."""

    name = "meaning"
    holds = ("sharpness", "label", "divergence", "activations", "finals", "embeddings")
    keys = (
        *(
            Key.scalar(f"meaning/{what}/{end}", meaning)
            for what, text in _WHAT.items()
            for end, meaning in {"value": text, **_ENDS}.items()
        ),
        PAIRS := Key.image("meaning/pairs", "Sharpness by label, and against each similarity."),
    )
    of: Literal["slope", "crossing"] = option(
        "slope",
        "What is compared: the maximum slope, or whether a path has a step at all.",
        effect="record",
    )
    similar: str = option("similar", "The label of pairs that mean the same.", effect="record")
    dissimilar: str = option("dissimilar", "The label of pairs that do not.", effect="record")
    embed: Callable[[Sequence[str]], Any] | None = option(
        None, "A function of texts that returns their embeddings (text, width).", effect="nothing"
    )

    def measure(self, run: Run) -> Part:
        """Run both prompts of each pair as they are, and compare them."""
        run.session.stream.check_unembeds()
        paths = run.parts["paths"]
        count = len(paths.max_slope)
        share = run.session.share(*run.prompts.pairs(count))
        unembed = run.session.stream.unembed
        activations = share.activations()
        a, b = run_clean(share, activations).final.chunk(2)
        pieces = zip(*(torch.split(each, _PAIRS_AT_ONCE) for each in (a, b)), strict=True)
        divergence = [_divergence(*map(unembed, pair)) for pair in pieces]
        crossing = (Regions().derive(run.parts) or {})["count"] > 1
        sharpness = paths.max_slope if self.of == "slope" else crossing.float()
        words = [*(run.prompts.labels or ())][:count] or [""] * count
        codes = {self.similar: 1, self.dissimilar: 0}
        return {
            "sharpness": sharpness.where(paths.kept, math.nan),
            "label": torch.tensor([codes.get(word, -1) for word in words]),
            "divergence": share.gather(torch.cat(divergence)),
            "activations": share.gather(cosine_similarity(activations[0], activations[1])),
            "finals": share.gather(cosine_similarity(a.float(), b.float())),
            "embeddings": self._embeddings(run, count),
        }

    def _embeddings(self, run: Run, count: int) -> Float[Tensor, " pair"]:
        """Return the cosine of the embeddings of each pair; NaN where no function is given."""
        if self.embed is None:
            return torch.full((count,), torch.nan)
        if run.prompts.texts is None:
            raise MissingPartError("embed= is given, but the prompts have no texts to embed")
        first = range(count) if run.prompts.pairing == "chain" else range(0, 2 * count, 2)
        leads = run.session.ranks.is_leader
        told = _cosines(self.embed, run.prompts.texts, tuple(first)) if leads else None
        cosines = run.session.ranks.broadcast(told)
        assert cosines is not None
        return cosines

    def estimates(self, part: Part) -> dict[str, Estimate]:
        """Return the effect of the labels and the rank correlations that can be told."""
        sharpness, label = part["sharpness"], part["label"]
        found = {"labels": effect_size(sharpness[label == 0], sharpness[label == 1])}
        found |= {what: rank_correlation(sharpness, part[what]) for what in [*_WHAT][1:]}
        return {what: each for what, each in found.items() if math.isfinite(each.value)}

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return each estimate with its interval."""
        keys = {key.name.split("/", 1)[1]: key for key in self.keys}
        return {
            keys[f"{what}/{end}"]: getattr(each, end)
            for what, each in self.estimates(part).items()
            for end in ("value", *_ENDS)
        }

    def facts(self, part: Part) -> Mapping[str, str]:
        """Return a line for each estimate."""
        return {f"meaning {what}": str(each) for what, each in self.estimates(part).items()}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, RGB]]:
        """Draw sharpness by label, and against each similarity."""
        estimates = self.estimates(page.part)
        if estimates:
            yield self.PAIRS, pixels(draw_meaning(page.part, estimates, page.title, self.of))


def _divergence(
    a: Float[Tensor, "pair token"], b: Float[Tensor, "pair token"]
) -> Float[Tensor, " pair"]:
    """Return the Jensen-Shannon divergence of two predictions, in nats: at most ln 2."""
    p, q = a.float().softmax(dim=-1), b.float().softmax(dim=-1)
    mean = (p + q) / 2
    entropies = [torch.special.entr(each).sum(dim=-1) for each in (mean, p, q)]
    divergence: Tensor = entropies[0] - (entropies[1] + entropies[2]) / 2
    return divergence


@functools.lru_cache(maxsize=4)  # the prompts of a run stay the same
def _cosines(
    embed: Callable[[Sequence[str]], Any], texts: tuple[str, ...], first: tuple[int, ...]
) -> Float[Tensor, " pair"]:
    """Return the cosine of the embeddings of each pair of texts, the second after the first."""
    embeddings = torch.as_tensor(embed(list(texts)))
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        shape = tuple(embeddings.shape)
        raise refused(
            "embed", embed, f"of {len(texts)} texts it returned {shape}, not (text, width)"
        )
    embeddings = embeddings.detach().float().cpu()
    a, b = embeddings[list(first)], embeddings[[number + 1 for number in first]]
    return cosine_similarity(a, b)
