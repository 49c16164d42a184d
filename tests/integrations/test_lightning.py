"""The callback inside real Lightning: what only this framework does; see also test_contract."""

import copy
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import Dataset

from sr_monitor import PromptSet, at
from sr_monitor.probes.keys import STEP
from sr_monitor.probes.paths import PathsProbe
from tests.lightning_runs import BATCH, LENGTH, LitLM, loader, rows, shown, small, tiny, train
from tests.memory_writer import MemoryWriter
from tests.training import Run, Stream, assert_curve_of, event_files, logged, prompts_in, records
from tests.zoo import LectureGPT, NanoGPT, build

pytestmark = [
    # Lightning gives advice (a validation loop without data, few workers, a folder that is there).
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Its new name is not in all versions of transformers; PEFT asks for the old one too.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated"),
    # Lightning uses what torch has since renamed.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

QUICK: dict[str, Any] = {"num_slices": 0}
EACH = BATCH * LENGTH
MEDIAN = PathsProbe.MAX_SLOPE_MEDIAN.name


def steps(run: Run, name: str = "stable_regions") -> list[int]:
    return list(records(run.folder, name))


def tokens(run: Run) -> list[int | None]:
    return [record.tokens for record in records(run.folder).values()]


def trained_alike(folder: Path, *callbacks: Any, **options: Any) -> Run:
    """A training that is watched, and was bit for bit the same as one that was not."""
    plain = train(folder / "plain", **options)
    watched = train(folder / "watched", callbacks, **options)
    assert watched.differences(plain) == []
    return watched


# What is measured, and when ---------------------------------------------------------------------


def test_a_step_is_an_update_and_is_measured_once_right_after_it(tmp_path: Path) -> None:
    class Watched(LitLM):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            if self.trainer.global_step == 2:  # in the third update
                self.third = copy.deepcopy(self.model)

    callback = small(every=1, writer=(writer := MemoryWriter()), **QUICK)
    done = train(tmp_path, [callback], module=Watched, accumulate_grad_batches=3)
    assert [step for step, _ in writer.scalars[MEDIAN]] == steps(done) == [0, 1, 2, 3, 4]
    assert tokens(done) == [update * 3 * EACH for update in range(5)]
    assert_curve_of(tiny(), done.folder)
    assert_curve_of(done.model.third, done.folder, 3)
    assert_curve_of(done.model.model, done.folder, 4)


def test_evaluations_and_saves_are_measured_if_asked(tmp_path: Path) -> None:
    """But not the sanity check."""
    asked = {"with_eval": {"with_eval": True}, "with_save": {"with_save": True}, "neither": {}}
    callbacks = [small(schedule=at([]), name=name, **each, **QUICK) for name, each in asked.items()]
    options: dict[str, Any] = {"save_steps": 3, "limit_val_batches": 1, "val_check_interval": 2}
    done = train(tmp_path, callbacks, max_steps=5, validation=loader, **options)
    measured = {name: steps(done, name) for name in asked}
    assert measured == {"with_eval": [2, 4, 5], "with_save": [3, 5], "neither": [5]}


# The training does not notice -------------------------------------------------------------------


def partly_asleep() -> LitLM:
    """A model that is recomputed in the backward pass, with a block in eval mode."""
    lit = LitLM()
    lit.model.gradient_checkpointing_enable()
    lit.model.transformer.h[1].eval()
    return lit


def compiled_in_place() -> LitLM:
    lit = LitLM()
    lit.model.compile(backend="eager")
    return lit


def lora() -> LitLM:
    peft = pytest.importorskip("peft")
    options = {"target_modules": ["c_attn"], "r": 2, "lora_dropout": 0.1, "fan_in_fan_out": True}
    return LitLM(peft.get_peft_model(tiny(), peft.LoraConfig(**options)))


def compiled() -> LitLM:
    model: Any = torch.compile(tiny(), backend="eager")
    return LitLM(model)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        pytest.param(
            LitLM,
            {"accumulate_grad_batches": 2, "validation": loader, "val_check_interval": 2},
            id="accumulation and validation",
        ),
        pytest.param(LitLM, {"precision": "bf16-mixed"}, id="bf16-mixed"),
        pytest.param(partly_asleep, {}, id="gradient checkpointing and a block in eval mode"),
        # Loading dynamo takes long; tests/model/test_undisturbed.py has compiled models, too.
        pytest.param(compiled, {}, id="torch.compile", marks=pytest.mark.slow),
        pytest.param(compiled_in_place, {}, id="compile in place", marks=pytest.mark.slow),
        pytest.param(lora, {}, id="LoRA"),
    ],
)
def test_the_training_is_bit_identical(
    module: Callable[[], LitLM], options: dict[str, Any], tmp_path: Path
) -> None:
    options = {"module": module, "log_every_n_steps": 1, **options}
    plain = train(tmp_path / "plain", logger=(log := CSVLogger(tmp_path / "1")), **options)
    logger = CSVLogger(tmp_path / "2")
    watched = train(tmp_path / "watched", [small(**QUICK)], logger=logger, **options)
    assert watched.differences(plain) == []
    assert steps(watched) == [0, 2, 4]
    logs = [Path(each.log_dir, "metrics.csv").read_text() for each in (log, logger)]
    assert logs[0] == logs[1]
    assert "loss" in logs[0]


# Precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_is_measured_in_float32_or_as_the_run_computes(precision: Any, tmp_path: Path) -> None:
    both = [small(**QUICK), small(precision="run", name="run", **QUICK)]
    train(tmp_path, both, precision=precision, max_steps=1)
    full, run = (records(tmp_path, name)[0].paths for name in ("stable_regions", "run"))
    stored = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert_curve_of(tiny().to(stored).float(), tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        gap = 2 * run.noise_distance
        assert_curve_of(tiny().to(stored), tmp_path, name="run", gap=gap, precision="run")
    assert (full.arithmetic, full.weights) == ("float32", str(stored).removeprefix("torch."))
    assert run.arithmetic == "bfloat16"
    assert full.noise_floor < 1e-5 < 1e-3 < run.noise_floor


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_run_of_another_type_is_measured_as_it_runs(precision: Any, tmp_path: Path) -> None:
    class Picky(NanoGPT):
        """Makes a tensor of the default type, which must be the weights'."""

        def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
            assert torch.zeros(1).dtype == self.lm_head.weight.dtype
            return super().forward(idx, targets)

    def module() -> LitLM:
        return LitNano(Picky())

    options: dict[str, Any] = {"module": module, "precision": precision, "max_steps": 2}
    done = trained_alike(tmp_path, small(precision="run", **QUICK), **options)
    assert steps(done) == [0, 2]
    first = records(done.folder)[0]
    assert first.metadata["dtype"] == {"bf16-true": "bfloat16", "64-true": "float64"}[precision]
    assert first.paths.distance.dtype == torch.float32
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
        nano: Any = build("nano_gpt").model.train()
        super().__init__(nn.ModuleDict(nano.transformer))
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


class TwoLists(NanoGPT):
    """Only `layer_path` says which list is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleList([nn.Identity()])


TEACHER = Teacher()


@pytest.mark.parametrize(
    ("module", "options", "expected"),
    [
        (Nested, {}, "GPT2LMHeadModel"),
        (Teacher, {"model": "teacher"}, "LlamaForCausalLM"),
        (Teacher, {"model": lambda lit: lit.model}, "GPT2LMHeadModel"),
        (lambda: TEACHER, {"model": TEACHER.teacher}, "LlamaForCausalLM"),
        (lambda: LitNano(build("nano_gpt").model.train()), {}, "NanoGPT"),
        (lambda: LitNano(LectureGPT().train()), {}, "LectureGPT"),
        (LitItself, {}, "LitItself"),
        (lambda: LitNano(TwoLists()), {"layer_path": "transformer.h"}, "TwoLists"),
    ],
    ids=["nested", "name", "function", "object", "nanoGPT", "row", "itself", "layer_path"],
)
def test_the_language_model_is_found(
    module: Callable[[], LitLM], options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    train(tmp_path, [small(**options, **QUICK)], module=module, max_steps=1)
    assert [record.metadata["model"] for record in records(tmp_path).values()] == [expected] * 2


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (Teacher, {}, "Teacher holds 2 language models, .*model=, one of: 'model', 'teacher'"),
        (Teacher, {"model": "nett"}, "'nett'.* no such module.*'model', 'teacher', 'probe'"),
        (Teacher, {"model": tiny()}, "model=GPT2LMHeadModel.*Teacher does not hold.*'probe'"),
        (
            lambda: LitNano(TwoLists()),
            {"layer_path": "blocks"},
            "holds no language model.*'model': layer_path='blocks' names nothing in TwoLists",
        ),
        (lambda: LitNano(TwoLists()), {}, "'model': TwoLists has 2 lists of blocks.*layer_path="),
    ],
    ids=["two", "name", "object", "layer_path", "lists"],
)
def test_a_model_that_is_not_found_is_told_once_and_training_goes_on(
    module: Callable[[], LitLM], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.warns(RuntimeWarning, match=said) as told:
        done = train(tmp_path, [small(on_error="warn", **options)], module=module, max_steps=1)
    assert len(done.losses) == 1
    assert sum("sr-monitor" in str(one.message) for one in told) == 1


# Prompts from the training data -----------------------------------------------------------------


class Own(Dataset[Any]):
    """A data set of the user's own, whose rows may cost anything to read."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        return rows()[index]["input_ids"]


class Tensors(LitLM):
    def loss(self, batch: Any) -> Tensor:
        ids = batch[0] if isinstance(batch, list | tuple) else batch
        return super().loss({"input_ids": ids, "labels": ids})


def test_prompts_are_windows_of_a_batch_where_reading_may_have_consequences(tmp_path: Path) -> None:
    ids = torch.stack([row["input_ids"] for row in rows()])
    options: dict[str, Any] = {"module": Tensors, "data": lambda: loader(Own()), "max_steps": 2}
    watched = trained_alike(tmp_path, small(num_tokens=6, **QUICK), **options)
    prompts = prompts_in(watched.folder)
    windows = {tuple(row[start : start + 6]) for row in ids.tolist() for start in range(19)}
    assert prompts.token_ids.shape == (7, 6)
    assert {tuple(row) for row in prompts.token_ids.tolist()} <= windows
    assert prompts.source.startswith("a batch of")
    assert tokens(watched) == [0, 2 * EACH]


class Several(Tensors):
    """Learns from what several loaders give."""

    def loss(self, batch: Any) -> Tensor:
        parts = batch.values() if isinstance(batch, dict) else batch
        losses = [super(Several, self).loss(part) for part in parts]
        return torch.stack(losses).sum()


@pytest.mark.parametrize(
    ("kind", "streamed"),
    [(dict, False), (list, True)],
    ids=["dict with lengths", "list of streams"],
)
def test_of_several_loaders_the_first_gives_the_prompts(
    kind: type, streamed: bool, tmp_path: Path
) -> None:
    def data() -> Any:
        ids = [row["input_ids"] for row in rows()]
        made = [list(zip(each, each, strict=True)) for each in ([row % 30 for row in ids], ids)]
        both = [
            loader(Stream(rows) if streamed else rows, shuffle=False, batch_size=size)
            for rows, size in zip(made, (BATCH, 2), strict=True)
        ]
        return both if kind is list else dict(zip(("lm", "more"), both, strict=True))

    watched = trained_alike(tmp_path, small(**QUICK), module=Several, data=data, max_steps=2)
    assert_curve_of(tiny(), watched.folder)
    prompts = prompts_in(watched.folder)
    assert prompts.source.startswith("a batch of" if streamed else "the training data")
    assert prompts.token_ids.max() < 30
    assert tokens(watched) == [0, 2 * (BATCH + 2) * LENGTH]


def test_streams_in_a_combined_loader_are_read_ahead_and_undisturbed(tmp_path: Path) -> None:
    def data() -> Any:
        ids: Any = [row["input_ids"].tolist() for row in rows()]
        table: Any = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})
        stream = table.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=9)
        both = [loader(stream.with_format("torch"), shuffle=False) for _ in range(2)]
        return CombinedLoader(both, "max_size_cycle")

    class Both(LitLM):
        def loss(self, batch: Any) -> Tensor:
            return torch.stack([super(Both, self).loss(part) for part in batch]).sum()

    watched = trained_alike(tmp_path, small(), module=Both, data=data, max_steps=2)
    assert list(records(watched.folder)) == [0, 2]
    assert prompts_in(watched.folder).source.startswith("the first 12 rows")


