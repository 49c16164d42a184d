# pyright: reportMissingImports=false
"""The callback in OLMo-core's real Trainer, on tiny models; the contract has what all keep to."""

import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_monitor import InputError, PromptSet, measure_paths
from sr_monitor.probes.keys import SECONDS, TOKENS
from sr_monitor.probes.paths import PathsProbe
from tests import training
from tests.display.test_writers import WandbSink
from tests.memory_writer import MemoryWriter
from tests.pages import blocks, execute
from tests.processes import in_processes
from tests.training import NAME, prompts_in, records
from tests.zoo import VOCAB

pytest.importorskip("olmo_core", reason="pip install 'sr-monitor[olmo-core]'")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies complain of one another
    from olmo_core.config import DType
    from olmo_core.data.composable import (
        ComposableDataLoader,
        ConcatAndChunkInstanceSource,
        InMemoryTokenSource,
    )
    from olmo_core.distributed import parallel
    from olmo_core.distributed.parallel import PipelineScheduleType
    from olmo_core.nn.attention import SlidingWindowAttentionConfig
    from olmo_core.nn.hf.config import get_hf_config
    from olmo_core.nn.hf.convert import convert_state_to_hf
    from olmo_core.nn.rope import RoPEType
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.train import Duration, TrainerConfig
    from olmo_core.train.callbacks import Callback, EvaluatorCallback, WandBCallback
    from olmo_core.train.train_module import (
        TransformerContextParallelConfig,
        TransformerDataParallelConfig,
        TransformerPipelineParallelConfig,
        TransformerTensorParallelConfig,
    )

    from tests import olmo_runs
    from tests.olmo_runs import prepare, train, watch

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or un")

MEDIAN = PathsProbe.MAX_SLOPE_MEDIAN.name


# What is measured ---------------------------------------------------------------------------------


