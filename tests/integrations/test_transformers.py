"""The callback inside the real Trainer: what is measured when, what is left alone, what is kept."""

import copy
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sr_monitor_transformers import StableRegionCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from sr_monitor import InputError, PromptSet, Record, at, budget, measure_paths
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.results.record import list_records
from tests.training import (
    Run,
    StopAt,
    Stream,
    arguments,
    records,
    rows,
    train,
    watch,
)
from tests.zoo import VOCAB, build

MEDIAN = PathsProbe.MAX_SLOPE_MEDIAN.name


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """The Trainer collects garbage at each start, which takes long when much was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def remeasured(model: nn.Module, record: Record, folder: Path, **options: Any) -> Tensor:
    """The distances of a record's pairs, in `model`."""
    prompts = PromptSet.load(folder / "stable_regions" / "prompts.json")
    num_pairs, num_steps = record.paths.distance.shape
    found = measure_paths(model, *prompts.pairs(num_pairs), num_steps=num_steps, **options)
    return found.distance


def assert_same_curve(folder: Path, record: Record, model: nn.Module, **options: Any) -> None:
    """Nothing but the shape of batches may differ."""
    expected = remeasured(model, record, folder, **options)
    torch.testing.assert_close(record.paths.distance, expected, rtol=1e-4, atol=1e-5)


def steps_of(scalars: list[Any]) -> list[int]:
    return [event.step for event in scalars]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))


def checkpoint(run: Run, step: int) -> Path:
    return run.folder / f"checkpoint-{step}"


# ---- the one line ------------------------------------------------------------------------------


