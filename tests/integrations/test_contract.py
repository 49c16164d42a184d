"""What every way to watch a training has to keep: the plain loop, and each adapter.

A new adapter gets a driver here, and is held to all of it.
"""

import errno
import inspect
import multiprocessing
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from sr_monitor import InputError, PromptSet, at, budget, measure_paths
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.options import declared
from sr_monitor.probes import keys
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.prompts.corpora import WindowRequest
from sr_monitor.prompts.training_data import prompts_from_dataset
from sr_monitor.results.record import Record, list_records
from sr_monitor.watch.config import WatchOptions
from sr_monitor.watch.measure import take_record
from tests import lightning_runs, training
from tests.memory_writer import MemoryWriter
from tests.outside_probe import Norms, Steepness
from tests.training import NAME, SMALL, Run, records
from tests.zoo import build

olmo_runs: Any = None
if find_spec("olmo_core"):  # an extra of its own, whose dependencies hold back those of others
    olmo_runs = import_module("tests.olmo_runs")

pytestmark = [
    # Lightning gives advice, and uses what torch and it itself have since renamed.
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit"),
]

MEDIAN, FAILURES = PathsProbe.MAX_SLOPE_MEDIAN.name, keys.FAILURES.name


class ByHand:
    """A loop of one's own, with a `Monitor` for each set of options; it trains for four steps."""

    def watch(self, **options: Any) -> Any:
        return WatchOptions(**(SMALL | options))

    def train(self, folder: Path, *watched: Any, **options: Any) -> Run:
        options = {"max_steps": 4, **options}
        return training.train_by_hand(folder, *watched, **options)

    def checkpoint(self, folder: Path, step: int) -> Path:
        return folder / f"step={step}.ckpt"

    trains = frozenset({"encoder-decoder", "NaN weights"})
    """Trouble that it lets a training go on with."""

    def shares_rows(self, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether the model is called on several points in a row."""
        return getattr(kwargs.get("attention_mask"), "ndim", 0) > 2

    def with_dropout(self) -> Any:
        return build("gpt2").model

    def without_dropout(self) -> Any:
        """Lightning's checkpoints hold no random states."""
        return build("llama").model

    def nan(self) -> Any:
        """A model that has diverged."""
        with torch.no_grad():
            (model := self.with_dropout()).get_parameter("transformer.ln_f.weight").fill_(torch.nan)
        return model

    def out_of_memory(self) -> Any:
        """A model that takes too much memory wherever it is not trained."""

        def refuse(*_: Any) -> None:
            if not torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        (model := self.with_dropout()).register_forward_pre_hook(refuse)
        return model

    def encoder_decoder(self) -> Any:
        model: Any = build("t5").model
        model.config.decoder_start_token_id = model.config.pad_token_id = 0
        return model


class HuggingFace(ByHand):
    """The Trainer; its epochs have two steps."""

    def watch(self, **options: Any) -> Any:
        return training.watch(**options)

    def train(self, folder: Path, *watched: Any, **options: Any) -> Run:
        options = {"max_steps": 4, "data": training.rows(8), **options}
        return training.train(folder, *watched, **options)

    def checkpoint(self, folder: Path, step: int) -> Path:
        return folder / f"checkpoint-{step}"


class Lightning(ByHand):
    """Lightning's Trainer; its epochs have two steps, in the order of the rows."""

    def watch(self, **options: Any) -> Any:
        return lightning_runs.small(**(SMALL | options))

    def train(self, folder: Path, *watched: Any, model: Any = None, **options: Any) -> Run:
        def module() -> Any:
            return lightning_runs.LitLM(None if model is None else model.train())

        def data() -> DataLoader[Any]:
            return lightning_runs.loader(training.rows(8), shuffle=False)

        return lightning_runs.train(folder, watched, **{"module": module, "data": data, **options})

    def checkpoint(self, folder: Path, step: int) -> Path:
        return folder / "saved" / f"step={step}.ckpt"


class OLMoCore(ByHand):
    """OLMo-core's Trainer; its epochs have two steps, and it ends where the loss is NaN."""

    trains = frozenset()

    def watch(self, **options: Any) -> Any:
        return olmo_runs.watch(**options)

    def train(self, folder: Path, *watched: Any, **options: Any) -> Run:
        data = partial(olmo_runs.loader, num_rows=8)
        run: Run = olmo_runs.train(folder, *watched, **{"data": data, **options})
        return run

    def checkpoint(self, folder: Path, step: int) -> Path:
        return folder / f"step{step}"

    def shares_rows(self, args: Any, kwargs: dict[str, Any]) -> bool:
        return bool(args[0].shape[1] == 3)  # the points that are compared; prompts are longer

    def with_dropout(self) -> Any:
        return olmo_runs.build()

    without_dropout = with_dropout


DRIVERS = {"by hand": ByHand(), "transformers": HuggingFace(), "lightning": Lightning()}
if olmo_runs is not None:
    DRIVERS["olmo-core"] = OLMoCore()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> ByHand:
    return DRIVERS[request.param]


Unwatched = Callable[..., Run]


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Unwatched:
    """Trains a model as a driver does without a callback, once for all tests."""
    runs: dict[Any, Run] = {}

    def train(driver: ByHand, model: Callable[[], Any], **options: Any) -> Run:
        key = (model, *options.items())
        if key not in runs:
            runs[key] = driver.train(tmp_path_factory.mktemp("plain"), model=model(), **options)
        return runs[key]

    return train


def steps_of(writer: MemoryWriter, name: str = MEDIAN) -> list[int]:
    return [step for step, _ in writer.scalars.get(name, [])]


def assert_same_curve(one: dict[int, Record], other: dict[int, Record]) -> None:
    """Bit for bit, the measurements of the same steps."""
    assert list(one) == list(other)
    for step, record in one.items():
        assert torch.equal(record.paths.distance, other[step].paths.distance), step
        assert record.metadata["config"] == other[step].metadata["config"]
        assert record.metadata["prompts"] == other[step].metadata["prompts"]


# Nothing is disturbed, and what is measured is the model ------------------------------------------


def test_a_watched_training_is_bit_for_bit_the_same(
    driver: ByHand, tmp_path: Path, unwatched: Unwatched
) -> None:
    options: dict[str, Any] = {"every": 1, "num_slices": 1}
    watched = driver.train(tmp_path, driver.watch(**options, writer=(writer := MemoryWriter())))
    assert watched.differences(unwatched(driver, driver.with_dropout)) == []
    found = records(tmp_path)
    assert list(found) == steps_of(writer) == [0, 1, 2, 3, 4]
    assert len({value for _, value in writer.scalars[MEDIAN]}) == 5
    assert [step for step, _ in writer.images[PathsProbe.CURVES.name]] == [0, 1, 2, 4]
    assert [step for step, _ in writer.texts[keys.PROMPTS.name]] == [0]
    assert writer.closed
    # Step 0 is the model as it was, the last step the one that the training leaves.
    config = WatchOptions(**(SMALL | options))
    prompts = training.prompts_in(tmp_path)
    trained = getattr(watched.model, "model", watched.model)
    for model, step in ((driver.with_dropout(), 0), (trained, 4)):
        again = take_record(model, prompts, config, step=step)
        assert_same_curve({step: found[step]}, {step: again})


def test_steps_that_are_measured(driver: ByHand, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"every": 2}, [0, 2, 4]),
        ({"every": 3}, [0, 3, 4]),  # the last step in any case
        ({"schedule": at([1, 3])}, [1, 3, 4]),
        ({"schedule": budget(1e-9)}, [0]),
    ]
    watched = [driver.watch(**case, name=f"case-{i}") for i, (case, _) in enumerate(cases)]
    driver.train(tmp_path, *watched)
    measured = [list(records(tmp_path, f"case-{i}")) for i in range(len(cases))]
    assert measured == [expected for _, expected in cases]