def test_a_training_that_ends_before_there_are_enough_prompts_measures_its_end(
    tmp_path: Path,
) -> None:
    def data() -> Any:
        return loader(Stream(rows()), shuffle=False, batch_size=1)

    plain = train(tmp_path / "plain", data=data)
    with pytest.warns(RuntimeWarning, match="prompts were found, 100 are wanted"):
        watched = train(tmp_path / "watched", [small(num_pairs=99)], data=data)
    assert watched.differences(plain) == []
    assert list(records(watched.folder)) == [4]


def test_a_loader_without_token_ids_is_passed_over(tmp_path: Path) -> None:
    class OneOfTwo(LitLM):
        def loss(self, batch: Any) -> Tensor:
            return super().loss(batch["lm"])

    def data() -> Any:
        return {"vectors": loader([torch.rand(3) for _ in range(8)]), "lm": loader()}

    done = train(tmp_path, [small(**QUICK)], module=OneOfTwo, data=data, max_steps=2)
    assert tokens(done) == [0, 2 * EACH]


def test_a_batch_without_token_ids_is_said_and_training_goes_on(tmp_path: Path) -> None:
    class Vectors(LitLM):
        def loss(self, batch: Any) -> Tensor:
            ids = batch["vectors"].long()
            return super().loss({"input_ids": ids, "labels": ids})

    vectors = [{"vectors": row["input_ids"].float()} for row in rows()]
    options: dict[str, Any] = {"module": Vectors, "data": lambda: loader(vectors)}
    with pytest.warns(RuntimeWarning, match=r"no token ids were found.*pass prompts=") as told:
        done = train(tmp_path, [small(on_error="warn")], max_steps=1, **options)
    assert len(done.losses) == 1
    assert sum("token ids" in str(one.message) for one in told) == 1
    prompts = PromptSet.from_token_ids(torch.randint(61, (7, 6)))
    done = train(tmp_path, [small(prompts=prompts, **QUICK)], max_steps=1, **options)
    assert tokens(done) == [0, None]
    assert prompts_in(done.folder).fingerprint == prompts.fingerprint