def test_fifty_steps_are_bit_for_bit_the_same_and_equal_those_of_hugging_face(
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    plain = train(tmp_path / "plain", max_steps=50)
    watched = train(tmp_path / "run", watch(every=10, num_slices=1), max_steps=50)
    assert watched.differences(plain) == []
    assert len(watched.losses) == 50
    found = records(tmp_path / "run")
    assert list(found) == [0, 10, 20, 30, 40, 50]
    # The same weights, converted by OLMo-core itself.
    config = get_hf_config(watched.model)
    config.max_position_embeddings = 64
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    weights = watched.model.state_dict()
    theirs.load_state_dict(convert_state_to_hf(config, weights))
    pairs = prompts_in(tmp_path / "run").pairs(4)
    expected = measure_paths(theirs, *pairs, num_steps=5)
    assert type(theirs).__name__ == "Olmo2ForCausalLM"
    torch.testing.assert_close(found[50].paths.max_slope, expected.max_slope, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[50].paths.distance, expected.distance, rtol=1e-5, atol=1e-5)
    assert found[50].paths.max_slope.std() > 0.01


def windows(**options: Any) -> Any:
    """Every second block sees four tokens back: fewer than a prompt has."""
    full = {
        "force_full_attention_on_first_layer": False,
        "force_full_attention_on_last_layer": False,
    }
    return olmo_runs.build(
        sliding_window=SlidingWindowAttentionConfig(pattern=[4, -1], **full), **options
    )


MODELS: dict[str, Any] = {
    "OLMo 2": olmo_runs.build,
    "fewer heads for keys": partial(olmo_runs.build, n_kv_heads=2),
    "windows": windows,
    "complex rotations": partial(olmo_runs.build, rope_type=RoPEType.complex),
    "nGPT": lambda: TransformerConfig.ngpt_like(
        d_model=32, vocab_size=VOCAB, n_layers=3, n_heads=4
    ).build(),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_fast_way_equals_the_plain_one(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    prompts = torch.randint(VOCAB, (2, 3, 10))
    for layer, output in ((0, "final_norm"), (1, "logits"), (3, "resid_final")):
        options: dict[str, Any] = {"layer": layer, "output": output, "num_steps": 9}
        plain = measure_paths(model, *prompts, engine="plain", **options)
        for engine in ("rows", "shared"):
            fast = measure_paths(model, *prompts, engine=engine, **options)
            assert fast.engine == engine
            torch.testing.assert_close(fast.distance, plain.distance, rtol=1e-5, atol=1e-5)
    assert measure_paths(model, *prompts).engine == "shared"  # without being asked


def test_attention_that_counts_tokens_goes_the_plain_way() -> None:
    """A softmax that scales with the number of tokens is told apart without a warning."""
    model = olmo_runs.build()
    for block in model.blocks.values():
        block.attention.scalable_softmax = True
        block.attention.ssmax_scale = torch.nn.Parameter(torch.ones(4))
    prompts = torch.randint(VOCAB, (2, 3, 10))
    assert measure_paths(model, *prompts).engine == "plain"


# Where prompts come from --------------------------------------------------------------------------


class Foreign:
    """A loader of somebody's own around OLMo-core's: nothing is known of what it reads."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.own = olmo_runs.loader(folder, **options)

    def __getattr__(self, name: str) -> Any:
        if name in ("own", "dataset", "tokenizer"):
            raise AttributeError(name)
        return getattr(self.own, name)

    def __iter__(self) -> Any:
        return iter(self.own)


def composed(folder: Path, **options: Any) -> Any:
    """A loader of two sources of instances."""
    ids = [row["input_ids"] for row in training.rows(16)]
    folder.mkdir(parents=True, exist_ok=True)
    chunks = partial(
        ConcatAndChunkInstanceSource, sequence_length=olmo_runs.LENGTH, work_dir=folder
    )
    tokens = [torch.cat(part).tolist() for part in (ids[:8], ids[8:])]
    return ComposableDataLoader(
        *(chunks(InMemoryTokenSource(part, work_dir=folder)) for part in tokens),
        collator=olmo_runs.loader(folder).collator,
        tokenizer=olmo_runs.TOKENIZER,
        work_dir=folder,
        global_batch_size=olmo_runs.ROWS * olmo_runs.LENGTH,
        display_source_visualization=False,
        seed=0,
    )


LOADERS: dict[str, Any] = {
    "a file of tokens": (olmo_runs.loader, "the training data", 60),
    "composed sources": (composed, "the training data", 30),
    "somebody's own": (Foreign, "the first 2 batches of the training data", 9),
}


@pytest.mark.parametrize("name", LOADERS)
def test_prompts_are_windows_of_the_training_data_and_its_loader_is_left_alone(
    tmp_path: Path, name: str
) -> None:
    data, source, num_pairs = LOADERS[name]
    plain = train(tmp_path / "plain", data=data)
    watched = train(tmp_path / "run", watch(every=1, num_pairs=num_pairs), data=data)
    assert watched.differences(plain) == []
    assert watched.trainer.data_loader.state_dict() == plain.trainer.data_loader.state_dict()
    measured, prompts = list(records(tmp_path / "run")), prompts_in(tmp_path / "run")
    assert measured == ([0, 1, 2, 3, 4] if source == "the training data" else [1, 2, 3, 4])
    assert prompts.source.startswith(source)
    if name != "somebody's own":  # whose special tokens nobody names
        assert 0 not in prompts.token_ids
    seen = {tuple(ids) for row in training.rows(32) for ids in _windows(row["input_ids"])}
    inside = sum(tuple(ids) in seen for ids in prompts.token_ids.tolist())
    assert len(prompts.token_ids) == num_pairs + 1
    assert inside > num_pairs / 3  # others reach over the end of a row or a text


def _windows(row: torch.Tensor) -> list[list[int]]:
    windows: list[list[int]] = row.unfold(0, training.SMALL["num_tokens"], 1).tolist()
    return windows


# When, and what else it is told of ----------------------------------------------------------------


class _Metrics(Callback):  # type: ignore[misc]
    """Keeps ours among the metrics that the trainer passes on."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, float]] = {}

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.seen[step] = self.seen.get(step, {}) | {
            name: value for name, value in metrics.items() if name.startswith(NAME)
        }


def test_numbers_are_metrics_of_the_trainer_and_a_run_of_tensorboard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = _Metrics()
    train(tmp_path, watch(every=2, writer=None), metrics, watch(every=3, writer=[], layer=2))
    first, second = records(tmp_path), records(tmp_path, f"{NAME}-2")
    assert (list(first), list(second)) == ([0, 2, 4], [0, 3, 4])
    for found, name in ((first, NAME), (second, f"{NAME}-2")):
        for step, record in found.items():
            assert record.scalars.keys() >= {MEDIAN, TOKENS.name, SECONDS.name}
            for key, value in record.scalars.items():
                told = metrics.seen[step][key.replace(NAME, name, 1)]
                assert told == pytest.approx(value)
    assert first[4].tokens == 4 * olmo_runs.ROWS * olmo_runs.LENGTH
    assert training.logged(tmp_path / NAME) == [0, 2, 4]
    assert f"results in {tmp_path / NAME}" in capfd.readouterr().err


class _Canceled(Callback):  # type: ignore[misc]
    def post_step(self) -> None:
        if self.step == 3:
            self.trainer.cancel_run("preempted", no_sync=True)


def test_steps_that_are_measured(tmp_path: Path) -> None:
    evaluator = EvaluatorCallback(eval_interval=3, fixed_steps=[5])
    saved = watch(every=100, with_save=True)
    evaluated = watch(every=100, with_eval=True)
    train(tmp_path, saved, evaluated, evaluator, max_steps=7, save_steps=2)
    assert list(records(tmp_path)) == [0, 2, 4, 6, 7]
    assert list(records(tmp_path, f"{NAME}-2")) == [0, 3, 5, 6, 7]
    # One that is canceled has no time for another measurement.
    train(tmp_path / "canceled", watch(every=2), _Canceled())
    assert list(records(tmp_path / "canceled")) == [0, 2]


def test_a_run_resumed_in_another_folder_takes_its_records_along(tmp_path: Path) -> None:
    """Its state lies in the trainer's checkpoint."""
    train(tmp_path / "old", watch(every=1), max_steps=3, save_steps=2)
    again = watch(every=1, seed=7)
    train(tmp_path / "new", again, resume=tmp_path / "old" / "step2", max_steps=4)
    found = records(tmp_path / "new")
    assert list(found) == [0, 1, 2, 3, 4]
    assert len({record.metadata["prompts"] for record in found.values()}) == 1


def test_evaluating_checkpoints_leaves_records_alone(tmp_path: Path) -> None:
    train(tmp_path, watch(every=2), save_steps=2)
    before = {path: path.read_bytes() for path in (tmp_path / NAME).glob("*.*")}
    assert len(before) == 4

    options: dict[str, Any] = {"checkpoints_to_eval": [str(tmp_path / "step2")]}
    trainer = prepare(tmp_path, watch(every=2), EvaluatorCallback(), **options)
    trainer.eval_checkpoints()
    assert trainer.global_step == 2
    assert {path: path.read_bytes() for path in (tmp_path / NAME).glob("*.*")} == before


def test_autocast_is_that_of_the_training(tmp_path: Path) -> None:
    module = {"autocast_precision": DType.bfloat16}
    plain = train(tmp_path / "plain", module=module)
    run = train(tmp_path / "run", watch(), watch(precision="run"), module=module)
    assert run.differences(plain) == []
    full, coarse = records(tmp_path / "run"), records(tmp_path / "run", f"{NAME}-2")
    assert (full[0].paths.arithmetic, coarse[0].paths.arithmetic) == ("float32", "bfloat16")
    assert full[0].paths.noise_floor < 1e-4 < coarse[0].paths.noise_floor


class _WandB(WandBCallback):  # type: ignore[misc]
    def finalize(self, exit_code: int = 0) -> None:
        """End the run without an argument that wandb no longer takes."""
        self.run.finish(exit_code)


def test_a_run_of_wandb_gets_pictures_and_loses_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer logs to it later, by step; what came after a later step would be dropped."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback = watch(every=1, num_slices=1, writer=None)
    train(tmp_path, callback, _WandB(project="x"), max_steps=7, metrics_collect_interval=3)
    steps: dict[str, list[int]] = {}
    for row in WandbSink(tmp_path / "wandb").rows():
        for item in row.item:
            name = item.key or item.nested_key[0]
            if not steps.get(name, []) or steps[name][-1] != row.step.num:
                steps.setdefault(name, []).append(row.step.num)
    assert steps["train/CE loss"] == [1, 2, 3, 4, 5, 6, 7]
    assert steps[MEDIAN] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert steps[PathsProbe.CURVES.name] == [0, 1, 2, 4, 7]
    assert steps[f"{NAME}/slice/0"] == [0, 1, 2, 4, 7]
    assert len(training.event_files(tmp_path / NAME)) == 1  # and a run of our own


# Options, as OLMo-core keeps them -----------------------------------------------------------------


def test_options_are_fields_that_a_config_overrides_copies_and_keeps(tmp_path: Path) -> None:
    writer = MemoryWriter()
    ours = watch(every=3, writer=writer, prompts=PromptSet.from_token_ids([[1, 2], [3, 4], [5, 6]]))
    config = TrainerConfig(save_folder=str(tmp_path), max_duration=Duration.steps(1))
    config = config.with_callback("ours", ours).with_callback("other", watch(every=9))
    copied = config.callbacks["ours"]  # by OLMo-core, when the other one was added
    assert copied is not ours
    assert copied.watcher.options.writer[0] is writer
    config = config.merge(["callbacks.ours.every=7", "callbacks.other.sampling=adaptive"])
    found = {name: callback.watcher.options for name, callback in config.callbacks.items()}
    assert (found["ours"].every, found["ours"].num_pairs, found["other"].every) == (7, 4, 9)
    assert found["other"].sampling == "adaptive"
    assert found["ours"].prompts.fingerprint == ours.prompts.fingerprint
    # What lies in a checkpoint gives the same callback again.
    plain = TrainerConfig(save_folder="x").with_callback("ours", olmo_runs.watch(every=7))
    again = TrainerConfig.from_dict(json.loads(json.dumps(plain.as_config_dict())))
    assert again.callbacks["ours"].watcher.options == plain.callbacks["ours"].watcher.options
    with pytest.raises(Exception, match="every=0: pass"):
        plain.merge(["callbacks.ours.every=0"])
    plain.callbacks["ours"].every = 5  # taken when the trainer is built
    plain.callbacks["ours"].post_attach()
    assert plain.callbacks["ours"].watcher.options.every == 5


# Several processes --------------------------------------------------------------------------------


DATA_PARALLEL: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "fsdp in bfloat16": {"param_dtype": DType.bfloat16},
    "hsdp": {"num_replicas": 2},
    "ddp": {},
}


def train_in_parallel(rank: int, folder: Path) -> dict[str, list[str]]:
    """Each way to train in parallel: what of the watched training differs from the other one."""
    warnings.simplefilter("ignore")
    os.environ["OLMO_SHARED_FS"] = "1"
    found = {}
    for name, options in DATA_PARALLEL.items():
        dp = TransformerDataParallelConfig(name=name.split()[0], **options)
        parallel._WORLD_MESH = None  # one training a process, as OLMo-core has it
        plain = train(folder / name / "plain", module={"dp_config": dp}, max_steps=3)
        parallel._WORLD_MESH = None
        callback = watch(every=1, num_slices=1, writer=None)
        watched = train(folder / name, callback, module={"dp_config": dp}, max_steps=3)
        found[name] = watched.differences(plain)
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/3-watching.md"])
def test_the_line_of_the_docs_adds_the_callback(page: str) -> None:
    (block,) = (each for each in blocks(page) if "TrainerConfig(...)" in each.code)
    config = execute(block, {"TrainerConfig": lambda _: TrainerConfig(save_folder="x")})
    assert config.callbacks["stable_regions"].every == 1000


def test_two_processes_share_a_measurement_and_do_not_notice(tmp_path: Path) -> None:
    work = partial(train_in_parallel, folder=tmp_path)
    assert in_processes(work, timeout=400) == [{name: [] for name in DATA_PARALLEL}] * 2
    train(tmp_path / "one", watch(every=1, num_slices=1), max_steps=3)
    expected = records(tmp_path / "one")
    for name in DATA_PARALLEL:
        found = records(tmp_path / name)
        assert list(found) == [0, 1, 2, 3]
        for step, record in found.items() if "16" not in name else [(0, found[0])]:
            gap = 1e-3 if step else 1e-5  # their sums of gradients differ in the last bits
            for part in ("paths", "slices"):
                mine, theirs = record.parts[part], expected[step].parts[part]
                torch.testing.assert_close(mine.distance, theirs.distance, rtol=gap, atol=gap)
            assert (record.paths.engine, record.paths.arithmetic) == ("shared", "float32")
        assert len(training.event_files(tmp_path / name / NAME)) == 1


def even() -> Any:
    """A model of as many tokens as can be divided by the ranks."""
    return olmo_runs.build(vocabulary=64)


def train_in_tensor_parallel(rank: int, folder: Path) -> list[str]:
    """What of the watched training differs from the other one: two groups of two."""
    warnings.simplefilter("ignore")
    os.environ["OLMO_SHARED_FS"] = "1"
    module = {
        "dp_config": TransformerDataParallelConfig(name="fsdp"),
        "tp_config": TransformerTensorParallelConfig(degree=2),
        "rank_microbatch_size": olmo_runs.ROWS * olmo_runs.LENGTH // 2,
    }

    def data(folder: Path, **options: Any) -> Any:
        """Each rank has an index of its own: the first rank's may come too late for two of them."""
        loader = olmo_runs.loader(folder / f"rows-{rank}", **options)
        loader.fs_local_rank = 0
        loader.reshuffle(epoch=1)
        loader.fs_local_rank = rank
        return loader

    def run(folder: Path, *callbacks: Any) -> Any:
        parallel._WORLD_MESH = None  # one training a process, as OLMo-core has it
        return train(folder, *callbacks, model=even(), module=module, data=data, max_steps=3)

    plain = run(folder / "plain")
    return list(run(folder, watch(every=1, num_slices=1)).differences(plain))


@pytest.mark.slow
def test_tensor_parallel_groups_share_a_measurement_and_do_not_notice(tmp_path: Path) -> None:
    work = partial(train_in_tensor_parallel, folder=tmp_path)
    assert in_processes(work, size=4, timeout=400) == [[]] * 4
    train(tmp_path / "one", watch(every=1, num_slices=1), model=even(), max_steps=3)
    found, expected = records(tmp_path), records(tmp_path / "one")
    assert list(found) == [0, 1, 2, 3]
    for step, record in found.items():
        gap = 1e-3 if step else 1e-5  # their sums of gradients differ in the last bits
        for part in ("paths", "slices"):
            mine, theirs = record.parts[part], expected[step].parts[part]
            torch.testing.assert_close(mine.distance, theirs.distance, rtol=gap, atol=gap)
        assert record.metadata["processes"] == 4


CUT_UP: dict[str, dict[str, Any]] = {
    "context parallelism": {"cp_config": TransformerContextParallelConfig.ulysses(degree=2)},
    "pipeline parallelism": {
        "pp_config": TransformerPipelineParallelConfig(
            degree=2, schedule=PipelineScheduleType.single_1F1B
        )
    },
}


def begin_cut_up(rank: int, folder: Path) -> list[str]:
    """The error that ends each attempt to watch a training of parts of a model."""
    warnings.simplefilter("ignore")
    os.environ["OLMO_SHARED_FS"] = "1"
    said = []
    for name, module in CUT_UP.items():
        parallel._WORLD_MESH = None
        module = {"dp_config": TransformerDataParallelConfig(name="fsdp"), **module}
        trainer = prepare(folder / name, callback := watch(), module=module)
        with pytest.raises(InputError) as refused:
            callback.pre_epoch()
        trainer.callbacks["added-0"].close()
        said.append(str(refused.value))
    return said


def test_what_cannot_be_shared_is_refused_by_name(tmp_path: Path) -> None:
    for said in in_processes(partial(begin_cut_up, folder=tmp_path), timeout=200):
        for name, message in zip(CUT_UP, said, strict=True):
            assert f"TrainModule trains with {name}: no rank " in message
            assert "take the callback out and measure saved checkpoints instead" in message