def test_extremes_can_be_measured(tmp_path: Path) -> None:
    extremes: list[dict[str, Any]] = [
        {"num_pairs": 1},
        {"num_pairs": 10_000, "num_slices": 10_000, "slice_resolution": 2},
        {"num_steps": 2},
        {"layer": 0},
        {"layer": 3},  # the last one
        {"max_tokens": 1},
    ]
    few = PromptSet.from_token_ids(torch.tensor([[1, 2], [1, 2], [3, 4]]))  # the first pair is one
    driver = DRIVERS["lightning"]
    watched = [
        driver.watch(**options, prompts=few, name=f"case-{i}") for i, options in enumerate(extremes)
    ]
    driver.train(tmp_path, *watched, max_steps=1)
    for i, options in enumerate(extremes):
        found = records(tmp_path, f"case-{i}")
        assert list(found) == [0, 1], options
        assert found[1].paths.num_left_out == 1, options
        assert found[1].paths.distance.isfinite().all(), options


# One training after the other ---------------------------------------------------------------------


def test_one_callback_serves_one_training_after_the_other(driver: ByHand, tmp_path: Path) -> None:
    callback = driver.watch(every=2)
    for name in ("a", "b"):
        driver.train(tmp_path / name, callback, max_steps=2)
    assert_same_curve(records(tmp_path / "a"), records(tmp_path / "b"))
    driver.train(tmp_path / "a", callback, max_steps=3)  # anew, in the same folder
    assert list(records(tmp_path / "a")) == [0, 2, 3]
    assert not (tmp_path / "a" / f"{NAME}-2").exists()


