"""The run over checkpoints: equal to the live run, complete, and nothing lost when it is killed."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import takewhile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_monitor import MonitorConfig, PromptSet, Record, measure_paths
from sr_monitor.errors import InputError
from sr_monitor.model.loading import load_model, load_tokenizer
from sr_monitor.replay import Report, replay
from sr_monitor.results.record import list_records
from tests import lightning_runs, training
from tests.hub_server import Fault, HubServer, Repos, hub_server
from tests.outside_probe import Norms, Steepness
from tests.replays import (
    FEW,
    OLMO,
    STEPS,
    checkpoints,
    measured,
    numbers,
    olmo_files,
    olmo_repo,
    put,
    some_prompts,
    steps_in,
    talk_to,
    tokenizer_files,
    what_is_in,
)
from tests.trained import save_folder, tiny_model
from tests.zoo import VOCAB, build

TWIN = "step4000-tokens8B"
QWENS: tuple[str, ...] = ("Qwen/Qwen2-0.5B", "Qwen/Qwen2-1.5B")


def run(*sources: str | Path, out: Path, **options: Any) -> Report:
    everything: dict[str, Any] = FEW | {"prompts": some_prompts()} | options
    return replay([str(source) for source in sources], out, **everything)


def records_in(out: Path) -> list[Record]:
    return [Record.load(path) for path in list_records(out)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server(olmo_repo()) as server:
        talk_to(server, monkeypatch, tmp_path / "home")
        yield server


def weights_there(tmp_path: Path) -> list[str]:
    """The revisions whose weights are on the disk, by their commits."""
    private = tmp_path.glob("*/.downloads/*/*/*.safetensors")
    found = [*private, *(tmp_path / "home").rglob("snapshots/*/*.safetensors")]
    return sorted({path.parent.name for path in found})


def weights_of(hub: HubServer, name: str) -> str:
    """What its weights are stored under."""
    found = hub.repos[OLMO][name].files["model.safetensors"]
    return f"{OLMO}/model.safetensors/{sha256(found).hexdigest()}"


def downloads(hub: HubServer, *names: str) -> int:
    """How often the weights of these revisions were downloaded."""
    return sum(hub.count(f"GET /{weights_of(hub, name)}") for name in names)


# Equal to the live run


def assert_equal_to_live(live: list[Record], out: Path, steps: list[int]) -> None:
    again = {record.step: record for record in records_in(out)}
    assert sorted(again) == steps
    for record in live:
        if record.step in again:
            assert measured(again[record.step]) == measured(record)
            assert again[record.step].metadata["prompts"] == record.metadata["prompts"]
    assert {record.step for record in live} >= set(again)


def live_run(folder: Path, save_steps: int = 2, **options: Any) -> list[Record]:
    """Train with checkpoints, watched at every second step."""
    watch = training.watch(every=2, num_pairs=4, num_steps=5, **options)
    training.train(folder, watch, save_strategy="steps", save_steps=save_steps)
    return list(training.records(folder).values())


def test_a_replay_over_its_own_checkpoints_is_equal_to_a_live_run(tmp_path: Path) -> None:
    config: dict[str, Any] = {"num_slices": 2, "slice_resolution": 4}
    live = live_run(tmp_path / "live", **config)
    config |= {"num_pairs": 4, "num_steps": 5, "device": "cpu"}
    replay([f"{tmp_path}/live"], tmp_path / "out", **config)
    assert_equal_to_live(live, tmp_path / "out", [2, 4, 6])
    slopes = {record.paths.max_slope.sum().item() for record in live}
    assert len(slopes) == 4, "the model did not change"
    # Also over a single checkpoint.
    replay([f"{tmp_path}/live/checkpoint-4"], tmp_path / "one", **config)
    assert_equal_to_live(live, tmp_path / "one", [4])


def test_a_replay_takes_no_faster_way_than_its_live_run(tmp_path: Path) -> None:
    live = live_run(tmp_path / "live", num_slices=0, engine="rows")
    config: dict[str, Any] = {"num_pairs": 4, "num_steps": 5, "num_slices": 0, "device": "cpu"}
    replay([tmp_path / "live"], tmp_path / "out", **config)
    assert_equal_to_live(live, tmp_path / "out", [2, 4, 6])
    replay([tmp_path / "live"], tmp_path / "other", **config, layer=2)
    assert {record.paths.engine for record in records_in(tmp_path / "other")} == {"shared"}


def test_a_curve_takes_no_faster_way_than_its_earlier_steps(tmp_path: Path) -> None:
    run(checkpoints(tmp_path / "run", 2), out=tmp_path / "out", config=MonitorConfig(engine="rows"))
    run(checkpoints(tmp_path / "run", 1, 3), out=tmp_path / "out")
    ways = [record.paths.engine for record in records_in(tmp_path / "out")]
    assert ways == ["shared", "rows", "rows"]


# Lightning gives advice, and uses what torch has since renamed.
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
def test_so_is_one_over_checkpoints_of_lightning(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    watch = lightning_runs.small(writer=[], log_dir=tmp_path)
    lightning_runs.train(tmp_path, [saver, watch], enable_checkpointing=True)
    save_folder(build("gpt2").model, tmp_path / "base")
    with pytest.raises(InputError, match=r"does not say which architecture .* --base NAME"):
        replay([f"{tmp_path}/checkpoints"], tmp_path / "out", device="cpu", **lightning_runs.SMALL)
    assert not (tmp_path / "out").exists()
    replay(
        [str(tmp_path / "checkpoints")],
        tmp_path / "out",
        base=str(tmp_path / "base"),
        device="cpu",
        **lightning_runs.SMALL,
    )
    assert_equal_to_live(lightning_runs.records_in(tmp_path), tmp_path / "out", [2, 4])


def test_numbers_are_those_of_a_plain_measurement(tmp_path: Path) -> None:
    """By another way to load: `from_pretrained`, one model for each checkpoint."""
    checkpoints(tmp_path / "run", 1, 2)
    prompts = some_prompts()
    run(tmp_path / "run", out=tmp_path / "out", prompts=prompts, layer=2)
    for record in records_in(tmp_path / "out"):
        model = load_model(str(tmp_path / "run" / f"checkpoint-{record.step}"), device="cpu")
        paths = measure_paths(model, *prompts.pairs(3), layer=2, num_steps=4)
        torch.testing.assert_close(record.paths.distance, paths.distance, rtol=1e-5, atol=1e-7)
        assert record.metadata["source"] == str(tmp_path / "run" / f"checkpoint-{record.step}")
        assert record.metadata["parameters"] == sum(w.numel() for w in model.parameters())
        assert record.metadata["x_axis"] == "step"
        assert record.metadata["prompts"] == prompts.fingerprint


# Prompts


def test_prompts_are_drawn_once_for_all_steps(tmp_path: Path) -> None:
    checkpoints(tmp_path / "run", 1, 2)
    run(tmp_path / "run", out=tmp_path / "out", prompts=None, num_tokens=7, seed=3)
    prompts = PromptSet.load(tmp_path / "out/stable_regions/prompts.json")
    assert prompts.num_tokens == 7
    assert prompts.seed == 3
    assert prompts.source == "the help topics of Python"
    assert {r.metadata["prompts"] for r in records_in(tmp_path / "out")} == {prompts.fingerprint}


def test_prompts_of_a_file(tmp_path: Path) -> None:
    checkpoints(tmp_path / "run", 1)
    (tmp_path / "corpus.txt").write_text(" ".join(f"word {n}" for n in range(300)))
    run(tmp_path / "run", out=tmp_path / "out", prompts=tmp_path / "corpus.txt")
    prompts = PromptSet.load(tmp_path / "out/stable_regions/prompts.json")
    assert prompts.texts is not None
    assert "word" in prompts.texts[0]
    with pytest.raises(InputError, match=r"'missing.txt': there is no such file"):
        run(tmp_path / "run", out=tmp_path / "other", prompts="missing.txt")


def test_a_tokenizer_is_looked_for_beside_the_checkpoints(tmp_path: Path) -> None:
    put(olmo_files(1), tmp_path / "run/checkpoint-1")
    with pytest.raises(InputError, match="Its tokenizer is needed"):
        run(tmp_path / "run", out=tmp_path / "out", prompts=None)
    for name, content in tokenizer_files().items():
        (tmp_path / "run" / name).write_bytes(content)
    assert run(tmp_path / "run", out=tmp_path / "out", prompts=None).failures == {}
    # Or in the checkpoint, where one file is enough.
    (tmp_path / "run/tokenizer_config.json").unlink()
    (tmp_path / "run/tokenizer.json").rename(tmp_path / "run/checkpoint-1/tokenizer.json")
    assert run(tmp_path / "run", out=tmp_path / "other", prompts=None).failures == {}


def retrained(folder: Path) -> None:
    """Another tokenizer: the same tokens under other numbers."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: (n * 7) % len(vocabulary) for word, n in vocabulary.items()}
    path.write_text(json.dumps(content))


