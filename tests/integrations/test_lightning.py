"""The callback inside real Lightning: what only this framework does; see also test_contract."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sr_monitor_lightning import StableRegionCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from sr_monitor import PromptSet, at, measure_paths
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.probes.keys import STEP
from sr_monitor.probes.paths import Paths, PathsProbe
from sr_monitor.probes.slices import SlicesProbe
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
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

QUICK: dict[str, Any] = {"num_slices": 0}
EACH = BATCH * LENGTH
MEDIAN = PathsProbe.MAX_SLOPE_MEDIAN.name


def steps(run: Run | Path, name: str = "stable_regions") -> list[int]:
    folder = run if isinstance(run, Path) else run.folder
    return [record.step for record in records_in(folder, name)]


def tokens(run: Run) -> list[int | None]:
    return [record.tokens for record in records_in(run.folder)]


def first_paths(run: Run) -> Paths:
    return records_in(run.folder)[0].paths


def prompts_in(run: Run | Path, name: str = "stable_regions") -> PromptSet:
    folder = run if isinstance(run, Path) else run.folder
    return PromptSet.load(folder / name / "prompts.json")


def assert_curve_of(model: nn.Module, run: Run | Path, index: int = 0, gap: float = 1e-4) -> None:
    """What was measured is what the core finds; only the shape of batches may differ."""
    folder = run if isinstance(run, Path) else run.folder
    found = records_in(folder)[index].paths.distance
    pairs = prompts_in(folder).pairs(SMALL["num_pairs"])
    expected = measure_paths(model, *pairs, num_steps=SMALL["num_steps"]).distance
    torch.testing.assert_close(found, expected, rtol=gap, atol=gap)
    assert found.dtype == torch.float32


def trained_alike(folder: Path, *callbacks: Any, **options: Any) -> Run:
    """A training that is watched, and was bit for bit the same as one that was not."""
    plain = train(folder / "plain", **options)
    watched = train(folder / "watched", callbacks, **options)
    assert watched.differences(plain) == []
    return watched


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return found.Reload()


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))


# What is measured, and when ---------------------------------------------------------------------


def test_the_one_line_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(tmp_path, [StableRegionCallback()], max_steps=1)
    assert steps(done) == [0, 1]
    record = records_in(tmp_path)[0]
    config = [record.metadata["config"][name] for name in ("num_pairs", "num_steps", "num_slices")]
    assert config == [256, 51, 4]
    assert record.slices is not None
    said = capsys.readouterr().err
    folder = tmp_path / "stable_regions"
    assert f"results in {folder}; to watch: tensorboard --logdir {tmp_path}" in said
    (file,) = event_files(tmp_path)
    assert file.parent == folder


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
    assert_curve_of(tiny(), done)
    assert_curve_of(done.model.third, done, 3)
    assert_curve_of(done.model.model, done, 4)


@pytest.mark.parametrize("asked", [False, True])
def test_evaluations_and_saves_are_measured_if_asked(asked: bool, tmp_path: Path) -> None:
    """But not the sanity check."""
    options: dict[str, Any] = {"max_steps": 5, "save_steps": 3, "limit_val_batches": 1}
    callback = small(schedule=at([]), with_eval=asked, with_save=asked, **QUICK)
    done = train(tmp_path, [callback], validation=loader, val_check_interval=2, **options)
    assert steps(done) == ([2, 3, 4, 5] if asked else [5])


# The training does not notice -------------------------------------------------------------------


def checkpointed() -> LitLM:
    lit = LitLM()
    lit.model.gradient_checkpointing_enable()
    return lit


def partly_asleep() -> LitLM:
    lit = LitLM()
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
        pytest.param(LitLM, {"logger": True}, id="pictures in the run of the logger"),
        pytest.param(
            LitLM,
            {"accumulate_grad_batches": 2, "validation": loader, "val_check_interval": 2},
            id="accumulation and validation",
        ),
        pytest.param(LitLM, {"precision": "bf16-mixed"}, id="bf16-mixed"),
        pytest.param(LitLM, {"precision": "bf16-true"}, id="bf16-true"),
        pytest.param(LitLM, {"precision": "64-true"}, id="64-true"),
        pytest.param(checkpointed, {}, id="gradient checkpointing"),
        pytest.param(partly_asleep, {}, id="a block in eval mode"),
        pytest.param(lambda: LitLM(tiny().eval()), {}, id="the model in eval mode"),
        pytest.param(compiled, {}, id="torch.compile", marks=pytest.mark.slow),
        pytest.param(compiled_in_place, {}, id="compile in place"),
        pytest.param(lora, {}, id="LoRA"),
    ],
)
def test_the_training_is_bit_identical(
    module: Callable[[], LitLM], options: dict[str, Any], tmp_path: Path
) -> None:
    callback = shown(num_slices=1) if "logger" in options else small()
    watched = trained_alike(tmp_path, callback, module=module, **options)
    assert steps(watched) == [0, 2, 4]
    slopes = [record.paths.max_slope for record in records_in(watched.folder)]
    assert all(slope.isfinite().any() for slope in slopes)


def test_the_log_of_a_monitored_run_is_that_of_an_unmonitored_one(tmp_path: Path) -> None:
    logs = []
    for name, callbacks in (("plain", []), ("watched", [small(writer=MemoryWriter(), **QUICK)])):
        logger = CSVLogger(tmp_path / name)
        train(tmp_path / name, callbacks, logger=logger, validation=loader, val_check_interval=2)
        logs.append(Path(logger.log_dir, "metrics.csv").read_text())
    assert logs[0] == logs[1]
    assert "loss" in logs[0]


# Precision --------------------------------------------------------------------------------------


def test_it_is_measured_in_the_precision_of_the_run_or_in_full(tmp_path: Path) -> None:
    both = [small(precision="run", **QUICK), small(precision="float32", name="full", **QUICK)]
    mixed = train(tmp_path, both, precision="bf16-mixed", max_steps=2)
    paths, full = first_paths(mixed), records_in(tmp_path, "full")[0].paths
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_curve_of(tiny(), mixed, gap=2 * paths.noise_distance)
    (tmp_path / "alone").mkdir()
    (tmp_path / "full").rename(tmp_path / "alone" / "stable_regions")
    assert_curve_of(tiny(), tmp_path / "alone")
    assert paths.distance.sub(full.distance).abs().max() > 1e-4
    assert paths.noise_floor > 1e-3 > 1e-5 > full.noise_floor


def test_a_half_precision_run_is_measured_as_it_runs(tmp_path: Path) -> None:
    class Picky(NanoGPT):
        """Makes a tensor of the default type, which must be the weights'."""

        def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
            assert torch.zeros(1).dtype == self.lm_head.weight.dtype
            return super().forward(idx, targets)

    def module() -> LitLM:
        return LitNano(Picky())

    half = train(tmp_path, [small(**QUICK)], module=module, precision="bf16-true", max_steps=2)
    assert steps(half) == [0, 2]
    assert records_in(tmp_path)[0].metadata["dtype"] == "bfloat16"
    assert first_paths(half).distance.dtype == torch.float32
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
        (lora, {}, "GPT2LMHeadModel"),
        (lambda: LitNano(TwoLists()), {"layer_path": "transformer.h"}, "TwoLists"),
    ],
    ids=["nested", "name", "function", "object", "nanoGPT", "row", "itself", "LoRA", "layer_path"],
)
def test_the_language_model_is_found(
    module: Callable[[], LitLM], options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    done = train(tmp_path, [small(**options, **QUICK)], module=module, max_steps=1)
    assert steps(done) == [0, 1]
    assert records_in(tmp_path)[0].metadata["model"] == expected


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (Teacher, {}, "Teacher holds 2 language models, .*model=, one of: 'model', 'teacher'"),
        (Teacher, {"model": "nett"}, "'nett'.* no such module.*'model', 'teacher', 'probe'"),
        (
            Teacher,
            {"model": tiny()},
            "GPT2LMHeadModel that was passed is not in Teacher, .*'probe'",
        ),
        (
            lambda: LitNano(TwoLists()),
            {"layer_path": "blocks"},
            r"layer_path='blocks'\): LitNano holds 0 language models.*'model'",
        ),
    ],
    ids=["two", "name", "object", "layer_path"],
)
def test_a_model_that_is_not_found_is_told_once_and_training_goes_on(
    module: Callable[[], LitLM], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.warns(RuntimeWarning, match=said) as told:
        done = train(tmp_path, [small(on_error="warn", **options)], module=module)
    assert len(done.losses) == 4
    assert sum("sr-monitor" in str(one.message) for one in told) == 1


# Prompts from the training data -----------------------------------------------------------------


class Drawn(IterableDataset[Any]):
    """Rows without a length, drawn from the global random state."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            ids = torch.randint(61, (40,))
            yield {"input_ids": ids, "labels": ids}


def test_without_a_length_the_first_batch_gives_the_prompts(tmp_path: Path) -> None:
    watched = trained_alike(tmp_path, small(**QUICK), data=lambda: loader(Drawn(), shuffle=False))
    assert steps(watched) == [0, 2, 4]
    assert_curve_of(tiny(), watched)
    assert prompts_in(watched).source.startswith("a batch of the training data")
    assert tokens(watched) == [0, 2 * BATCH * 40, 4 * BATCH * 40]


class Own(Dataset[Any]):
    """A data set of the user's own, whose rows may cost anything to read."""

    def __init__(self, given: Sequence[Any]) -> None:
        self.given = given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        return self.given[index]


class Tensors(LitLM):
    def loss(self, batch: Any) -> Tensor:
        ids = batch[0] if isinstance(batch, list | tuple) else batch
        return super().loss({"input_ids": ids, "labels": ids})


@pytest.mark.parametrize("kind", ["tensors", "tuples", "a data set of one's own"])
def test_prompts_are_windows_of_the_data_set(kind: str, tmp_path: Path) -> None:
    ids = torch.stack([row["input_ids"] for row in rows()])
    made: Any = ids if kind == "tensors" else list(zip(ids, ids, strict=True))
    data = Own(made) if kind.startswith("a data") else made
    callback = small(num_tokens=6, **QUICK)
    options: dict[str, Any] = {"module": Tensors, "data": lambda: loader(data), "max_steps": 2}
    watched = trained_alike(tmp_path, callback, **options)
    prompts = prompts_in(watched)
    windows = {tuple(row[start : start + 6]) for row in ids.tolist() for start in range(19)}
    assert prompts.token_ids.shape == (7, 6)
    assert {tuple(row) for row in prompts.token_ids.tolist()} <= windows
    assert prompts.source.startswith("a batch of" if data is not made else "the training data")
    assert tokens(watched) == [0, 2 * EACH]


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

    watched = trained_alike(tmp_path, small(**QUICK), module=Several, data=data, max_steps=2)
    assert steps(watched) == [0, 2]
    prompts = prompts_in(watched)
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
    assert tokens(done) == [0, 2 * EACH]


def test_a_batch_without_token_ids_is_said_and_training_goes_on(tmp_path: Path) -> None:
    class Vectors(LitLM):
        def loss(self, batch: Any) -> Tensor:
            ids = batch["vectors"].long()
            return super().loss({"input_ids": ids, "labels": ids})

    vectors = [{"vectors": row["input_ids"].float()} for row in rows()]
    options: dict[str, Any] = {"module": Vectors, "data": lambda: loader(vectors)}
    with pytest.warns(RuntimeWarning, match=r"no token ids were found.*pass prompts=") as told:
        done = train(tmp_path, [small(on_error="warn")], **options)
    assert len(done.losses) == 4
    assert sum("token ids" in str(one.message) for one in told) == 1
    prompts = PromptSet.from_token_ids(torch.randint(61, (7, 6)))
    done = train(tmp_path, [small(prompts=prompts, **QUICK)], **options)
    assert tokens(done) == [0, None, None]
    assert prompts_in(done).fingerprint == prompts.fingerprint


def test_the_tokenizer_gives_the_prompts_their_texts_and_the_seed_chooses_them(
    tmp_path: Path,
) -> None:
    class Spelled(LitLM):
        class tokenizer:
            @staticmethod
            def decode(ids: list[int]) -> str:
                return "".join(chr(65 + number) for number in ids)

    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        callback = small(seed=seed, schedule=at([0]), **QUICK)
        train(tmp_path / name, [callback], module=Spelled, max_steps=1)
    one, again, other = (prompts_in(tmp_path / name) for name in ("one", "again", "other"))
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
    done = train(tmp_path, [shown(num_slices=1)], logger=[CSVLogger(tmp_path / "csv"), logger])
    assert len(event_files(tmp_path)) == 1
    seen = events(Path(logger.log_dir))
    assert [event.step for event in seen.Scalars(MEDIAN)] == steps(done) == [0, 2, 4]
    assert len(seen.Scalars("loss")) == 4
    assert {PathsProbe.CURVES.name, SlicesProbe.FILM.numbered(0).name} <= set(seen.Tags()["images"])
    assert done.folder.is_relative_to(tmp_path / "csv")  # of the first logger, as Lightning has it
    assert "sr-monitor" not in capsys.readouterr().err


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


def checkpoint(folder: Path, step: int = 3) -> Path:
    return folder / "saved" / f"step={step}.ckpt"


def interrupted(folder: Path, *callbacks: Any, logged: bool = False) -> Run:
    """A training that was saved at step 3 and went on until step 4."""
    return train(folder, callbacks, save_steps=3, logger=logged and TensorBoardLogger(folder))


def resumed(folder: Path, *callbacks: Any, logged: bool = False, **options: Any) -> Run:
    """Goes on from step 3 to step 7."""
    options |= {"save_steps": 3, "max_steps": 7, "resume": checkpoint(folder)}
    return train(folder, callbacks, logger=logged and TensorBoardLogger(folder), **options)


@pytest.mark.parametrize("logged", [False, True], ids=["same folder", "new version folder"])
def test_a_resumed_run_is_one_curve_whatever_the_data_is_now(logged: bool, tmp_path: Path) -> None:
    first = interrupted(tmp_path, shown(every=1, seed=5), logged=logged)
    other = [{"input_ids": row["labels"].flip(0), "labels": row["labels"]} for row in rows()]
    callback = shown(every=1, seed=6)
    second = resumed(tmp_path, callback, logged=logged, data=lambda: loader(other))
    assert (first.folder != second.folder) == logged
    assert steps(second) == [*range(8)]
    assert prompts_in(first).fingerprint == prompts_in(second).fingerprint
    assert tokens(second) == [step * EACH for step in range(8)]
    seen = events(second.folder if logged else second.folder / "stable_regions")
    assert [event.step for event in seen.Scalars(MEDIAN)] == [*range(8)]


def test_checkpoints_are_plain_and_hold_the_state_also_after_the_training(tmp_path: Path) -> None:
    done = interrupted(tmp_path, small(**QUICK))
    done.trainer.save_checkpoint(tmp_path / "final.ckpt")
    for path, num_steps in ((checkpoint(tmp_path), 3), (tmp_path / "final.ckpt", 4)):
        states = torch.load(path, weights_only=True)["sr_monitor"]
        assert list(states) == ["stable_regions"]
        state = states["stable_regions"]
        assert (state["schema"], state["tokens"]) == (1, num_steps * EACH)
        assert PromptSet.from_json(state["prompts"]).fingerprint == prompts_in(done).fingerprint


def test_three_callbacks_at_once_and_resumed(tmp_path: Path) -> None:
    others = PromptSet.from_token_ids(torch.arange(49).reshape(7, 7))
    names = ["stable_regions", "stable_regions-2", "stable_regions-3"]

    def three() -> list[Any]:
        return [shown(every=1), shown(every=2, layer=2), shown(every=3, prompts=others)]

    interrupted(tmp_path, *three(), logged=True)
    done = resumed(tmp_path, *three(), logged=True)
    expected = [[*range(8)], [0, 2, 4, 6, 7], [0, 3, 6, 7]]
    assert [steps(done, name) for name in names] == expected
    seen = events(done.folder)
    medians = [MEDIAN.replace("stable_regions", name) for name in names]
    assert [[event.step for event in seen.Scalars(name)] for name in medians] == expected
    # The first two sample the same data.
    assert len({prompts_in(done, name).fingerprint for name in names}) == 2


@pytest.mark.parametrize("other", [{"every": 2}, {"num_slices": 1}, {"log_dir": "elsewhere"}])
def test_a_run_that_is_resumed_with_other_options_goes_on(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupted(tmp_path, small(every=1, **QUICK), logged=True)
    done = resumed(tmp_path, small(**{"every": 1, **QUICK, **other}), logged=True)
    found = records_in(Path("elsewhere") if "log_dir" in other else done.folder)
    expected = [0, 1, 2, 3, 4, 6, 7] if "every" in other else [*range(8)]
    assert [record.step for record in found] == expected
    assert [record.tokens for record in found] == [step * EACH for step in expected]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.")
def test_the_states_of_version_0_1_are_found(tmp_path: Path) -> None:
    """They lay under keys that held a hash of all options."""
    interrupted(tmp_path, small(every=1, **QUICK), small(every=1, layer=2, **QUICK), logged=True)

    def as_it_was(content: dict[str, Any]) -> None:
        states = content.pop("sr_monitor")
        content["callbacks"] |= {
            f"StableRegionCallback{{'name': 'stable_regions', 'every': {number}}}": state
            for number, state in enumerate(states.values())
        }

    rewrite(checkpoint(tmp_path), as_it_was)
    callbacks = [small(every=1, seed=7, **QUICK), small(every=1, seed=7, layer=2, **QUICK)]
    done = resumed(tmp_path, *callbacks, logged=True)
    assert steps(done) == steps(done, "stable_regions-2") == [*range(8)]
    assert tokens(done) == [step * EACH for step in range(8)]


def test_a_state_of_a_newer_version_is_refused_and_kept_and_of_an_older_one_read(
    tmp_path: Path,
) -> None:
    interrupted(tmp_path, small(**QUICK))
    newer = {"schema": 99, "tokens": {"of": "a newer kind"}}
    rewrite(
        checkpoint(tmp_path), lambda content: content.update(sr_monitor={"stable_regions": newer})
    )
    with pytest.warns(RuntimeWarning, match=r"schema 99.*pip install --upgrade sr-monitor"):
        done = resumed(tmp_path, small(on_error="warn", **QUICK))
    assert len(done.losses) == 4
    kept = torch.load(checkpoint(tmp_path, 6), weights_only=True)["sr_monitor"]
    assert kept == {"stable_regions": newer}
    older = {"schema": 1}
    rewrite(
        checkpoint(tmp_path), lambda content: content.update(sr_monitor={"stable_regions": older})
    )
    done = resumed(tmp_path, small(**QUICK))
    assert steps(done)[-3:] == [4, 6, 7]
    assert tokens(done)[-1] is None  # not all were seen


# A smoke run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_folder", [False, True], ids=["the run's folder", "log_dir"])
def test_a_fast_dev_run_measures_and_keeps_nothing(
    own_folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"log_dir": tmp_path / "own"} if own_folder else {}
    train(tmp_path, [shown(**options)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    both = [shown(**options), small(writer=(writer := MemoryWriter()), layer=2, **options)]
    train(tmp_path, both, fast_dev_run=2)
    assert both[0].watcher.states["stable_regions"]["step"] == 2
    assert [step for step, _ in writer.scalars[MEDIAN]] == [0, 2]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "sr-monitor" not in capsys.readouterr().err


def test_an_exception_in_the_training_closes_everything(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", save_on_exception=True, filename="at-exception")
    callback = small(writer=(writer := MemoryWriter()), **QUICK)
    with pytest.raises(ZeroDivisionError, match="in the training itself"):
        train(tmp_path, [callback, saver], fail_at=4, enable_checkpointing=True)
    assert (writer.closed, list(writer.images)) == (True, [PathsProbe.CURVES.name])
    (path,) = tmp_path.glob("saved/*.ckpt")
    assert torch.load(path, weights_only=True)["sr_monitor"]["stable_regions"]["step"] == 2


# Two processes ----------------------------------------------------------------------------------


def _as_launched(rank: int) -> None:
    """What `torchrun` sets, so that Lightning takes these processes for its own."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip


def _train_in_every_way(rank: int, folder: Path) -> list[str]:
    """Every way unwatched and watched; each process asserts."""
    _as_launched(rank)
    warnings.simplefilter("ignore")  # the tests with one process look at warnings
    for way, (strategy, module) in WAYS.items():
        options: dict[str, Any] = {"module": module, "devices": 2}
        plain = train(folder / way / "plain", strategy=strategy(), **options)
        watched = train(folder / way, [shown()], strategy=strategy(), **options)
        assert watched.differences(plain) == [], way
        assert steps(watched) == [0, 2, 4], way
    # The model, passed before the strategy puts it into a wrapper, is called through that.
    strategy, module = WAYS["fsdp1_nested"]
    lit: Any = module()
    options = {"module": lambda: lit, "strategy": strategy(), "devices": 2}
    done = train(folder / "passed", [small(model=lit.model, **QUICK)], **options)
    assert steps(done) == [0, 2, 4]
    return _fail_on_one_process(folder, rank)


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
        callback = small(model=model, on_error="warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            done = train(folder / name, [callback], strategy="ddp", devices=2)
        assert len(done.losses) == 4
        assert steps(done) == []
        found += [str(one.message) for one in told if "sr-monitor" in str(one.message)]
    return found


def _fail_without_gradients(*_: Any) -> None:
    if not torch.is_grad_enabled():
        raise RuntimeError("broken on one process")


class _InEveryWay:
    """`_train_in_every_way` in a folder, as something that travels to another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rank: int) -> list[str]:
        return _train_in_every_way(rank, self.folder)


def test_two_processes_share_a_measurement_and_do_not_notice(tmp_path: Path) -> None:
    told = in_processes(_InEveryWay(tmp_path), timeout=300)
    for way in WAYS:
        assert_curve_of(tiny(), tmp_path / way)
        found = records_in(tmp_path / way)
        assert {record.metadata["processes"] for record in found} == {2}
        assert [record.tokens for record in found] == [0, 4 * EACH, 8 * EACH]
        assert len(event_files(tmp_path / way)) == 1  # written once, by the first process
    assert_curve_of(tiny(), tmp_path / "passed")
    assert told[1] == []  # one of two warns
    lost, failed, off = told[0]
    assert "rank 1 of 2: AssertionError: lost here" in lost
    assert "rank 1 of 2: RuntimeError: broken on one process" in failed
    assert "3 times in a row" in off