def test_one_line_is_enough(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my run"  # a space, which a command has to quote
    trainer = Trainer(
        build("gpt2").model,
        arguments(folder, max_steps=2),
        train_dataset=rows(),
        callbacks=[StableRegionCallback()],
    )
    trainer.train()
    found = records(folder)
    assert list(found) == [0, 2]
    assert found[0].slices is not None
    assert found[0].slices.distance.shape == (4, 3, 41, 41)
    assert found[0].paths.distance.shape[1] == 51
    own = folder / "stable_regions"
    said = f"sr-monitor: results in {own}; to watch: tensorboard --logdir '{folder}'\n"
    assert capfd.readouterr().err.count(said) == 1
    assert event_files(folder) == event_files(own)
    log = events(own)
    assert steps_of(log.Scalars(MEDIAN)) == [0, 2]
    shown = {
        PathsProbe.CURVES.name,
        SlicesProbe.SLICE.numbered(3).name,
        SlicesProbe.FILM.numbered(3).name,
        SlicesProbe.ANIMATION.numbered(3).name,
    }
    assert shown <= set(log.Tags()["images"])


def test_the_paired_prompts_come_from_the_rows_of_the_data(tmp_path: Path) -> None:
    data = rows()
    train(tmp_path, watch(), data=data, max_steps=1)
    prompts = PromptSet.load(tmp_path / "stable_regions" / "prompts.json")
    texts = [" ".join(map(str, row["input_ids"].tolist())) for row in data]
    joined = " ".join(texts)  # the rows are short: a prompt may reach from one into the next
    inside = [" ".join(map(str, prompt)) for prompt in prompts.token_ids[:, :2].tolist()]
    assert prompts.num_tokens == 5
    assert sum(f" {start} " in f" {joined} " for start in inside) >= len(inside) - 1


def test_step_0_is_the_untouched_model_and_the_last_step_the_final_one(tmp_path: Path) -> None:
    model = build("gpt2").model
    untouched = copy.deepcopy(model)
    run = train(tmp_path, watch(), model=model)
    found = records(tmp_path)
    assert list(found) == [0, 6]
    assert_same_curve(run.folder, found[0], untouched)
    assert_same_curve(run.folder, found[6], run.model)
    assert not torch.allclose(found[0].paths.distance, found[6].paths.distance, rtol=1e-2)


# ---- when --------------------------------------------------------------------------------------


class _StopsAtStepEnd(TrainerCallback):
    """Ends the training after step 3, once everybody else has seen the step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= 3


SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "every": ({"every": 4}, {}, [0, 4, 6]),
    "schedule": ({"schedule": at([1, 3])}, {}, [1, 3, 6]),
    "with_save": ({"with_save": True}, {"save_strategy": "steps", "save_steps": 4}, [0, 4, 6]),
    "saved, not asked": ({}, {"save_strategy": "steps", "save_steps": 4}, [0, 6]),
    "with_eval": ({"with_eval": True}, {"eval_strategy": "steps", "eval_steps": 4}, [0, 4, 6]),
    "evaluated, not asked": ({}, {"eval_strategy": "steps", "eval_steps": 4}, [0, 6]),
    "accumulated": ({"every": 2}, {"gradient_accumulation_steps": 2, "max_steps": 3}, [0, 2, 3]),
    "epochs": ({"every": 5}, {"max_steps": -1, "num_train_epochs": 1}, [0, 5, 8]),
    "budget": ({"schedule": budget(1e-9)}, {}, [0]),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_steps_that_are_measured(tmp_path: Path, case: str) -> None:
    options, trainer_options, expected = SCHEDULES[case]
    train(tmp_path, watch(**options), **trainer_options)
    assert list(records(tmp_path)) == expected


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_training_that_is_stopped_is_measured_where_it_stopped(
    tmp_path: Path, first: bool
) -> None:
    both = [_StopsAtStepEnd(), watch()]
    run = train(tmp_path, *(both if first else both[::-1]))
    found = records(tmp_path)
    assert list(found) == [0, 3]
    assert_same_curve(run.folder, found[3], run.model)


def test_the_last_step_is_not_mistaken_for_the_best_one(tmp_path: Path) -> None:
    seen: dict[int, dict[str, Tensor]] = {}

    class Copies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen[state.global_step] = copy.deepcopy(kwargs["model"].state_dict())

    run = train(
        tmp_path,
        watch(writer=None, on_error="raise"),
        Copies(),
        StopAt(3),
        EarlyStoppingCallback(early_stopping_patience=9),
        report_to="tensorboard",
        learning_rate=1.0,  # so that the first step is the best one
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="loss",
        load_best_model_at_end=True,
    )
    assert run.trainer.state.best_global_step == 1
    record = records(tmp_path)[3]
    assert not torch.equal(seen[3]["lm_head.weight"], run.model.state_dict()["lm_head.weight"])
    last = build("gpt2").model
    last.load_state_dict(seen[3])
    assert_same_curve(run.folder, record, last)
    # Neither was anything written to the Trainer's log after it had been closed.
    assert len(event_files(tmp_path)) == 1
    log = events(event_files(tmp_path)[0].parent)
    assert steps_of(log.Images(PathsProbe.CURVES.name)) == [0, 3]


def test_tokens_are_kept_where_the_trainer_counts_them(tmp_path: Path) -> None:
    counting = train(tmp_path / "a", watch(), max_steps=2, include_num_input_tokens_seen="all")
    train(tmp_path / "b", watch(), max_steps=2)
    assert [record.tokens for record in records(counting.folder).values()] == [None, 2 * 4 * 12]
    assert [record.tokens for record in records(tmp_path / "b").values()] == [None, None]


# ---- nothing is disturbed ------------------------------------------------------------------------


COMPILED: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
ignore_compiler = pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks

SETTINGS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 3},
    "checkpointing": {"activation_checkpointing": True},
    "bf16": {"bf16": True},
    "tensorboard": {"report_to": "tensorboard"},
    "compiled": COMPILED,
    "saved and evaluated": {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "include_num_input_tokens_seen": "all",
    },
}


@ignore_compiler
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_watched_training_is_bit_for_bit_the_same(tmp_path: Path, setting: str) -> None:
    options = SETTINGS[setting]
    plain = train(tmp_path / "plain", **options)
    callback = watch(every=1, num_slices=1, with_save=True, with_eval=True)
    watched = train(tmp_path / "watched", callback, **options)
    assert len(plain.losses) == plain.trainer.state.max_steps
    assert watched.differences(plain) == []
    assert list(records(tmp_path / "watched")) == list(range(plain.trainer.state.max_steps + 1))


def test_pictures_disturb_nothing_either(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", max_steps=2)
    callback = watch(every=1, num_slices=1, writer=MemoryWriter())
    watched = train(tmp_path / "watched", callback, max_steps=2)
    assert watched.differences(plain) == []


def _with_a_frozen_block() -> Any:
    """A model that keeps one block in eval mode whenever it is put in training mode."""
    model = build("gpt2").model
    block = model.get_submodule("transformer.h.1")
    block.train = lambda mode=True: nn.Module.train(block, False)  # type: ignore[method-assign]
    return model


def test_a_submodule_in_eval_mode_stays_there(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", model=_with_a_frozen_block())
    watched = train(tmp_path / "watched", watch(every=1), model=_with_a_frozen_block())
    assert not watched.model.transformer.h[1].attn.attn_dropout.training
    assert watched.model.transformer.h[0].attn.attn_dropout.training
    assert watched.differences(plain) == []
    assert watched.losses != train(tmp_path / "awake").losses


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")  # PEFT asks for it
def test_an_adapter_is_trained_as_ever(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is an extra of the user's")

    def adapted() -> Any:
        torch.manual_seed(0)
        return peft.get_peft_model(
            build("llama").model,
            peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_dropout=0.1),
        )

    plain = train(tmp_path / "plain", model=adapted())
    watched = train(tmp_path / "watched", watch(every=1), model=adapted())
    assert watched.differences(plain) == []
    assert_same_curve(watched.folder, records(tmp_path / "watched")[6], watched.model)


@pytest.mark.slow  # compiles for half a minute; the eager backend is tested above
@pytest.mark.filterwarnings("ignore")  # of the compiler, about this machine
def test_a_compiled_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    for data in (None, Stream(rows())):
        plain = train(tmp_path / "plain", torch_compile=True, data=data, max_steps=3)
        watched = train(
            tmp_path / "watched", watch(every=1), torch_compile=True, data=data, max_steps=3
        )
        assert watched.differences(plain) == []
        assert list(records(tmp_path / "watched")) == [0, 1, 2, 3]


# ---- precision -----------------------------------------------------------------------------------


def test_precision_is_the_runs_own_or_full(tmp_path: Path) -> None:
    model = build("gpt2").model
    untouched = copy.deepcopy(model)
    run = train(
        tmp_path,
        watch(precision="run"),
        watch(precision="float32"),
        model=model,
        bf16=True,
        max_steps=1,
    )
    rough, full = records(tmp_path)[0].paths, records(tmp_path, "stable_regions-2")[0].paths
    assert_same_curve(run.folder, records(tmp_path, "stable_regions-2")[0], untouched)
    assert full.noise_floor < 1e-4
    assert rough.noise_floor > 100 * full.noise_floor
    gap = (rough.distance - full.distance).abs() / full.end_distance[:, None]
    assert 1e-4 < gap.max() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        expected = remeasured(untouched, records(tmp_path)[0], tmp_path)
    torch.testing.assert_close(rough.distance, expected, rtol=2e-2, atol=1e-2)


# ---- data without rows to look into --------------------------------------------------------------


def _stream() -> Stream:
    """Rows of which the first four, one batch, hold small ids and the others large ones."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(15, (4, 12), generator=generator)
    large = torch.randint(15, VOCAB, (28, 12), generator=generator)
    return Stream([{"input_ids": row, "labels": row} for row in torch.cat([small, large])])


@ignore_compiler
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, COMPILED, {"eval_on_start": True}],
    ids=["plain", "accumulation", "compiled", "evaluated first"],
)
def test_a_stream_is_begun_with_its_first_batch(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"max_steps": 2, **options}
    plain = train(tmp_path / "plain", data=_stream(), **options)
    model = build("gpt2").model
    untouched = copy.deepcopy(model)
    callback = watch(every=1)
    watched = train(tmp_path / "watched", callback, model=model, data=_stream(), **options)
    assert watched.differences(plain) == []
    found = records(tmp_path / "watched")
    assert list(found) == [0, 1, 2]
    assert_same_curve(watched.folder, found[0], untouched)
    prompts = PromptSet.load(tmp_path / "watched" / "stable_regions" / "prompts.json")
    assert prompts.token_ids.max() < 15
    assert prompts.source == "a batch of the training data (5 prompts, it has no more)" or (
        prompts.source == "a batch of the training data"
    )


