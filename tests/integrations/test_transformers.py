"""The callback inside the real Trainer: what only this framework does; see also test_contract."""

import copy
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from sr_monitor.results.record import list_records
from tests.display.test_writers import import_trackio
from tests.memory_writer import MemoryWriter
from tests.training import (
    Run,
    Stream,
    arguments,
    assert_curve_of,
    logged,
    prompts_in,
    records,
    rows,
    train,
    watch,
)
from tests.zoo import VOCAB, build


def checkpoint(run: Run, step: int) -> Path:
    return run.folder / f"checkpoint-{step}"


# ---- prompts -----------------------------------------------------------------------------------


def test_the_prompts_come_from_the_rows_of_the_data(tmp_path: Path) -> None:
    data = rows()
    train(tmp_path, watch(), data=data, max_steps=1)
    prompts = prompts_in(tmp_path)
    # The rows are short: a prompt may reach from one into the next.
    joined = " ".join(" ".join(map(str, row["input_ids"].tolist())) for row in data)
    inside = [" ".join(map(str, prompt)) for prompt in prompts.token_ids[:, :2].tolist()]
    assert prompts.num_tokens == 5
    assert sum(f" {start} " in f" {joined} " for start in inside) >= len(inside) - 1


# ---- when --------------------------------------------------------------------------------------


def test_steps_that_are_measured(tmp_path: Path) -> None:
    cases = {"with_save": [0, 4, 6], "with_eval": [0, 3, 6], "neither": [0, 6]}
    asked = {"with_save": {"with_save": True}, "with_eval": {"with_eval": True}}
    callbacks = [watch(name=name, **asked.get(name, {})) for name in cases]
    train(tmp_path, *callbacks, save_steps=4, eval_strategy="steps", eval_steps=3)
    assert {name: list(records(tmp_path, name)) for name in cases} == cases
    epoch: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 1}
    epoch |= {"include_num_input_tokens_seen": "all", "gradient_accumulation_steps": 2}
    train(tmp_path / "epoch", watch(every=3), **epoch)
    found = records(tmp_path / "epoch")
    assert {step: record.tokens for step, record in found.items()} == {0: None, 3: 288, 4: 384}
    assert [record.tokens for record in records(tmp_path, "neither").values()] == [None, None]


class _StopsAt3(TrainerCallback):
    """Ends the training after step 3, and keeps the weights that it then had."""

    weights: dict[str, Tensor]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= 3
        self.weights = copy.deepcopy(kwargs["model"].state_dict())


def test_a_training_that_is_stopped_is_measured_where_it_stopped(tmp_path: Path) -> None:
    run = train(tmp_path, watch(name="before"), _StopsAt3(), watch())
    assert list(records(tmp_path, "before")) == list(records(tmp_path)) == [0, 3]
    assert_curve_of(run.model, tmp_path, 3)


def test_the_last_step_is_not_mistaken_for_the_best_one(tmp_path: Path) -> None:
    run = train(
        tmp_path,
        watch(writer=None),
        stops := _StopsAt3(),
        EarlyStoppingCallback(early_stopping_patience=9),
        report_to="tensorboard",
        learning_rate=1.0,  # so that the first step is the best one
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="loss",
        load_best_model_at_end=True,
    )
    if run.trainer.state.best_global_step is None:
        pytest.skip("this version of transformers found no best step")
    assert run.trainer.state.best_global_step == 1
    assert not torch.equal(stops.weights["lm_head.weight"], run.model.lm_head.weight)
    last = build("gpt2").model
    last.load_state_dict(stops.weights)
    assert_curve_of(last, tmp_path, 3)
    # Neither was anything written to the Trainer's log after it had been closed.
    assert logged(tmp_path) == [0, 3]


