"""The callback for Lightning: what it measures and when, and that a training does not notice."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sr_monitor_lightning import StableRegionCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from sr_monitor import InputError, PromptSet, Record, at, measure_paths
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.probes.keys import STEP
from sr_monitor.probes.paths import Paths, PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.results.run_keys import FAILURES
from tests.lightning_runs import (
    BATCH,
    LENGTH,
    SMALL,
    WAYS,
    LitLM,
    loader,
    records_in,
    rows,
    shown,
    small,
    tiny,
    train,
)
from tests.processes import in_processes
from tests.training import Run
from tests.zoo import LectureGPT, NanoGPT, build

pytestmark = [
    # Lightning gives advice (a validation loop without data, few workers, a folder that is there).
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Its new name is not in all versions of transformers; PEFT asks for the old one too.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    # Lightning uses what torch has since renamed.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
]

QUICK: dict[str, Any] = {"num_slices": 0}
MEDIAN = PathsProbe.MAX_SLOPE_MEDIAN.name


def steps(records: Sequence[Record]) -> list[int]:
    return [record.step for record in records]


def tokens(run: Run) -> list[int | None]:
    return [record.tokens for record in records_in(run.folder)]


def prompts_in(folder: Path, name: str = "stable_regions") -> PromptSet:
    return PromptSet.load(folder / name / "prompts.json")


def paths_of(model: nn.Module, prompts: PromptSet, **options: Any) -> Paths:
    """What the callback must have found, by the core."""
    num = SMALL["num_pairs"]
    a, b = prompts.token_ids[:num], prompts.token_ids[1 : num + 1]
    return measure_paths(model, a, b, num_steps=SMALL["num_steps"], **options)


def assert_same(one: Paths, other: Paths, tolerance: float = 1e-4) -> None:
    # Not bit for bit: how many points run at once hangs on the memory that is free.
    torch.testing.assert_close(one.distance, other.distance, rtol=tolerance, atol=tolerance)
    assert one.distance.dtype == torch.float32


# What is measured, and when ---------------------------------------------------------------------


def test_the_one_line_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(tmp_path, [StableRegionCallback()], max_steps=1)

    assert steps(records_in(done.folder)) == [0, 1]
    config = records_in(done.folder)[0].metadata["config"]
    assert (config["num_pairs"], config["num_steps"], config["num_slices"]) == (256, 51, 4)
    assert records_in(done.folder)[0].paths.distance.shape[1] == 51
    assert records_in(done.folder)[0].slices is not None
    assert f"tensorboard --logdir {tmp_path}" in capsys.readouterr().err


def test_step_0_is_the_initial_model_and_the_last_step_the_trained_one(tmp_path: Path) -> None:
    done = train(tmp_path, [small(every=3)], max_steps=5)

    assert steps(records_in(done.folder)) == [0, 3, 5]
    prompts = prompts_in(tmp_path)
    assert_same(records_in(done.folder)[0].paths, paths_of(tiny(), prompts))
    assert_same(records_in(done.folder)[2].paths, paths_of(done.model.model, prompts))
    assert (
        records_in(done.folder)[2]
        .paths.distance.ne(records_in(done.folder)[0].paths.distance)
        .any()
    )


def test_a_step_is_an_update_and_is_measured_once_right_after_it(tmp_path: Path) -> None:
    class Watched(LitLM):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            if self.trainer.global_step == 2:  # in the third update
                self.third = copy.deepcopy(self.model)

    writer = MemoryWriter()
    done = train(
        tmp_path,
        [small(every=1, writer=writer, **QUICK)],
        module=Watched,
        accumulate_grad_batches=3,
    )

    assert steps(records_in(done.folder)) == [0, 1, 2, 3, 4]
    assert [step for step, _ in writer.scalars[MEDIAN]] == [0, 1, 2, 3, 4]
    assert tokens(done) == [update * 3 * BATCH * LENGTH for update in range(5)]
    assert_same(records_in(done.folder)[3].paths, paths_of(done.model.third, prompts_in(tmp_path)))


def test_evaluations_are_measured_if_asked_but_not_the_sanity_check(tmp_path: Path) -> None:
    options: dict[str, Any] = {"validation": loader, "limit_val_batches": 1, "max_steps": 5}

    without = train(
        tmp_path / "without", [small(schedule=at([]), **QUICK)], val_check_interval=2, **options
    )
    watched = train(
        tmp_path / "with",
        [small(schedule=at([]), with_eval=True, **QUICK)],
        val_check_interval=2,
        **options,
    )

    assert steps(records_in(without.folder)) == [5]
    assert steps(records_in(watched.folder)) == [2, 4, 5]


def test_saves_are_measured_if_asked(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)

    done = train(
        tmp_path,
        [small(schedule=at([]), with_save=True, **QUICK), saver],
        max_steps=5,
        enable_checkpointing=True,
    )

    assert steps(records_in(done.folder)) == [2, 4, 5]


# The training does not notice -------------------------------------------------------------------


class Checkpointed(LitLM):
    def __init__(self) -> None:
        super().__init__()
        self.model.gradient_checkpointing_enable()


class PartlyAsleep(LitLM):
    def __init__(self) -> None:
        super().__init__()
        self.model.transformer.h[1].eval()


class Asleep(LitLM):
    def __init__(self) -> None:
        super().__init__(tiny().eval())


class Compiled(LitLM):
    def __init__(self) -> None:
        model: Any = torch.compile(tiny(), backend="eager")
        super().__init__(model)


class CompiledInPlace(LitLM):
    def __init__(self) -> None:
        super().__init__()
        self.model.compile(backend="eager")


class Lora(LitLM):
    def __init__(self) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(
            target_modules=["c_attn"], r=2, lora_dropout=0.1, fan_in_fan_out=True
        )
        super().__init__(peft.get_peft_model(tiny(), config))


@pytest.mark.parametrize(
    ("module", "options"),
    [
        pytest.param(LitLM, {}, id="dropout"),
        pytest.param(LitLM, {"logger": True}, id="pictures in the run of the logger"),
        pytest.param(
            LitLM,
            {"accumulate_grad_batches": 2, "validation": loader, "val_check_interval": 2},
            id="accumulation and validation",
        ),
        pytest.param(LitLM, {"precision": "bf16-mixed"}, id="bf16-mixed"),
        pytest.param(LitLM, {"precision": "bf16-true"}, id="bf16-true"),
        pytest.param(LitLM, {"precision": "64-true"}, id="64-true"),
        pytest.param(Checkpointed, {}, id="gradient checkpointing"),
        pytest.param(PartlyAsleep, {}, id="a block in eval mode"),
        pytest.param(Asleep, {}, id="the model in eval mode"),
        pytest.param(Compiled, {}, id="torch.compile", marks=pytest.mark.slow),
        pytest.param(CompiledInPlace, {}, id="compile in place"),
        pytest.param(Lora, {}, id="LoRA"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of dynamo
def test_the_training_is_bit_identical(
    module: Callable[[], LitLM], options: dict[str, Any], tmp_path: Path
) -> None:
    plain = train(tmp_path / "plain", module=module, **options)
    callback = shown(num_slices=1) if "logger" in options else small()
    watched = train(tmp_path / "watched", [callback], module=module, **options)

    assert watched.differences(plain) == []
    assert steps(records_in(watched.folder)) == [0, 2, 4]
    assert all(record.paths.max_slope.isfinite().any() for record in records_in(watched.folder))


def test_the_log_of_a_monitored_run_is_that_of_an_unmonitored_one(tmp_path: Path) -> None:
    logs = []
    for name, callbacks in (("plain", []), ("watched", [small(writer=MemoryWriter(), **QUICK)])):
        logger = CSVLogger(tmp_path / name)
        train(tmp_path / name, callbacks, logger=logger, validation=loader, val_check_interval=2)
        logs.append(Path(logger.log_dir, "metrics.csv").read_text())

    assert logs[0] == logs[1]
    assert "loss" in logs[0]


# Precision --------------------------------------------------------------------------------------


def test_it_is_measured_in_the_precision_of_the_run(tmp_path: Path) -> None:
    mixed = train(tmp_path / "mixed", [small(**QUICK)], precision="bf16-mixed", max_steps=2)
    full = train(tmp_path / "full", [small(**QUICK)], max_steps=2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = paths_of(tiny(), prompts_in(tmp_path / "mixed"))
    rounding = 2 * records_in(mixed.folder)[0].paths.noise_distance
    assert_same(records_in(mixed.folder)[0].paths, expected, rounding)
    assert (
        records_in(mixed.folder)[0]
        .paths.distance.sub(records_in(full.folder)[0].paths.distance)
        .abs()
        .max()
        > 1e-4
    )
    assert (
        records_in(mixed.folder)[0].paths.noise_floor
        > 1e-3
        > 1e-5
        > records_in(full.folder)[0].paths.noise_floor
    )


def test_float32_is_full_precision_also_under_autocast(tmp_path: Path) -> None:
    callback = small(precision="float32", **QUICK)

    mixed = train(tmp_path, [callback], precision="bf16-mixed", max_steps=2)

    assert_same(records_in(mixed.folder)[0].paths, paths_of(tiny(), prompts_in(tmp_path)))


def test_a_half_precision_run_is_measured_as_it_runs(tmp_path: Path) -> None:
    class Picky(NanoGPT):
        """Makes a tensor of the default type, which must be the weights'."""

        def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
            assert torch.zeros(1).dtype == self.lm_head.weight.dtype
            return super().forward(idx, targets)

    half = train(
        tmp_path,
        [small(**QUICK)],
        module=lambda: LitNano(Picky()),
        precision="bf16-true",
        max_steps=2,
    )

    assert steps(records_in(half.folder)) == [0, 2]
    assert records_in(half.folder)[0].metadata["dtype"] == "bfloat16"
    assert records_in(half.folder)[0].paths.distance.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