def test_batches_that_hold_too_little_are_put_together(tmp_path: Path) -> None:
    def short() -> Stream:
        return Stream(rows(length=7))

    options: dict[str, Any] = {"per_device_train_batch_size": 1, "max_steps": 4}
    plain = train(tmp_path / "plain", data=short(), **options)
    with pytest.warns(RuntimeWarning, match=r"3 pairs of prompts were found, and num_pairs=256"):
        watched = train(tmp_path, watch(every=1, num_pairs=256), data=short(), **options)
    assert watched.differences(plain) == []
    # A batch holds one prompt of five tokens; three of them are something to measure.
    assert list(records(tmp_path)) == [2, 3, 4]
    prompts = PromptSet.load(tmp_path / "stable_regions" / "prompts.json")
    seen = {token for batch in plain.batches[:3] for token in batch[0].tolist()}
    assert set(prompts.token_ids.flatten().tolist()) <= seen


class _Embedded(nn.Module):
    """A model that is given vectors, and knows no ids."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build("gpt2").model

    def forward(self, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found: Any = self.model(inputs_embeds=vectors, labels=labels)
        return {"loss": found.loss}


def test_data_without_ids_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [
        {
            "vectors": torch.randn(8, 32, generator=generator),
            "labels": torch.randint(VOCAB, (8,), generator=generator),
        }
        for _ in range(16)
    ]
    plain = train(tmp_path / "plain", model=_Embedded(), data=data)
    with pytest.warns(RuntimeWarning, match="no token ids were found .* pass prompts=") as told:
        watched = train(tmp_path / "watched", watch(on_error="warn"), model=_Embedded(), data=data)
    assert len(told) == 1
    assert watched.differences(plain) == []
    assert list_records(tmp_path / "watched" / "stable_regions") == []


# ---- TensorBoard ---------------------------------------------------------------------------------


def test_the_trainers_tensorboard_run_is_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, watch(every=2, writer=None), report_to="tensorboard")
    (file,) = event_files(tmp_path)
    assert "sr-monitor" not in capfd.readouterr().err
    log = events(file.parent)
    assert steps_of(log.Scalars(MEDIAN)) == [0, 2, 4, 6]
    assert steps_of(log.Scalars("train/loss")) == [1, 2, 3, 4, 5, 6]
    assert steps_of(log.Images(PathsProbe.CURVES.name)) == [0, 2, 4, 6]


def test_a_logger_further_down_the_list_is_used_once(tmp_path: Path) -> None:
    logger: Any = TensorBoardCallback
    kept = [watch(every=2, writer=None), logger()]
    args = arguments(tmp_path)
    Trainer(build("gpt2").model, args, train_dataset=rows(), callbacks=kept).train()
    assert len(kept) == 2  # this list is alive, beside the Trainer's own
    (file,) = event_files(tmp_path)
    assert steps_of(events(file.parent).Scalars(MEDIAN)) == [0, 2, 4, 6]


class _House(TensorBoardCallback):
    """A logger of one's own, derived from the known one."""


