"""New checkpoints are measured once they are whole, and each once, while a training goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay import Report, replay
from tests.hub_server import hub_server
from tests.replays import FEW, checkpoints, olmo_files, some_prompts, steps_in, talk_to, what_is_in

OPTIONS: dict[str, Any] = {**FEW, "prompts": some_prompts(), "follow": True}


class Training:
    """What happens between one look and the next, in place of the time that passes."""

    def __init__(self, *moments: Callable[[], object]) -> None:
        self.moments = list(moments)

    def __call__(self, seconds: float) -> None:
        assert seconds == 30
        if not self.moments:
            raise KeyboardInterrupt
        self.moments.pop(0)()


def nothing() -> None:
    pass


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*moments: Callable[[], object]) -> None:
        monkeypatch.setattr("sr_monitor.replay.follow.time.sleep", Training(*moments))

    return use


def follow(source: Path | str, out: Path, **options: Any) -> Report:
    return replay([source], out, **(OPTIONS | options))


def test_checkpoints_are_measured_as_they_come_and_never_half(
    tmp_path: Path, during: Callable[..., None]
) -> None:
    run, out, seen = tmp_path / "run", tmp_path / "out", []
    run.mkdir()
    weights = run / "checkpoint-2" / "model.safetensors"

    def begin_the_second() -> None:
        checkpoints(run, 2)
        weights.write_bytes(olmo_files(2)["model.safetensors"][:5000])

    def look() -> None:
        seen.append(steps_in(out) if out.exists() else [])

    def finish_the_second() -> None:
        look()
        weights.write_bytes(olmo_files(2)["model.safetensors"])

    during(lambda: checkpoints(run, 1), nothing, begin_the_second, finish_the_second, look, look)
    report = follow(run, out)
    assert seen == [[1], [1], [1, 2]]
    assert [Path(label).name for label in report.measured] == ["checkpoint-1", "checkpoint-2"]
    assert (report.failures, report.kept) == ({}, [])
    still: dict[str, Any] = OPTIONS | {"follow": False}
    replay([run], tmp_path / "whole", **still)
    assert what_is_in(out) == what_is_in(tmp_path / "whole")


def test_what_failed_is_tried_again_once_its_files_change(
    tmp_path: Path, during: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    run, out = checkpoints(tmp_path / "run", 1, 2), tmp_path / "out"
    weights = run / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(b"stalled in the middle")

    def go_on() -> None:
        assert len([r for r in caplog.records if "is damaged" in r.getMessage()]) == 1
        weights.write_bytes(olmo_files(2)["model.safetensors"])

    during(nothing, nothing, nothing, go_on, nothing)
    report = follow(run, out, until=2)
    assert (steps_in(out), [*report.failures]) == ([1], [str(weights.parent)])
    caplog.clear()
    report = follow(run, out)
    assert steps_in(out) == [1, 2]
    assert (len(report.measured), len(report.kept), report.failures) == (1, 1, {})


def test_it_ends_at_a_step_and_a_training_may_delete_its_checkpoints(
    tmp_path: Path, during: Callable[..., None]
) -> None:
    run, out = checkpoints(tmp_path / "run", 1), tmp_path / "out"

    def replace_the_first() -> None:
        shutil.rmtree(run / "checkpoint-1")
        checkpoints(run, 2, 3)

    during(nothing, replace_the_first, nothing, lambda: pytest.fail("it went on"))
    assert len(follow(run, out, until=3).measured) == 3
    assert steps_in(out) == [1, 2, 3]


def test_commits_are_followed(
    tmp_path: Path, during: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    repos = {"lab/run": {"main": {}, ".a": olmo_files(1), ".b": olmo_files(2)}}
    with hub_server(repos) as server:
        talk_to(server, monkeypatch, tmp_path / "home")
        titles = [(f"Training in progress, step {n}", name) for n, name in ((2, ".b"), (1, ".a"))]
        server.titles["lab/run"] = []

        def push() -> None:
            server.titles["lab/run"] = titles[-1 - len(server.titles["lab/run"]) :]

        during(push, push, nothing)
        report = follow("lab/run@commits", tmp_path / "out")
    assert report.measured == ["lab/run@step1", "lab/run@step2"]
    assert steps_in(tmp_path / "out") == [1, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"follow": False, "until": 3}, "until=3 ends what follow=True begins; pass that, too"),
        ({"num": 3}, "follow=True measures every checkpoint as it comes, and num=3"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        follow(tmp_path, tmp_path / "out", **options)
    with pytest.raises(InputError, match="there is no folder"):
        follow(tmp_path / "nowhere", tmp_path / "out")