# Finding the model ------------------------------------------------------------------------------


class LitNano(LitLM):
    """A model of one's own inside."""

    def loss(self, batch: Any) -> Tensor:
        loss: Tensor = self.model(batch["input_ids"], batch["labels"])[1]
        return loss


class LitItself(LitLM):
    """The `LightningModule` is the model."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleDict(nano().transformer))
        self.transformer = self.model
        del self.model
        self.lm_head = nn.Linear(32, 61)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        return NanoGPT.forward(self, idx, targets)  # type: ignore[arg-type]

    def loss(self, batch: Any) -> Tensor:
        loss: Tensor = self(batch["input_ids"], batch["labels"])[1]
        return loss


class Teacher(LitLM):
    """Two models, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = tiny("llama").eval()
        self.probe = nn.Linear(2, 2)


class Nested(LitLM):
    """The model below a module that has nothing to do with it, and once more elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = nn.ModuleDict({"lm": self.model})
        self.probe = nn.Linear(2, 2)


def nano() -> Any:
    return build("nano_gpt").model.train()


@pytest.mark.parametrize(
    ("module", "model", "expected"),
    [
        (Nested, None, "GPT2LMHeadModel"),
        (Teacher, "teacher", "LlamaForCausalLM"),
        (Teacher, lambda lit: lit.model, "GPT2LMHeadModel"),
        (lambda: LitNano(nano()), None, "NanoGPT"),
        (lambda: LitNano(LectureGPT().train()), None, "LectureGPT"),
        (LitItself, None, "LitItself"),
        (Lora, None, "GPT2LMHeadModel"),
    ],
    ids=["nested", "by name", "by a function", "nanoGPT", "a row", "the module itself", "LoRA"],
)
def test_the_language_model_is_found(
    module: Callable[[], LitLM], model: Any, expected: str, tmp_path: Path
) -> None:
    done = train(tmp_path, [small(model=model, **QUICK)], module=module, max_steps=1)

    assert steps(records_in(done.folder)) == [0, 1]
    assert records_in(done.folder)[0].metadata["model"] == expected


def test_a_module_of_the_training_is_taken_as_it_is(tmp_path: Path) -> None:
    lit = Teacher()

    done = train(tmp_path, [small(model=lit.teacher, **QUICK)], module=lambda: lit, max_steps=1)

    assert steps(records_in(done.folder)) == [0, 1]
    assert records_in(done.folder)[0].metadata["model"] == "LlamaForCausalLM"


def test_a_module_that_is_not_part_of_the_training_is_refused(tmp_path: Path) -> None:
    said = "the GPT2LMHeadModel that was passed is not in Teacher, .*'model', 'teacher', 'probe'"
    with pytest.raises(InputError, match=said):
        train(tmp_path, [small(model=tiny())], module=Teacher)


def test_the_name_of_the_blocks_is_enough_to_find_the_model(tmp_path: Path) -> None:
    class TwoLists(NanoGPT):
        def __init__(self) -> None:
            super().__init__()
            self.adapters = nn.ModuleList([nn.Identity()])

    def module() -> LitLM:
        return LitNano(TwoLists())

    done = train(tmp_path, [small(layer_path="transformer.h", **QUICK)], module=module, max_steps=1)

    assert records_in(done.folder)[0].metadata["model"] == "TwoLists"
    said = r"StableRegionCallback\(layer_path='blocks'\): LitNano holds 0 language models.*'model'"
    with pytest.raises(InputError, match=said):
        train(tmp_path / "wrong", [small(layer_path="blocks")], module=module)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "Teacher holds 2 language models, not one; name it with model=.*'model', 'teacher'"),
        ("nett", "model='nett'.*Teacher has no such module.*'model', 'teacher', 'probe'"),
    ],
)
def test_a_model_that_is_not_found_is_said_and_training_goes_on(
    model: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        train(tmp_path / "raise", [small(model=model)], module=Teacher)
    with pytest.warns(RuntimeWarning, match=said) as told:
        done = train(tmp_path, [small(model=model, on_error="warn")], module=Teacher)

    assert len(done.losses) == 4
    assert [str(one.message) for one in told if "sr-monitor" in str(one.message)] != []
    assert sum("language model" in str(w.message) or "nett" in str(w.message) for w in told) == 1


# Prompts from the training data -----------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Rows without a length, drawn from the global random state."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            ids = torch.randint(61, (40,))
            yield {"input_ids": ids, "labels": ids}


class Drawing(Dataset[Any]):
    """Rows by index, drawn from a generator of their own; `collate` draws from it, too."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(1)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(61, (40,), generator=self.own)

    def collate(self, rows: list[Tensor]) -> dict[str, Tensor]:
        ids = torch.stack(rows)[torch.randperm(len(rows), generator=self.own)]
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("kind", [Stream, Drawing])
def test_the_first_batch_gives_the_prompts_where_reading_has_consequences(
    kind: type, tmp_path: Path
) -> None:
    def data() -> Any:
        dataset = kind()
        collate = getattr(dataset, "collate", None)
        return loader(dataset, shuffle=kind is Drawing, collate_fn=collate)

    plain = train(tmp_path / "plain", data=data)
    watched = train(tmp_path / "watched", [small(**QUICK)], data=data)

    assert watched.differences(plain) == []
    assert steps(records_in(watched.folder)) == [0, 2, 4]
    assert_same(
        records_in(watched.folder)[0].paths, paths_of(tiny(), prompts_in(tmp_path / "watched"))
    )
    assert prompts_in(tmp_path / "watched").source.startswith("a batch of the training data")
    assert records_in(watched.folder)[1].tokens == 2 * BATCH * 40