def test_a_logger_of_ones_own_is_recognised(tmp_path: Path) -> None:
    house: Any = _House
    with SummaryWriter(str(tmp_path / "log")) as log:
        train(tmp_path / "run", house(tb_writer=log), watch(writer=None), max_steps=2)
    assert len(event_files(tmp_path)) == 1
    assert steps_of(events(tmp_path / "log").Scalars(MEDIAN)) == [0, 2]


def test_without_tensorboard_lines_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorboard.compat.proto.summary_pb2", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    train(tmp_path, watch(every=3, writer=None))
    assert event_files(tmp_path) == []
    assert "pip install 'sr-monitor[tensorboard]'" in capfd.readouterr().err
    lines = (tmp_path / "stable_regions" / "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in found if entry["name"] == MEDIAN] == [0, 3, 6]


# ---- resuming ------------------------------------------------------------------------------------

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def plain_resumed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An unwatched training, resumed from step 3."""
    folder = tmp_path_factory.mktemp("plain")
    before = train(folder, **SAVING)
    return train(folder, resume=checkpoint(before, 3), **SAVING)


def test_a_resumed_run_goes_on_with_its_curve(tmp_path: Path, plain_resumed: Run) -> None:
    before = train(tmp_path, watch(every=1, writer=None), **SAVING)
    prompts = (tmp_path / "stable_regions" / "prompts.json").read_bytes()
    first = {path.name: path.read_bytes() for path in list_records(tmp_path / "stable_regions")}
    # A seed of another choice of prompts: those of the run count.
    after = train(
        tmp_path, watch(every=1, writer=None, seed=7), resume=checkpoint(before, 3), **SAVING
    )
    assert after.differences(plain_resumed) == []
    assert (tmp_path / "stable_regions" / "prompts.json").read_bytes() == prompts
    found = records(tmp_path)
    assert list(found) == [0, 1, 2, 3, 4, 5, 6]
    for step in range(4):  # not measured twice
        name = f"step-{step:09d}.safetensors"
        assert (tmp_path / "stable_regions" / name).read_bytes() == first[name]
    superseded = sorted((tmp_path / "stable_regions" / "superseded").iterdir())
    assert [path.name[5:14] for path in superseded] == ["000000004", "000000005", "000000006"]
    log = events(tmp_path / "stable_regions")
    assert steps_of(log.Scalars(MEDIAN)) == [0, 1, 2, 3, 4, 5, 6]
    assert steps_of(log.Images(PathsProbe.CURVES.name)) == [0, 1, 2, 4, 6]


def test_a_resumed_run_goes_on_in_the_trainers_new_tensorboard_run(tmp_path: Path) -> None:
    both: dict[str, Any] = {"report_to": "tensorboard", **SAVING}
    before = train(tmp_path, watch(every=1, writer=None), max_steps=3, **both)
    (old,) = event_files(tmp_path)
    old.rename(tmp_path / "old")  # the names of runs hold the time, and these are a second apart
    train(tmp_path, watch(every=1, writer=None), resume=checkpoint(before, 3), **both)
    (new,) = event_files(tmp_path)
    log = events(new.parent)
    assert steps_of(log.Scalars(MEDIAN)) == [0, 1, 2, 3, 4, 5, 6]
    assert steps_of(log.Scalars("train/loss")) == [4, 5, 6]


def test_a_run_resumed_in_another_folder_takes_its_records_along(tmp_path: Path) -> None:
    before = train(tmp_path / "old", watch(every=1), **SAVING)
    kept = sorted((tmp_path / "old" / "stable_regions").rglob("*"))
    after = train(
        tmp_path / "new",
        watch(every=1, writer=None, seed=7),
        resume=checkpoint(before, 3),
        **SAVING,
    )
    assert list(records(after.folder)) == [0, 1, 2, 3, 4, 5, 6]
    names = {record.metadata["prompts"] for record in records(after.folder).values()}
    assert len(names) == 1
    assert steps_of(events(after.folder / "stable_regions").Scalars(MEDIAN)) == [*range(7)]
    assert sorted((tmp_path / "old" / "stable_regions").rglob("*")) == kept


def test_a_callback_that_is_added_on_resume(tmp_path: Path, plain_resumed: Run) -> None:
    before = train(tmp_path, **SAVING)
    after = train(tmp_path, watch(every=2), resume=checkpoint(before, 3), **SAVING)
    assert after.differences(plain_resumed) == []
    assert list(records(tmp_path)) == [4, 6]
    assert (checkpoint(after, 6) / "stable_regions.json").is_file()


def test_a_callback_that_is_added_on_resume_of_a_stream(tmp_path: Path) -> None:
    before = train(tmp_path, data=Stream(rows()), **SAVING)
    train(tmp_path, watch(every=1), data=Stream(rows()), resume=checkpoint(before, 3), **SAVING)
    assert list(records(tmp_path)) == [3, 4, 5, 6]


def test_two_callbacks_at_once_and_resumed(tmp_path: Path, plain_resumed: Run) -> None:
    def two() -> list[StableRegionCallback]:
        return [
            watch(every=1, layer=1),
            watch(every=2, layer=2, writer=None, num_pairs=3),
        ]

    before = train(tmp_path, *two(), **SAVING)
    for name in ("stable_regions.json", "stable_regions-2.json"):
        assert (checkpoint(before, 3) / name).is_file()
    after = train(tmp_path, *two(), resume=checkpoint(before, 3), **SAVING)
    assert after.differences(plain_resumed) == []
    first, second = records(tmp_path), records(tmp_path, "stable_regions-2")
    assert list(first) == [0, 1, 2, 3, 4, 5, 6]
    assert list(second) == [0, 2, 4, 6]
    assert {record.metadata["config"]["layer"] for record in first.values()} == {1}
    assert {record.metadata["config"]["layer"] for record in second.values()} == {2}
    log = events(tmp_path / "stable_regions-2")
    assert steps_of(log.Scalars(MEDIAN.replace("regions/", "regions-2/"))) == [0, 2, 4, 6]


DAMAGE = {
    "newer": ('{"schema": 99}', "schema 99, this version reads up to schema 1; run: pip install"),
    "torn": ('{"schema": 1, "prom', "stable_regions.json' cannot be read: .*; delete it to go on"),
    "no object": ("[1]", "stable_regions.json' cannot be read: it holds a list"),
    "no prompts": ('{"schema": 1, "prompts": 3}', "the saved state of sr-monitor"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_state_that_cannot_be_read_is_refused_while_training_goes_on(
    tmp_path: Path, plain_resumed: Run, case: str
) -> None:
    content, message = DAMAGE[case]
    before = train(tmp_path, watch(), **SAVING)
    (checkpoint(before, 3) / "stable_regions.json").write_text(content)
    kept = list_records(tmp_path / "stable_regions")
    with pytest.warns(RuntimeWarning, match=message) as told:
        after = train(
            tmp_path, watch(every=1, on_error="warn"), resume=checkpoint(before, 3), **SAVING
        )
    assert len(told) == 1
    assert after.differences(plain_resumed) == []
    assert list_records(tmp_path / "stable_regions") == kept


def test_a_state_of_an_older_version_lacks_what_it_lacks(tmp_path: Path) -> None:
    before = train(tmp_path, watch(every=1), **SAVING)
    (checkpoint(before, 3) / "stable_regions.json").write_text("{}")
    train(tmp_path, watch(every=1, seed=7), resume=checkpoint(before, 3), **SAVING)
    assert list(records(tmp_path)) == [0, 1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "stable_regions" / "superseded").iterdir())) == 3


def test_one_callback_serves_one_training_after_the_other(tmp_path: Path) -> None:
    callback = watch(every=3)
    train(tmp_path / "a", callback)
    train(tmp_path / "b", callback)
    assert list(records(tmp_path / "a")) == list(records(tmp_path / "b")) == [0, 3, 6]


class _Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


class _InterruptLater(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_training_that_was_interrupted_can_be_started_again(tmp_path: Path) -> None:
    callback = watch(every=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callback, _Interrupt(), data=rows())
    assert list(records(tmp_path)) == [0, 1]
    train(tmp_path, callback, max_steps=2)
    assert list(records(tmp_path)) == [0, 1, 2]
    assert not (tmp_path / "stable_regions-2").exists()


def test_what_holds_an_interrupted_training_does_not_divide_the_curve(tmp_path: Path) -> None:
    """As a notebook does: it keeps the last error, with all that was on the stack."""
    with pytest.raises(KeyboardInterrupt) as kept:
        train(tmp_path, watch(every=1), _InterruptLater(), **SAVING)
    saved = tmp_path / "checkpoint-3"
    train(tmp_path, watch(every=1), resume=saved, **SAVING)
    assert list(records(tmp_path)) == [0, 1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "stable_regions-2").exists()
    assert kept.traceback  # it was held until here


def test_a_callback_that_is_used_again_writes_to_the_new_run_alone(tmp_path: Path) -> None:
    callback = watch(every=1, writer=None)
    with pytest.raises(KeyboardInterrupt) as kept:
        train(tmp_path / "1", callback, _Interrupt(), report_to="tensorboard")
    train(tmp_path / "2", callback, report_to="tensorboard")
    for name, steps in (("1", [0, 1]), ("2", [0, 1, 2, 3, 4, 5, 6])):
        (file,) = event_files(tmp_path / name)
        assert steps_of(events(file.parent).Scalars(MEDIAN)) == steps
    assert kept.traceback


# ---- failures ------------------------------------------------------------------------------------


class _Broken(MemoryWriter):
    def scalar(self, name: str, value: float, step: int) -> None:
        raise OSError(28, "No space left on device")


def _nan_model() -> Any:
    model = build("gpt2").model
    with torch.no_grad():
        model.get_parameter("transformer.ln_f.weight").fill_(torch.nan)
    return model


def _encoder_decoder() -> Any:
    model: Any = build("t5").model
    model.config.decoder_start_token_id = model.config.pad_token_id = 0
    return model


FAILURES: dict[str, tuple[dict[str, Any], Any, str, int]] = {
    "no such layer": ({"layer": 99}, None, "layer=99: .*sr-monitor is off now", 1),
    "encoder-decoder": ({}, _encoder_decoder, "is an encoder-decoder.*training goes on", 1),
    "broken writer": ({"writer": _Broken()}, None, "_Broken could not write: .*No space", 2),
    "NaN weights": ({}, _nan_model, "the weights hold NaN or Inf", 2),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_never_ends_the_training(tmp_path: Path, case: str) -> None:
    options, made, message, num_told = FAILURES[case]

    def model() -> Any:
        return None if made is None else made()

    plain = train(tmp_path / "plain", model=model())
    callback = watch(every=1, on_error="warn", **options)
    with pytest.warns(RuntimeWarning, match=message) as told:
        watched = train(tmp_path / "watched", callback, model=model())
    assert len(told) == num_told  # the cause once, and once that it is off
    assert watched.differences(plain) == [] or case == "NaN weights"  # NaN is not equal to NaN
    assert watched.trainer.state.global_step == 6


def test_errors_are_raised_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer=99"):
        train(tmp_path, watch(layer=99))
    with pytest.raises(RuntimeError, match="_Broken could not write"):
        train(tmp_path, watch(writer=_Broken()))
    train(tmp_path, watch(), max_steps=1)  # and the folder is free again
    assert not (tmp_path / "stable_regions-3").exists()


# ---- in processes of their own -------------------------------------------------------------------

KILLED = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.training import train, watch
train(
    Path(sys.argv[1]), watch(every=1, writer=None), max_steps=1000, save_strategy="steps",
    save_steps=2,
)
"""

ROOT = Path(__file__).parents[2]


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"GLOO_SOCKET_IFNAME": "lo"}


