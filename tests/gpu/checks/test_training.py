"""A training on CUDA is bit for bit the same with a callback and without."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.gpu.costs import checkpoint_activations
from tests.zoo import build


def _with_trainer(folder: Path, setting: str, *, measured: bool) -> Any:
    pytest.importorskip("accelerate")
    from tests.training import train, watch

    callbacks = [watch(every=1, num_slices=1)] if measured else []
    torch.manual_seed(0)
    options: dict[str, Any] = {"bf16": setting != "float32", "torch_compile": setting == "compiled"}
    model = _model(setting)
    return train(folder, *callbacks, model=model, use_cpu=False, max_steps=3, **options)


def _with_lightning(folder: Path, setting: str, *, measured: bool) -> Any:
    pytest.importorskip("lightning")
    from tests.lightning_runs import LitLM, small, train

    model = _model(setting).train()
    if setting == "compiled":
        model.compile(backend="aot_eager")  # the Trainer's has the default one
    options: dict[str, Any] = {"accelerator": "gpu", "deterministic": True}
    options["precision"] = "32-true" if setting == "float32" else "bf16-mixed"
    callbacks = [small(every=1)] if measured else []
    return train(folder, callbacks, module=lambda: LitLM(model), max_steps=3, **options)


def _model(setting: str) -> Any:
    model: Any = build("gpt2").model
    if setting == "checkpointed":
        checkpoint_activations(model)
    return model


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("setting", ["float32", "bf16", "checkpointed", "compiled"])
@pytest.mark.parametrize("train", [_with_trainer, _with_lightning])
def test_a_watched_training_is_bit_for_bit_the_same(
    train: Callable[..., Any], setting: str, tmp_path: Path
) -> None:
    runs = []
    for measured in (False, True):
        run = train(tmp_path / str(measured), setting, measured=measured)
        assert next(run.model.parameters()).is_cuda
        facts = {**run.facts, "cuda": torch.cuda.get_rng_state()}
        runs.append(replace(run, facts=tree_map_only(Tensor, Tensor.cpu, facts)))
    plain, watched = runs
    assert watched.differences(plain) == []
    from tests.training import records

    found = records(watched.folder)
    assert list(found) == [0, 1, 2, 3]
    assert {record.paths.arithmetic for record in found.values()} == {"float32"}