class Tensors(LitLM):
    def loss(self, batch: Any) -> Tensor:
        ids = batch[0] if isinstance(batch, list | tuple) else batch
        return super().loss({"input_ids": ids, "labels": ids})


def _windows(ids: Tensor) -> set[tuple[int, ...]]:
    return {tuple(window) for row in ids.tolist() for window in _slide(row)}


def _slide(row: list[int]) -> Iterator[list[int]]:
    return (row[start : start + 6] for start in range(len(row) - 5))


@pytest.mark.parametrize("kind", ["dicts", "tensors", "tuples"])
def test_prompts_are_windows_of_the_data_set(kind: str, tmp_path: Path) -> None:
    ids = torch.stack([row["input_ids"] for row in rows()])
    made: dict[str, Any] = {"dicts": rows(), "tensors": ids, "tuples": list(zip(ids, ids))}  # noqa: B905
    module = LitLM if kind == "dicts" else Tensors

    def data() -> Any:
        return loader(made[kind])

    plain = train(tmp_path / "plain", module=module, data=data, max_steps=2)
    watched = train(
        tmp_path / "watched",
        [small(num_tokens=6, **QUICK)],
        module=module,
        data=data,
        max_steps=2,
    )

    prompts = prompts_in(tmp_path / "watched")
    assert prompts.token_ids.shape == (7, 6)
    assert {tuple(row) for row in prompts.token_ids.tolist()} <= _windows(ids)
    assert prompts.source.startswith("the training data")
    assert watched.differences(plain) == []
    assert tokens(watched) == [0, 2 * BATCH * LENGTH]