def trainings(folder: Path, *names: str) -> list[Path]:
    """Two checkpoints of each, and their tokenizer beside them."""
    for seed, name in enumerate(names):
        for step in (1, 2):
            put(olmo_files(3 * seed + step), folder / name / f"checkpoint-{step}")
        for file, content in tokenizer_files().items():
            (folder / name / file).write_bytes(content)
    return [folder / name for name in names]


def prompts_in(folder: Path) -> PromptSet:
    return PromptSet.load(folder / "stable_regions/prompts.json")


def test_each_training_has_the_same_text_by_its_own_tokenizer(tmp_path: Path) -> None:
    small, big, like_big = trainings(tmp_path, "small", "big", "like-big")
    for folder in (big, like_big):
        retrained(folder)
    run(small, big, like_big, out=tmp_path / "out", prompts=None)
    found = {
        folder: prompts_in(tmp_path / "out" / folder.name) for folder in (small, big, like_big)
    }
    for folder, prompts in found.items():
        tokenizer = load_tokenizer(str(folder))
        assert prompts.texts == tuple(map(tokenizer.decode, prompts.token_ids.tolist()))
        for record in records_in(tmp_path / "out" / folder.name):
            assert record.metadata["prompts"] == prompts.fingerprint
    assert found[small].texts == found[big].texts
    assert found[small].fingerprint != found[big].fingerprint == found[like_big].fingerprint


def test_each_training_has_the_prompts_of_its_own_live_run(tmp_path: Path) -> None:
    watched, other = trainings(tmp_path, "watched", "other")
    live = PromptSet.from_texts(["Some words. "] * 99, load_tokenizer(str(watched)), num_prompts=4)
    live.save(watched / "stable_regions/prompts.json")
    run(other, watched, out=tmp_path / "out", prompts=None)
    assert prompts_in(tmp_path / "out/watched").fingerprint == live.fingerprint
    assert prompts_in(tmp_path / "out/other").source == "the help topics of Python"