def test_a_training_that_failed_gives_up_its_folder(driver: ByHand, tmp_path: Path) -> None:
    """Also where something holds the error, with all that was on the stack, as a notebook does."""
    writer = MemoryWriter()
    with pytest.raises(ZeroDivisionError) as kept:
        driver.train(tmp_path, driver.watch(every=1, writer=writer), fail_at=3)
    assert list(records(tmp_path)) == [0, 1, 2]
    driver.train(tmp_path, driver.watch(every=1), max_steps=2)
    assert list(records(tmp_path)) == [0, 1, 2]
    assert not (tmp_path / f"{NAME}-2").exists()
    assert kept.traceback  # it was held until here


# Resuming -----------------------------------------------------------------------------------------


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(driver: ByHand, tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 1, "num_slices": 1}
    model = driver.without_dropout
    whole = driver.train(tmp_path / "whole", driver.watch(**options), model=model())
    folder, saving = tmp_path / "run", {"save_steps": 2}
    with pytest.raises(ZeroDivisionError):
        driver.train(folder, driver.watch(**options), model=model(), fail_at=4, **saving)
    assert list(records(folder)) == [0, 1, 2, 3]
    before = {path.name: path.read_bytes() for path in (folder / NAME).glob("*.*")}
    # A seed of another choice of prompts: those of the run count.
    callback = driver.watch(**options, seed=7, writer=(writer := MemoryWriter()))
    checkpoint = driver.checkpoint(folder, 2)
    resumed = driver.train(folder, callback, model=model(), resume=checkpoint, **saving)
    assert resumed.losses[-2:] == whole.losses[-2:]
    for fact in ("weights", "optimizer"):
        assert training.equal(resumed.facts[fact], whole.facts[fact]), fact
    assert_same_curve(records(folder), records(tmp_path / "whole"))
    kept = {
        name for name, content in before.items() if (folder / NAME / name).read_bytes() == content
    }
    assert {"prompts.json", *(f"step-{step:09d}.safetensors" for step in range(3))} <= kept
    aside = [path.name for path in (folder / NAME / "superseded").iterdir()]
    assert aside == ["step-000000003.safetensors"]
    assert steps_of(writer) == [3, 4]
    assert [step for step, _ in writer.images[PathsProbe.CURVES.name]] == [4]


def test_a_resumed_run_keeps_to_its_way(driver: ByHand, tmp_path: Path) -> None:
    """Where the fast way failed once, it is not taken later, though it would work again."""

    def picky(model: Any) -> Any:
        def refuse(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if not torch.is_grad_enabled() and driver.shares_rows(args, kwargs):
                raise NotImplementedError("masks of four dimensions are not supported")

        model.register_forward_pre_hook(refuse, with_kwargs=True)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = driver.watch(every=1)
        driver.train(
            tmp_path, callback, model=picky(driver.without_dropout()), max_steps=2, save_steps=2
        )
        checkpoint = driver.checkpoint(tmp_path, 2)
        model = driver.without_dropout()
        driver.train(tmp_path, driver.watch(every=1), model=model, resume=checkpoint)
    ways = {step: record.paths.engine for step, record in records(tmp_path).items()}
    assert ways == dict.fromkeys(range(5), "rows")


def test_two_callbacks_at_once_and_resumed(driver: ByHand, tmp_path: Path) -> None:
    def two() -> list[Any]:
        second = {"name": f"{NAME}-2"} if driver is DRIVERS["by hand"] else {}
        return [driver.watch(every=1, layer=1), driver.watch(every=3, layer=2, **second)]

    driver.train(tmp_path, *two(), max_steps=2, save_steps=2)
    driver.train(tmp_path, *two(), resume=driver.checkpoint(tmp_path, 2), save_steps=2)
    for name, layer, steps in ((NAME, 1, [*range(5)]), (f"{NAME}-2", 2, [0, 2, 3, 4])):
        found = records(tmp_path, name)
        assert list(found) == steps
        assert {record.metadata["config"]["layer"] for record in found.values()} == {layer}


def test_a_callback_that_is_added_on_resume(driver: ByHand, tmp_path: Path) -> None:
    driver.train(tmp_path, max_steps=2, save_steps=2)
    checkpoint = driver.checkpoint(tmp_path, 2)
    driver.train(tmp_path, driver.watch(every=3), resume=checkpoint, save_steps=2)
    assert list(records(tmp_path))[-2:] == [3, 4]


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])  # imports once what every training needs