class Several(Tensors):
    """Learns from what several loaders give."""

    def loss(self, batch: Any) -> Tensor:
        parts = batch.values() if isinstance(batch, dict) else batch
        losses = [super(Several, self).loss(part) for part in parts]
        return torch.stack(losses).sum()


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("streamed", [False, True], ids=["with a length", "streamed"])
def test_of_several_loaders_the_first_gives_the_prompts(
    streamed: bool, kind: type, tmp_path: Path
) -> None:
    class Streamed(IterableDataset[Any]):
        def __init__(self, rows: list[Any]) -> None:
            self.rows = rows

        def __iter__(self) -> Iterator[Any]:
            return iter(self.rows)

    def one(rows: list[Any], **options: Any) -> Any:
        return loader(Streamed(rows) if streamed else rows, shuffle=False, **options)

    def data() -> Any:
        ids = [row["input_ids"] for row in rows()]
        low = [row % 30 for row in ids]
        both = [
            one(list(zip(low, low, strict=True))),
            one(list(zip(ids, ids, strict=True)), batch_size=2),
        ]
        return both if kind is list else dict(zip(("lm", "more"), both, strict=True))

    options: dict[str, Any] = {"module": Several, "data": data, "max_steps": 2}
    plain = train(tmp_path / "plain", **options)
    watched = train(tmp_path / "watched", [small(**QUICK)], **options)

    assert watched.differences(plain) == []
    assert steps(records_in(watched.folder)) == [0, 2]
    prompts = prompts_in(tmp_path / "watched")
    assert prompts.source.startswith("a batch" if streamed else "the training data")
    assert prompts.token_ids.max() < 30
    assert tokens(watched) == [0, 2 * (BATCH + 2) * LENGTH]


def test_a_loader_without_token_ids_is_passed_over(tmp_path: Path) -> None:
    class OneOfTwo(LitLM):
        def loss(self, batch: Any) -> Tensor:
            return super().loss(batch["lm"])

    def data() -> Any:
        return {"vectors": loader([torch.rand(3) for _ in range(8)]), "lm": loader()}

    done = train(tmp_path, [small(**QUICK)], module=OneOfTwo, data=data, max_steps=2)

    assert tokens(done) == [0, 2 * BATCH * LENGTH]


