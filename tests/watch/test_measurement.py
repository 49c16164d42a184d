"""One model, measured once."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.measurement import Measurement, measure_model
from tests.zoo import build


def no_bar(_: str) -> Callable[[int, int], None]:
    """Progress that nobody looks at."""
    return lambda done, total: None


def some_prompts(num_prompts: int = 6) -> PromptSet:
    return PromptSet.from_token_ids(torch.arange(num_prompts * 5).reshape(num_prompts, 5) % 23)


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    config = MonitorConfig(num_pairs=4, num_steps=5, num_slices=1, slice_resolution=3)
    return measure_model(build("llama").model, some_prompts(), config, no_bar)


def test_as_much_is_measured_as_was_asked_for(measurement: Measurement) -> None:
    assert measurement.paths.distance.shape == (4, 5)
    assert measurement.slices is not None
    assert measurement.slices.distance.shape == (1, 3, 3, 3)
    assert measurement.seconds > 0


def test_a_set_with_fewer_prompts_is_taken_whole() -> None:
    config = MonitorConfig(num_pairs=40, num_steps=3, num_slices=40, slice_resolution=2)
    measured = measure_model(build("llama").model, some_prompts(), config, no_bar)
    assert len(measured.paths.distance) == 5
    assert measured.slices is not None
    assert len(measured.slices.foot) == 4


def test_bars_are_told_how_far_it_is() -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def bar(name: str) -> Callable[[int, int], None]:
        told[name] = []
        return lambda done, total: told[name].append((done, total))

    config = MonitorConfig(num_pairs=4, num_steps=3, num_slices=2, slice_resolution=2)
    measure_model(build("llama").model, some_prompts(), config, bar)
    assert told["paths"][-1] == (4, 4)
    assert told["slices"][-1] == (2, 2)


def test_enough_prompts_are_asked_for() -> None:
    assert MonitorConfig(num_pairs=10, num_slices=2).num_prompts == 11
    assert MonitorConfig(num_pairs=1, num_slices=4).num_prompts == 6


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0}, "num_pairs=0: pass 1 or more"),
        ({"num_pairs": "8"}, "num_pairs='8': pass a whole number"),
        ({"num_pairs": None}, "num_pairs=None: pass a whole number"),
        ({"num_steps": 1}, "num_steps=1: pass 2 or more"),
        ({"num_slices": -1}, "num_slices=-1: pass 0 or more"),
        ({"slice_resolution": 1}, "slice_resolution=1: pass 2 or more"),
        ({"layer": -1}, "layer=-1: pass 0 or more"),
        ({"layer": "1"}, "layer='1': pass a whole number"),
        ({"max_tokens": 0}, "max_tokens=0: pass 1 or more"),
        ({"sampling": "foo"}, "sampling='foo': pass one of grid, adaptive"),
        ({"output": "x"}, "output='x': pass one of final_norm, resid_final, logits"),
        ({"precision": "fp16"}, "precision='fp16': pass one of run, float32"),
        ({"engine": "x"}, "engine='x': pass one of auto, shared, rows, plain"),
        ({"layer_path": 3}, "layer_path=3: pass the name of a list of modules in the model, "),
    ],
)
def test_what_no_model_can_be_measured_with_is_refused_at_once(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        MonitorConfig(**options)
    assert str(caught.value).startswith(message)
    with pytest.raises(InputError):
        replace(MonitorConfig(), **options)


@pytest.mark.usefixtures("_as_users_run_it")
def test_numbers_of_numpy_are_numbers() -> None:
    names = ("num_pairs", "num_steps", "num_slices", "slice_resolution", "layer", "max_tokens")
    config = MonitorConfig(**{name: np.int64(3) for name in names})  # type: ignore[arg-type]
    assert config == MonitorConfig(**dict.fromkeys(names, 3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(config)))["num_pairs"] == 3
