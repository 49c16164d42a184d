"""What the callbacks of all frameworks have in common, called by hand."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from sr_monitor import InputError, PromptSet, at
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.memory import MemoryWriter
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.probes import keys
from sr_monitor.results.record import Record, list_records
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.watcher import CallbackCore
from tests.zoo import VOCAB, build

SMALL: dict[str, Any] = {"num_pairs": 3, "num_steps": 4, "num_slices": 0, "on_error": "raise"}
ANY_CONFIG: dict[str, Any] = {
    "num_pairs": 7,
    "num_steps": 9,
    "num_slices": 2,
    "slice_resolution": 6,
    "layer": 2,
    "sampling": "adaptive",
    "output": "resid_final",
    "precision": "float32",
    "engine": "plain",
    "layer_path": "transformer.h",
    "max_tokens": 77,
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("gpt2").model


def prompts(seed: int = 0) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    return PromptSet.from_token_ids(torch.randint(VOCAB, (5, 6), generator=generator))


class Framework:
    """What an adapter would know: a training at a step, with or without loggers and data."""

    def __init__(self, core: CallbackCore, model: nn.Module, folder: Path) -> None:
        self.core, self.model, self.folder = core, model, folder
        self.asked: list[str] = []
        self.run: object = "one training"
        self.batches = [prompts()]

    def begin(
        self,
        step: int = 0,
        *,
        state: Mapping[str, Any] | None = None,
        loggers: Callable[[], list[Writer]] = list,
        is_last_chance: bool = False,
    ) -> bool:
        def sample() -> PromptSet | None:
            return self.batches.pop() if self.batches else None

        def find_state(name: str) -> Mapping[str, Any] | None:
            self.asked.append(name)
            return state

        return self.core.begin(
            self.model,
            step,
            run=self.run,
            log_dir=self.folder,
            find_writers=loggers,
            sample=sample,
            find_state=find_state,
            is_last_chance=is_last_chance,
        )

    def at_step(self, step: int, **options: Any) -> None:
        self.core.at_step(self.model, step, **options)

    @property
    def steps(self) -> list[int]:
        found = list_records(self.folder / "stable_regions")
        return [Record.load(path).step for path in found]


@pytest.fixture
def make(model: nn.Module, tmp_path: Path) -> Iterator[Callable[..., Framework]]:
    """Frameworks with a callback each, which end with the test."""
    made: list[Framework] = []

    def one(folder: Path = tmp_path, **options: Any) -> Framework:
        made.append(Framework(CallbackCore(**(SMALL | options)), model, folder))
        return made[-1]

    yield one
    for framework in made:
        framework.core.end()


# ---- options -------------------------------------------------------------------------------------


def test_options_reach_the_measurement() -> None:
    assert CallbackCore(**ANY_CONFIG).config == MonitorConfig(**ANY_CONFIG)


def test_defaults_are_those_of_a_measurement() -> None:
    core = CallbackCore()
    assert core.config == MonitorConfig()
    assert [step for step in range(1001) if core.schedule(step)] == [0, 500, 1000]


def test_every_is_a_number_and_schedule_comes_before_it() -> None:
    assert [step for step in range(9) if CallbackCore(every=3).schedule(step)] == [0, 3, 6]
    both = CallbackCore(every=3, schedule=at([5]))
    assert [step for step in range(9) if both.schedule(step)] == [5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0: pass 1 or more"),
        ({"every": 0, "schedule": at([1])}, "every=0: pass 1 or more"),
        ({"every": "5"}, "every='5': pass a whole number"),
        ({"schedule": 500}, r"schedule=500: pass every\(500\), at\("),
        ({"schedule": [0, 2]}, r"schedule=\[0, 2\]: pass every\(500\), at\("),
        ({"prompts": 500}, r"prompts=500: pass a PromptSet, the file of .* said by every="),
        ({"prompts": ["a b", "c d"]}, r"prompts=\['a b', 'c d'\]: pass a PromptSet"),
        ({"num_tokens": 1}, "num_tokens=1: pass 2 or more"),
        ({"seed": None}, "seed=None: pass a whole number"),
        ({"name": None}, "name=None: pass the name of one folder"),
        ({"name": "a/b"}, "name='a/b': pass the name of one folder"),
        ({"name": ""}, "name='': pass the name of one folder"),
        ({"log_dir": 5}, "log_dir=5: pass the path of a folder"),
        ({"writer": "runs/1"}, "writer='runs/1': a str is no writer; pass a TensorBoardWriter"),
        ({"writer": [MemoryWriter(), 5]}, "writer=5: a int is no writer"),
        ({"writer": MemoryWriter}, "writer=<class .*: a type is no writer; pass"),
        ({"num_pairs": 0}, "num_pairs=0: pass 1 or more"),
        ({"engine": "x"}, "engine='x': pass one of auto"),
    ],
)
@pytest.mark.usefixtures("_as_users_run_it")
def test_mistakes_are_told_before_the_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        CallbackCore(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_as_users_run_it")
def test_numbers_of_numpy_are_numbers() -> None:
    three: Any = np.int64(3)
    core = CallbackCore(every=three, num_pairs=three, num_tokens=three, seed=three)
    assert [step for step in range(9) if core.schedule(step)] == [0, 3, 6]
    assert {type(n) for n in (core.config.num_pairs, core.num_tokens, core.seed)} == {int}


# ---- beginning and ending ------------------------------------------------------------------------


def test_before_the_beginning_and_after_the_end_nothing_happens(
    make: Callable[..., Framework],
) -> None:
    framework = make(every=1, writer=[])
    framework.at_step(0)
    framework.core.end()
    assert framework.steps == []
    assert framework.begin()
    framework.at_step(0)
    framework.core.end()
    framework.core.end()
    framework.at_step(1)
    assert framework.steps == [0]


def test_without_prompts_it_begins_again_with_a_batch(make: Callable[..., Framework]) -> None:
    framework = make(every=1, writer=[])
    framework.batches.clear()
    assert not framework.begin()
    framework.at_step(0)
    assert framework.steps == []
    framework.batches.append(prompts())
    assert framework.begin(is_last_chance=True)
    framework.at_step(0)
    assert framework.steps == [0]  # in the same folder, not in a second one


def test_without_prompts_at_the_last_chance_it_says_what_to_pass(
    make: Callable[..., Framework],
) -> None:
    framework = make(on_error="warn")
    framework.batches.clear()
    with pytest.warns(RuntimeWarning, match="no token ids were found .* pass prompts=, a Prompt"):
        assert framework.begin(is_last_chance=True)
    framework.at_step(0)
    assert framework.steps == []
    assert not (framework.folder / "stable_regions").exists()


def test_batches_are_waited_for_but_not_for_ever() -> None:
    options: dict[str, Any] = SMALL | {"num_tokens": 6}
    core = CallbackCore(**options)
    assert core.sample(None, None, None) is None
    for number in range(99):
        assert not core.is_last_chance({"input_ids": torch.ones(1, 4).long()}), number
        core.sample({"input_ids": torch.ones(1, 0).long()}, None, None)
    assert core.is_last_chance({"input_ids": torch.ones(1, 4).long()})
    core.sample(None, None, None)  # another training
    assert not core.is_last_chance({"input_ids": torch.ones(1, 4).long()})
    assert core.is_last_chance({"pixels": torch.ones(1, 4)})
    assert not core.is_last_chance(None)


def test_a_second_training_begins_in_the_same_folder(make: Callable[..., Framework]) -> None:
    framework = make(every=1, writer=[])
    framework.begin()
    framework.at_step(0)
    framework.batches.append(prompts(seed=1))
    framework.begin()
    framework.at_step(0)
    assert framework.asked == ["stable_regions", "stable_regions"]
    record = Record.load(list_records(framework.folder)[0])
    assert record.metadata["prompts"] == prompts(seed=1).fingerprint


def test_callbacks_at_the_same_time_have_folders_of_their_own(
    make: Callable[..., Framework],
) -> None:
    first, second = make(every=1, writer=[]), make(every=1, writer=[])
    first.begin()
    second.begin()
    second.at_step(0)
    assert second.asked == ["stable_regions-2"]
    assert first.steps == []
    assert len(list_records(first.folder / "stable_regions-2")) == 1
    first.core.end()
    second.batches.append(prompts())
    second.begin()  # the folder is free again
    assert second.asked == ["stable_regions-2", "stable_regions"]


def test_a_training_that_was_interrupted_gives_up_its_folder(
    make: Callable[..., Framework],
) -> None:
    before, after, beside = (make(every=1, writer=[]) for _ in range(3))
    before.begin()  # and is never heard of again, though something still holds it
    after.run = beside.run = "another training"
    after.begin()
    beside.begin()
    assert [after.asked, beside.asked] == [["stable_regions"], ["stable_regions-2"]]
    before.core.end()  # the folder stays with whom it has gone to
    before.batches.append(prompts())
    before.run = after.run
    before.begin()
    assert before.asked == ["stable_regions", "stable_regions-3"]


def test_after_an_error_that_was_raised_the_folder_is_free(make: Callable[..., Framework]) -> None:
    wrong = make(layer=99)
    with pytest.raises(InputError, match="layer=99"):
        wrong.begin()
    right = make(every=1, writer=[])
    right.begin()
    right.at_step(0)
    assert right.steps == [0]


def test_what_is_wrong_is_told_once_and_nothing_is_measured(make: Callable[..., Framework]) -> None:
    wrong = make(layer=99, every=1, on_error="warn", writer=[])
    with pytest.warns(RuntimeWarning, match="layer=99: .*sr-monitor is off now") as told:
        assert wrong.begin()
    assert len(told) == 1
    for step in range(3):
        wrong.at_step(step)  # another warning would be an error
    wrong.core.end()
    assert wrong.steps == []


def test_a_framework_that_fails_does_not_fail_the_training(make: Callable[..., Framework]) -> None:
    def loggers() -> list[Writer]:
        raise RuntimeError("the logger is offline")

    framework = make(every=1, on_error="warn")
    with pytest.warns(RuntimeWarning, match="the logger is offline.*training goes on"):
        assert framework.begin(loggers=loggers)
    framework.at_step(0)
    assert framework.steps == []


# ---- prompts -------------------------------------------------------------------------------------


def test_prompts_are_given_as_a_set_or_as_its_file(
    make: Callable[..., Framework], tmp_path: Path
) -> None:
    prompts(seed=3).save(tmp_path / "prompts.json")
    for given in (prompts(seed=3), tmp_path / "prompts.json", str(tmp_path / "prompts.json")):
        framework = make(prompts=given, writer=[])
        framework.begin()
        assert framework.core.monitor is not None
        assert framework.core.monitor.prompts.fingerprint == prompts(seed=3).fingerprint
        assert len(framework.batches) == 1  # the data was not looked at
        framework.core.end()


def test_a_file_of_prompts_that_is_not_there_is_named(make: Callable[..., Framework]) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        make(prompts="nowhere.json").begin()


def test_a_resumed_run_keeps_its_prompts(make: Callable[..., Framework]) -> None:
    framework = make(every=1, writer=[])
    framework.begin()
    framework.at_step(0)
    framework.at_step(2)
    assert framework.core.monitor is not None
    state = framework.core.monitor.state_dict()
    for known in (state, {}, None):  # in the state, or else beside the records
        framework.batches = [prompts(seed=1)]
        framework.begin(2, state=known)
        assert framework.core.monitor.prompts.fingerprint == prompts().fingerprint
        assert len(framework.batches) == 1
        assert framework.steps == [0, 2]


def test_other_prompts_on_resume_begin_a_new_curve_and_say_so(
    make: Callable[..., Framework],
) -> None:
    first = make(every=1, writer=[])
    first.begin()
    first.at_step(2)
    first.core.end()
    other = make(every=1, writer=[], prompts=prompts(seed=9))
    with pytest.warns(RuntimeWarning, match=f"{prompts().fingerprint}.*{prompts(9).fingerprint}"):
        other.begin(2)
    other.at_step(2)
    assert other.steps == [2]
    aside = other.folder / "stable_regions" / "superseded"
    assert PromptSet.load(aside / "prompts.json").fingerprint == prompts().fingerprint
    assert len(list_records(aside)) == 1


def test_the_same_prompts_on_resume_are_no_news(make: Callable[..., Framework]) -> None:
    first = make(every=1, writer=[])
    first.begin()
    first.at_step(2)
    first.core.end()
    same = make(every=1, writer=[], prompts=prompts())
    same.begin(2)  # a warning would be an error
    assert same.steps == [2]


def test_a_newer_state_is_refused_before_anything_is_moved(make: Callable[..., Framework]) -> None:
    first = make(every=1, writer=[])
    first.begin()
    first.at_step(2)
    first.core.end()
    framework = make(every=1, writer=[])
    with pytest.raises(InputError, match="schema 2, this version reads up to schema 1; run: pip"):
        framework.begin(2, state={"schema": 2})
    assert framework.steps == [2]


# ---- writers -------------------------------------------------------------------------------------


def test_the_users_writers_come_first(make: Callable[..., Framework], tmp_path: Path) -> None:
    memory, lines = MemoryWriter(), JSONLWriter(tmp_path / "log.jsonl")
    with SummaryWriter(str(tmp_path / "tb")) as summary:
        framework = make(writer=[memory, lines, summary])
        framework.begin(loggers=lambda: pytest.fail("the framework's are not asked for"))
        framework.at_step(0)
        assert framework.core.monitor is not None
        kinds = [type(writer) for writer in framework.core.monitor.writers]
    assert kinds == [MemoryWriter, JSONLWriter, TensorBoardWriter]
    assert [step for step, _ in memory.scalars[keys.WIDTH.name]] == [0]
    assert keys.WIDTH.name in (tmp_path / "log.jsonl").read_text()


def test_one_writer_need_not_be_in_a_list(make: Callable[..., Framework]) -> None:
    memory = MemoryWriter()
    framework = make(writer=memory)
    framework.begin()
    framework.at_step(0)
    framework.core.end()
    assert memory.closed
    assert keys.CURVES.name in memory.images


def test_the_frameworks_writers_are_used(
    make: Callable[..., Framework], capfd: pytest.CaptureFixture[str]
) -> None:
    memory = MemoryWriter()
    framework = make()
    framework.begin(loggers=lambda: [memory])
    framework.at_step(0)
    assert keys.WIDTH.name in memory.scalars
    assert list(framework.folder.rglob("events.out.tfevents.*")) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["run", "my run", "it's"])
def test_a_run_of_our_own_is_announced_with_a_command_that_works(
    make: Callable[..., Framework], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    framework = make(tmp_path / name)
    framework.begin()
    said = capfd.readouterr().err
    assert said.startswith(f"sr-monitor: results in {tmp_path / name / 'stable_regions'}; ")
    command = shlex.split(said.partition("to watch: ")[2])
    assert command == ["tensorboard", "--logdir", str(tmp_path / name)]
    framework.at_step(0)
    assert len(list((tmp_path / name / "stable_regions").glob("events.out.tfevents.*"))) == 1


def test_without_tensorboard_there_are_lines(
    make: Callable[..., Framework],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    framework = make(every=1)
    framework.begin()
    assert "for TensorBoard: pip install 'sr-monitor[tensorboard]'" in capfd.readouterr().err
    framework.at_step(0)
    framework.at_step(2)
    framework.at_step(3)
    framework.begin(2)  # resumed: what comes again is not there twice
    framework.at_step(3)
    framework.core.end()
    lines = (framework.folder / "stable_regions" / "log.jsonl").read_text().splitlines()
    of_width = [line for line in lines if f'"{keys.WIDTH.name}"' in line]
    assert [line.partition(",")[0] for line in of_width] == [
        '{"step": 0',
        '{"step": 2',
        '{"step": 3',
    ]


def test_log_dir_and_name_are_the_users(make: Callable[..., Framework], tmp_path: Path) -> None:
    memory = MemoryWriter()
    elsewhere = tmp_path / "elsewhere"
    framework = make(tmp_path / "run", log_dir=elsewhere, name="second_half", writer=memory)
    framework.begin()
    framework.at_step(0)
    assert framework.asked == ["second_half"]
    assert len(list_records(elsewhere / "second_half")) == 1
    assert not (tmp_path / "run").exists()
    assert all(name.startswith("second_half/") for name in memory.names)


# ---- steps ---------------------------------------------------------------------------------------


def test_also_and_last_measure_outside_the_schedule(make: Callable[..., Framework]) -> None:
    framework = make(every=10, writer=[])
    framework.begin()
    for step in range(4):
        framework.at_step(step, also=step == 2, last=step == 3, tokens=100 * step)
    assert framework.steps == [0, 2, 3]
    records = map(Record.load, list_records(framework.folder))
    assert [record.tokens for record in records] == [0, 200, 300]