def test_the_seed_chooses_the_prompts(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train(tmp_path / name, [small(seed=seed, schedule=at([0]), **QUICK)], max_steps=1)

    one, again, other = (prompts_in(tmp_path / name) for name in ("one", "again", "other"))
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_a_batch_without_token_ids_is_said_and_training_goes_on(tmp_path: Path) -> None:
    class Vectors(LitLM):
        def loss(self, batch: Any) -> Tensor:
            ids = batch["vectors"].long()
            return super().loss({"input_ids": ids, "labels": ids})

    data = [{"vectors": row["input_ids"].float()} for row in rows()]
    with pytest.warns(RuntimeWarning, match="no token ids were found.*pass prompts=") as told:
        done = train(tmp_path, [small(on_error="warn")], module=Vectors, data=lambda: loader(data))
    assert len(done.losses) == 4
    assert sum("token ids" in str(one.message) for one in told) == 1

    prompts = PromptSet.from_token_ids(torch.randint(61, (7, 6)))
    done = train(
        tmp_path, [small(prompts=prompts, **QUICK)], module=Vectors, data=lambda: loader(data)
    )
    assert tokens(done) == [0, None, None]
    assert prompts_in(tmp_path).fingerprint == prompts.fingerprint


def test_the_tokenizer_of_the_module_gives_the_prompts_their_texts(tmp_path: Path) -> None:
    class Spelled(LitLM):
        class tokenizer:
            @staticmethod
            def decode(ids: list[int]) -> str:
                return "".join(chr(65 + number) for number in ids)

    train(tmp_path, [small(**QUICK)], module=Spelled, max_steps=1)

    prompts = prompts_in(tmp_path)
    assert prompts.texts is not None
    assert prompts.texts[0] == Spelled.tokenizer.decode(prompts.token_ids[0].tolist())


# Loggers ----------------------------------------------------------------------------------------


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return found.Reload()


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))


def test_the_run_of_the_tensorboard_logger_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Named(TensorBoardLogger):
        """Of a class of the user's own."""

    logger = Named(tmp_path)
    loggers = [CSVLogger(tmp_path / "csv"), logger]

    done = train(tmp_path, [shown(num_slices=1)], logger=loggers)

    assert len(event_files(tmp_path)) == 1
    seen = events(Path(logger.log_dir))
    assert [event.step for event in seen.Scalars(MEDIAN)] == [0, 2, 4]
    assert len(seen.Scalars("loss")) == 4
    assert {PathsProbe.CURVES.name, SlicesProbe.FILM.numbered(0).name} <= set(seen.Tags()["images"])
    assert done.folder.is_relative_to(tmp_path / "csv")  # of the first logger, as Lightning has it
    assert steps(records_in(done.folder)) == [0, 2, 4]
    assert "sr-monitor" not in capsys.readouterr().err


@pytest.mark.parametrize("has_logger", [False, True])
def test_without_one_there_is_a_run_of_our_own_and_a_message(
    has_logger: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(tmp_path, [shown()], logger=has_logger and CSVLogger(tmp_path))

    assert steps(records_in(done.folder)) == [0, 2, 4]
    (file,) = event_files(tmp_path)
    assert file.parent == done.folder / "stable_regions"
    assert [event.step for event in events(file.parent).Scalars(MEDIAN)] == [0, 2, 4]
    said = capsys.readouterr().err
    assert f"results in {file.parent}; to watch: tensorboard --logdir {done.folder}" in said


def test_the_run_of_the_wandb_logger_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)

    train(tmp_path, [shown(num_slices=1)], logger=logger)

    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert summary[STEP] == 4
    assert MEDIAN in summary
    assert event_files(tmp_path) == []


# Resuming ---------------------------------------------------------------------------------------


def saving(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "saved", every_n_train_steps=3, save_top_k=-1)


def interrupted(
    folder: Path, callbacks: Sequence[L.Callback], *, logged: bool = False, steps: int = 4
) -> Run:
    """A training that was saved at step 3 and went on until step 4."""
    return train(
        folder,
        [*callbacks, saving(folder)],
        enable_checkpointing=True,
        logger=logged and TensorBoardLogger(folder),
        max_steps=steps,
    )


def resumed(
    folder: Path, callbacks: Sequence[L.Callback], *, logged: bool = False, **options: Any
) -> Run:
    """Goes on from step 3 to step 7."""
    return train(
        folder,
        [*callbacks, saving(folder)],
        enable_checkpointing=True,
        logger=logged and TensorBoardLogger(folder),
        max_steps=7,
        resume=next((folder / "saved").glob("*step=3.ckpt")),
        **options,
    )


@pytest.mark.parametrize("logged", [False, True], ids=["same folder", "new version folder"])
def test_a_resumed_run_is_one_curve(logged: bool, tmp_path: Path) -> None:
    first = interrupted(tmp_path, [shown(every=1, seed=5)], logged=logged)
    second = resumed(tmp_path, [shown(every=1, seed=5)], logged=logged)

    assert (first.folder != second.folder) == logged
    assert steps(records_in(second.folder)) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert prompts_in(first.folder).fingerprint == prompts_in(second.folder).fingerprint
    each = BATCH * LENGTH
    assert tokens(second) == [step * each for step in range(8)]
    seen = events(second.folder if logged else second.folder / "stable_regions")
    assert [event.step for event in seen.Scalars(MEDIAN)] == [0, 1, 2, 3, 4, 5, 6, 7]
    # Step 3 was measured before the interruption, and only then.
    at_3 = [
        record
        for record in (*records_in(first.folder), *records_in(second.folder))
        if record.step == 3
    ]
    assert len({record.metadata["seconds"] for record in at_3}) == 1