@pytest.mark.parametrize("as_file", [False, True])
def test_token_ids_of_another_tokenizer_are_refused(tmp_path: Path, as_file: bool) -> None:
    small, big = trainings(tmp_path, "small", "big")
    retrained(big)
    text = ["Some words to say. "] * 99
    prompts = PromptSet.from_texts(text, load_tokenizer(str(small)), num_prompts=4)
    prompts.save(tmp_path / "prompts.json")
    given = str(tmp_path / "prompts.json") if as_file else prompts
    said = rf"another tokenizer: their first text is .*, and to '{big}' its tokens say"
    with pytest.raises(InputError, match=said):
        run(small, big, out=tmp_path / "out", prompts=given)
    assert not (tmp_path / "out").exists()
    (big / "tokenizer.json").unlink()
    (big / "tokenizer_config.json").unlink()  # nobody to ask
    assert run(small, big, out=tmp_path / "out", prompts=given).failures == {}


def test_a_text_that_its_tokenizer_spells_otherwise_is_not_refused(tmp_path: Path) -> None:
    (folder,) = trainings(tmp_path, "run")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(folder))
    prompts = PromptSet.from_pairs([{"a": "AB", "b": "CD"}] * 3, tokenizer)
    assert tokenizer.decode(prompts.token_ids[0].tolist()) == "ab"
    assert run(folder, out=tmp_path / "out", prompts=prompts, num_pairs=2).failures == {}


def test_weights_of_another_training_are_measured_with_its_own_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other, main = "allenai/OLMo-other", put(olmo_files(3) | tokenizer_files(), tmp_path / "main")
    retrained(main)
    repos: Repos = {other: {"main": main, "step5": olmo_files(1)}}
    with hub_server({**olmo_repo(), **repos}) as hub:
        talk_to(hub, monkeypatch, tmp_path / "home")
        report = run(f"{OLMO}@step1000*", f"{other}@step5", out=tmp_path / "out", prompts=None)
    assert report.measured == [f"{OLMO}@{STEPS[1]}", f"{other}@step5"]
    for repo in (OLMO, other):
        folder = tmp_path / "out" / repo.replace("/", "--")
        (record,) = records_in(folder)
        assert record.metadata["prompts"] == prompts_in(folder).fingerprint


# TensorBoard


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(f"stable_regions/{name}")]


def test_there_is_one_curve_also_after_more_checkpoints(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(f"{OLMO}@step1000*", out=out)
    run(f"{OLMO}@step3000*", out=out)
    run(f"{OLMO}@step*", out=out)  # those before and between
    records = records_in(out)
    assert [record.step for record in records] == [0, 1000, 2000, 3000]
    assert [record.tokens for record in records] == [0, 2 * 10**9, 4 * 10**9, 6 * 10**9]
    assert len(list(out.rglob("events.out.tfevents.*"))) == 1
    medians = [record.scalars["stable_regions/max_slope/median"] for record in records]
    shown = scalars(out / "stable_regions", "max_slope/median")
    assert [step for step, _ in shown] == [0, 1000, 2000, 3000]
    assert [value for _, value in shown] == pytest.approx(medians)
    assert scalars(out / "stable_regions", "tokens") == [(r.step, r.tokens) for r in records]


def test_each_record_is_shown_when_it_is_there(tmp_path: Path) -> None:
    checkpoints(tmp_path / "run", 1, 2)
    seen: list[list[int]] = []

    def bar(name: str) -> Callable[[int, int], None]:
        def note(done: int, total: int) -> None:
            if name == "checkpoints" and done:
                folder = tmp_path / "out/stable_regions"
                seen.append([step for step, _ in scalars(folder, "num_points")])

        return note

    run(tmp_path / "run", out=tmp_path / "out", bar=bar)
    assert seen == [[1], [1, 2]]


def test_probes_of_others_join_a_curve(tmp_path: Path) -> None:
    """What is derived is shown also for records from before; what rides, from now on."""
    run(checkpoints(tmp_path / "run", 1, 2), out=tmp_path / "out")
    before = [path.read_bytes() for path in list_records(tmp_path / "out")]
    checkpoints(tmp_path / "run", 3)
    probes = [Norms(power=1.0), Steepness()]
    report = run(tmp_path / "run", out=tmp_path / "out", probes=probes)
    assert report.measured == [str(tmp_path / "run/checkpoint-3")]
    assert [path.read_bytes() for path in list_records(tmp_path / "out")[:2]] == before
    paths = list_records(tmp_path / "out")
    last = Record.load(paths[2], [Norms(power=1.0)])
    assert last.parts["norms"]["norm"].shape == last.paths.distance.shape
    assert last.metadata["config"]["probes"] == {"norms": {"power": 1.0}, "steepness": {}}
    records = [Record.load(path).with_derived([Steepness()]) for path in paths]
    shown = scalars(tmp_path / "out/stable_regions", "steepness/median")
    assert shown == [(r.step, r.scalars["stable_regions/steepness/median"]) for r in records]
    largest = last.scalars["stable_regions/norms/largest"]
    assert scalars(tmp_path / "out/stable_regions", "norms/largest") == [(3, largest)]
    assert len(run(tmp_path / "run", out=tmp_path / "out").kept) == 3  # and without them
    with pytest.raises(InputError, match=r"probe norms is .*1.0.* there and .*2.0.* now"):
        run(tmp_path / "run", out=tmp_path / "out", probes=[Norms()])


def test_branches_are_runs_of_their_own(tmp_path: Path) -> None:
    names = ("stage1-step8", "stage2-ingredient1-step4", "stage2-ingredient2-step4")
    for seed, name in enumerate(names):
        put(olmo_files(seed), tmp_path / "run" / name)
    run(tmp_path / "run", out=tmp_path / "out")
    assert steps_in(tmp_path / "out") == [8]
    for ingredient in (1, 2):
        folder = tmp_path / "out" / f"stage2-ingredient{ingredient}"
        assert steps_in(folder) == [4]
        assert [step for step, _ in scalars(folder / "stable_regions", "num_points")] == [4]
        assert (folder / "stable_regions/prompts.json").is_file()


def test_without_tensorboard_one_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "tensorboard.py").write_text("raise ImportError")
    code = "from sr_monitor.cli import main; main(['replay', 'run', '--out', 'out'])"
    checkpoints(tmp_path / "run", 1)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("run: pip install 'sr-monitor[tensorboard]'\n")
    assert not (tmp_path / "out").exists()