def test_the_run_of_the_trackio_callback_is_used(tmp_path: Path) -> None:
    trackio: Any = import_trackio()
    here = {"project": tmp_path.name, "run_name": "watched"}
    options: dict[str, Any] = here | {"trackio_space_id": None}
    train(tmp_path, watch(every=2, writer=None), max_steps=2, report_to="trackio", **options)
    name = "stable_regions/max_slope/median"
    rows = trackio.SQLiteStorage.get_logs(tmp_path.name, "watched")
    assert [row["step"] for row in rows if name in row] == [0, 2]
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


# ---- nothing is disturbed ------------------------------------------------------------------------


def _with_a_frozen_block() -> Any:
    """A model that keeps one block in eval mode whenever it is put in training mode."""
    model = build("gpt2").model
    block = model.get_submodule("transformer.h.1")
    block.train = lambda mode=True: nn.Module.train(block, False)  # type: ignore[method-assign]
    return model


def _with_an_adapter() -> Any:
    peft = pytest.importorskip("peft", reason="PEFT is an extra of the user's")
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "lora_dropout": 0.1}
    return peft.get_peft_model(build("llama").model, peft.LoraConfig(**options))


CHECKPOINTING = next(  # its name, and before
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
COMPILED: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
SETTINGS: dict[str, dict[str, Any]] = {
    "accumulated, saved, evaluated and logged": {
        "gradient_accumulation_steps": 2,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "include_num_input_tokens_seen": "all",
        "report_to": "tensorboard",
    },
    "checkpointing in bf16": {CHECKPOINTING: True, "bf16": True},
    "a block in eval mode": {"model": _with_a_frozen_block},
    "PEFT": {"model": _with_an_adapter},
}
ignore_compiler = pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")  # PEFT asks for it
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_watched_training_is_bit_for_bit_the_same(tmp_path: Path, setting: str) -> None:
    options = {"max_steps": 3, **SETTINGS[setting]}
    model = options.pop("model", lambda: None)

    def run(name: str, *callbacks: Any) -> Run:
        torch.manual_seed(0)
        return train(tmp_path / name, *callbacks, model=model(), **options)

    plain = run("plain")
    watched = run("watched", watch(every=1, num_slices=1, with_save=True, with_eval=True))
    assert watched.differences(plain) == []
    found = records(tmp_path / "watched")
    assert list(found) == [0, 1, 2, 3]
    if setting == "a block in eval mode":
        asleep = {name: mode for name, mode in watched.facts["modes"].items() if ".h.1." in name}
        assert set(asleep.values()) == {False}
    if setting == "PEFT":
        assert_curve_of(watched.model, watched.folder, 3)


@pytest.mark.slow  # compiles for half a minute; the eager backend is tested above
@pytest.mark.filterwarnings("ignore")  # of the compiler, about this machine
def test_a_compiled_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"torch_compile": True, "max_steps": 3}
    for data in (None, Stream(rows())):
        plain = train(tmp_path / "plain", data=data, **options)
        watched = train(tmp_path / "watched", watch(every=1), data=data, **options)
        assert watched.differences(plain) == []
        assert list(records(tmp_path / "watched")) == [0, 1, 2, 3]


def test_it_is_measured_in_float32_or_as_the_run_computes(tmp_path: Path) -> None:
    untouched = build("gpt2").model
    train(tmp_path, watch(), watch(precision="run"), bf16=True, max_steps=1)
    full, run = records(tmp_path)[0].paths, records(tmp_path, "stable_regions-2")[0].paths
    assert_curve_of(untouched, tmp_path)
    assert (full.arithmetic, run.arithmetic) == ("float32", "bfloat16")
    assert 100 * full.noise_floor < run.noise_floor
    with torch.autocast("cpu", torch.bfloat16):
        assert_curve_of(untouched, tmp_path, name="stable_regions-2", gap=2e-2, precision="run")


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
    [
        {"gradient_accumulation_steps": 2, "eval_on_start": True, "eval_strategy": "steps"},
        # Loading dynamo takes long; tests/model/test_undisturbed.py has compiled models, too.
        pytest.param(COMPILED, marks=pytest.mark.slow),
    ],
    ids=["accumulation, evaluated first", "compiled"],
)
def test_a_stream_is_begun_with_its_first_batch(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"max_steps": 2, **options}
    plain = train(tmp_path / "plain", data=_stream(), **options)
    watched = train(tmp_path / "watched", watch(every=1), data=_stream(), **options)
    assert watched.differences(plain) == []
    found = records(tmp_path / "watched")
    assert list(found) == [0, 1, 2]
    assert_curve_of(build("gpt2").model, watched.folder)
    prompts = prompts_in(tmp_path / "watched")
    assert prompts.token_ids.max() < 15
    assert prompts.source.startswith("a batch of the training data")


