"""A monitor in plain training loops: nothing is disturbed, nothing lost, and nothing crashes."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.errors import InputError
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, list_records, step_of
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.monitor import Monitor, check_state
from sr_monitor.watch.schedule import Schedule, at, budget, every
from tests.zoo import VOCAB, build

CONFIG = MonitorConfig(num_pairs=4, num_steps=5, num_slices=1, slice_resolution=4)
NAME = "stable_regions"
FAILURES, SHARE = "stable_regions/failures", "stable_regions/share_of_time"
MEDIAN = PathsProbe.MAX_SLOPE_MEDIAN.name


def make_prompts(seed: int = 3) -> PromptSet:
    return PromptSet.from_token_ids(build("gpt2").prompts(6, 5, seed=seed))


PROMPTS = make_prompts()


def prompts_of(num_tokens: int, *, vocab: int = VOCAB) -> PromptSet:
    return PromptSet.from_token_ids(torch.arange(6 * num_tokens).reshape(6, -1) % vocab)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """One that no test changes."""
    return build("gpt2").model


def make_monitor(log_dir: Path | None = None, **changes: Any) -> Monitor:
    options = {"prompts": PROMPTS, "config": CONFIG, "schedule": every(1), **changes}
    return Monitor(log_dir=log_dir, **options)


def steps_in(folder: Path) -> list[int]:
    return [step_of(path) for path in list_records(folder)]


def steps_of(pairs: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in pairs]


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of a block, as text."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught]


# Nothing is disturbed ----------------------------------------------------------------------------

Setup = Literal["plain", "autocast", "accumulated", "partly in eval", "compiled"]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().flatten().view(torch.uint8).numpy().tobytes()


def train(monitor: Monitor | None, setup: Setup) -> dict[str, Any]:
    """4 steps of a GPT-2 with dropout, and all that could have been disturbed."""
    torch.manual_seed(1)
    model: Any = build("gpt2").model.train()
    if setup == "partly in eval":
        model.transformer.h[1].eval()
    run: Any = torch.compile(model, backend="eager") if setup == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, modes = [], []
    if monitor is not None:
        monitor.step(run, 0)
    for step in range(1, 5):
        for _ in range(2 if setup == "accumulated" else 1):
            batch = torch.randint(61, (4, 12))
            with torch.autocast("cpu", torch.bfloat16, enabled=setup == "autocast"):
                logits = run(input_ids=batch, use_cache=False).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten()
            )
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            if monitor is not None and setup == "accumulated":
                monitor.step(run, step - 1)  # as whoever calls it after each batch does
        optimizer.step()
        optimizer.zero_grad()
        modes.append([module.training for module in model.modules()])
        if monitor is not None:
            with torch.autocast("cpu", torch.bfloat16, enabled=setup == "autocast"):
                monitor.step(run, step)
    if monitor is not None:
        monitor.close()
    state = optimizer.state_dict()["state"]
    return {
        "losses": losses,
        "weights": [bits(weight) for weight in model.state_dict().values()],
        "gradients": [weight.grad for weight in model.parameters()],
        "optimizer": [[bits(value) for value in entry.values()] for entry in state.values()],
        "random state": bits(torch.get_rng_state()),
        "modes": [*modes, [module.training for module in model.modules()]],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


@pytest.mark.parametrize("setup", ["plain", "autocast", "accumulated", "partly in eval"])
def test_a_monitored_run_is_bit_for_bit_the_unmonitored_one(setup: Setup) -> None:
    check_undisturbed(setup)


@pytest.mark.slow  # loading dynamo; tests/test_undisturbed.py has the same of a measurement
def test_a_compiled_run_is_bit_for_bit_the_unmonitored_one() -> None:
    check_undisturbed("compiled")


def check_undisturbed(setup: Setup) -> None:
    monitor = make_monitor(writers=[writer := MemoryWriter()], schedule=every(2))
    monitored, alone = train(monitor, setup), train(None, setup)
    assert [name for name in alone if alone[name] != monitored[name]] == []
    assert steps_of(writer.scalars[MEDIAN]) == [0, 2, 4]
    assert len({value for _, value in writer.scalars[MEDIAN]}) == 3


def test_a_failing_monitor_disturbs_as_little() -> None:
    with told() as texts:
        monitored = train(make_monitor(writers=[BrokenWriter()]), "plain")
    assert len(texts) == 2
    assert "off now" in texts[1]
    assert monitored == train(None, "plain")


# Calls -------------------------------------------------------------------------------------------


def test_it_measures_when_the_schedule_says_so_from_step_0_on(
    model: nn.Module, tmp_path: Path
) -> None:
    monitor = make_monitor(tmp_path, schedule=every(3))
    records = [monitor.step(model, step, tokens=100 * step) for step in range(8)]
    monitor.close()
    assert [record.step if record else None for record in records] == [
        *[0, None, None, 3, None, None, 6, None]
    ]
    assert [Record.load(path).tokens for path in list_records(tmp_path)] == [0, 300, 600]
    assert steps_in(tmp_path) == [0, 3, 6]


def test_the_usual_schedule_is_every_500_steps(model: nn.Module) -> None:
    schedule = Monitor(PROMPTS, CONFIG).pace.account.schedule
    assert [step for step in range(1100) if schedule(step)] == [0, 500, 1000]


def test_a_step_is_measured_once(model: nn.Module) -> None:
    writer = MemoryWriter()
    monitor = make_monitor(writers=[writer])
    asked = [0, 0, 1, 1, 1, 0, 2, 1]
    found = [monitor.step(model, step) is not None for step in asked]
    assert found == [True, False, True, False, False, False, True, False]
    assert steps_of(writer.scalars[MEDIAN]) == [0, 1, 2]
    assert monitor.step(model, 2, also=True, last=True) is None


def test_it_can_be_asked_to_measure_also_now(model: nn.Module) -> None:
    monitor = make_monitor(schedule=at([5]))
    assert monitor.step(model, 1) is None
    assert monitor.step(model, 2, also=True) is not None
    assert monitor.step(model, 3, last=True) is not None
    assert monitor.step(model, 5) is not None


def test_measure_does_so_whatever_the_schedule_says(model: nn.Module, tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path, schedule=at([]))
    record = monitor.measure(model, 7, tokens=70)
    assert (record.step, record.tokens) == (7, 70)
    assert steps_in(tmp_path) == [7]
    assert monitor.step(model, 7, also=True) is None


def test_a_measurement_of_the_users_own_does_not_hold_up_the_schedule(model: nn.Module) -> None:
    monitor = make_monitor()
    monitor.measure(model, 0)
    assert monitor.step(model, 1) is not None


def test_the_record_is_what_was_measured_and_how(model: nn.Module, tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path)
    record = monitor.step(model, 0)
    assert record is not None
    assert record.paths.distance.shape == (4, 5)
    assert record.slices is not None
    assert record.slices.distance.shape == (1, 3, 4, 4)
    facts = record.metadata
    assert facts["config"]["num_pairs"] == 4
    assert facts["prompts"] == PROMPTS.fingerprint
    known = [facts[name] for name in ("model", "dtype", "device", "processes", "failures")]
    assert known == ["GPT2LMHeadModel", "float32", "cpu", 1, 0]
    assert facts["seconds"] > 0
    assert Record.load(list_records(tmp_path)[0]).metadata == facts


def test_prompts_are_shown_and_saved_before_anything_is_measured(
    model: nn.Module, tmp_path: Path
) -> None:
    writer = MemoryWriter()
    monitor = make_monitor(tmp_path, writers=[writer], schedule=at([]))
    monitor.start(model, 0)
    monitor.start(model, 0)
    assert steps_of(writer.texts["stable_regions/prompts"]) == [0]  # type: ignore[arg-type]
    assert PromptSet.load(tmp_path / NAME / "prompts.json").fingerprint == PROMPTS.fingerprint
    assert steps_in(tmp_path) == []


def test_closing_draws_what_was_measured_last(model: nn.Module) -> None:
    writer = MemoryWriter()
    monitor = make_monitor(writers=[writer], schedule=at([0, 4, 5]))
    for step in range(6):
        monitor.step(model, step)
    curves = writer.images[PathsProbe.CURVES.name]
    assert [step for step, _ in curves] == [0, 4]
    monitor.close()
    monitor.close()
    assert [step for step, _ in curves] == [0, 4, 5]
    assert writer.closed


def test_the_last_step_is_drawn_at_once(model: nn.Module) -> None:
    writer = MemoryWriter()
    monitor = make_monitor(writers=[writer], schedule=at([0, 4]))
    monitor.step(model, 0)
    monitor.step(model, 4)
    monitor.step(model, 5, last=True)
    assert [step for step, _ in writer.images[PathsProbe.CURVES.name]] == [0, 4, 5]


def test_writers_are_closed_although_nothing_was_measured(tmp_path: Path) -> None:
    writer = MemoryWriter()
    monitor = make_monitor(tmp_path, writers=[writer])
    monitor.close()
    assert writer.closed


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
    if on_error == "raise":
        with pytest.raises(OSError, match="the line is dead"):
            monitor.close()
    else:
        with told() as texts:
            monitor.close()
        assert len(texts) == 1
        assert "closing NeverCloses failed: the line is dead" in texts[0]
    assert [writer.closed for writer in writers] == [True, False, True]
    again = make_monitor(tmp_path)
    assert again.store.name == NAME
    again.close()


def test_two_monitors_on_one_folder_do_not_meet(model: nn.Module, tmp_path: Path) -> None:
    writer = MemoryWriter()
    deeper = MonitorConfig(num_pairs=4, num_steps=5, num_slices=0, layer=2)
    first = make_monitor(tmp_path, writers=[writer])
    with pytest.warns(RuntimeWarning, match=rf"this one takes '{NAME}-2'; .* call its close\(\)"):
        second = make_monitor(tmp_path, config=deeper, writers=[writer], schedule=every(2))
    for step in range(3):
        first.step(model, step)
        second.step(model, step)
    first.close()
    second.close()
    assert steps_in(tmp_path / NAME) == [0, 1, 2]
    assert steps_in(tmp_path / f"{NAME}-2") == [0, 2]
    assert {name.split("/")[0] for name in writer.names} == {NAME, f"{NAME}-2"}
    assert steps_of(writer.scalars[f"{NAME}-2/max_slope/median"]) == [0, 2]
    layers = [
        Record.load(tmp_path / name / "step-000000000.safetensors").metadata["config"]["layer"]
        for name in (NAME, f"{NAME}-2")
    ]
    assert layers == [1, 2]


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": torch.zeros(7, 5)}, r"prompts=tensor\(.*\.\.\.: pass a PromptSet; "),
        ({"prompts": None}, "prompts=None: pass a PromptSet; PromptSet.from_texts and"),
        ({"config": {"num_pairs": 3}}, r"config=\{'num_pairs': 3\}: pass a MonitorConfig$"),
        ({"config": {}}, r"config=\{\}: pass a MonitorConfig$"),
        ({"schedule": 500}, r"schedule=500: pass every\(500\), at\("),
        ({"schedule": 0}, r"schedule=0: pass every\(500\), at\("),
        ({"name": "a/b"}, "name='a/b': pass the name of one folder"),
        ({"log_dir": 5}, "log_dir=5: pass the path of a folder"),
        ({"writers": "runs/1"}, "writers='runs/1': a str is no writer; pass a TensorBoardWriter"),
        ({"writers": ["runs/1"]}, "writers='runs/1': a str is no writer; pass a TensorBoardWriter"),
    ],
)
def test_mistakes_are_told_before_the_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        make_monitor(**changes)
    assert "\n" not in str(caught.value)


def test_a_writer_need_not_be_in_a_list_nor_of_ours(model: nn.Module, tmp_path: Path) -> None:
    one = MemoryWriter()
    with SummaryWriter(str(tmp_path)) as summary:
        for given in (one, summary, (one, summary)):
            monitor = make_monitor(writers=given)
            assert monitor.step(model, 0) is not None
            monitor.close()
    assert steps_of(one.scalars[MEDIAN]) == [0, 0]
    written = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in written.Scalars(MEDIAN)] == [0, 0]


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
    assert 2 <= len(records) < 41
    assert all(record.step % 10 == 0 for record in records)
    spent = schedule.spent_share * wall
    assert spent >= sum(record.metadata["seconds"] for record in records)
    dearest = max(schedule.state_dict()["recent"])
    assert spent - dearest <= 0.01 * wall  # what the last one cost above expectation comes on top


def test_also_and_last_keep_to_the_budget(model: nn.Module) -> None:
    clock = Clock()
    monitor = make_monitor(schedule=budget(0.01, schedule=every(1), clock=clock))
    assert monitor.step(model, 0) is not None
    assert monitor.step(model, 1, also=True) is None
    assert monitor.step(model, 2, last=True) is None
    clock.ahead += 3600
    assert monitor.step(model, 3, also=True) is not None


def test_the_share_is_logged_without_a_budget_too(model: nn.Module) -> None:
    monitor = make_monitor()
    records = [monitor.step(model, step) for step in range(3)]
    shares = [record.scalars[SHARE] for record in records if record is not None]
    assert shares[0] < 0.01  # nothing was spent before the first
    assert all(0.1 < share <= 1 for share in shares[1:])  # this loop does nothing else
    assert monitor.pace.account.spent_share <= 1


def test_steps_to_wait_follow_the_pace_of_the_run(model: nn.Module) -> None:
    clock = Clock()
    schedule = budget(0.5, schedule=every(1), clock=clock)
    monitor = make_monitor(schedule=schedule)
    monitor.start(model, 1000)
    assert monitor.pace.steps_to_wait(1000) == 0
    schedule.spend(100.0)  # another one fits after 2 * (100 + 100) - 100 = 300 seconds
    assert monitor.pace.steps_to_wait(1000) == 1
    clock.ahead += 100.0
    assert monitor.pace.steps_to_wait(1010) == 10  # 20 steps at this pace
    clock.ahead += 100.0
    assert monitor.pace.steps_to_wait(1020) in (9, 10)
    clock.ahead += 100.0
    assert monitor.pace.steps_to_wait(1030) == 0


def test_a_resumed_account_does_not_spoil_the_pace(model: nn.Module) -> None:
    clock = Clock()
    schedule = budget(0.5, schedule=every(1), clock=clock)
    monitor = make_monitor(schedule=schedule)
    account = {"spent": 4000.0, "elapsed": 7000.0, "recent": [1000.0]}
    monitor.load_state_dict({"account": account})
    monitor.start(model, 1000)
    clock.ahead += 100.0
    assert monitor.pace.steps_to_wait(1100) == 100  # of 1900, at a second each


# Resuming ----------------------------------------------------------------------------------------


def run(monitor: Monitor, model: nn.Module, steps: range) -> dict[str, Any]:
    for step in steps:
        monitor.step(model, step)
    state = monitor.state_dict()
    monitor.close()
    return state


def test_a_resumed_run_measures_no_step_twice(model: nn.Module, tmp_path: Path) -> None:
    run(make_monitor(tmp_path, schedule=every(2)), model, range(5))
    before = {path: path.read_bytes() for path in list_records(tmp_path)}
    monitor = make_monitor(tmp_path, schedule=every(2), writers=[writer := MemoryWriter()])
    run(monitor, model, range(4, 7))
    assert steps_of(writer.scalars[MEDIAN]) == [6]
    assert steps_in(tmp_path) == [0, 2, 4, 6]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (tmp_path / NAME / "superseded").exists()


def test_earlier_steps_are_in_the_films_of_a_resumed_run(model: nn.Module, tmp_path: Path) -> None:
    films = []
    for cut in (None, 2):
        folder, writer = tmp_path / str(cut), MemoryWriter()
        if cut is not None:
            run(make_monitor(folder), model, range(cut + 1))
        monitor = make_monitor(folder, writers=[writer])
        run(monitor, model, range(cut or 0, 5))
        films.append(dict(writer.images)[SlicesProbe.FILM.numbered(0).name][-1][1])
    assert (films[0].shape, films[0].tobytes()) == (films[1].shape, films[1].tobytes())


def test_records_of_a_branch_that_was_given_up_are_moved_aside(
    model: nn.Module, tmp_path: Path
) -> None:
    run(make_monitor(tmp_path), model, range(5))
    monitor = make_monitor(tmp_path, schedule=every(10))
    monitor.step(model, 2)
    assert steps_in(tmp_path) == [0, 1, 2]
    assert steps_in(tmp_path / NAME / "superseded") == [3, 4]
    monitor.close()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"prompts": make_prompts(4)}, []),
        ({"config": MonitorConfig(num_pairs=4, num_steps=5, num_slices=1, layer=2)}, []),
        (
            {
                "config": MonitorConfig(
                    num_pairs=4,
                    num_steps=5,
                    num_slices=2,
                    slice_resolution=7,
                    max_tokens=64,
                    engine="plain",
                )
            },
            [0, 1, 2],
        ),
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


def test_steps_that_are_passed_over_are_made_up_for(model: nn.Module) -> None:
    """As where two optimizers count, or where it is called now and then."""
    monitor = make_monitor(None, schedule=at([0, 3, 5, 25, 90]))
    given = [0, 2, 4, 6, 8, 20, 30, 40, 30, 80]
    assert [step for step in given if monitor.step(model, step)] == [0, 4, 6, 30]
    monitor.close()
    tokens = make_monitor(None, schedule=at([7, 4000]))  # steps that are counted in tokens
    assert [step for step in (0, 2000, 4000, 6000) if tokens.step(model, step)] == [4000]
    tokens.close()


def test_a_new_run_at_step_0_leaves_all_behind(model: nn.Module, tmp_path: Path) -> None:
    for times in range(3):
        run(make_monitor(tmp_path), model, range(2))
        folders = sorted(path.name for path in (tmp_path / NAME).glob("superseded*"))
        assert folders == ["superseded", "superseded-2"][:times]
    assert steps_in(tmp_path) == [0, 1]


def test_a_run_that_moved_goes_on_with_its_records(model: nn.Module, tmp_path: Path) -> None:
    state = run(make_monitor(tmp_path / "old"), model, range(4))
    assert state["folder"] == str(tmp_path / "old" / NAME)
    new = JSONLWriter(tmp_path / "new.jsonl")
    monitor = make_monitor(tmp_path / "new", writers=[new], schedule=every(2))
    monitor.load_state_dict(state)
    run(monitor, model, range(2, 5))
    assert steps_in(tmp_path / "new") == [0, 1, 2, 4]
    assert steps_in(tmp_path / "old") == [0, 1, 2, 3]


def test_without_records_the_state_tells_what_was_measured(model: nn.Module) -> None:
    state = run(make_monitor(), model, range(3))
    monitor = make_monitor()
    monitor.load_state_dict(state)
    assert monitor.step(model, 2) is None
    assert monitor.step(model, 3) is not None


def test_the_account_of_time_goes_on(model: nn.Module) -> None:
    clock = Clock()
    schedule = budget(0.01, clock=clock)
    first = make_monitor(schedule=schedule)
    first.step(model, 0)
    monitor = make_monitor(schedule=budget(0.01, clock=clock))
    monitor.load_state_dict(first.state_dict())
    assert monitor.step(model, 1) is None
    clock.ahead += 3600
    assert monitor.step(model, 2) is not None


def test_a_state_is_plain_values(model: nn.Module, tmp_path: Path) -> None:
    state = run(make_monitor(tmp_path), model, range(2))
    assert set(state) == {"schema", "step", "prompts", "account", "folder", "way"}
    assert (state["schema"], state["step"]) == (1, 1)
    assert PromptSet.from_json(state["prompts"]).fingerprint == PROMPTS.fingerprint
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_a_newer_state_is_refused_by_name() -> None:
    monitor = make_monitor()
    for refuse in (check_state, monitor.load_state_dict):
        with pytest.raises(
            InputError, match=r"sr-monitor has schema 2, .* up to schema 1; run: pip"
        ):
            refuse({"schema": 2})


@pytest.mark.parametrize("missing", ["schema", "step", "account", "folder", "way", "all"])
def test_an_older_state_may_lack_anything(model: nn.Module, missing: str) -> None:
    state = make_monitor().state_dict() | {"of a past version": [1]}
    if missing == "all":
        state = {}
    state.pop(missing, None)
    monitor = make_monitor()
    monitor.load_state_dict(state)
    assert monitor.step(model, 3) is not None


def test_an_unreadable_record_is_no_reason_to_stop(model: nn.Module, tmp_path: Path) -> None:
    run(make_monitor(tmp_path), model, range(3))
    (tmp_path / NAME / "step-000000001.safetensors").write_bytes(b"not a record")
    run(make_monitor(tmp_path), model, range(2, 4))
    assert steps_in(tmp_path) == [0, 2, 3]
    assert steps_in(tmp_path / NAME / "superseded") == [1]


# Failures ----------------------------------------------------------------------------------------


class BrokenWriter(MemoryWriter):
    """Fails in everything, as a dead connection does."""

    def scalar(self, name: str, value: float, step: int) -> None:
        raise OSError(errno.EPIPE, "the line is dead")

    def text(self, name: str, markdown: str, step: int) -> None:
        raise OSError(errno.EPIPE, "the line is dead")


def broken_by(error: BaseException, when: Callable[[], bool] = lambda: True) -> nn.Module:
    """A model whose second block fails."""
    model: Any = build("gpt2").model

    def fail(*_: Any) -> None:
        if when():
            raise error

    model.transformer.h[1].register_forward_hook(fail)
    return model  # type: ignore[no-any-return]


def with_nan_weights() -> nn.Module:
    model = build("gpt2").model
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    ("make", "cause", "fix"),
    [
        (
            lambda: broken_by(torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB")),
            "memory ran out (CUDA out of memory. Tried 9 GiB)",
            "pass a smaller max_tokens=",
        ),
        (with_nan_weights, "not one output of 4 pairs is finite", "look at the loss"),
        (lambda: broken_by(ZeroDivisionError("by 0")), "ZeroDivisionError: by 0", ""),
    ],
    ids=["out of memory", "NaN", "any"],
)
def test_what_fails_is_told_counted_and_ends_after_three(
    make: Callable[[], nn.Module], cause: str, fix: str
) -> None:
    writer, model = MemoryWriter(), make()
    monitor = make_monitor(writers=[writer])
    with told() as texts:
        assert [monitor.step(model, step) for step in range(5)] == [None] * 5
    first, last = texts
    assert first.startswith("measuring at step 0 failed: ")
    assert cause in first
    assert fix in first
    assert first.endswith("Training goes on, and sr-monitor tries again")
    assert last.startswith("measuring at step 2 failed, 3 times in a row: ")
    assert last.endswith("sr-monitor is off now; training goes on")
    assert writer.scalars == {FAILURES: [(0, 1.0), (1, 2.0), (2, 3.0)]}


@pytest.mark.parametrize(
    ("name", "changes", "cause"),
    [
        ("gemma3n", {}, "puts out .*; this architecture cannot be measured"),
        ("gpt2", {"prompts": prompts_of(65)}, "prompts of 65 tokens: .*; pass shorter prompts"),
        (
            "gpt2",
            {"prompts": prompts_of(20, vocab=99)},
            "token ids from 0 to 98: .*'s own tokenizer",
        ),
        ("mamba", {"config": replace(CONFIG, engine="rows")}, "engine='rows' .*'plain' or 'auto'"),
    ],
    ids=["unsupported", "too long", "other tokens", "engine"],
)
def test_what_can_never_be_measured_is_told_once_and_ends(
    name: str, changes: dict[str, Any], cause: str
) -> None:
    writer, model = MemoryWriter(), build(name).model
    monitor = make_monitor(writers=[writer], **changes)
    with told() as texts:
        assert [monitor.step(model, step) for step in range(5)] == [None] * 5
        monitor.close()
    (text,) = texts
    assert re.fullmatch(
        rf"measuring at step 0 failed, it cannot work here: .*{cause}\. sr-monitor is off now; "
        "training goes on",
        text,
    )
    assert writer.scalars == {FAILURES: [(0, 1.0)]}


def test_what_can_never_work_is_told_at_the_start_once() -> None:
    writer, model = MemoryWriter(), build("t5").model
    monitor = make_monitor(writers=[writer], schedule=at([4]))
    with told() as texts:
        assert [monitor.step(model, step) for step in range(6)] == [None] * 6
    (text,) = texts
    assert text.startswith("starting sr-monitor failed, it cannot work here: T5ForCond")
    assert "measure a decoder-only (causal) model. sr-monitor is off now" in text
    assert writer.scalars == {FAILURES: [(0, 1.0)]}
    monitor.close()
    assert writer.closed


def test_a_layer_that_is_not_there_is_told_at_the_start(model: nn.Module) -> None:
    monitor = make_monitor(config=MonitorConfig(layer=9), schedule=at([500]), on_error="raise")
    with pytest.raises(InputError, match="layer=9: GPT2LMHeadModel has layers 0"):
        monitor.step(model, 0)


def test_a_success_in_between_begins_a_new_row(model: nn.Module) -> None:
    ill = iter([True, True, False, True, True, False, True, True, True])
    now = {"ill": False}
    sometimes = broken_by(RuntimeError("ill"), when=lambda: now["ill"])
    writer = MemoryWriter()
    monitor = make_monitor(writers=[writer])
    with told() as texts:
        for step, now["ill"] in enumerate(ill):
            monitor.step(sometimes, step)
    assert steps_of(writer.scalars[MEDIAN]) == [2, 5]
    assert dict(writer.scalars[FAILURES]) == {0: 1, 1: 2, 2: 2, 3: 3, 4: 4, 5: 4, 6: 5, 7: 6, 8: 7}
    assert len(texts) == 2
    assert monitor.guard.is_off


@pytest.mark.parametrize("error", [ZeroDivisionError("by 0"), torch.OutOfMemoryError("out")])
def test_the_original_error_is_raised_if_asked_for(error: Exception) -> None:
    monitor = make_monitor(on_error="raise")
    with pytest.raises(type(error)) as caught:
        monitor.step(broken_by(error), 0)
    assert caught.value is error


def test_the_keyboard_interrupts(model: nn.Module) -> None:
    monitor = make_monitor()
    with pytest.raises(KeyboardInterrupt):
        monitor.step(broken_by(KeyboardInterrupt()), 0)
    assert monitor.step(model, 1) is not None


def test_a_failed_step_is_not_tried_twice() -> None:
    calls: list[int] = []

    def count() -> bool:
        calls.append(1)
        return True

    model = broken_by(RuntimeError("ill"), when=count)
    monitor = make_monitor()
    with told():
        monitor.step(model, 0)
        once = len(calls)
        monitor.step(model, 0)
    assert len(calls) == once > 0


def test_records_are_saved_although_the_writers_are_broken(
    model: nn.Module, tmp_path: Path
) -> None:
    good = MemoryWriter()
    monitor = make_monitor(tmp_path, writers=[BrokenWriter(), good])
    with told() as texts:
        for step in range(4):
            monitor.step(model, step)
    assert "showing the prompts failed: WriterError: BrokenWriter could not write" in texts[0]
    assert "the line is dead" in texts[0]
    assert len(texts) == 2
    assert "3 times in a row" in texts[1]
    assert steps_in(tmp_path) == [0, 1]
    assert steps_of(good.scalars[MEDIAN]) == [0, 1]
    assert [count for _, count in good.scalars[FAILURES]] == [1, 1, 2, 2, 3]


def test_writers_show_although_the_folder_cannot_be_written_to(
    model: nn.Module, tmp_path: Path
) -> None:
    writer = MemoryWriter()
    monitor = make_monitor(tmp_path, writers=[writer])
    monitor.step(model, 0)
    shutil.rmtree(tmp_path / NAME)
    (tmp_path / NAME).write_text("a file is in its place")
    with told() as texts:
        monitor.step(model, 1)
    assert len(texts) == 1
    assert texts[0].startswith("measuring at step 1 failed: ")
    assert f"{tmp_path / NAME}" in texts[0]
    assert "pass another log_dir=" in texts[0]
    assert steps_of(writer.scalars[MEDIAN]) == [0, 1]


def test_a_folder_that_can_never_be_made_is_told_at_the_start(
    model: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monitor = make_monitor(tmp_path / "file")
    with told() as texts:
        assert monitor.step(model, 0) is None
    assert len(texts) == 1
    assert f"({tmp_path / 'file' / NAME}); check its permissions, or pass" in texts[0]
    assert "sr-monitor is off now" in texts[0]


def test_a_vanished_folder_comes_back(model: nn.Module, tmp_path: Path) -> None:
    writer = JSONLWriter(tmp_path / "run" / "log.jsonl")
    monitor = make_monitor(tmp_path / "run", writers=[writer])
    monitor.step(model, 0)
    shutil.rmtree(tmp_path / "run")
    assert monitor.step(model, 1) is not None
    assert steps_in(tmp_path / "run") == [1]
    assert (tmp_path / "run" / NAME / "prompts.json").is_file()
    assert (tmp_path / "run" / "log.jsonl").is_file()


_FULL_DISK = """
import resource, sys, warnings
from tests.watch.test_monitor import build, make_monitor, told
from pathlib import Path