def test_resuming_is_bit_identical_too(tmp_path: Path) -> None:
    trainings = []
    for name, callbacks in (("plain", []), ("watched", [small(**QUICK)])):
        interrupted(tmp_path / name, callbacks)
        trainings.append(resumed(tmp_path / name, callbacks))

    assert trainings[1].differences(trainings[0]) == []


def test_the_prompts_of_the_interrupted_run_are_kept_whatever_the_data_is_now(
    tmp_path: Path,
) -> None:
    first = interrupted(tmp_path, [small(**QUICK)], logged=True)
    other = [{"input_ids": row["labels"].flip(0), "labels": row["labels"]} for row in rows()]

    second = resumed(tmp_path, [small(**QUICK)], logged=True, data=lambda: loader(other))

    assert prompts_in(second.folder).fingerprint == prompts_in(first.folder).fingerprint


def test_checkpoints_are_plain_and_hold_the_state_also_after_the_training(tmp_path: Path) -> None:
    callback = small(**QUICK)
    done = interrupted(tmp_path, [callback])
    done.trainer.save_checkpoint(tmp_path / "final.ckpt")

    for path in (next(tmp_path.glob("saved/*.ckpt")), tmp_path / "final.ckpt"):
        state = torch.load(path, weights_only=True)["sr_monitor"]["stable_regions"]
        assert state["schema"] == 1
        assert state["tokens"] == state["step"] * 0 + (3 if "saved" in str(path) else 4) * 96
        prompts = PromptSet.from_json(state["prompts"], call="test")
        assert prompts.fingerprint == prompts_in(tmp_path).fingerprint


def test_a_callback_that_was_absent_before_begins_where_the_run_is(tmp_path: Path) -> None:
    interrupted(tmp_path, [])

    done = resumed(tmp_path, [small(**QUICK)])

    assert steps(records_in(done.folder)) == [4, 6, 7]
    assert tokens(done) == [
        None,
        None,
        None,
    ]  # not all were seen


def test_two_callbacks_at_once(tmp_path: Path) -> None:
    def both() -> list[L.Callback]:
        others = PromptSet.from_token_ids(torch.arange(49).reshape(7, 7))
        return [
            shown(every=1),
            shown(every=2, layer=2),
            shown(every=3, prompts=others),
        ]

    first = interrupted(tmp_path, both(), logged=True)
    second = resumed(tmp_path, both(), logged=True)

    for done, expected in (
        (first, [[0, 1, 2, 3, 4], [0, 2, 4], [0, 3, 4]]),
        (second, [[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6, 7], [0, 3, 6, 7]]),
    ):
        names = ["stable_regions", "stable_regions-2", "stable_regions-3"]
        assert [steps(records_in(done.folder, name)) for name in names] == expected
        seen = events(done.folder)
        medians = [MEDIAN.replace("stable_regions", name) for name in names]
        assert [[event.step for event in seen.Scalars(name)] for name in medians] == expected
    fingerprints = {prompts_in(second.folder, name).fingerprint for name in names}
    assert len(fingerprints) == 2  # the first two sample the same data


def test_curves_often_and_slices_rarely(tmp_path: Path) -> None:
    train(tmp_path, [small(every=1, **QUICK), small(every=4)])

    assert steps(records_in(tmp_path)) == [0, 1, 2, 3, 4]
    assert steps(rare := records_in(tmp_path, "stable_regions-2")) == [0, 4]
    assert rare[0].slices is not None


other_options = pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.")


@other_options
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"every": 2}, [0, 1, 2, 3, 4, 6, 7]),
        ({"log_dir": "elsewhere"}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"num_slices": 1}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
    ids=["every", "log_dir", "num_slices"],
)
def test_a_run_that_is_resumed_with_other_options_goes_on(
    other: dict[str, Any], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = interrupted(tmp_path, [small(every=1, **QUICK)], logged=True)

    second = resumed(tmp_path, [small(**{"every": 1, **QUICK, **other})], logged=True)

    records = records_in(Path("elsewhere") if "log_dir" in other else second.folder)
    assert first.folder != second.folder
    assert steps(records) == expected
    assert [record.tokens for record in records] == [step * BATCH * LENGTH for step in expected]


@other_options
@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        ([{"layer": 1}, {"layer": 2}], [{"layer": 1, "every": 2}, {"layer": 2}], [True, True]),
        (
            [{"layer": 1}, {"layer": 2}],
            [{"layer": 1, "every": 2}, {"layer": 2, "every": 2}],
            [True, True],
        ),
        ([{"layer": 1}], [{"layer": 1}, {"layer": 2}], [True, False]),
    ],
    ids=["one with others", "both with others", "a new one"],
)
def test_each_of_several_callbacks_finds_its_own_state(
    first: list[dict[str, Any]],
    second: list[dict[str, Any]],
    known: list[bool],
    tmp_path: Path,
) -> None:
    def callbacks(options: list[dict[str, Any]]) -> list[L.Callback]:
        return [small(**{"every": 1, **QUICK, **each}) for each in options]

    interrupted(tmp_path, callbacks(first), logged=True)
    done = resumed(tmp_path, callbacks(second), logged=True)

    for is_known, name in zip(known, ("stable_regions", "stable_regions-2"), strict=True):
        last = records_in(done.folder, name)[-1]
        assert (last.step, last.tokens) == (7, 7 * BATCH * LENGTH if is_known else None)
        assert (0 in steps(records_in(done.folder, name))) == is_known