# The hub and the disk


def test_only_one_is_ahead_and_none_stays(hub: HubServer, tmp_path: Path) -> None:
    most: list[int] = []

    def bar(name: str) -> Callable[[int, int], None]:
        return lambda done, total: most.append(len(weights_there(tmp_path)))

    report = run(f"{OLMO}@step*", out=tmp_path / "out", bar=bar, prompts=None)
    assert report.measured == [f"{OLMO}@{name}" for name in STEPS]
    assert max(most) <= 2
    assert not (tmp_path / "out/.downloads").exists()
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert [downloads(hub, name) for name in STEPS] == [1] * 4
    assert hub.count("tokenizer.json") > 0
    assert hub.count("step0-tokens0B/tokenizer") == 0  # it is main's


def test_one_is_fetched_while_another_is_measured(hub: HubServer, tmp_path: Path) -> None:
    first, second = (hub.commit(OLMO, name) for name in STEPS[:2])
    ahead: list[bool] = []

    def bar(name: str) -> Callable[[int, int], None]:
        def wait(done: int, total: int) -> None:
            if name == "paths" and not ahead:
                assert first in weights_there(tmp_path)
                until = time.monotonic() + 5
                while second not in weights_there(tmp_path) and time.monotonic() < until:
                    time.sleep(0.01)
                ahead.append(second in weights_there(tmp_path))

        return wait

    run(f"{OLMO}@step*", out=tmp_path / "out", bar=bar)
    assert ahead == [True]


def test_what_was_there_before_stays(hub: HubServer, tmp_path: Path) -> None:
    run(f"{OLMO}@step1000*", out=tmp_path / "before", keep_downloads=True)
    there = weights_there(tmp_path)
    assert there == [hub.commit(OLMO, STEPS[1])]
    run(f"{OLMO}@step*", out=tmp_path / "out")
    assert weights_there(tmp_path) == there
    assert downloads(hub, STEPS[1]) == 1
    run(f"{OLMO}@step*", out=tmp_path / "kept", keep_downloads=True)
    assert len(weights_there(tmp_path)) == 4


def test_equal_weights_are_measured_once_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub_server(olmo_repo(**{TWIN: olmo_files(1)})) as hub:
        talk_to(hub, monkeypatch, tmp_path / "home")
        report = run(f"{OLMO}@step[14]*", out=tmp_path / "out")
        assert report.same == {f"{OLMO}@{TWIN}": f"{OLMO}@{STEPS[1]}"}
        assert downloads(hub, TWIN) == 1
        first, twin = records_in(tmp_path / "out")
        assert measured(first) == measured(twin)
        assert (twin.step, twin.tokens) == (4000, 8 * 10**9)
        assert twin.metadata["same_weights_as"] == f"{OLMO}@{STEPS[1]}"
        assert twin.metadata["source"] == f"{OLMO}@{TWIN}"
        # The first was measured, and then the process was killed.
        path = tmp_path / "out/stable_regions/step-000004000.safetensors"
        path.unlink()
        again = run(f"{OLMO}@step[14]*", out=tmp_path / "out")
        assert again.same == report.same
        assert numbers(Record.load(path)) == numbers(twin)
        assert downloads(hub, TWIN) == 1


def test_one_with_the_weights_of_one_that_failed_is_named_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub_server(olmo_repo(**{TWIN: olmo_files(1)})) as hub:
        talk_to(hub, monkeypatch, tmp_path / "home")
        hub.fail(f"GET /{weights_of(hub, TWIN)}", Fault("error", times=99, status=403))
        report = run(f"{OLMO}@step[0-4]*", out=tmp_path / "out")
    assert steps_in(tmp_path / "out") == [0, 2000, 3000]
    first, twin = report.failures
    assert (first, twin) == (f"{OLMO}@{STEPS[1]}", f"{OLMO}@{TWIN}")
    assert report.failures[twin].startswith(f"its weights are those of {first}: ")