def train_until_killed(folder: Path, name: str) -> None:
    warnings.simplefilter("ignore")
    driver = DRIVERS[name]
    driver.train(folder, driver.watch(every=1), max_steps=1000, save_steps=2)


@pytest.mark.parametrize("name", DRIVERS)
def test_a_killed_run_leaves_whole_records_and_goes_on(tmp_path: Path, name: str) -> None:
    driver = DRIVERS[name]
    process = FORKS.Process(target=train_until_killed, args=(tmp_path, name))
    process.start()
    deadline = time.monotonic() + 120
    while len(list_records(tmp_path)) < 4 and time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    steps = [Record.load(path).step for path in list_records(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 4
    end = steps[-1] + 2
    options = {"resume": driver.checkpoint(tmp_path, 2), "max_steps": end, "save_steps": 2}
    driver.train(tmp_path, driver.watch(every=1), **options)
    assert list(records(tmp_path)) == list(range(end + 1))


# Several sets of prompts, and pairs drawn anew ---------------------------------------------------


def sets() -> dict[str, PromptSet]:
    """Of different lengths."""
    specimen = build("gpt2")
    return {
        name: PromptSet.from_token_ids(specimen.prompts(8, length, seed=length))
        for name, length in (("held_out", 5), ("code", 6))
    }


CURVES = ("held_out", "held_out-resampled", "code", "code-resampled")


def test_sets_are_measured_side_by_side(
    driver: ByHand, tmp_path: Path, unwatched: Unwatched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for probe in (PathsProbe, SlicesProbe):  # pictures would take most of the time
        monkeypatch.setattr(probe, "pictures", lambda *_: iter(()))
    given, writer = sets(), MemoryWriter()
    options: dict[str, Any] = {"every": 4, "num_slices": 1, "resample": True}
    callback = driver.watch(prompts=given, writer=writer, **options)
    watched = driver.train(tmp_path, callback)
    assert watched.differences(unwatched(driver, driver.with_dropout)) == []
    trained = getattr(watched.model, "model", watched.model)
    pairs = []
    for name in CURVES:
        found = records(tmp_path, f"{NAME}/{name}")
        assert list(found) == steps_of(writer, f"{NAME}/{name}/max_slope/median") == [0, 4]
        assert {record.metadata["set"] for record in found.values()} == {name}
        own = given[name.removesuffix("-resampled")]
        assert training.prompts_in(tmp_path, f"{NAME}/{name}").fingerprint == own.fingerprint
        is_resampled = name.endswith("-resampled")
        assert (found[4].slices is None) == is_resampled
        for model, step in ((driver.with_dropout(), 0), (trained, 4)):
            drawn = own.reordered(step) if is_resampled else own
            pairs.append(drawn.pairs(4)[0].tolist())
            expected = measure_paths(model, *drawn.pairs(4), num_steps=5)
            assert torch.equal(found[step].paths.distance, expected.distance)
    assert len({str(each) for each in pairs}) == 6  # kept ones twice, others new
    assert not list_records(tmp_path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow]) for n in DRIVERS])
def test_sets_of_a_resumed_run_are_those_of_the_uninterrupted_one(
    name: str, tmp_path: Path
) -> None:
    """A set that a killed run had not measured yet is measured again with the others."""
    driver = DRIVERS[name]
    options: dict[str, Any] = {"every": 1, "prompts": sets(), "resample": True}
    driver.train(tmp_path / "whole", driver.watch(**options), model=driver.without_dropout())
    folder, saving = tmp_path / "run", {"save_steps": 2}
    with pytest.raises(ZeroDivisionError):
        driver.train(
            folder, driver.watch(**options), model=driver.without_dropout(), fail_at=4, **saving
        )
    (folder / NAME / CURVES[-1] / "step-000000002.safetensors").unlink()
    checkpoint = driver.checkpoint(folder, 2)
    resumed = driver.watch(**options)
    driver.train(folder, resumed, model=driver.without_dropout(), resume=checkpoint, **saving)
    for each in CURVES:
        curve = f"{NAME}/{each}"
        assert_same_curve(records(folder, curve), records(tmp_path / "whole", curve))
        assert (folder / curve / "superseded" / "step-000000003.safetensors").exists()