def test_a_state_of_a_newer_version_is_refused_by_name_and_kept(tmp_path: Path) -> None:
    callback = small(on_error="warn", **QUICK)
    interrupted(tmp_path, [callback])
    path = next((tmp_path / "saved").glob("*step=3.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    newer = {"schema": 99, "tokens": {"of": "a newer kind"}}
    checkpoint["sr_monitor"]["stable_regions"] = newer
    torch.save(checkpoint, path)

    with pytest.warns(RuntimeWarning, match="schema 99.*pip install --upgrade sr-monitor"):
        done = resumed(tmp_path, [small(on_error="warn", **QUICK)])

    assert len(done.losses) == 4
    path = next((tmp_path / "saved").glob("*step=6.ckpt"))
    assert torch.load(path, weights_only=True)["sr_monitor"]["stable_regions"] == newer


def test_a_state_of_an_older_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    callback = small(**QUICK)
    interrupted(tmp_path, [callback])
    path = next((tmp_path / "saved").glob("*step=3.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["sr_monitor"]["stable_regions"] = {"schema": 1}
    torch.save(checkpoint, path)

    done = resumed(tmp_path, [small(**QUICK)])

    assert steps(records_in(done.folder))[-3:] == [4, 6, 7]
    assert records_in(done.folder)[-1].tokens is None


def test_one_callback_in_two_trainings(tmp_path: Path) -> None:
    callback = small(**QUICK)
    first = train(tmp_path / "first", [callback])
    short = [{"input_ids": row["input_ids"].flip(0), "labels": row["labels"]} for row in rows()]
    second = train(tmp_path / "second", [callback], data=lambda: loader(short))

    assert steps(records_in(first.folder)) == steps(records_in(second.folder)) == [0, 2, 4]
    assert records_in(first.folder)[2].tokens == records_in(second.folder)[2].tokens
    assert prompts_in(first.folder).fingerprint != prompts_in(second.folder).fingerprint


# A smoke run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_folder", [False, True], ids=["the run's folder", "log_dir"])
def test_a_fast_dev_run_measures_and_keeps_nothing(
    own_folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"log_dir": tmp_path / "own"} if own_folder else {}
    train(tmp_path, [shown(**options)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()

    smoke, writer = shown(**options), MemoryWriter()
    train(tmp_path, [smoke, small(writer=writer, layer=2, **options)], fast_dev_run=2)

    assert smoke.watcher.states["stable_regions"]["step"] == 2
    assert [step for step, _ in writer.scalars[MEDIAN]] == [0, 2]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "sr-monitor" not in capsys.readouterr().err


# Never the cause of a crash ---------------------------------------------------------------------


class Failing(MemoryWriter):
    """A dashboard that has gone away."""

    def scalar(self, name: str, value: float, step: int) -> None:
        raise ConnectionError("the dashboard has gone")


@pytest.mark.parametrize(
    ("options", "said", "warnings_in_all"),
    [
        ({"layer": 9}, "layer=9: GPT2LMHeadModel has layers 0 .* to 3", 1),
        ({"writer": Failing()}, "the dashboard has gone", 2),
        ({"prompts": "nowhere.json"}, "nowhere.json", 1),
    ],
    ids=["a layer", "a broken writer", "no prompts"],
)
def test_a_failure_is_a_warning_and_training_goes_on(
    options: dict[str, Any], said: str, warnings_in_all: int, tmp_path: Path
) -> None:
    plain = train(tmp_path / "plain")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        watched = train(
            tmp_path / "watched", [small(**{**QUICK, "on_error": "warn", "every": 1, **options})]
        )
    with pytest.raises((InputError, RuntimeError), match=said):
        train(tmp_path / "raise", [small(**{**QUICK, **options})])

    assert watched.differences(plain) == []
    ours = [str(one.message) for one in told if "sr-monitor" in str(one.message)]
    assert len(ours) == warnings_in_all
    assert "off now" in ours[-1]


def test_nan_weights_are_said_and_counted(tmp_path: Path) -> None:
    class Diverging(LitLM):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 1:
                with torch.no_grad():
                    self.model.transformer.wte.weight.fill_(torch.nan)

    writer = MemoryWriter()
    with pytest.warns(RuntimeWarning, match="NaN or Inf, as after a diverged loss"):
        done = train(tmp_path, [small(on_error="warn", writer=writer, **QUICK)], module=Diverging)

    assert steps(records_in(done.folder)) == [0]
    assert writer.scalars[FAILURES.name][-1] == (4, 2)


def test_an_exception_in_the_training_closes_everything(tmp_path: Path) -> None:
    class Stopping(LitLM):
        def training_step(self, batch: Any, index: int) -> Tensor:
            if self.trainer.global_step == 3:
                raise KeyError("in the training itself")
            return super().training_step(batch, index)

    closed = []

    class Closing(MemoryWriter):
        def close(self) -> None:
            closed.append(sorted(self.images))

    callback = small(writer=Closing(), **QUICK)
    saver = ModelCheckpoint(tmp_path / "saved", save_on_exception=True, filename="at-exception")
    with pytest.raises(KeyError, match="in the training itself"):
        train(tmp_path, [callback, saver], module=Stopping, enable_checkpointing=True)

    assert closed == [[PathsProbe.CURVES.name]]
    (path,) = tmp_path.glob("saved/*.ckpt")
    state = torch.load(path, weights_only=True)["sr_monitor"]["stable_regions"]
    assert state["step"] == 2
    # The folder is free again: the next run there takes the same name.
    again = train(tmp_path, [small(**QUICK)])
    assert steps(records_in(again.folder)) == [0, 2, 4]
    assert not (tmp_path / "stable_regions-2").exists()


# Two processes ----------------------------------------------------------------------------------


def _as_launched(rank: int) -> None:
    """What `torchrun` sets, so that Lightning takes these processes for its own."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip


def _train_in_every_way(rank: int, folder: str) -> list[str]:
    """Every way unwatched and watched; each process asserts."""
    _as_launched(rank)
    warnings.simplefilter("ignore")  # the tests with one process look at warnings
    for way, (strategy, module) in WAYS.items():
        options: dict[str, Any] = {"module": module, "devices": 2}
        plain = train(Path(folder, way, "plain"), strategy=strategy(), **options)
        watched = train(Path(folder, way), [shown()], strategy=strategy(), **options)
        assert watched.differences(plain) == []
        assert steps(records_in(watched.folder)) == [0, 2, 4], way
    _pass_the_module(Path(folder))
    return _fail_on_one_process(Path(folder), rank)


def _pass_the_module(folder: Path) -> None:
    """The model, passed before the strategy puts it into a wrapper, is called through that."""
    strategy, module = WAYS["fsdp1_nested"]
    lit = module()
    done = train(
        folder / "passed",
        [small(model=lit.model, **QUICK)],
        module=lambda: lit,
        strategy=strategy(),
        devices=2,
    )
    assert steps(records_in(done.folder)) == [0, 2, 4]


def _fail_on_one_process(folder: Path, rank: int) -> list[str]:
    """A process that cannot find the model, or not measure, does not leave the other waiting."""

    def lost(lit: Any) -> nn.Module:
        assert rank == 0, "lost here"
        model: nn.Module = lit.model
        return model

    def failing(lit: Any) -> nn.Module:
        if rank == 1:
            lit.model.transformer.ln_f.register_forward_pre_hook(_fail_without_gradients)
        model: nn.Module = lit.model
        return model

    found = []
    for name, model in (("lost", lost), ("failing", failing)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            done = train(
                folder / name,
                [small(model=model, on_error="warn")],
                strategy="ddp",
                devices=2,
            )
        assert len(done.losses) == 4
        assert steps(records_in(done.folder)) == []
        found += [str(one.message) for one in told if "sr-monitor" in str(one.message)]
    return found


def _fail_without_gradients(*_: Any) -> None:
    if not torch.is_grad_enabled():
        raise RuntimeError("broken on one process")


class _InEveryWay:
    """`_train_in_every_way` in a folder, as something that travels to another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, rank: int) -> list[str]:
        return _train_in_every_way(rank, self.folder)


def test_two_processes_share_a_measurement_and_do_not_notice(tmp_path: Path) -> None:
    told = in_processes(_InEveryWay(tmp_path))

    for way in WAYS:
        first, *_ = records = records_in(tmp_path / way)
        assert_same(first.paths, paths_of(tiny(), prompts_in(tmp_path / way)), 1e-4)
        assert {record.metadata["processes"] for record in records} == {2}
        assert [record.tokens for record in records] == [0, 4 * 96, 8 * 96]
        assert len(event_files(tmp_path / way)) == 1  # written once, by the first process
    passed = records_in(tmp_path / "passed")[0].paths
    assert_same(passed, paths_of(tiny(), prompts_in(tmp_path / "passed")), 1e-4)
    assert told[1] == []  # one of two warns
    lost, failed, off = told[0]
    assert "rank 1 of 2: AssertionError: lost here" in lost
    assert "rank 1 of 2: RuntimeError: broken on one process" in failed
    assert "3 times in a row" in off