def test_what_cannot_be_had_is_named_and_passed_over(hub: HubServer, tmp_path: Path) -> None:
    gone = hub.commit(OLMO, STEPS[1])
    code = {"X-Error-Code": "RevisionNotFound"}
    hub.fail(f"/resolve/{gone}/", Fault("error", status=404, times=99, headers=code))
    fault = Fault("error", times=99)
    hub.fail(f"GET /{weights_of(hub, STEPS[2])}", fault)
    out = tmp_path / "out"
    report = run(f"{OLMO}@step*", out=out)
    assert steps_in(out) == [0, 3000]
    assert list(report.failures) == [f"{OLMO}@{STEPS[1]}", f"{OLMO}@{STEPS[2]}"]
    first, second = report.failures.values()
    assert "no such revision" in first
    assert "tries: 5" in second
    assert weights_there(tmp_path) == []
    fault.times = 0
    again = run(f"{OLMO}@step*", out=out)
    assert again.measured == [f"{OLMO}@{STEPS[2]}"]
    assert list(again.failures) == [f"{OLMO}@{STEPS[1]}"]
    assert [step for step, _ in scalars(out / "stable_regions", "num_points")] == [0, 2000, 3000]


def test_a_name_that_stands_for_other_weights_is_measured_again(
    hub: HubServer, tmp_path: Path
) -> None:
    run(f"{OLMO}@step[01]*", out=tmp_path / "out")
    before = records_in(tmp_path / "out")
    names = hub.repos[OLMO]
    hub.repos[OLMO] = {**names, STEPS[1]: names[STEPS[2]]}  # somebody pushed
    report = run(f"{OLMO}@step[01]*", out=tmp_path / "out")
    assert report.measured == [f"{OLMO}@{STEPS[1]}"]
    after = records_in(tmp_path / "out")
    assert measured(after[0]) == measured(before[0])
    assert measured(after[1]) != measured(before[1])


# What cannot be read


def damage(folder: Path) -> dict[str, str]:
    """Ruins checkpoints in many ways; what is to be said of each."""
    one = {step: folder / f"checkpoint-{step}" for step in range(1, 8)}
    whole = (one[1] / "model.safetensors").read_bytes()
    (one[1] / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    weights = load_file(one[2] / "model.safetensors")
    save_file({n: t[..., :5].clone() for n, t in weights.items()}, one[2] / "model.safetensors")
    nan = {n: torch.full_like(t, torch.nan) for n, t in weights.items()}
    save_file(nan, one[3] / "model.safetensors")
    (one[4] / "model.safetensors").unlink()
    torch.save({"w": _Malicious(folder / "owned")}, one[4] / "pytorch_model.bin")
    (one[5] / "config.json").write_text("{")
    (one[6] / "model.safetensors").unlink()
    return {
        str(one[1]): "is damaged",
        str(one[2]): "have other shapes",
        str(one[3]): "holds NaN or Inf",
        str(one[4]): "is not run",
        str(one[5]): "config.json",
        str(one[6]): "holds no weights that are known",
    }


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_cannot_be_read_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path / "run", *range(1, 8))
    said = damage(folder)
    report = run(folder, out=tmp_path / "out")
    assert steps_in(tmp_path / "out") == [7]
    assert list(report.failures) == list(said)
    for label, words in said.items():
        assert words in report.failures[label], label
    assert not (folder / "owned").exists()
    # Once it is mended, it alone is measured.
    put(olmo_files(2), tmp_path / "mended")
    shutil.copy(tmp_path / "mended/model.safetensors", folder / "checkpoint-2")
    again = run(folder, out=tmp_path / "out")
    assert again.measured == [str(folder / "checkpoint-2")]
    assert again.kept == [str(folder / "checkpoint-7")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 9}, "layer=9"),
        ({"num_steps": 1}, "num_steps"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"dtype": "int8"}, "dtype='int8': pass one of auto, float32"),
        ({"num": 1}, "`num` must be at least 2"),
        ({"tokens": [4e9]}, "no name says how many tokens"),
    ],
)
def test_a_mistake_is_said_once_and_not_of_each(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    checkpoints(tmp_path / "run", 1, 2)
    with pytest.raises(InputError, match=re.escape(said)):
        run(tmp_path / "run", out=tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sources": "run"}, "sources='run': pass a list of folders"),
        ({"sources": [Path("nope")]}, "there is no folder 'nope'"),
        ({"out": None}, "out=None: pass a folder"),
        ({"num": 2.5}, "num=2.5: pass a whole number"),
        ({"seed": "one"}, "seed='one': pass a whole number"),
        ({"tokens": 4e9}, "tokens=4000000000.0: pass a list of numbers"),
        ({"tokens": ["4B"]}, "tokens=['4B']: pass a list of numbers"),
        ({"prompts": ["a"]}, "prompts=['a']: pass a PromptSet, a file, or a data set's name"),
        ({"config": {}}, "config={}: pass a MonitorConfig"),
        ({"engine": "rey"}, "engine='rey': pass one of local, ray"),
        ({"num_pair": 3}, "num_pair=3: there is no such option; the nearest is 'num_pairs'"),
        ({"devise": "cpu"}, "the nearest is 'device'"),
    ],
)
def test_wrong_words_are_told(given: dict[str, Any], said: str) -> None:
    call: dict[str, Any] = {"sources": ["run"], "out": "out"} | given
    unchecked = inspect.unwrap(replay)  # whose types nobody else checks
    with pytest.raises(InputError, match=re.escape(said)):
        unchecked(**call)


# Nothing lost


