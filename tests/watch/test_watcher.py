"""What the callbacks of all frameworks hold, called by hand."""

import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from sr_monitor import InputError, PromptSet
from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.jsonl import JSONLWriter
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.results.record import Record, list_records
from sr_monitor.watch.config import WatchOptions
from sr_monitor.watch.watcher import Training, Watcher
from tests.memory_writer import MemoryWriter
from tests.training import event_files
from tests.zoo import VOCAB, build

SMALL: dict[str, Any] = {"num_pairs": 3, "num_steps": 4, "num_slices": 0, "on_error": "raise"}
QUIET = {"every": 1, "writer": []}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("gpt2").model


def prompts(seed: int = 0) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    return PromptSet.from_token_ids(torch.randint(VOCAB, (5, 6), generator=generator))


class Loader:
    """What a framework reads rows of 40 token ids from, or of nothing."""

    def __init__(self, num_rows: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.dataset = torch.randint(VOCAB, (num_rows, 40), generator=generator)


class Framework:
    """What an adapter would know: a training at a step, with or without loggers and data."""

    def __init__(self, watcher: Watcher[WatchOptions], model: nn.Module, folder: Path) -> None:
        self.watcher, self.model, self.folder = watcher, model, folder
        self.asked: list[str] = []
        self.run: object = "one training"
        self.loader: Any = Loader()

    def begin(
        self,
        step: int = 0,
        *,
        batch: Any = None,
        state: Mapping[str, Any] | None = None,
        loggers: Callable[[], list[Writer]] = list,
    ) -> bool:
        def find_state(name: str) -> Mapping[str, Any] | None:
            self.asked.append(name)
            return state

        training = Training(
            model=self.model,
            step=step,
            run=self.run,
            log_dir=self.folder,
            find_writers=loggers,
            find_state=find_state,
            loaders=[self.loader],
        )
        return self.watcher.begin(lambda: training, None if batch is None else [batch])

    def at_step(self, step: int, **options: Any) -> None:
        self.watcher.at_step(self.model, step, **options)

    @property
    def fingerprint(self) -> str:
        assert self.watcher.monitor is not None
        return self.watcher.monitor.prompts.fingerprint

    @property
    def steps(self) -> list[int]:
        found = list_records(self.folder / "stable_regions")
        return [Record.load(path).step for path in found]


Make = Callable[..., Framework]


@pytest.fixture
def make(model: nn.Module, tmp_path: Path) -> Iterator[Make]:
    """Frameworks with a watcher each, which end with the test."""
    made: list[Framework] = []

    def one(folder: Path = tmp_path, **options: Any) -> Framework:
        watcher = Watcher(WatchOptions(**(SMALL | options)))
        made.append(Framework(watcher, model, folder))
        return made[-1]

    yield one
    for framework in made:
        framework.watcher.end()


# ---- beginning and ending ------------------------------------------------------------------------


def test_before_the_beginning_and_after_the_end_nothing_happens(make: Make) -> None:
    framework = make(**QUIET)
    framework.at_step(0)
    framework.watcher.end()
    assert framework.steps == []
    assert framework.begin()
    framework.at_step(0)
    framework.watcher.end()
    framework.watcher.end()
    framework.at_step(1)
    assert framework.steps == [0]


def test_data_that_cannot_be_read_is_waited_for_a_hundred_batches(make: Make) -> None:
    framework = make(**QUIET, num_tokens=6)
    framework.loader = None
    short, good = torch.ones(1, 4).long(), torch.arange(40).view(1, 40)
    assert not framework.begin()
    for _ in range(99):
        framework.at_step(0)
        assert not framework.begin(batch={"input_ids": short[:, :0]})
    assert framework.watcher.is_waiting
    with pytest.raises(InputError, match=r"no token ids were found .* pass prompts=, a PromptSet"):
        framework.begin(batch={"input_ids": short[:, :0]})
    assert not (framework.folder / "stable_regions").exists()
    assert not framework.begin()
    with pytest.raises(InputError, match="no token ids were found"):
        framework.begin(batch={"pixels": torch.ones(1, 4)})  # no later batch would be better
    assert not framework.begin()
    assert not framework.begin(batch={"input_ids": short})
    assert framework.begin(batch={"input_ids": good})
    framework.at_step(0)
    assert framework.steps == [0]  # in the same folder, not in a second one


def test_prompts_are_collected_from_batches_until_there_are_enough(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    stale = make(prompts=prompts(), every=1, writer=[])
    stale.begin()
    stale.at_step(1)
    stale.watcher.end()
    framework = make(every=100, num_tokens=6, num_pairs=5, writer=[])
    framework.loader = None
    rows = torch.arange(60).view(3, 1, 20)  # three prompts each
    assert not framework.begin()
    assert not framework.begin(0, batch={"input_ids": rows[0]})
    framework.at_step(1)
    assert framework.begin(2, batch={"input_ids": rows[1]})
    assert "all 6 prompts are found at step 2; measuring begins" in capfd.readouterr().err
    framework.at_step(2)  # makes up for step 0, which was missed
    framework.at_step(3)
    assert framework.steps == [2]
    assert framework.watcher.monitor is not None
    chosen = framework.watcher.monitor.prompts
    assert chosen.source == "the first 2 batches of the training data"
    assert {int(prompt[0]) // 20 for prompt in chosen.token_ids} == {0, 1}


def test_fewer_prompts_than_asked_for_are_always_told(make: Make) -> None:
    told = r"6 prompts were found, 51 are wanted \(num_pairs=50\).*pass prompts="
    framework = make(every=100, num_tokens=6, num_pairs=50, writer=[])
    framework.loader = None
    assert not framework.begin()
    for step in range(2):
        assert not framework.begin(step, batch={"input_ids": torch.arange(20)[None] + 20 * step})
        framework.at_step(step)
    with pytest.warns(RuntimeWarning, match=told):
        framework.at_step(2, last=True)
    assert framework.steps == [2]
    framework.loader = Loader(1)
    with pytest.warns(RuntimeWarning, match=told):
        framework.begin()


def test_a_training_that_was_interrupted_gives_up_its_folder(make: Make) -> None:
    before, after, beside = (make(**QUIET) for _ in range(3))
    before.begin()  # and is never heard of again, though something still holds it
    after.run = beside.run = "another training"
    after.begin()
    beside.begin()
    assert [after.asked, beside.asked] == [["stable_regions"], ["stable_regions-2"]]
    before.watcher.end()  # the folder stays with whom it has gone to
    before.run = after.run
    before.begin()
    assert before.asked == ["stable_regions", "stable_regions-3"]


def test_a_framework_that_fails_does_not_fail_the_training(make: Make) -> None:
    def loggers() -> list[Writer]:
        raise RuntimeError("the logger is offline")

    framework = make(every=1, on_error="warn")
    with pytest.warns(RuntimeWarning, match="the logger is offline.*training goes on"):
        assert framework.begin(loggers=loggers)
    framework.at_step(0)
    assert framework.steps == []


# ---- prompts -------------------------------------------------------------------------------------


def test_prompts_are_given_as_a_set_or_as_its_file(make: Make, tmp_path: Path) -> None:
    prompts(seed=3).save(tmp_path / "prompts.json")
    for given in (prompts(seed=3), str(tmp_path / "prompts.json")):
        framework = make(prompts=given, writer=[])
        framework.loader = "nothing to look at"
        framework.begin()
        assert framework.fingerprint == prompts(seed=3).fingerprint
        framework.watcher.end()
    with pytest.raises(InputError, match=r"nowhere\.json"):
        make(prompts="nowhere.json").begin()


def test_a_resumed_run_keeps_its_prompts(make: Make) -> None:
    framework = make(**QUIET)
    framework.begin()
    framework.at_step(0)
    framework.at_step(2)
    assert framework.watcher.monitor is not None
    state, chosen = framework.watcher.monitor.state_dict(), framework.fingerprint
    framework.loader = Loader(seed=1)
    for known in (state, {}, None):  # in the state, or else beside the records
        framework.begin(2, state=known)
        assert framework.fingerprint == chosen
        assert framework.steps == [0, 2]
    framework.begin()  # a new run in the same folder
    assert framework.fingerprint != chosen


def test_prompts_that_are_given_on_resume_count(make: Make) -> None:
    framework = make(**QUIET, prompts=prompts())
    framework.begin()
    framework.at_step(2)
    framework.begin(2)  # the same prompts: a warning would be an error
    framework.watcher.end()
    other = make(**QUIET, prompts=prompts(seed=9))
    with pytest.warns(RuntimeWarning, match=f"{prompts().fingerprint}.*{prompts(9).fingerprint}"):
        other.begin(2)
    assert other.steps == []


# ---- writers -------------------------------------------------------------------------------------


def test_the_users_writers_come_first_then_the_frameworks(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    users, frameworks, lines = MemoryWriter(), MemoryWriter(), JSONLWriter(tmp_path / "log.jsonl")
    with SummaryWriter(str(tmp_path / "tb")) as summary:
        framework = make(writer=[users, lines, summary])
        framework.begin(loggers=lambda: pytest.fail("the framework's are not asked for"))
        assert framework.watcher.monitor is not None
        kinds = [type(writer) for writer in framework.watcher.monitor.writers]
        framework.at_step(0)
        framework.watcher.end()
    assert kinds == [MemoryWriter, JSONLWriter, TensorBoardWriter]
    assert PathsProbe.WIDTH.name in (tmp_path / "log.jsonl").read_text()
    second = make(tmp_path / "second")
    second.begin(loggers=lambda: [frameworks])
    second.at_step(0)
    for memory in (users, frameworks):
        assert [step for step, _ in memory.scalars[PathsProbe.WIDTH.name]] == [0]
    assert event_files(tmp_path / "second") == []
    assert capfd.readouterr().err == ""


def test_a_run_of_our_own_is_announced_with_a_command_that_works(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's my run"
    framework = make(folder)
    framework.begin()
    said = capfd.readouterr().err
    assert said.startswith(f"sr-monitor: results in {folder / 'stable_regions'}; ")
    command = shlex.split(said.partition("to watch: ")[2])
    assert command == ["tensorboard", "--logdir", str(folder)]
    framework.at_step(0)
    assert len(list((folder / "stable_regions").glob("events.out.tfevents.*"))) == 1


def test_where_logging_shows_it_the_announcement_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="sr_monitor"):
        make().begin()
    (line,) = (record.getMessage() for record in caplog.records if record.name == "sr_monitor")
    assert line.startswith("results in ")
    assert "results in" not in capfd.readouterr().err


def test_without_tensorboard_there_are_lines(
    make: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    framework = make(every=1)
    framework.begin()
    assert "for TensorBoard: pip install 'sr-monitor[tensorboard]'" in capfd.readouterr().err
    for step in (0, 2, 3):
        framework.at_step(step)
    framework.begin(2)  # resumed: what comes again is not there twice
    framework.at_step(3)
    framework.watcher.end()
    lines = (framework.folder / "stable_regions" / "log.jsonl").read_text().splitlines()
    of_width = [line.partition(",")[0] for line in lines if f'"{PathsProbe.WIDTH.name}"' in line]
    assert of_width == ['{"step": 0', '{"step": 2', '{"step": 3']


def test_log_dir_and_name_are_the_users(make: Make, tmp_path: Path) -> None:
    memory, elsewhere = MemoryWriter(), tmp_path / "elsewhere"
    framework = make(tmp_path / "run", log_dir=elsewhere, name="second_half", writer=memory)
    framework.begin()
    framework.at_step(0)
    assert framework.asked == ["second_half"]
    assert len(list_records(elsewhere / "second_half")) == 1
    assert not (tmp_path / "run").exists()
    assert all(name.startswith("second_half") for name in memory.names)


# ---- steps ---------------------------------------------------------------------------------------


def test_also_wanted_and_last_measure_outside_the_schedule(make: Make) -> None:
    framework = make(every=10, writer=[])
    framework.begin()
    for step in range(5):
        framework.watcher.wanted = step == 1
        framework.at_step(step, also=step == 2, last=step == 4, tokens=100 * step)
        assert not framework.watcher.wanted
    assert framework.steps == [0, 1, 2, 4]
    records = map(Record.load, list_records(framework.folder))
    assert [record.tokens for record in records] == [0, 100, 200, 400]