def test_the_tokenizer_gives_the_prompts_their_texts_and_the_seed_chooses_them(
    tmp_path: Path,
) -> None:
    class Spelled(LitLM):
        class tokenizer:
            @staticmethod
            def decode(ids: list[int]) -> str:
                return "".join(chr(65 + number) for number in ids)

    seeds = {"one": 1, "again": 1, "other": 2}
    callbacks = [small(seed=seed, name=name, **QUICK) for name, seed in seeds.items()]
    train(tmp_path, callbacks, module=Spelled, max_steps=1)
    one, again, other = (prompts_in(tmp_path, name) for name in seeds)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.texts is not None
    assert one.texts[0] == Spelled.tokenizer.decode(one.token_ids[0].tolist())


# Loggers ----------------------------------------------------------------------------------------


def test_the_run_of_the_tensorboard_logger_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Named(TensorBoardLogger):
        """Of a class of the user's own."""

    logger = Named(tmp_path)
    done = train(tmp_path, [shown()], logger=[CSVLogger(tmp_path / "csv"), logger])
    assert len(event_files(tmp_path)) == 1
    assert logged(Path(logger.log_dir)) == steps(done) == [0, 2, 4]
    assert len(logged(Path(logger.log_dir), "loss")) == 4
    assert done.folder.is_relative_to(tmp_path / "csv")  # of the first logger, as Lightning has it
    assert "sr-monitor" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_run_of_the_wandb_logger_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    train(tmp_path, [shown()], logger=logger, max_steps=1)
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert summary[STEP] == 1
    assert MEDIAN in summary
    assert event_files(tmp_path) == []


# Resuming ---------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int = 3) -> Path:
    return folder / "saved" / f"step={step}.ckpt"


def interrupted(folder: Path, *callbacks: Any) -> Run:
    """A training that was saved at step 3 and went on until step 4."""
    return train(folder, callbacks, save_steps=3, logger=TensorBoardLogger(folder))


def resumed(folder: Path, *callbacks: Any, **options: Any) -> Run:
    """Goes on from step 3 to step 6, in another version folder."""
    options |= {"save_steps": 3, "max_steps": 6, "resume": checkpoint(folder)}
    return train(folder, callbacks, logger=TensorBoardLogger(folder), **options)


