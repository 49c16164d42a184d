"""Linear read-out: what can be read off is, what cannot be is not, and no fold sees its answers."""

import math
from pathlib import Path

import pytest
import torch

from sr_monitor import PromptSet
from sr_monitor.errors import InputError
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.base import Page
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.readout import Readout, _draw
from sr_monitor.probes.ridge import cross_predict, r2_of
from tests import zoo
from tests.pictures import assert_tidy

GENERATOR = torch.Generator().manual_seed(0)


def test_a_linear_target_is_read_off_and_an_unrelated_one_is_not() -> None:
    x = torch.randn(100, 8, generator=GENERATOR)
    y = x @ torch.randn(8, 3, generator=GENERATOR) + 5
    assert r2_of(cross_predict(x, y), y) == pytest.approx(1.0, abs=1e-6)
    noise = torch.randn(100, 3, generator=GENERATOR)
    assert -0.2 < r2_of(cross_predict(x, noise), noise) < 0.1
    # Half of the variance is noise.
    half = y[:, :1] / y[:, :1].std() + noise[:, :1]
    assert r2_of(cross_predict(x, half), half) == pytest.approx(0.5, abs=0.15)


def test_more_directions_than_prompts_read_off_no_noise() -> None:
    x, y = torch.randn(40, 300, generator=GENERATOR), torch.randn(40, 1, generator=GENERATOR)
    assert r2_of(cross_predict(x, y), y) < 0.2


def test_each_fold_is_the_best_ridge_of_an_obvious_search() -> None:
    """By normal equations with a column of ones, each item really left out."""
    # Much noise, so that the penalties differ, and that of leaving nothing out would be another.
    generator, double = torch.Generator().manual_seed(0), torch.float64
    x, weights, noise = (
        torch.randn(*shape, generator=generator, dtype=double)
        for shape in ((15, 4), (4, 2), (15, 2))
    )
    y = 0.5 * x @ weights + noise
    expected = torch.empty(15, 2, dtype=torch.float64)

    def fit(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
        ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        ridge = penalty * torch.eye(x.shape[1] + 1, dtype=torch.float64)
        ridge[-1, -1] = 0
        found: torch.Tensor = torch.linalg.solve(ones.T @ ones + ridge, ones.T @ y)
        return found

    def predict(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x @ weights[:-1] + weights[-1]
        return found

    for fold in range(5):
        train = torch.arange(15) % 5 != fold
        own_x, own_y = x[train], y[train]
        scale = float((own_x - own_x.mean(dim=0)).square().sum()) / len(own_x)
        errors = {}
        for power in range(-6, 3):
            penalty, rows = scale * 10.0**power, torch.arange(len(own_x))
            errors[penalty] = sum(
                (predict(fit(own_x[rows != i], own_y[rows != i], penalty), own_x[i]) - own_y[i])
                .square()
                .sum()
                .item()
                for i in range(len(own_x))
            )
        best = min(errors, key=lambda penalty: errors[penalty])
        expected[~train] = predict(fit(own_x, own_y, best), x[~train])
    torch.testing.assert_close(
        cross_predict(x.float(), y.float()).double(), expected, rtol=1e-4, atol=1e-5
    )


def test_it_reads_the_vectors_of_the_a_prompts(tmp_path: Path) -> None:
    """Of a linear network, whose final vector tells the last token's first coordinate."""
    specimen = zoo.build("step")
    ids = specimen.prompts(31, 3)
    parity = [f"{'odd' if int(prompt[-1]) % 2 else 'even'}" for prompt in ids]
    (file := tmp_path / "classes.txt").write_text("\n".join(parity))
    prompts = PromptSet.from_token_ids(ids)
    probes = [PathsProbe(num_steps=3), Readout(target=str(file))]
    found = measure_probes(specimen.model, prompts, probes, SessionOptions())["readout"]
    assert Readout(target=parity).scalars(found)[Readout.R2] == pytest.approx(1.0, abs=1e-4)
    assert found["target"].shape == (30, 2)
    page = Page(title="step 0", part=found, parts={}, prompts=prompts)
    assert [key for key, _ in Readout(target=parity).pictures(page, ())] == [Readout.PREDICTED]


def test_vectors_that_are_not_finite_are_left_out() -> None:
    x = torch.randn(30, 4, generator=GENERATOR)
    x[3] = torch.inf
    probe = Readout(target=x[:, 0].nan_to_num(posinf=9.0))
    part = probe.settle(x, {})
    assert probe.scalars(part)[Readout.R2] == pytest.approx(1.0, abs=1e-4)
    assert math.isnan(probe.scalars(probe.settle(x[:3], {}))[Readout.R2])
    picture = dict(probe.pictures(Page(title="", part=part, parts={}, prompts=None), ()))  # type: ignore[arg-type]
    assert picture[Readout.PREDICTED].any()


def test_two_words_are_drawn_as_one_number_and_three_as_a_plane() -> None:
    for words, label in (("ab" * 10, "target"), ("abca" * 5, "first axis of the target")):
        target = torch.tensor(Readout(target=list(words)).target)
        figure = _draw({"target": target, "predicted": target + 0.1}, "step 1", 0.9)
        assert figure.axes[0].get_xlabel() == label
        assert_tidy(figure)


def test_targets_that_do_not_fit_are_refused() -> None:
    for target in ("no such file", [[1.0], [1.0, 2.0]], [], 3, ["a", 1.0]):
        with pytest.raises(InputError, match=r"target=.*: pass a row of numbers"):
            Readout(target=target)
    with pytest.raises(InputError, match="the target has 2 rows, but 9 pairs are measured"):
        Readout(target=[1.0, 2.0]).settle(torch.zeros(9, 2), {})
    specimen = zoo.build("step")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, 3))
    probes = [PathsProbe(num_steps=3), Readout()]
    with pytest.warns(UserWarning, match="nothing to read off; pass Readout.*probes are measured"):
        parts = measure_probes(specimen.model, prompts, probes, SessionOptions())
    assert list(parts) == ["paths"]