def test_batches_that_hold_too_little_are_put_together(tmp_path: Path) -> None:
    data = Stream(rows(length=7))
    options: dict[str, Any] = {"per_device_train_batch_size": 1, "max_steps": 4, "data": data}
    plain = train(tmp_path / "plain", **options)
    fewer = pytest.warns(RuntimeWarning, match="5 prompts were found, 257 are wanted")
    for num_pairs, telling, steps in ((3, nullcontext(), [2, 3, 4]), (256, fewer, [4])):
        folder = tmp_path / str(num_pairs)
        with telling:
            watched = train(folder, watch(every=1, num_pairs=num_pairs), **options)
        assert watched.differences(plain) == []
        # A batch holds seven tokens, a prompt five; at the end there is what there is.
        assert list(records(folder)) == steps
        seen = {token for batch in plain.facts["batches"] for token in batch[0].tolist()}
        assert set(prompts_in(folder).token_ids.flatten().tolist()) <= seen


def test_of_a_stream_that_can_be_resumed_all_prompts_are_there_at_step_0(tmp_path: Path) -> None:
    def stream() -> Any:
        chance, ids = random.Random(0), [row["input_ids"].tolist() for row in rows()]

        def noisy(row: Any) -> Any:
            token = chance.randrange(VOCAB)
            return {name: [token, *row["ids"]] for name in ("input_ids", "labels")}

        table: Any = datasets.Dataset.from_dict({"ids": ids})
        streamed = table.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=9)
        return streamed.map(noisy, remove_columns=["ids"])

    plain = train(tmp_path / "plain", data=stream())
    watched = train(tmp_path / "watched", watch(every=3, num_pairs=20), data=stream())
    assert watched.differences(plain) == []
    assert list(records(watched.folder)) == [0, 3, 6]
    assert prompts_in(watched.folder).source.startswith("the first 32 rows")


class _Embedded(nn.Module):
    """A model that is given vectors, and knows no ids."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build("gpt2").model

    def forward(self, vectors: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found: Any = self.model(inputs_embeds=vectors, labels=labels)
        return {"loss": found.loss}


def test_data_without_ids_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    data = [{"vectors": torch.randn(8, 32), "labels": row["labels"][:8]} for row in rows(16)]
    plain = train(tmp_path / "plain", model=_Embedded(), data=data)
    with pytest.warns(RuntimeWarning, match=r"no token ids were found .* pass prompts=") as told:
        watched = train(tmp_path / "watched", watch(on_error="warn"), model=_Embedded(), data=data)
    assert len(told) == 1
    assert watched.differences(plain) == []
    assert list_records(tmp_path / "watched" / "stable_regions") == []


# ---- TensorBoard ---------------------------------------------------------------------------------


class _House(TensorBoardCallback):
    """A logger of one's own, derived from the known one."""