def test_a_resumed_run_is_one_curve_whatever_the_data_is_now(tmp_path: Path) -> None:
    first = interrupted(tmp_path, shown(every=1, seed=5))
    first.trainer.save_checkpoint(tmp_path / "final.ckpt")
    for path, num_steps in ((checkpoint(tmp_path), 3), (tmp_path / "final.ckpt", 4)):
        states = torch.load(path, weights_only=True)["sr_monitor"]  # plain, also after the end
        assert list(states) == ["stable_regions"]
        state = states["stable_regions"]
        assert (state["schema"], state["tokens"]) == (1, num_steps * EACH)
        assert (
            PromptSet.from_json(state["prompts"]).fingerprint
            == prompts_in(first.folder).fingerprint
        )
    other = [{"input_ids": row["labels"].flip(0), "labels": row["labels"]} for row in rows()]
    second = resumed(tmp_path, shown(every=1, seed=6), data=lambda: loader(other))
    assert first.folder != second.folder
    assert steps(second) == logged(second.folder) == [*range(7)]
    assert prompts_in(first.folder).fingerprint == prompts_in(second.folder).fingerprint
    assert tokens(second) == [step * EACH for step in range(7)]


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.")
def test_states_of_other_versions(tmp_path: Path) -> None:
    """Version 0.1 had them under keys that held a hash of all options."""
    interrupted(tmp_path, small(every=1, **QUICK), small(every=1, layer=2, **QUICK))
    whole = torch.load(checkpoint(tmp_path), weights_only=True)
    states = whole.pop("sr_monitor")
    keys = ("StableRegionCallback{'every': 1}", "StableRegionCallback{'layer': 2}")
    old = dict(zip(keys, states.values(), strict=True))
    torch.save(whole | {"callbacks": whole["callbacks"] | old}, checkpoint(tmp_path))
    callbacks = [small(every=1, seed=7, **QUICK), small(every=1, seed=7, layer=2, **QUICK)]
    done = resumed(tmp_path, *callbacks)
    assert steps(done) == steps(done, "stable_regions-2") == [*range(7)]
    assert tokens(done) == [step * EACH for step in range(7)]
    newer = {"stable_regions": {"schema": 99, "tokens": {"of": "a newer kind"}}}
    torch.save(whole | {"sr_monitor": newer}, checkpoint(tmp_path))
    checkpoint(tmp_path, 6).unlink()
    with pytest.warns(RuntimeWarning, match=r"schema 99.*pip install --upgrade sr-monitor"):
        resumed(tmp_path, small(on_error="warn", **QUICK))
    assert torch.load(checkpoint(tmp_path, 6), weights_only=True)["sr_monitor"] == newer
    torch.save(whole | {"sr_monitor": {"stable_regions": {"schema": 1}}}, checkpoint(tmp_path))
    done = resumed(tmp_path, small(**QUICK))
    assert steps(done)[-2:] == [4, 6]
    assert tokens(done)[-1] is None  # not all were seen


# A smoke run ------------------------------------------------------------------------------------


def test_a_fast_dev_run_measures_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"log_dir": tmp_path / "own"}
    train(tmp_path, [small(**options, **QUICK)], max_steps=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    both = [shown(**options), small(writer=(writer := MemoryWriter()), **options, **QUICK)]
    train(tmp_path, both, fast_dev_run=2)
    assert both[0].watcher.states["stable_regions"]["step"] == 2
    assert [step for step, _ in writer.scalars[MEDIAN]] == [0, 2]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "sr-monitor" not in capsys.readouterr().err


@pytest.mark.skipif(
    "save_on_exception" not in signature(ModelCheckpoint).parameters,
    reason="this Lightning saves nothing then",
)
def test_an_exception_in_the_training_closes_everything(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", save_on_exception=True, filename="at-exception")
    callback = small(writer=(writer := MemoryWriter()), **QUICK)
    with pytest.raises(ZeroDivisionError, match="in the training itself"):
        train(tmp_path, [callback, saver], fail_at=4, enable_checkpointing=True)
    assert (writer.closed, list(writer.images)) == (True, [PathsProbe.CURVES.name])
    (path,) = tmp_path.glob("saved/*.ckpt")
    assert torch.load(path, weights_only=True)["sr_monitor"]["stable_regions"]["step"] == 2