def test_pairs_that_are_kept_are_those_without_resampling(driver: ByHand, tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 3, "num_pairs": 3}
    both = [driver.watch(**options, resample=more, name=f"{more}") for more in (False, True)]
    driver.train(tmp_path, *both)
    kept, also, drawn = (records(tmp_path, name) for name in ("False", "True", "True/resampled"))
    assert list(kept) == list(also) == list(drawn) == [0, 3, 4]
    if driver is DRIVERS["by hand"]:  # the others draw more prompts then
        assert_same_curve(kept, also)
    assert not torch.equal(also[3].paths.distance, drawn[3].paths.distance)


@pytest.mark.parametrize("name", ["transformers", "lightning"])
def test_a_set_may_be_the_trainer_s_for_evaluation(tmp_path: Path, name: str) -> None:
    driver, rows = DRIVERS[name], training.rows
    corpora = {"train": rows(8), "held_out": rows(4, seed=1)}
    # The Trainer of these tests evaluates on the same rows.
    loader = partial(lightning_runs.loader, corpora["held_out"], shuffle=False)
    more: dict[str, Any] = {"validation": loader} if name == "lightning" else {}
    prompts = {"train": None, "held_out": "eval_dataset"}
    callback = driver.watch(every=4, prompts=prompts, num_pairs=3)
    driver.train(tmp_path, callback, **more)
    for each, corpus in corpora.items():
        request = WindowRequest("", num_tokens=5, num_prompts=4, seed=0)
        expected = prompts_from_dataset(corpus, request)
        found = training.prompts_in(tmp_path, f"{NAME}/{each}")
        assert expected is not None
        assert found.fingerprint == expected.fingerprint
        assert list(records(tmp_path, f"{NAME}/{each}")) == [0, 4]
    missing = driver.watch(prompts={"code": "eval_dataset.code"})
    with pytest.raises(InputError, match=r"'eval_dataset.code'.* it has: 'eval_dataset'"):
        driver.train(tmp_path, missing, **more)


# Probes of others ---------------------------------------------------------------------------------


def test_a_probe_of_another_package_is_measured_logged_and_kept(
    driver: ByHand, tmp_path: Path, unwatched: Unwatched
) -> None:
    """One rides on paths; the other joins on resume, and finds its part in earlier records."""
    writer, norms = MemoryWriter(), Norms(power=1.0)
    first = driver.watch(every=1, probes=[norms], writer=[writer, TensorBoardWriter(tmp_path)])
    watched = driver.train(tmp_path, first, save_steps=2)
    assert watched.differences(unwatched(driver, driver.with_dropout)) == []
    both = driver.watch(every=1, probes=[norms, Steepness()], writer=(later := MemoryWriter()))
    driver.train(tmp_path, both, resume=driver.checkpoint(tmp_path, 2), save_steps=2)
    found = records(tmp_path)
    assert list(found) == [0, 1, 2, 3, 4]  # one curve: a probe more changes none
    for record in found.values():
        assert record.metadata["config"]["probes"]["norms"] == {"power": 1.0}
        norm = record.parts["norms"]["norm"]
        assert norm.shape == record.paths.distance.shape
        assert (norm > 0).all()
    assert "steepness" not in found[2].parts
    assert found[3].parts["steepness"]["steepness"].shape == (4,)
    largest, steepest = Norms.LARGEST.name, Steepness.MEDIAN.name
    assert training.logged(tmp_path, largest) == steps_of(writer, largest) == [0, 1, 2, 3, 4]
    assert steps_of(later, largest) == steps_of(later, steepest) == [3, 4]
    # In the records from before it existed, what can be derived is found.
    assert found[0].with_derived([Steepness()]).scalars[steepest] > 0


# Never the cause of a crash -----------------------------------------------------------------------


