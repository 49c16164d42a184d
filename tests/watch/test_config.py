"""Options, declared once: what they refuse, what records keep of them, and one measurement."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sr_monitor import InputError, PromptSet, at
from sr_monitor.options import declared
from sr_monitor.watch.config import MonitorConfig, WatchOptions
from sr_monitor.watch.measure import take_record
from tests.memory_writer import MemoryWriter
from tests.zoo import build

as_users_run_it = pytest.mark.usefixtures("_as_users_run_it")


def some_prompts(num_prompts: int = 6) -> PromptSet:
    return PromptSet.from_token_ids(torch.arange(num_prompts * 5).reshape(num_prompts, 5) % 23)


@as_users_run_it
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
        ({"max_tokens": 0}, "max_tokens=0: pass 1 or more"),
        ({"sampling": "foo"}, "sampling='foo': pass one of grid, adaptive"),
        ({"output": "x"}, "output='x': pass one of final_norm, resid_final, logits"),
        ({"precision": "fp16"}, "precision='fp16': pass one of auto, run, float32"),
        ({"engine": "x"}, "engine='x': pass one of auto, shared, rows, plain"),
        ({"layer_path": 3}, "layer_path=3: pass the name of a list of modules in the model, "),
        ({"probes": ["paths"]}, "probes='paths': "),
        ({"every": 0, "schedule": at([1])}, "every=0: pass 1 or more"),
        ({"schedule": [0, 2]}, "schedule=[0, 2]: pass every(500), at("),
        ({"prompts": 500}, "prompts=500: pass a PromptSet, the file of"),
        ({"num_tokens": 1}, "num_tokens=1: pass 2 or more"),
        ({"seed": None}, "seed=None: pass a whole number"),
        ({"name": "a/b"}, "name='a/b': pass the name of one folder"),
        ({"log_dir": 5}, "log_dir=5: pass the path of a folder"),
        ({"writer": [MemoryWriter(), 5]}, "writer=5: a int is no writer; pass a TensorBoardWriter"),
        ({"on_error": "ignore"}, "on_error='ignore': pass one of warn, raise"),
    ],
)
def test_what_cannot_be_done_is_refused_when_options_are_made(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        WatchOptions(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@as_users_run_it
def test_numbers_of_numpy_are_numbers() -> None:
    names = [name for name, field in declared(WatchOptions).items() if field.metadata["least"]]
    options = WatchOptions(**dict.fromkeys([*names, "seed"], np.int64(3)))  # type: ignore[arg-type]
    assert len(names) >= 6
    assert {type(getattr(options, name)) for name in [*names, "seed"]} == {int}
    assert json.loads(json.dumps(options.recorded("curve")))["num_pairs"] == 3


def test_when_to_measure_is_a_number_or_a_schedule() -> None:
    options = [WatchOptions(), WatchOptions(every=400), WatchOptions(schedule=at([5]))]
    chosen = [[step for step in range(1001) if each.when(step)] for each in options]
    assert chosen == [[0, 500, 1000], [0, 400, 800], [5]]


def test_what_makes_no_difference_is_not_recorded_nor_compared() -> None:
    config = WatchOptions(max_tokens=5, engine="rows", every=7, seed=3, num_slices=0)
    everything = config.recorded("curve", "record")
    assert set(everything) == {
        *("num_pairs", "num_steps", "sampling", "num_slices", "slice_resolution"),
        *("layer", "output", "precision", "layer_path"),
    }
    assert set(everything) - set(config.recorded("curve")) == {"num_slices", "slice_resolution"}
    assert [probe.name for probe in config.measured] == ["paths"]
    sizes = [MonitorConfig(num_pairs=10, num_slices=2), MonitorConfig(num_pairs=1, num_slices=4)]
    assert [config.num_prompts for config in sizes] == [11, 6]
    given = MonitorConfig(layer_path=[nn.Identity(), nn.Identity()])
    assert given.recorded("curve")["layer_path"] == "2 modules"


def test_a_record_says_what_was_measured_and_how() -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def bar(name: str) -> Callable[[int, int], None]:
        told[name] = []
        return lambda done, total: told[name].append((done, total))

    # More is wanted than a chain of six prompts holds: five pairs, four triples.
    config = MonitorConfig(num_pairs=40, num_steps=3, num_slices=40, slice_resolution=2)
    model, prompts = build("llama").model, some_prompts()
    record = take_record(model, prompts, config, step=7, tokens=70, bar=bar, source="here")
    assert (record.step, record.tokens, record.paths.distance.shape) == (7, 70, (5, 3))
    assert record.slices is not None
    assert record.slices.distance.shape == (4, 3, 2, 2)
    assert record.metadata.pop("seconds") > 0
    assert record.metadata == {
        "config": config.recorded("curve", "record"),
        "prompts": prompts.fingerprint,
        "model": "LlamaForCausalLM",
        "dtype": "float32",
        "device": "cpu",
        "source": "here",
    }
    assert (told["paths"][-1], told["slices"][-1]) == ((5, 5), (4, 4))


def test_a_run_keeps_to_its_way() -> None:
    config = MonitorConfig(num_pairs=2, num_steps=3, num_slices=1, slice_resolution=2)
    for way in ("rows", "plain"):
        record = take_record(build("llama").model, some_prompts(), config, step=0, way=way)
        assert record.slices is not None
        assert (record.paths.engine, record.slices.engine) == (way, way)
