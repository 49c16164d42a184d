"""A monitor in plain loops: when it measures, what it goes on with, and what it says of trouble."""

import ctypes
import errno
import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from sr_monitor import InputError, Monitor, MonitorConfig, PromptSet, Record, at, budget, every
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.probes import keys
from sr_monitor.probes.base import available
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.results.record import list_records, step_of
from sr_monitor.results.store import RecordStore
from tests.memory_writer import MemoryWriter
from tests.zoo import VOCAB, build

CONFIG = MonitorConfig(num_pairs=4, num_steps=5, num_slices=1, slice_resolution=4)
NAME = "stable_regions"
FAILURES, SHARE = keys.FAILURES.name, keys.SHARE_OF_TIME.name
MEDIAN, CURVES = PathsProbe.MAX_SLOPE_MEDIAN.name, PathsProbe.CURVES.name


def make_prompts(seed: int = 3) -> PromptSet:
    return PromptSet.from_token_ids(build("gpt2").prompts(6, 5, seed=seed))


PROMPTS = make_prompts()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """One that no test changes."""
    return build("gpt2").model


def make_monitor(log_dir: Path | None = None, **changes: Any) -> Monitor:
    options = {"prompts": PROMPTS, "config": CONFIG, "schedule": every(1), **changes}
    return Monitor(log_dir=log_dir, **options)


def steps_in(folder: Path) -> list[int]:
    return [step_of(path) for path in list_records(folder)]


def steps_of(pairs: list[tuple[int, Any]]) -> list[int]:
    return [step for step, _ in pairs]