def test_the_tensorboard_run_that_is_there_is_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also further down the list."""
    house: Any = _House
    train(tmp_path, watch(every=2, writer=None), house(), max_steps=2)
    assert "sr-monitor" not in capfd.readouterr().err
    assert (logged(tmp_path), logged(tmp_path, "train/loss")) == ([0, 2], [1, 2])


def test_a_callback_that_is_used_again_writes_to_the_new_run_alone(tmp_path: Path) -> None:
    callback = watch(every=1, writer=None)
    with pytest.raises(ZeroDivisionError) as kept:
        train(tmp_path / "1", callback, fail_at=2, report_to="tensorboard")
    train(tmp_path / "2", callback, report_to="tensorboard", max_steps=2)
    assert [logged(tmp_path / name) for name in "12"] == [[0, 1], [0, 1, 2]]
    assert kept.traceback  # it was held until here


# ---- resuming ------------------------------------------------------------------------------------


def test_a_run_resumed_in_another_folder_takes_its_records_along(tmp_path: Path) -> None:
    both: dict[str, Any] = {"report_to": "tensorboard", "save_steps": 2}
    before = train(tmp_path / "old", watch(every=1, writer=None), max_steps=3, **both)
    kept = sorted((tmp_path / "old" / "stable_regions").rglob("*"))
    callback = watch(every=1, writer=None, seed=7)
    train(tmp_path / "new", callback, resume=checkpoint(before, 2), max_steps=4, **both)
    found = records(tmp_path / "new")
    assert list(found) == logged(tmp_path / "new") == [0, 1, 2, 3, 4]
    assert len({record.metadata["prompts"] for record in found.values()}) == 1
    assert sorted((tmp_path / "old" / "stable_regions").rglob("*")) == kept


def test_a_callback_that_is_added_on_resume_of_a_stream(tmp_path: Path) -> None:
    before = train(tmp_path, data=Stream(rows()), save_steps=2, max_steps=2)
    resume = checkpoint(before, 2)
    train(tmp_path, watch(every=1), data=Stream(rows()), resume=resume, max_steps=4)
    assert list(records(tmp_path)) == [2, 3, 4]


DAMAGE = {
    "newer": ('{"schema": 99}', "schema 99, this version reads up to schema 1; run: pip install"),
    "torn": ('{"schema": 1, "prom', r"stable_regions.json' cannot be read: .*; delete it to go on"),
    "no object": ("[1]", "stable_regions.json' cannot be read: it holds a list"),
    "no prompts": ('{"schema": 1, "prompts": 3}', "the saved state of sr-monitor"),
    "older": ("{}", ""),
}


def test_a_state_that_cannot_be_read_is_refused_while_training_goes_on(tmp_path: Path) -> None:
    before = train(tmp_path, watch(every=1), save_steps=2, max_steps=3)
    resume: dict[str, Any] = {"resume": checkpoint(before, 2), "max_steps": 4}
    state, kept = checkpoint(before, 2) / "stable_regions.json", records(tmp_path)
    plain = train(tmp_path / "plain", **resume)
    for content, message in DAMAGE.values():
        state.write_text(content)
        callback = watch(every=1, on_error="warn", seed=7)
        if message:
            with pytest.warns(RuntimeWarning, match=message) as told:
                after = train(tmp_path, callback, **resume)
            assert len(told) == 1
            assert after.differences(plain) == []
            assert list(records(tmp_path)) == list(kept)
        else:  # of an older version, which lacks what it lacks
            train(tmp_path, callback, **resume)
    assert list(records(tmp_path)) == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "stable_regions" / "superseded").iterdir())) == 1


def test_a_loop_without_epochs_is_watched_from_its_first_step(tmp_path: Path) -> None:
    """As those of some trainers of others, which call the events themselves."""
    callback = watch(every=2, writer=(writer := MemoryWriter()))
    state = TrainerState(global_step=2, max_steps=10)
    told = (arguments(tmp_path), state, TrainerControl())
    loader: Any = torch.utils.data.DataLoader(rows(), batch_size=4)
    known: dict[str, Any] = {"model": build("llama").model, "train_dataloader": loader}
    for event in (callback.on_train_begin, callback.on_step_end, callback.on_train_end):
        event(*told, **known)
    assert list(records(tmp_path)) == [2]
    assert writer.closed
