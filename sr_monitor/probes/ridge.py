"""Read a target off vectors linearly, by ridge regression in closed form, cross-validated.

    R2 = 1 - sum ||y_i - prediction of i by the other folds||^2 / sum ||y_i - mean||^2

1 where every fold predicts the others exactly, 0 or less where nothing can be read off. How strong
the penalty is, each fold chooses by leave-one-out within what it is fitted to.

    predicted = cross_predict(vectors, target)
    print(r2_of(predicted, target))
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_NUM_FOLDS = 5
_PENALTIES = 10.0 ** torch.arange(-6, 3)
"""Relative to the mean square of the centred vectors."""


def cross_predict(
    vectors: Float[Tensor, "item width"], target: Float[Tensor, "item out"]
) -> Float[Tensor, "item out"]:
    """Return what four of five folds predict for each item of the fifth; NaN for under ten items.

    Items are dealt out to the folds in turn.
    """
    x, y = vectors.double(), target.double()
    predicted = torch.full_like(y, math.nan)
    fold = torch.arange(len(x)) % _NUM_FOLDS
    for number in range(_NUM_FOLDS if len(x) >= 2 * _NUM_FOLDS else 0):
        held_out = fold == number
        predicted[held_out] = _predict(x[~held_out], y[~held_out], x[held_out])
    return predicted.float()


def r2_of(predicted: Float[Tensor, "item out"], target: Float[Tensor, "item out"]) -> float:
    """Return the R2 over all outputs together; NaN if the target is the same for all."""
    missed = (target - predicted).double().square().sum()
    spread = (target - target.mean(dim=0)).double().square().sum()
    return 1 - float(missed / spread) if spread > 0 else math.nan


def _predict(
    x: Float[Tensor, "item width"], y: Float[Tensor, "item out"], new: Float[Tensor, "new width"]
) -> Float[Tensor, "new out"]:
    """Fit x to y with the penalty that leaves the least when each item is left out in turn."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y, new = x - x_mean, y - y_mean, new - x_mean
    # Between items: "item item". Exact whatever the width, and small.
    eigenvalues, vectors = torch.linalg.eigh(x @ x.mT)
    penalties = _PENALTIES.to(x) * eigenvalues.clamp_min(1e-30).mean()
    rotated = vectors.mT @ y
    errors = []
    for penalty in penalties:
        shrunk = eigenvalues.clamp_min(0) / (eigenvalues.clamp_min(0) + penalty)
        residual = y - vectors @ (shrunk[:, None] * rotated)
        # The mean is fitted, too: it takes 1 / item of each item's own weight.
        leverage = (vectors.square() * shrunk).sum(dim=1) + 1 / len(x)
        errors.append((residual / (1 - leverage).clamp_min(1e-9)[:, None]).square().sum())
    best = penalties[int(torch.stack(errors).argmin())]
    weights = vectors @ (rotated / (eigenvalues.clamp_min(0) + best)[:, None])
    predicted: Tensor = new @ (x.mT @ weights) + y_mean
    return predicted