@pytest.fixture(scope="module")
def measured_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, and `out` beside it, with all of them measured."""
    folder = checkpoints(tmp_path_factory.mktemp("history") / "run", 1, 2, 3)
    run(folder, out=folder.parent / "out")
    return folder


@pytest.fixture
def history(measured_history: Path, tmp_path: Path) -> Path:
    """The folder of checkpoints, not to be changed, and an `out` of the test's own."""
    shutil.copytree(measured_history.parent / "out", tmp_path / "out")
    return measured_history


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    history, out = checkpoints(tmp_path / "run", 1, 2, 3), tmp_path / "out"
    run(history, out=out)
    before = {path: path.stat().st_mtime_ns for path in list_records(out)}
    for step in (1, 2, 3):  # not even read
        (history / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"gone")
    report = run(history, out=out)
    assert len(report.kept) == 3
    assert report.measured == []
    assert {path: path.stat().st_mtime_ns for path in list_records(out)} == before
    relative = os.path.relpath(history)
    assert len(run(relative, out=out).kept) == 3


def test_more_trainings_may_be_named_later_and_fewer(tmp_path: Path) -> None:
    one, two = trainings(tmp_path, "one", "two")
    out = tmp_path / "out"
    run(one, out=out, prompts=None)
    both = run(one, two, out=out, prompts=None)
    assert both.kept == [str(one / f"checkpoint-{step}") for step in (1, 2)]
    assert both.measured == [str(two / f"checkpoint-{step}") for step in (1, 2)]
    before = what_is_in(out)
    assert len(run(two, out=out, prompts=None).kept) == 2
    assert what_is_in(out) == before
    assert steps_in(out / "two") == [1, 2]
    put(olmo_files(9), one / "checkpoint-3")
    assert run(one, out=out, prompts=None).measured == [str(one / "checkpoint-3")]
    assert steps_in(out) == [1, 2, 3]
    with pytest.raises(InputError, match=f"prompts of {two} is '.*' there and '.*' now"):
        run(two, out=out, prompts=None, seed=1)


def test_a_damaged_record_is_measured_again(history: Path, tmp_path: Path) -> None:
    first, *_ = list_records(tmp_path / "out")
    expected = numbers(Record.load(first))
    first.write_bytes(first.read_bytes()[:100])
    report = run(history, out=tmp_path / "out")
    assert report.measured == [str(history / "checkpoint-1")]
    assert numbers(Record.load(first)) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_steps": 7}, "num_steps is 4 there and 7 now"),
        ({"layer": 2}, "layer is 1 there and 2 now"),
        ({"dtype": "bfloat16"}, "dtype is 'auto' there and 'bfloat16' now"),
        ({"prompts": some_prompts(5)}, "run is '{}' there and '{}' now"),
    ],
)
def test_other_options_are_refused(
    history: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    before = what_is_in(tmp_path / "out")
    both = some_prompts().fingerprint, some_prompts(5).fingerprint
    with pytest.raises(InputError, match=re.escape(said.format(*both))):
        run(history, out=tmp_path / "out", **({"prompts": some_prompts()} | options))
    assert what_is_in(tmp_path / "out") == before


def test_what_makes_no_difference_may_differ(history: Path, tmp_path: Path) -> None:
    config = MonitorConfig(engine="rows", max_tokens=64)
    report = run(history, out=tmp_path / "out", config=config)
    assert len(report.kept) == 3


def test_a_folder_of_an_older_version_goes_on(hub: HubServer, tmp_path: Path) -> None:
    """`older` was written by sr-monitor 0.1, records of schema 1."""
    shutil.copytree(Path(__file__).parent / "older", tmp_path / "out")
    options = json.loads((tmp_path / "out/replay.json").read_text())["options"]
    for record in records_in(tmp_path / "out"):
        name, names = record.metadata["source"].removeprefix(f"{OLMO}@"), hub.repos[OLMO]
        names[name] = replace(names[name], commit=record.metadata["commit"])
    report = run(f"{OLMO}@step*", out=tmp_path / "out", precision="run")
    assert report.kept == [f"{OLMO}@{name}" for name in STEPS[:2]]
    assert report.measured == [f"{OLMO}@{name}" for name in STEPS[2:]]
    assert json.loads((tmp_path / "out/replay.json").read_text())["options"] == options
    points = scalars(tmp_path / "out/stable_regions", "num_points")
    assert [step for step, _ in points] == [0, 1000, 2000, 3000]


def test_other_checkpoints_are_refused(history: Path, tmp_path: Path) -> None:
    other = checkpoints(tmp_path / "other", 1)
    before = what_is_in(tmp_path / "out")
    with pytest.raises(InputError, match=f"are those of {history} and not of {other}; name anoth"):
        run(other, out=tmp_path / "out")
    assert what_is_in(tmp_path / "out") == before


def test_a_first_try_with_a_mistake_in_it_binds_nobody(history: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(InputError, match="layer=9"):
        run(history, out=out, layer=9)
    put(
        {"prompts.json": b"of a try that was killed before its first record"},
        out / "stable_regions",
    )
    other = checkpoints(tmp_path / "other", 1)
    assert run(other, out=out, prompts=some_prompts(5)).failures == {}
    found = PromptSet.load(out / "stable_regions/prompts.json")
    assert found.fingerprint == some_prompts(5).fingerprint
    with pytest.raises(InputError, match=f"are those of {other} and not of {history}"):
        run(history, out=out, prompts=some_prompts(5))


def events_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("events.out.tfevents.*")}


def test_a_live_run_that_came_into_a_replays_folder_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    training.train(folder, save_strategy="steps", save_steps=2)
    prompts = PromptSet.from_token_ids(some_prompts().token_ids % VOCAB)
    run(folder, out=folder, prompts=prompts)
    watch = training.watch(every=1, writer=None, prompts=prompts, num_pairs=3, num_steps=4)
    training.train(folder, watch, max_steps=8, resume=folder / "checkpoint-6")
    before, options = events_in(folder), (folder / "replay.json").read_bytes()
    with pytest.raises(
        InputError, match=r"holds a record at step [78] that no replay has made .*na"
    ):
        run(folder, out=folder, prompts=prompts)
    assert events_in(folder) == before
    assert (folder / "replay.json").read_bytes() == options


def test_a_renamed_checkpoint_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    history = checkpoints(tmp_path / "run", 1)
    run(history, out=tmp_path / "out")
    (history / "checkpoint-1").rename(history / "step-1")
    before, shown = what_is_in(tmp_path / "out"), events_in(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds .*checkpoint-1 at step 1, where .*step-1 belongs"):
        run(history, out=tmp_path / "out")
    assert what_is_in(tmp_path / "out") == before
    assert events_in(tmp_path / "out") == shown


def test_a_live_run_is_not_written_over(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path / "run", 1)
    live = folder / "stable_regions"
    put({"step-000000001.safetensors": b"live", "events.out.tfevents.1": b"live"}, live)
    with pytest.raises(InputError, match=r"was not written by a replay.*name another folder"):
        run(folder, out=folder)
    assert {path.read_bytes() for path in live.iterdir()} == {b"live"}
    assert not (folder / "replay.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": 2, "options": {}, "runs": {}}', "has schema 2, and this sr-monitor reads"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (100_000 * "[", "is damaged"),
    ],
)
def test_a_newer_or_damaged_folder_is_refused(
    history: Path, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "out/replay.json").write_text(content)
    before = what_is_in(tmp_path / "out")
    with pytest.raises(InputError, match=said):
        run(history, out=tmp_path / "out")
    assert what_is_in(tmp_path / "out") == before