def test_a_killed_run_leaves_whole_records_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, env=_environment(), cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while len(list_records(tmp_path)) < 6 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    time.sleep(1)  # TensorBoard tells which of two files is the later one by the second
    steps = [Record.load(path).step for path in list_records(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 6
    last = max(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    complete = tmp_path / f"checkpoint-{last if last < steps[-1] else last - 2}"
    end = steps[-1] + 2
    train(tmp_path, watch(every=1, writer=None), resume=complete, max_steps=end)
    assert list(records(tmp_path)) == list(range(end + 1))
    log = events(tmp_path / "stable_regions")
    assert steps_of(log.Scalars(MEDIAN)) == list(range(end + 1))


def test_two_processes_share_one_measurement(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--master-port={port}", "-m", "tests.training", str(tmp_path)]
    done = subprocess.run(
        command, env=_environment(), timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is done") == 2
    for name in ("watched", "stream"):
        found = records(tmp_path / name)
        assert list(found) == [0, 3]
        assert found[0].metadata["processes"] == 2
        model = build("gpt2").model
        assert_same_curve(tmp_path / name, found[0], model)
        model.load_state_dict(torch.load(tmp_path / f"{name}.pt", weights_only=True))
        assert_same_curve(tmp_path / name, found[3], model)
    for name in ("_shard_1", "_shard_2"):
        found = records(tmp_path / name)
        assert list(found) == [0, 1, 2, 3]
        assert_same_curve(tmp_path / name, found[0], build("llama").model)
    (file,) = event_files(tmp_path)
    assert steps_of(events(file.parent).Scalars(MEDIAN)) == [0, 3]
    # One process alone chooses the same prompts from the same data, and finds the same.
    train(tmp_path / "alone", watch(num_slices=1), max_steps=1)
    alone, shared = (tmp_path / name / "stable_regions" for name in ("alone", "watched"))
    assert (alone / "prompts.json").read_bytes() == (shared / "prompts.json").read_bytes()
    one, two = records(tmp_path / "alone")[0], records(tmp_path / "watched")[0]
    assert one.slices is not None
    assert two.slices is not None
    torch.testing.assert_close(one.slices.distance, two.slices.distance, rtol=1e-4, atol=1e-5)


def test_a_loop_without_epochs_is_watched_from_its_first_step(tmp_path: Path) -> None:
    """As those of some trainers of others, which call the events themselves."""
    callback, control = watch(every=2, prompts=None), TrainerControl()
    state = TrainerState(global_step=2, max_steps=10)
    loader: Any = torch.utils.data.DataLoader(rows(), batch_size=4)
    known: dict[str, Any] = {"model": build("llama").model, "train_dataloader": loader}
    callback.on_train_begin(arguments(tmp_path), state, control, **known)
    callback.on_step_end(arguments(tmp_path), state, control, **known)
    callback.on_train_end(arguments(tmp_path), state, control, **known)
    assert list(records(tmp_path)) == [2]