class Broken(MemoryWriter):
    """A dashboard that has gone away."""

    def scalar(self, name: str, value: float, step: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


_OFF = "layer=99: .*sr-monitor is off now"
_FULL = "Broken could not write: .*No space"
TROUBLE: dict[str, tuple[dict[str, Any], str, str, int]] = {
    "no such layer": ({"layer": 99}, "without_dropout", _OFF, 1),
    "encoder-decoder": ({}, "encoder_decoder", "T5.* measure a decoder-only", 1),
    "broken writer": ({"writer": Broken()}, "without_dropout", _FULL, 2),
    "NaN weights": ({}, "nan", "the weights hold NaN or Inf", 2),
    "out of memory": (
        {},
        "out_of_memory",
        "memory ran out .*not even the smallest forward fits",
        2,
    ),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_trouble_never_ends_a_training(
    driver: ByHand, tmp_path: Path, unwatched: Unwatched, case: str
) -> None:
    if case in ByHand.trains - driver.trains:
        pytest.skip(f"{type(driver).__name__} trains no such model")
    options, name, message, num_told = TROUBLE[case]
    model = getattr(driver, name)
    plain, log = unwatched(driver, model, max_steps=3), MemoryWriter()
    options = options | {"writer": [*([options["writer"]] if "writer" in options else []), log]}
    callback = driver.watch(every=1, on_error="warn", **options)
    with pytest.warns(RuntimeWarning, match=message) as told:
        watched = driver.train(tmp_path, callback, model=model(), max_steps=3)
    ours = [str(each.message) for each in told if "sr-monitor" in str(each.message)]
    assert len(ours) == num_told  # the cause once, and once that it is off
    assert "sr-monitor is off now; training goes on" in ours[-1]
    assert log.scalars[FAILURES][-1][1] == (1 if num_told == 1 else 3)
    same = [fact for fact in plain.facts if training.equal(plain.facts[fact], watched.facts[fact])]
    assert same == list(plain.facts)
    # Records are kept whatever the writers do.
    assert list(records(tmp_path)) == ([0, 1, 2] if case == "broken writer" else [])


def test_errors_are_raised_where_that_is_asked_for(driver: ByHand, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer=99"):
        driver.train(tmp_path, driver.watch(layer=99))
    with pytest.raises(RuntimeError, match="Broken could not write"):
        driver.train(tmp_path, driver.watch(writer=Broken()))
    driver.train(tmp_path, driver.watch(), max_steps=1)  # and the folder is free again
    assert list(records(tmp_path)) == [0, 1]
    assert not (tmp_path / f"{NAME}-2").exists()


# What a callback is ---------------------------------------------------------------------------


KINDS = [type(driver.watch()) for name, driver in DRIVERS.items() if name != "by hand"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__module__)
def test_a_callback_shows_all_its_options_and_holds_a_watcher(kind: Any) -> None:
    signature = inspect.signature(kind)
    options = type(kind().watcher.options)
    assert [*signature.parameters] == [*inspect.signature(options).parameters]
    assert next(iter(signature.parameters)) == "prompts"
    assert signature.parameters["every"].default == 500
    for name, field in declared(options).items():
        assert f"{name}: {field.metadata['doc']}" in (inspect.getdoc(kind.__init__) or "")
    ours = set(vars(kind())) | {name for name in vars(kind) if not name.startswith("__")}
    framework = {name for base in kind.__mro__[1:] for name in dir(base)}
    assert ours - framework == {"watcher"}


@pytest.mark.parametrize("name", [name for name in DRIVERS if name != "by hand"])
def test_one_line_is_enough(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], logged_warnings: list[str], name: str
) -> None:
    driver, folder = DRIVERS[name], tmp_path / "my run"  # a space, which a command has to quote
    callback: Any = type(driver.watch())()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* prompts were found")
        driver.train(folder, callback, max_steps=2)
    (line,) = logged_warnings
    assert "9 prompts were found, 257 are wanted" in line
    logged_warnings.clear()
    found = records(folder)
    assert list(found) == [0, 2]
    assert found[0].slices is not None
    assert found[0].slices.distance.shape == (4, 3, 41, 41)
    assert found[0].paths.distance.shape[1] == 51
    own = folder / NAME
    said = f"sr-monitor: results in {own}; to watch: tensorboard --logdir '{folder}'\n"
    assert capfd.readouterr().err.count(said) == 1
    assert training.logged(own) == [0, 2]
    of_slices = (SlicesProbe.SLICE, SlicesProbe.FILM, SlicesProbe.ANIMATION)
    shown = {PathsProbe.CURVES.name, *(key.numbered(3).name for key in of_slices)}
    assert shown <= set(EventAccumulator(str(own)).Reload().Tags()["images"])