folder = Path(sys.argv[1])
monitor, model = make_monitor(folder), build("gpt2").model
assert monitor.step(model, 0) is not None
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file can grow beyond
with told() as texts:
    assert monitor.step(model, 1) is None
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert monitor.step(model, 2) is not None
assert len(texts) == 1, texts
print(texts[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of the size of files are POSIX")
def test_a_full_disk_costs_one_record(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("measuring at step 1 failed: File too large")
    assert "pass another log_dir=" in done.stdout
    assert steps_in(tmp_path) == [0, 2]
    assert not list((tmp_path / NAME).glob(".*"))  # nothing half-written


def test_a_schedule_that_fails_is_a_failure_like_others(model: nn.Module) -> None:
    def schedule(step: int) -> bool:
        raise ZeroDivisionError("by 0")

    typed: Schedule = schedule
    monitor = make_monitor(schedule=typed)
    with told() as texts:
        assert monitor.step(model, 0) is None
    assert "measuring at step 0 failed: ZeroDivisionError" in texts[0]


def test_a_slower_way_is_taken_where_warnings_are_errors(logged_warnings: list[str]) -> None:
    """As they are in these tests."""
    model = build("llama").model

    def refuse(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:
            raise NotImplementedError("masks of four dimensions are not supported")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    record = make_monitor(on_error="raise").step(model, 0)
    assert record is not None
    assert record.paths.engine == "rows"
    (line,) = logged_warnings
    assert "the slower way 'rows' is used instead" in line
    logged_warnings.clear()


def test_another_curve_begins_where_warnings_are_errors(
    model: nn.Module, tmp_path: Path, logged_warnings: list[str]
) -> None:
    run(make_monitor(tmp_path), model, range(3))
    monitor = make_monitor(tmp_path, config=replace(CONFIG, layer=2))
    assert monitor.step(model, 2) is not None
    (line,) = logged_warnings
    assert "was measured in another way: " in line
    logged_warnings.clear()


def test_weights_that_deepspeed_has_taken_apart_are_said_to_be_an_experiment(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It marks them so; what is tried here is the warning, not DeepSpeed."""
    monkeypatch.setattr(next(iter(model.parameters())), "ds_id", 0, raising=False)
    monitor = make_monitor()
    with pytest.warns(RuntimeWarning, match="DeepSpeed ZeRO-3 is experimental"):
        assert monitor.step(model, 0) is not None
    assert monitor.step(model, 500) is not None  # said once


def test_an_experiment_goes_on_where_warnings_are_errors(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, logged_warnings: list[str]
) -> None:
    monkeypatch.setattr(next(iter(model.parameters())), "ds_id", 0, raising=False)
    assert make_monitor().step(model, 0) is not None
    (line,) = logged_warnings
    assert "DeepSpeed ZeRO-3 is experimental" in line
    logged_warnings.clear()