def run(monitor: Monitor, model: nn.Module, steps: range) -> dict[str, Any]:
    for step in steps:
        monitor.step(model, step)
    state = monitor.state_dict()
    monitor.close()
    return state


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def allocated() -> int:
    """The bytes in use outside of Python's small objects; pages that are resident come and go."""
    fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class MallInfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in fields.split()]

    if not hasattr(library := ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("only glibc 2.33 tells what is allocated")
    library.mallinfo2.restype = MallInfo
    found = library.mallinfo2()
    return int(found.uordblks + found.hblkhd)


# Where the garbage collector is off --------------------------------------------------------------


@pytest.mark.slow
def test_a_measurement_by_every_probe_leaves_no_cycles(model: nn.Module, tmp_path: Path) -> None:
    """Saved, and drawn for TensorBoard."""
    config = replace(CONFIG, probes=sorted(set(available()) - {"readout"}))
    writers = [TensorBoardWriter(tmp_path)]
    monitor = make_monitor(tmp_path, config=config, writers=writers, on_error="raise")
    for step in range(2):  # loads and caches
        monitor.measure(model, step, last=True)
    with without_collector():
        monitor.measure(model, 2, last=True)
        assert gc.collect() == 0
    monitor.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_measurements(model: nn.Module, tmp_path: Path) -> None:
    """By less than 1 MB over fifty with pictures, once these show as many steps as they can."""
    monitor = make_monitor(tmp_path, writers=[TensorBoardWriter(tmp_path)], on_error="raise")
    steps = count()

    def in_use_after(times: int) -> float:
        for _ in range(times):
            monitor.measure(model, next(steps), last=True)
        return allocated() + 64 * sys.getallocatedblocks()

    with without_collector():
        before = in_use_after(37)
        assert in_use_after(50) - before < 1e6
    monitor.close()


@pytest.mark.slow
def test_what_a_measurement_imports_is_imported_at_the_start(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from sr_monitor import Monitor, TensorBoardWriter, every
from tests.watch.test_monitor import CONFIG, PROMPTS
from tests.zoo import build

folder, model = sys.argv[1], build("gpt2").model
monitor = Monitor(PROMPTS, CONFIG, writers=[TensorBoardWriter(folder)], log_dir=folder)
monitor.start(model, 0)
before = {*sys.modules}
monitor.step(model, 0)
print(*{name.split(".")[0] for name in {*sys.modules} - before})
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
    assert steps_in(tmp_path / NAME) == [0]


# Going on ----------------------------------------------------------------------------------------


def test_a_resumed_run_loads_those_records_that_its_pictures_show(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_monitor(tmp_path).measure(model, 0)
    for step in range(1, 41):
        replace(record, step=step).save(tmp_path / NAME / f"step-{step:09d}.safetensors")
    loaded, real = list[int](), RecordStore.load

    def counted(store: RecordStore, step: int) -> Record | None:
        loaded.append(step)
        return real(store, step)

    monkeypatch.setattr(RecordStore, "load", counted)
    monitor = make_monitor(tmp_path, writers=[writer := MemoryWriter()])
    monitor.start(model, 40)
    assert (loaded, monitor.last_step) == ([0, 1, 2, 4, 8, 16, 32, 40], 40)
    assert monitor.step(model, 40) is None
    assert monitor.step(model, 64) is not None
    assert steps_of(writer.images[CURVES]) == [64]
    monitor.close()


# Calls -------------------------------------------------------------------------------------------


def test_a_step_is_measured_once(model: nn.Module) -> None:
    monitor = make_monitor(writers=[writer := MemoryWriter()])
    found = [monitor.step(model, step) is not None for step in [0, 0, 1, 1, 1, 0, 2, 1]]
    assert found == [True, False, True, False, False, False, True, False]
    assert steps_of(writer.scalars[MEDIAN]) == [0, 1, 2]
    assert monitor.step(model, 2, also=True, last=True) is None
    schedule = Monitor(PROMPTS, CONFIG).pace.account.schedule
    assert [step for step in range(1100) if schedule(step)] == [0, 500, 1000]


def test_it_can_be_asked_to_measure_also_now(model: nn.Module, tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path, schedule=at([5]))
    assert monitor.step(model, 1) is None
    assert monitor.step(model, 2, also=True, tokens=20) is not None
    assert monitor.step(model, 3, last=True, tokens=lambda: 30) is not None
    assert monitor.measure(model, 4, tokens=40).step == 4
    assert monitor.step(model, 4, also=True) is None
    assert monitor.step(model, 5, tokens=50) is not None  # the call above does not hold it up
    tokens = {step_of(path): Record.load(path).tokens for path in list_records(tmp_path)}
    assert tokens == {2: 20, 3: 30, 4: 40, 5: 50}


def test_prompts_are_shown_and_saved_before_anything_is_measured(
    model: nn.Module, tmp_path: Path
) -> None:
    monitor = make_monitor(tmp_path, writers=[writer := MemoryWriter()], schedule=at([]))
    monitor.start(model, 0)
    monitor.start(model, 0)
    assert steps_of(writer.texts[keys.PROMPTS.name]) == [0]
    assert PromptSet.load(tmp_path / NAME / "prompts.json").fingerprint == PROMPTS.fingerprint
    assert steps_in(tmp_path) == []
    monitor.close()
    assert writer.closed


def test_closing_draws_what_was_measured_last(model: nn.Module) -> None:
    monitor = make_monitor(writers=[writer := MemoryWriter()], schedule=at([0, 4, 5]))
    for step in range(6):
        monitor.step(model, step)
    assert steps_of(writer.images[CURVES]) == [0, 4]
    monitor.close()
    monitor.close()
    assert steps_of(writer.images[CURVES]) == [0, 4, 5]


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_closing_goes_on_past_a_writer_that_fails(
    model: nn.Module, tmp_path: Path, on_error: Any
) -> None:
    class NeverCloses(MemoryWriter):
        def close(self) -> None:
            raise OSError("the line is dead")

    writers = [MemoryWriter(), NeverCloses(), MemoryWriter()]
    monitor = make_monitor(tmp_path, writers=writers, on_error=on_error, schedule=at([]))
    monitor.start(model, 0)
    raised = pytest.raises(OSError, match="the line is dead")
    warned = pytest.warns(RuntimeWarning, match="closing NeverCloses failed: the line is dead")
    with raised if on_error == "raise" else warned:
        monitor.close()
    assert [writer.closed for writer in writers] == [True, False, True]
    make_monitor(tmp_path).close()  # a warning, that the folder is taken, would be an error


def test_what_a_user_supplies_may_draw_random_numbers(model: nn.Module, tmp_path: Path) -> None:
    """And may turn gradients off."""

    def draw(*_: Any) -> float:
        torch.set_grad_enabled(False)
        np.random.rand()  # noqa: NPY002
        return float(torch.rand(1))

    class Drawing(MemoryWriter):
        scalar = image = text = flush = close = draw  # type: ignore[assignment]

        def histogram(self, name: str, values: Any, step: int) -> None:
            if step == 2:
                raise OSError("the line is dead")  # so that failures are written, too

    def states() -> list[Any]:
        numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
        return [torch.get_rng_state().tolist(), numpy["pos"], torch.is_grad_enabled()]

    before = states()
    schedule = budget(
        1.0,
        schedule=lambda step: draw() < 2 and step != 1,
        clock=lambda: draw() and time.perf_counter(),
    )
    monitor = make_monitor(tmp_path, writers=[Drawing()], schedule=schedule)
    with pytest.warns(RuntimeWarning, match="the line is dead"):
        run(monitor, model, range(4))
    assert (steps_in(tmp_path), states()) == ([0, 2, 3], before)
    with torch.enable_grad():
        assert draw() >= 0
        assert [a != b for a, b in zip(states(), before, strict=True)] == [True] * 3  # it can fail


def test_two_monitors_on_one_folder_do_not_meet(model: nn.Module, tmp_path: Path) -> None:
    first = make_monitor(tmp_path, writers=[writer := MemoryWriter()])
    with pytest.warns(RuntimeWarning, match=rf"takes '{NAME}-2'; .* call its close\(\)"):
        second = make_monitor(
            tmp_path, config=replace(CONFIG, layer=2), writers=[writer], schedule=every(2)
        )
    for step in range(3):
        first.step(model, step)
        second.step(model, step)
    first.close()
    second.close()
    assert (steps_in(tmp_path / NAME), steps_in(tmp_path / f"{NAME}-2")) == ([0, 1, 2], [0, 2])
    assert {name.split("/")[0] for name in writer.names} >= {NAME, f"{NAME}-2"}
    assert steps_of(writer.scalars[f"{NAME}-2/max_slope/median"]) == [0, 2]


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": torch.zeros(7, 5)}, r"prompts=tensor\(.*\.\.\.: pass a PromptSet; "),
        ({"config": {"num_pairs": 3}}, r"config=\{'num_pairs': 3\}: pass a MonitorConfig$"),
        ({"schedule": 0}, r"schedule=0: pass every\(500\), at\("),
        ({"name": "a/b"}, "name='a/b': pass the name of one folder"),
        ({"log_dir": 5}, "log_dir=5: pass the path of a folder"),
        ({"writers": ["runs/1"]}, "writers='runs/1': a str is no writer; pass a TensorBoardWriter"),
        ({"on_error": "ignore"}, "on_error='ignore': pass one of warn, raise$"),
    ],
)
def test_mistakes_are_told_before_the_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make_monitor(**changes)


def test_a_writer_need_not_be_in_a_list_nor_of_ours(model: nn.Module, tmp_path: Path) -> None:
    one = MemoryWriter()
    with SummaryWriter(str(tmp_path)) as summary:
        for given in (one, summary):
            run(make_monitor(writers=given), model, range(1))
    assert steps_of(one.scalars[MEDIAN]) == [0]
    written = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in written.Scalars(MEDIAN)] == [0]


def test_steps_that_are_passed_over_are_made_up_for(model: nn.Module) -> None:
    """As where two optimizers count, or where it is called now and then."""
    monitor = make_monitor(schedule=at([0, 3, 5, 25, 90]))
    given = [0, 2, 4, 6, 8, 20, 30, 40, 30, 80]
    assert [step for step in given if monitor.step(model, step)] == [0, 4, 6, 30]
    tokens = make_monitor(schedule=at([7, 4000]))  # steps that are counted in tokens
    assert [step for step in (0, 2000, 4000, 6000) if tokens.step(model, step)] == [4000]


# Time --------------------------------------------------------------------------------------------


class Clock:
    """The real one, put forward by each simulated step of the training."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.ahead


def test_a_budget_keeps_the_share_in_a_simulated_clock(model: nn.Module) -> None:
    clock = Clock()
    schedule = budget(0.01, schedule=every(10), clock=clock)
    config = MonitorConfig(num_pairs=2, num_steps=3, num_slices=0)
    monitor = make_monitor(config=config, schedule=schedule)
    began, records = clock(), []
    for step in range(401):
        records += [record] if (record := monitor.step(model, step)) else []
        clock.ahead += 2 * records[0].metadata["seconds"]  # a step takes as long as two of these
    wall = clock() - began
    assert records[0].step == 0
    assert (records[0].scalars[SHARE], records[1].scalars[SHARE] > 0) == (0, True)
    assert 2 <= len(records) < 41
    assert all(record.step % 10 == 0 for record in records)
    spent = schedule.spent_share * wall
    assert spent >= sum(record.metadata["seconds"] for record in records)
    dearest = max(schedule.state_dict()["recent"])
    assert spent - dearest <= 0.01 * wall  # what the last one cost above expectation comes on top


def test_also_and_last_keep_to_the_budget_that_a_resumed_run_goes_on_with(model: nn.Module) -> None:
    clock = Clock()
    first = make_monitor(schedule=budget(0.01, clock=clock))
    assert first.step(model, 0) is not None
    assert first.step(model, 1, also=True) is None
    assert first.step(model, 2, last=True) is None
    resumed = make_monitor(schedule=budget(0.01, clock=clock))
    resumed.load_state_dict(first.state_dict())
    assert resumed.step(model, 1, also=True) is None
    clock.ahead += 3600
    assert resumed.step(model, 3, also=True) is not None


def test_steps_to_wait_follow_the_pace_of_the_run() -> None:
    clock = Clock()
    monitor = make_monitor(schedule=(schedule := budget(0.5, schedule=every(1), clock=clock)))
    monitor.pace.begin(1000)
    assert monitor.pace.steps_to_wait(1000) == 0
    schedule.spend(100.0)  # another one fits after 2 * (100 + 100) - 100 = 300 seconds
    waits = [monitor.pace.steps_to_wait(1000)]
    for step in (1010, 1030):
        clock.ahead += 100.0
        waits.append(monitor.pace.steps_to_wait(step))
    assert waits == [1, 10, 15]  # 20 steps at that pace, but at most as many as were
    clock.ahead += 100.0
    assert monitor.pace.steps_to_wait(1040) == 0
    resumed = make_monitor(schedule=budget(0.5, schedule=every(1), clock=clock))
    account = {"spent": 4000.0, "elapsed": 7000.0, "recent": [1000.0]}
    resumed.load_state_dict({"account": account})
    resumed.pace.begin(1000)
    clock.ahead += 100.0
    assert resumed.pace.steps_to_wait(1100) == 100  # of 1900, at a second each


# Resuming ----------------------------------------------------------------------------------------


def test_earlier_steps_are_in_the_films_of_a_resumed_run(model: nn.Module, tmp_path: Path) -> None:
    films = []
    for cut in (None, 2):
        folder, writer = tmp_path / str(cut), MemoryWriter()
        if cut is not None:
            run(make_monitor(folder), model, range(cut + 1))
        run(make_monitor(folder, writers=[writer]), model, range(cut or 0, 4))
        films.append(dict(writer.images)[SlicesProbe.FILM.numbered(0).name][-1][1])
    assert (films[0].shape, films[0].tobytes()) == (films[1].shape, films[1].tobytes())


BESIDE: dict[str, Any] = {"num_slices": 2, "slice_resolution": 7, "engine": "plain"}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"prompts": make_prompts(4)}, []),
        ({"config": replace(CONFIG, layer=2)}, []),
        ({"config": replace(CONFIG, **BESIDE)}, [0, 1, 2]),
    ],
)
def test_one_folder_holds_one_curve(
    model: nn.Module, tmp_path: Path, changes: dict[str, Any], kept: list[int]
) -> None:
    run(make_monitor(tmp_path), model, range(3))
    monitor = make_monitor(tmp_path, **changes)
    with nullcontext() if kept else pytest.warns(RuntimeWarning, match="A new curve begins here"):
        record = monitor.step(model, 2)
    assert (record is None) == bool(kept)  # a new curve begins right here
    monitor.close()
    assert steps_in(tmp_path) == (kept or [2])
    if not kept:
        assert steps_in(tmp_path / NAME / "superseded") == [0, 1, 2]


def test_a_state_is_plain_values_and_tells_what_was_measured(
    model: nn.Module, tmp_path: Path
) -> None:
    state = run(make_monitor(), model, range(3))
    assert set(state) == {"schema", "step", "prompts", "account", "folder", "way"}
    assert PromptSet.from_json(state["prompts"]).fingerprint == PROMPTS.fingerprint
    torch.save(state, tmp_path / "state.pt")
    monitor = make_monitor()
    monitor.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (monitor.step(model, 2), monitor.series[0].way) == (None, "shared")
    assert monitor.step(model, 3) is not None


@pytest.mark.parametrize("state", [{}, {"of a past version": [1]}])
def test_an_older_state_may_lack_anything(model: nn.Module, state: dict[str, Any]) -> None:
    monitor = make_monitor()
    monitor.load_state_dict(state)
    assert monitor.step(model, 3) is not None


# Failures ----------------------------------------------------------------------------------------


def broken_by(error: BaseException, when: Callable[[], bool] = lambda: True) -> nn.Module:
    """A model whose second block fails."""
    model: Any = build("gpt2").model

    def fail(*_: Any) -> None:
        if when():
            raise error

    model.transformer.h[1].register_forward_hook(fail)
    return model  # type: ignore[no-any-return]


def prompts_of(num_tokens: int, *, vocab: int = VOCAB) -> PromptSet:
    return PromptSet.from_token_ids(torch.arange(6 * num_tokens).reshape(6, -1) % vocab)


@pytest.mark.parametrize(
    ("name", "changes", "cause"),
    [
        ("gemma3n", {}, "this architecture cannot be measured"),
        ("gpt2", {"prompts": prompts_of(65)}, "prompts of 65 tokens: .*; pass shorter prompts"),
        ("gpt2", {"prompts": prompts_of(20, vocab=99)}, "token ids from 0 to 98: .* own tokenizer"),
        ("t5", {"schedule": at([4])}, "T5.* measure a decoder-only"),
    ],
    ids=["unsupported", "too long", "other tokens", "encoder-decoder"],
)
def test_what_can_never_be_measured_is_told_once_and_ends(
    name: str, changes: dict[str, Any], cause: str
) -> None:
    monitor = make_monitor(writers=[writer := MemoryWriter()], **changes)
    model = build(name).model
    with pytest.warns(RuntimeWarning, match=rf"it cannot work here: .*{cause}") as told:
        run(monitor, model, range(6))
    assert len(told) == 1
    assert writer.scalars == {FAILURES: [(0, 1.0)]}


def test_a_success_in_between_begins_a_new_row() -> None:
    ill = iter([True, True, False, True, True, False, True, True, True])
    now = {"ill": False}
    sometimes = broken_by(RuntimeError("ill"), when=lambda: now["ill"])
    monitor = make_monitor(writers=[writer := MemoryWriter()])
    with pytest.warns(RuntimeWarning) as told:
        measured = [step for step, now["ill"] in enumerate(ill) if monitor.step(sometimes, step)]
    assert measured == steps_of(writer.scalars[MEDIAN]) == [2, 5]
    assert dict(writer.scalars[FAILURES]) == {0: 1, 1: 2, 2: 2, 3: 3, 4: 4, 5: 4, 6: 5, 7: 6, 8: 7}
    assert len(told) == 2
    assert monitor.guard.is_off


@pytest.mark.parametrize(
    ("on_error", "error"), [("raise", RuntimeError("ill")), ("warn", KeyboardInterrupt())]
)
def test_the_original_error_is_raised_if_asked_for(
    model: nn.Module, on_error: Any, error: BaseException
) -> None:
    monitor = make_monitor(on_error=on_error)
    with pytest.raises(type(error)) as caught:
        monitor.step(broken_by(error), 0)
    assert caught.value is error
    assert monitor.step(model, 1) is not None


def test_a_step_that_failed_is_not_tried_twice() -> None:
    calls = count()
    model = broken_by(RuntimeError("ill"), when=lambda: next(calls) >= 0)
    monitor = make_monitor()
    with pytest.warns(RuntimeWarning, match="ill"):
        monitor.step(model, 0)
    once = next(calls)
    monitor.step(model, 0)
    assert next(calls) == once + 1 > 1


def test_what_a_user_gives_may_fail(model: nn.Module) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("by 0")

    cases: list[tuple[dict[str, Any], Any]] = [({"schedule": fail}, None), ({}, fail)]
    for changes, tokens in cases:
        with pytest.warns(RuntimeWarning, match="measuring at step 0 failed: ZeroDivisionError"):
            assert make_monitor(**changes).step(model, 0, tokens=tokens) is None


def test_writers_show_although_the_folder_cannot_be_written_to(
    model: nn.Module, tmp_path: Path
) -> None:
    monitor = make_monitor(tmp_path, writers=[writer := MemoryWriter()])
    monitor.step(model, 0)
    shutil.rmtree(tmp_path / NAME)
    (tmp_path / NAME).write_text("a file is in its place")
    with pytest.warns(RuntimeWarning, match=rf"{tmp_path / NAME}.* pass another log_dir="):
        monitor.step(model, 1)
    assert steps_of(writer.scalars[MEDIAN]) == [0, 1]
    with pytest.warns(RuntimeWarning, match=rf"{NAME}/{NAME}.*log_dir=.* sr-monitor is off now"):
        assert make_monitor(tmp_path / NAME).step(model, 0) is None


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="limits of the size of files are POSIX")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_one_record(model: nn.Module, tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path)
    monitor.step(model, 0)
    message = f"{os.strerror(errno.EFBIG)}.* pass another log_dir="
    with pytest.warns(RuntimeWarning, match=message), files_of_at_most(1000):
        monitor.step(model, 1)
    assert monitor.step(model, 2) is not None
    assert steps_in(tmp_path) == [0, 2]
    assert not list((tmp_path / NAME).glob(".*"))  # nothing half-written


def test_weights_that_deepspeed_has_taken_apart_are_said_to_be_an_experiment(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, logged_warnings: list[str]
) -> None:
    """It marks them so; what is tried here is the warning, not DeepSpeed."""
    monkeypatch.setattr(next(iter(model.parameters())), "ds_id", 0, raising=False)
    monitor = make_monitor()
    with pytest.warns(RuntimeWarning, match="DeepSpeed ZeRO-3 is experimental"):
        assert monitor.step(model, 0) is not None
    assert monitor.step(model, 500) is not None  # said once
    assert make_monitor().step(model, 0) is not None  # also where warnings are errors
    (line,) = logged_warnings
    assert "DeepSpeed ZeRO-3 is experimental" in line
    logged_warnings.clear()