def test_two_at_a_time_are_refused(history: Path, tmp_path: Path) -> None:
    def bar(name: str) -> Callable[[int, int], None]:
        with pytest.raises(InputError, match="another replay is writing there"):
            run(history, out=tmp_path / "out2")
        return lambda done, total: None

    run(history, out=tmp_path / "out2", bar=bar)


def test_a_folder_that_cannot_be_written_to(history: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "out/stable_regions")
    (tmp_path / "out/stable_regions").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        run(history, out=tmp_path / "out")


# Killed


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_at_event(wanted: str, number: int, work: Callable[[], object]) -> None:
    """Runs until the interpreter tells of something for the n-th time, and dies right before it."""
    left = number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if re.search(wanted, f"{event} {args[:2]}"):
            left -= 1
            if left == 0:
                _die()

    sys.addaudithook(hook)
    work()


def audited(name: str) -> Callable[[int, int], None]:
    """A bar that tells the hook above of each measurement."""
    return lambda done, total: sys.audit("measuring") if name == "paths" else None


def in_a_process(work: Callable[[], object]) -> bool:
    """Whether it ended by itself, and not by a kill."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a process with threads forks
        process = get_context("fork").Process(target=work)
        process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


_WEIGHTS = r"[0-9a-f]{64}\.[^ ]*incomplete"
MOMENTS = {
    "the options are written": (r"os\.rename .*replay\.json", 1),
    "a download is under way": (f"open .*{_WEIGHTS}", 2),
    "weights have come": (f"(os\\.rename|shutil\\.move) .*{_WEIGHTS}", 2),
    "it is measured": (r"measuring", 4),
    "it is read": (r"open .*\.downloads.*config\.json", 2),
    "prompts are written": (r"os\.rename .*prompts\.json", 1),
    "a record is half written": (r"os\.rename .*step-000001000", 1),
    "a record is shown": (r"open .*stable_regions.*prompts\.json", 3),
    "a download is deleted": (r"shutil\.rmtree .*\.downloads/", 4),
    "all downloads are deleted": (r"shutil\.rmtree .*\.downloads'", 2),
}


USUAL_MOMENTS = {"it is measured", "a record is half written"}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[] if m in USUAL_MOMENTS else [pytest.mark.slow]) for m in MOMENTS],
)
def test_killed_and_started_again_it_ends_as_if_nothing_had_been(
    hub: HubServer, tmp_path: Path, moment: str
) -> None:
    run(f"{OLMO}@step*", out=tmp_path / "whole")

    def work() -> object:
        return run(f"{OLMO}@step*", out=tmp_path / "out", bar=audited)

    assert not in_a_process(lambda: _killed_at_event(*MOMENTS[moment], work)), "it went through"
    done = [path.stat().st_mtime_ns for path in list_records(tmp_path / "out")]
    assert in_a_process(work)
    assert what_is_in(tmp_path / "out") == what_is_in(tmp_path / "whole")
    after = [path.stat().st_mtime_ns for path in list_records(tmp_path / "out")]
    assert after[: len(done)] == done, "measured twice"
    assert not (tmp_path / "out/.downloads").exists()
    points = scalars(tmp_path / "out/stable_regions", "num_points")
    assert [step for step, _ in points] == [0, 1000, 2000, 3000]


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends(hub: HubServer, tmp_path: Path) -> None:
    run(f"{OLMO}@step*", out=tmp_path / "whole")
    changes = rf"os\.(rename|remove|mkdir) .*|open .*{tmp_path}"

    def work() -> object:
        return run(f"{OLMO}@step*", out=tmp_path / "out")

    lives = (partial(_killed_at_event, changes, 20 + 15 * kills, work) for kills in range(99))
    kills = sum(1 for _ in takewhile(lambda life: not in_a_process(life), lives))
    assert kills > 5
    assert what_is_in(tmp_path / "out") == what_is_in(tmp_path / "whole")
    assert weights_there(tmp_path) == []


@pytest.mark.parametrize("moment", ["paths", "checkpoints"])
def test_an_interrupt_leaves_a_curve_and_no_downloads(
    hub: HubServer, tmp_path: Path, moment: str
) -> None:
    def bar(name: str) -> Callable[[int, int], None]:
        def interrupt(done: int, total: int) -> None:
            if name == moment and steps_in(tmp_path / "out") == [0, 1000]:
                raise KeyboardInterrupt

        return interrupt

    with pytest.raises(KeyboardInterrupt) as held:  # which keeps all frames alive
        run(f"{OLMO}@step*", out=tmp_path / "out", bar=bar)
    assert held.tb
    assert weights_there(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if "download" in thread.name]
    points = scalars(tmp_path / "out/stable_regions", "num_points")
    assert [step for step, _ in points] == [0, 1000]
    report = run(f"{OLMO}@step*", out=tmp_path / "out")
    assert len(report.kept) == 2


# Sizes


def models(folder: Path, **sizes: int) -> Path:
    for name, width in sizes.items():
        model = tiny_model("Qwen2", hidden_size=width, num_key_value_heads=4)
        put(tokenizer_files(), folder / name)
        save_folder(model, folder / name)
    return folder


def test_a_sweep_is_over_the_number_of_parameters(tmp_path: Path) -> None:
    folder = models(tmp_path / "models", large=48, small=32)
    retrained(folder / "small")
    report = run(folder / "large", folder / "small", out=tmp_path / "out", prompts=None)
    assert report.failures == {}
    small, large = records_in(tmp_path / "out")
    for record, name in ((small, "small"), (large, "large")):
        model = load_model(str(folder / name), device="cpu")
        assert record.step == sum(weight.numel() for weight in model.parameters())
        assert record.metadata["x_axis"] == "parameters"
        assert record.metadata["tokenizer"] == str(folder / name)
        assert record.metadata["texts"] == "the help topics of Python"
        saved = tmp_path / f"out/stable_regions/prompts-{record.step:09d}.json"
        prompts = PromptSet.load(saved)
        assert record.metadata["prompts"] == prompts.fingerprint
        tokenizer = load_tokenizer(str(folder / name))
        assert prompts.texts == tuple(map(tokenizer.decode, prompts.token_ids.tolist()))
    assert small.metadata["prompts"] != large.metadata["prompts"]
    points = scalars(tmp_path / "out/stable_regions", "num_points")
    assert [step for step, _ in points] == [small.step, large.step]


def test_a_sweep_goes_on_with_more_models(tmp_path: Path) -> None:
    folder = models(tmp_path / "models", a=32, b=48, c=64)
    run(folder / "a", folder / "b", out=tmp_path / "out", prompts=None)
    report = run(folder / "c", folder / "a", folder / "b", out=tmp_path / "out", prompts=None)
    assert report.measured == [str(folder / "c")]
    assert len(steps_in(tmp_path / "out")) == 3
    with pytest.raises(InputError, match=r"seed 0' there and .* seed 1' now"):
        run(folder, out=tmp_path / "out", prompts=None, seed=1)
    with pytest.raises(InputError, match="those of sizes and not of"):
        run(folder / "a", out=tmp_path / "out", prompts=None)


def test_two_models_of_one_size_are_both_kept(tmp_path: Path) -> None:
    folder = models(tmp_path / "models", base=32, chat=32)
    for _ in range(2):
        run(folder, out=tmp_path / "out", prompts=None)
        (base,) = records_in(tmp_path / "out")
        own = str(folder / "chat").replace("/", "--").strip("-")
        (chat,) = records_in(tmp_path / "out" / own)
        assert base.step == chat.step
        assert measured(base) != measured(chat)
    assert len(run(folder, out=tmp_path / "out", prompts=None).kept) == 2


def test_token_ids_of_another_tokenizer_are_refused_in_a_sweep(tmp_path: Path) -> None:
    folder = models(tmp_path / "models", a=32, b=48)
    retrained(folder / "b")
    tokenizer = load_tokenizer(str(folder / "a"))
    prompts = PromptSet.from_texts(["Some words to say. "] * 99, tokenizer, num_prompts=4)
    report = run(folder, out=tmp_path / "out", prompts=prompts)
    assert report.measured == [str(folder / "a")]
    assert "made with another tokenizer" in report.failures[str(folder / "b")]


def test_one_without_a_tokenizer_keeps_no_other(tmp_path: Path) -> None:
    folder = models(tmp_path / "models", a=32, b=48)
    for path in (folder / "a").glob("tokenizer*"):
        path.unlink()
    report = run(folder, out=tmp_path / "out", prompts=None)
    assert report.measured == [str(folder / "b")]
    assert "Its tokenizer is needed" in report.failures[str(folder / "a")]


def test_a_sweep_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = models(tmp_path / "models", a=32, b=48)
    repos = {name: {"main": folder / own} for name, own in zip(QWENS, "ab", strict=True)}
    with hub_server(repos) as hub:
        talk_to(hub, monkeypatch, tmp_path / "home")
        report = run(*QWENS, out=tmp_path / "out", prompts=None)
    assert report.measured == [f"{name}@main" for name in QWENS]
    assert [record.metadata["tokenizer"] for record in records_in(tmp_path / "out")] == [*QWENS]
    assert weights_there(tmp_path) == []
