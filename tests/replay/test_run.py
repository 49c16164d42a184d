"""The run over checkpoints: equal to the live run, complete, and nothing lost when it is killed."""

import json
import os
import re
import shutil
import signal
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
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_monitor import MonitorConfig, PromptSet, Record
from sr_monitor.errors import InputError
from sr_monitor.model.loading import load_model, load_tokenizer
from sr_monitor.probes.keys import Key
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.replay import Report, replay
from sr_monitor.results.record import list_records
from tests import lightning_runs, training
from tests.hub_server import Fault, HubServer, Repos, hub_server
from tests.outside_probe import Norms, Steepness
from tests.replays import (
    FEW,
    OLMO,
    STEPS,
    TWIN,
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
from tests.saved import unmapped
from tests.trained import save_folder, tiny_model
from tests.zoo import VOCAB, build

Progress = Callable[[int, int], None]


@pytest.fixture
def pictures() -> None:
    """Let a test draw."""


@pytest.fixture(autouse=True)
def _hardly_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures out, which take most of the time of a tiny replay."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(PathsProbe, "pictures", lambda *_: iter(()))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server(olmo_repo(**{TWIN: olmo_files(1)})) as server:
        talk_to(server, monkeypatch, tmp_path / "home")
        yield server


def run(*sources: str | Path, out: Path, **options: Any) -> Report:
    everything: dict[str, Any] = FEW | {"prompts": some_prompts()} | options
    return replay([str(source) for source in sources], out, **everything)


def records_in(out: Path) -> list[Record]:
    return [Record.load(path) for path in list_records(out)]


def prompts_in(out: Path) -> PromptSet:
    return PromptSet.load(out / "stable_regions/prompts.json")


def board(out: Path) -> EventAccumulator:
    return EventAccumulator(str(out / "stable_regions")).Reload()


def shown(out: Path, name: str = "diagnostics/num_points") -> list[tuple[int, float]]:
    """The step and the value of each scalar in TensorBoard."""
    return [(event.step, event.value) for event in board(out).Scalars(Key.scalar(name, "").name)]


def steps_shown(out: Path) -> list[int]:
    return [step for step, _ in shown(out)]


def weights_there(tmp_path: Path) -> list[str]:
    """The revisions whose weights are on the disk, by their commits."""
    private = tmp_path.glob("*/.downloads/*/*/*.safetensors")
    found = [*private, *(tmp_path / "home").rglob("snapshots/*/*.safetensors")]
    return sorted({path.parent.name for path in found})


def assert_equal_to_live(live: list[Record], out: Path, steps: list[int]) -> None:
    again = {record.step: record for record in records_in(out)}
    assert sorted(again) == steps
    before = {record.step: record for record in live}
    for step, record in again.items():
        assert measured(record) == measured(before[step])
        assert record.metadata["prompts"] == before[step].metadata["prompts"]


def test_sets_and_pairs_drawn_anew_are_equal_to_those_of_the_live_run(
    tmp_path: Path, out: Path
) -> None:
    """By default those of the run; a set that joins later is measured alone."""
    specimen = build("gpt2")
    sets = {
        name: PromptSet.from_token_ids(specimen.prompts(8, 5, seed=seed))
        for seed, name in enumerate("ab")
    }
    measure: dict[str, Any] = {"num_pairs": 3, "num_steps": 4, "num_slices": 0, "resample": True}
    options: dict[str, Any] = measure | {"device": "cpu"}
    watch = training.watch(every=2, prompts=sets, **measure)
    training.train(tmp_path / "live", watch, max_steps=4, save_strategy="steps", save_steps=2)
    curves = [f"stable_regions/{name}{end}" for name in sets for end in ("", "-resampled")]

    def assert_equal(curves: list[str]) -> None:
        for curve in curves:
            found, live = (training.records(each, curve) for each in (out, tmp_path / "live"))
            assert list(found) == [2, 4]
            for step, record in found.items():
                assert measured(record) == measured(live[step])
                assert record.set_name == curve.partition("/")[2]
            assert training.logged(out / curve) == [2, 4]

    report = replay([tmp_path / "live"], out, prompts={"a": sets["a"]}, **options)
    assert len(report.measured) == 2
    assert_equal(curves[:2])
    assert not (out / curves[2]).exists()
    before = what_is_in(out / "stable_regions/a-resampled")
    report = replay([tmp_path / "live"], out, **options)
    assert len(report.measured) == 2  # only of the set that was missing
    assert_equal(curves)
    assert what_is_in(out / "stable_regions/a-resampled") == before
    assert replay([tmp_path / "live"], out, **options).measured == []


def test_a_replay_over_its_own_checkpoints_is_equal_to_a_live_run(
    tmp_path: Path, out: Path
) -> None:
    """Which also ran points in a slower way than it had to."""
    config: dict[str, Any] = {"num_pairs": 4, "num_steps": 5, "num_slices": 2}
    config["slice_resolution"] = 4
    watch = training.watch(every=2, engine="rows", **config)
    training.train(tmp_path / "live", watch, save_strategy="steps", save_steps=2)
    live = list(training.records(tmp_path / "live").values())
    config["device"] = "cpu"
    replay([tmp_path / "live"], out, **config)
    assert_equal_to_live(live, out, [2, 4, 6])
    slopes = {record.paths.max_slope.sum().item() for record in live}
    assert len(slopes) == 4, "the model did not change"
    # Also over a single checkpoint.
    replay([tmp_path / "live/checkpoint-4"], tmp_path / "one", **config)
    assert_equal_to_live(live, tmp_path / "one", [4])
    config["num_slices"] = 0
    replay([tmp_path / "live"], tmp_path / "other", layer=2, **config)
    assert {record.paths.engine for record in records_in(tmp_path / "other")} == {"shared"}


def test_a_curve_takes_no_faster_way_than_its_earlier_steps(tmp_path: Path, out: Path) -> None:
    run(checkpoints(tmp_path / "run", 2), out=out, config=MonitorConfig(engine="rows"))
    run(checkpoints(tmp_path / "run", 1, 3), out=out)
    assert [record.paths.engine for record in records_in(out)] == ["shared", "rows", "rows"]


# Lightning gives advice, and uses what torch has since renamed.
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
def test_so_is_one_over_checkpoints_of_lightning(tmp_path: Path, out: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1)
    watch = lightning_runs.small(writer=[], log_dir=tmp_path)
    lightning_runs.train(tmp_path, [saver, watch], enable_checkpointing=True)
    base = str(save_folder(build("gpt2").model, tmp_path / "base"))
    config: dict[str, Any] = lightning_runs.SMALL | {"device": "cpu"}
    with pytest.raises(InputError, match=r"does not say which architecture .* --base NAME"):
        replay([f"{tmp_path}/checkpoints"], out, **config)
    assert not out.exists()
    replay([f"{tmp_path}/checkpoints"], out, base=base, **config)
    assert_equal_to_live(lightning_runs.records_in(tmp_path), out, [2, 4])


def test_prompts_are_drawn_once_for_all_steps_or_read_from_a_file(
    tmp_path: Path, out: Path
) -> None:
    checkpoints(tmp_path / "run", 1, 2)
    run(tmp_path / "run", out=out, prompts=None, num_tokens=7, seed=3)
    prompts = prompts_in(out)
    assert (prompts.num_tokens, prompts.seed) == (7, 3)
    assert prompts.source == "the help topics of Python"
    assert {record.metadata["prompts"] for record in records_in(out)} == {prompts.fingerprint}
    (tmp_path / "corpus.txt").write_text(" ".join(f"word {n}" for n in range(300)))
    run(tmp_path / "run", out=tmp_path / "of-file", prompts=tmp_path / "corpus.txt")
    assert "word" in str(prompts_in(tmp_path / "of-file").texts)
    with pytest.raises(InputError, match=r"'missing.txt': there is no such file"):
        run(tmp_path / "run", out=tmp_path / "other", prompts="missing.txt")


def edit_tokenizer(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def retrained(folder: Path) -> None:
    """Make it another tokenizer: the same tokens under other numbers."""

    def shuffle(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary |= {word: (n * 7) % len(vocabulary) for word, n in vocabulary.items()}

    edit_tokenizer(folder, shuffle)


def trainings(folder: Path, *names: str) -> list[Path]:
    """Two checkpoints of each, and their tokenizer beside them."""
    for seed, name in enumerate(names):
        for step in (1, 2):
            put(olmo_files(3 * seed + step), folder / name / f"checkpoint-{step}")
        put(tokenizer_files(), folder / name)
    return [folder / name for name in names]


def test_each_training_has_the_same_text_by_its_own_tokenizer(tmp_path: Path, out: Path) -> None:
    small, big, like_big, watched = trainings(tmp_path, "small", "big", "like-big", "watched")
    live = PromptSet.from_texts(["Some words. "] * 99, load_tokenizer(str(watched)), num_prompts=4)
    live.save(watched / "stable_regions/prompts.json")  # of a live run
    for folder in (big, like_big):
        retrained(folder)
    run(small, big, like_big, watched, out=out, prompts=None)
    assert prompts_in(out / "watched").fingerprint == live.fingerprint
    found = {folder: prompts_in(out / folder.name) for folder in (small, big, like_big)}
    for folder, prompts in found.items():
        tokenizer = load_tokenizer(str(folder))
        assert prompts.texts == tuple(map(tokenizer.decode, prompts.token_ids.tolist()))
        for record in records_in(out / folder.name):
            assert record.metadata["prompts"] == prompts.fingerprint
    assert found[small].texts == found[big].texts
    assert found[small].fingerprint != found[big].fingerprint == found[like_big].fingerprint


def test_token_ids_of_another_tokenizer_are_refused(tmp_path: Path, out: Path) -> None:
    small, big = trainings(tmp_path, "small", "big")
    retrained(big)
    text = ["Some words to say. "] * 99
    prompts = PromptSet.from_texts(text, load_tokenizer(str(small)), num_prompts=4)
    prompts.save(tmp_path / "prompts.json")
    given = str(tmp_path / "prompts.json")
    with pytest.raises(InputError, match=rf"another tokenizer: .*, and to '{big}' its tokens say"):
        run(small, big, out=out, prompts=given)
    assert not out.exists()
    for file in tokenizer_files():  # nobody to ask
        (big / file).unlink()
    assert run(small, big, out=out, prompts=given).failures == {}
    with pytest.raises(InputError, match="Its tokenizer is needed"):
        run(big, out=tmp_path / "other", prompts=None)
    (small / "tokenizer.json").rename(big / "checkpoint-1/tokenizer.json")  # which is enough
    assert run(big, out=tmp_path / "other", prompts=None).failures == {}
    # A given text that a tokenizer spells otherwise is the same text.
    (big / "checkpoint-1/tokenizer.json").unlink()
    edit_tokenizer(
        put(tokenizer_files(), big), lambda it: it.update(normalizer={"type": "Lowercase"})
    )
    tokenizer = load_tokenizer(str(big))
    prompts = PromptSet.from_pairs([{"a": "AB", "b": "CD"}] * 3, tokenizer)
    assert tokenizer.decode(prompts.token_ids[0].tolist()) == "ab"
    assert run(big, out=tmp_path / "given", prompts=prompts, num_pairs=2).failures == {}


def test_weights_of_another_training_are_measured_with_its_own_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    other, main = "allenai/OLMo-other", put(olmo_files(3) | tokenizer_files(), tmp_path / "main")
    retrained(main)
    repos: Repos = {other: {"main": main, "step5": olmo_files(1)}}
    with hub_server({**olmo_repo(), **repos}) as hub:
        talk_to(hub, monkeypatch, tmp_path / "home")
        report = run(f"{OLMO}@step1000*", f"{other}@step5", out=out, prompts=None)
    assert report.measured == [f"{OLMO}@{STEPS[1]}", f"{other}@step5"]
    for repo in (OLMO, other):
        folder = out / repo.replace("/", "--")
        (record,) = records_in(folder)
        assert record.metadata["prompts"] == prompts_in(folder).fingerprint


@pytest.mark.usefixtures("pictures")
def test_there_is_one_curve_also_after_more_checkpoints(hub: HubServer, out: Path) -> None:
    for glob in ("step1000*", "step3000*", "step[0-3]*"):  # at last those before and between
        run(f"{OLMO}@{glob}", out=out)
    records = records_in(out)
    told = [(record.step, record.tokens) for record in records]
    assert told == [(1000 * n, 2 * n * 10**9) for n in range(4)] == shown(out, "diagnostics/tokens")
    assert len(list(out.rglob("events.out.tfevents.*"))) == 1
    medians = [record.scalars["stable_regions/max_slope/median"] for record in records]
    steps, values = zip(*shown(out, "max_slope/median"), strict=True)
    assert steps == (0, 1000, 2000, 3000)
    assert values == pytest.approx(medians)
    curves = board(out).Images("stable_regions/curves")
    assert [event.step for event in curves] == [0, 1000, 2000, 3000]  # 3000 is the last


def test_probes_of_others_join_a_curve(tmp_path: Path, out: Path) -> None:
    """What is derived is shown also for records from before; what rides, from now on."""
    run(checkpoints(tmp_path / "run", 1, 2), out=out)
    before = [path.read_bytes() for path in list_records(out)]
    checkpoints(tmp_path / "run", 3)
    report = run(tmp_path / "run", out=out, probes=[Norms(power=1.0), Steepness()])
    assert report.measured == [str(tmp_path / "run/checkpoint-3")]
    paths = list_records(out)
    assert [path.read_bytes() for path in paths[:2]] == before
    last = Record.load(paths[2], [Norms(power=1.0)])
    assert last.parts["norms"]["norm"].shape == last.paths.distance.shape
    assert last.metadata["config"]["probes"] == {"norms": {"power": 1.0}, "steepness": {}}
    records = [Record.load(path).with_derived([Steepness()]) for path in paths]
    medians = [(r.step, r.scalars["stable_regions_steepness/median"]) for r in records]
    assert shown(out, "steepness/median") == medians
    assert shown(out, "norms/largest") == [(3, last.scalars["stable_regions_norms/largest"])]
    assert len(run(tmp_path / "run", out=out).kept) == 3  # and without them
    with pytest.raises(InputError, match=r"probe norms is .*1.0.* there and .*2.0.* now"):
        run(tmp_path / "run", out=out, probes=[Norms()])


def test_without_tensorboard_one_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"run: pip install 'sr-monitor\[tensorboard\]'"):
        run(checkpoints(tmp_path / "run", 1), out=out)
    assert not out.exists()


def weights_of(hub: HubServer, name: str) -> str:
    """The requests for the weights of a revision."""
    found = hub.repos[OLMO][name].files["model.safetensors"]
    return f"GET /{OLMO}/model.safetensors/{sha256(found).hexdigest()}"


def test_only_one_is_ahead_and_none_stays(hub: HubServer, tmp_path: Path, out: Path) -> None:
    first, second = (hub.commit(OLMO, name) for name in STEPS[:2])
    most, ahead = [0], list[bool]()

    def bar(name: str) -> Progress:
        def note(done: int, total: int) -> None:
            most.append(len(weights_there(tmp_path)))
            if name == "paths" and not ahead:  # it comes while the first is measured
                assert first in weights_there(tmp_path)
                until = time.monotonic() + 5
                while second not in weights_there(tmp_path) and time.monotonic() < until:
                    time.sleep(0.01)
                ahead.append(second in weights_there(tmp_path))

        return note

    report = run(f"{OLMO}@step[0-3]*", out=out, bar=bar, prompts=None)
    assert report.measured == [f"{OLMO}@{name}" for name in STEPS]
    assert (max(most), ahead) == (2, [True])
    assert not (out / ".downloads").exists()
    assert weights_there(tmp_path) == []
    assert [hub.count(weights_of(hub, name)) for name in STEPS] == [1] * 4
    assert hub.count("tokenizer.json") > 0
    assert hub.count("step0-tokens0B/tokenizer") == 0  # it is main's


def test_equal_weights_are_measured_once_and_named(hub: HubServer, out: Path) -> None:
    report = run(f"{OLMO}@step[14]*", out=out)
    assert report.same == {f"{OLMO}@{TWIN}": f"{OLMO}@{STEPS[1]}"}
    first, twin = records_in(out)
    assert measured(first) == measured(twin)
    assert (twin.step, twin.tokens) == (4000, 8 * 10**9)
    about = {"same_weights_as": f"{OLMO}@{STEPS[1]}", "source": f"{OLMO}@{TWIN}"}
    assert twin.metadata.items() >= about.items()
    # The first was measured, and then the process was killed.
    (path := out / "stable_regions/step-000004000.safetensors").unlink()
    assert run(f"{OLMO}@step[14]*", out=out).same == report.same
    assert numbers(Record.load(path)) == numbers(twin)
    assert hub.count(weights_of(hub, TWIN)) == 1


def test_what_cannot_be_had_is_named_and_passed_over(
    hub: HubServer, tmp_path: Path, out: Path
) -> None:
    gone = hub.commit(OLMO, STEPS[1])
    code = {"X-Error-Code": "RevisionNotFound"}
    hub.fail(f"/resolve/{gone}/", Fault("error", status=404, times=99, headers=code))
    fault = Fault("error", times=99)
    hub.fail(weights_of(hub, STEPS[2]), fault)
    report = run(f"{OLMO}@step*", out=out)
    assert steps_in(out) == [0, 3000]
    first, second, twin = report.failures
    assert [first, second, twin] == [f"{OLMO}@{name}" for name in (*STEPS[1:3], TWIN)]
    assert "no such revision" in report.failures[first]
    assert "tries: 5" in report.failures[second]
    assert report.failures[twin].startswith(f"its weights are those of {first}: ")
    assert weights_there(tmp_path) == []
    fault.times = 0
    again = run(f"{OLMO}@step[0-3]*", out=out)
    assert again.measured == [second]
    assert list(again.failures) == [first]
    assert steps_shown(out) == [0, 2000, 3000]


def test_a_hub_that_answers_nobody_is_waited_for_and_the_rest_is_left(
    hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sr_monitor.replay.job._PAUSES", (0, 0))
    fault = Fault("drop", times=0)
    hub.fail(".", fault)

    def bar(name: str) -> Progress:
        fault.times = 10**6 if name == "paths" else fault.times
        return lambda done, total: None

    report = run(f"{OLMO}@step*", out=out, bar=bar)
    done = len(report.measured)
    wanted = sum(name.startswith("step") for name in hub.repos[OLMO])
    assert (report.failures, done + report.left) == ({}, wanted)
    assert 1 <= done <= 2, "the next one may have been downloaded already"
    assert caplog.text.count("waiting 0 s for the hub") == 2
    fault.times = 0
    again = run(f"{OLMO}@step*", out=out)
    assert (len(again.kept), again.left, again.failures) == (done, 0, {})


def test_the_hub_is_asked_only_for_what_no_record_holds(hub: HubServer, out: Path) -> None:
    run(f"{OLMO}@step[02]*", out=out)
    hub.requests.clear()
    assert len(run(f"{OLMO}@step[02]*", out=out).kept) == 2
    assert hub.requests == [f"GET /api/models/{OLMO}/refs"]
    hub.repos[OLMO] = {**hub.repos[OLMO], "step9000-tokens18B": hub.repos[OLMO][STEPS[2]]}
    hub.requests.clear()
    more = run(f"{OLMO}@step[0239]*", out=out)
    assert more.measured == [f"{OLMO}@{STEPS[3]}"]
    assert more.same == {f"{OLMO}@step9000-tokens18B": f"{OLMO}@{STEPS[2]}"}  # by its record
    assert (hub.count("/revision/"), hub.count("GET .*model.safetensors")) == (2, 1)


def test_a_hub_that_goes_away_while_it_lists_leaves_all(hub: HubServer, out: Path) -> None:
    fault = Fault("drop", times=10**6)
    hub.fail("/revision/|/api/models[?]", fault)
    report = run(f"{OLMO}@step*", out=out)
    assert (report.measured, report.failures, report.left) == ([], {}, 5)
    fault.times = 0
    assert len(run(f"{OLMO}@step[0-3]*", out=out).measured) == 4


def test_a_name_that_stands_for_other_weights_is_measured_again(hub: HubServer, out: Path) -> None:
    run(f"{OLMO}@step[01]*", out=out)
    before = records_in(out)
    names = hub.repos[OLMO]
    hub.repos[OLMO] = {**names, STEPS[1]: names[STEPS[2]]}  # somebody pushed
    report = run(f"{OLMO}@step[01]*", out=out)
    assert report.measured == [f"{OLMO}@{STEPS[1]}"]
    after = records_in(out)
    assert measured(after[0]) == measured(before[0])
    assert measured(after[1]) != measured(before[1])


def test_a_download_that_was_damaged_later_is_named(tmp_path: Path, out: Path) -> None:
    folder = checkpoints(tmp_path / "run", 1, 2)
    for step, found in ((1, "0" * 64), (2, sha256(olmo_files(2)["model.safetensors"]).hexdigest())):
        note = f"{'0' * 40}\n{found}\n{time.time() + 60}\n".encode()
        place = folder / f".cache/huggingface/download/checkpoint-{step}"
        put({"model.safetensors.metadata": note}, place)
    report = run(folder, out=out)
    assert report.measured == [str(folder / "checkpoint-2")]
    (reason,) = report.failures.values()
    assert "its hash differs; delete it and download it again" in reason


def test_what_cannot_be_read_is_named_and_the_rest_is_measured(tmp_path: Path, out: Path) -> None:
    folder = checkpoints(tmp_path / "run", 1, 2, 3, 4)
    one, two, three, four = (folder / f"checkpoint-{step}" for step in (1, 2, 3, 4))
    (one / "model.safetensors").write_bytes(olmo_files(1)["model.safetensors"][:5000])
    (two / "config.json").write_text("{")
    (three / "model.safetensors").unlink()
    report = run(folder, out=out)
    assert steps_in(out) == [4]
    assert list(report.failures) == [str(one), str(two), str(three)]
    said = ("is damaged", "config.json", "holds no weights that are known")
    for words, reason in zip(said, report.failures.values(), strict=True):
        assert words in reason
    # Once it is mended, it alone is measured.
    put(olmo_files(1), one)
    again = run(folder, out=out)
    assert (again.measured, again.kept) == ([str(one)], [str(four)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer": 9}, "layer=9"),
        ({"num_steps": 1}, "num_steps"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"dtype": "int8"}, "dtype='int8': pass one of auto, float32"),
        ({"num": 1}, "num=1: pass 2 or more"),
        ({"tokens": [4e9]}, "no name says how many tokens"),
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
@pytest.mark.usefixtures("_as_users_run_it")
def test_a_mistake_is_said_once_and_not_of_each(
    history: Path, out: Path, given: dict[str, Any], said: str
) -> None:
    call = FEW | {"prompts": some_prompts(), "sources": [history], "out": out.with_name("new")}
    with pytest.raises(InputError, match=re.escape(said)):
        replay(**(call | given))


@pytest.fixture(scope="module")
def measured_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, and `out` beside it, with all of them measured."""
    folder = checkpoints(tmp_path_factory.mktemp("history") / "run", 1, 2, 3)
    run(folder, out=folder.parent / "out")
    return folder


@pytest.fixture
def history(measured_history: Path, out: Path) -> Path:
    """The folder of checkpoints, not to be changed, and an `out` of the test's own."""
    shutil.copytree(measured_history.parent / "out", out)
    return measured_history


def assert_refused(said: str, *sources: Path, out: Path, **options: Any) -> None:
    """Assert that a call is refused, and changes nothing."""

    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = everything()
    with pytest.raises(InputError, match=said):
        run(*sources, out=out, **options)
    assert everything() == before


def test_what_is_measured_is_not_measured_again_unless_its_record_is_damaged(
    tmp_path: Path, out: Path
) -> None:
    history = checkpoints(tmp_path / "run", 1, 2, 3)
    run(history, out=out)
    first, *others = list_records(out)
    expected, before = numbers(Record.load(first)), [path.stat().st_mtime_ns for path in others]
    first.write_bytes(first.read_bytes()[:100])
    for step in (2, 3):  # not even read
        (history / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"gone")
    report = run(os.path.relpath(history), out=out)
    assert (len(report.kept), report.measured) == (2, [str(history / "checkpoint-1")])
    assert [path.stat().st_mtime_ns for path in others] == before
    assert numbers(Record.load(first)) == expected
    assert steps_shown(out) == [1, 2, 3]
    with safe_open(first, "pt") as file:
        header = {**file.metadata(), "schema": "99"}
    save_file(unmapped(first), first, header)
    newer = first.read_bytes()
    assert_refused("schema 99", history, out=out)
    assert first.read_bytes() == newer, "it is another version's"


def test_more_trainings_may_be_named_later_and_fewer(tmp_path: Path, out: Path) -> None:
    one, two = trainings(tmp_path, "one", "two")
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
    said = f"prompts of {two} is '.*' there and '.*' now"
    assert_refused(said, two, out=out, prompts=None, seed=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_steps": 7}, "num_steps is 4 there and 7 now"),
        ({"dtype": "bfloat16"}, "dtype is 'auto' there and 'bfloat16' now"),
        ({"prompts": some_prompts(5)}, f"{some_prompts().fingerprint}' there and '"),
    ],
)
def test_other_options_are_refused(
    history: Path, out: Path, options: dict[str, Any], said: str
) -> None:
    assert_refused(said, history, out=out, **options)
    config = MonitorConfig(engine="rows", max_tokens=64)  # which makes no difference
    assert len(run(history, out=out, config=config).kept) == 3


def test_a_folder_of_an_older_version_goes_on(hub: HubServer, out: Path) -> None:
    """`older` was written by sr-monitor 0.1, records of schema 1."""
    shutil.copytree(Path(__file__).parent / "older", out)
    options = json.loads((out / "replay.json").read_text())["options"]
    for record in records_in(out):
        name, names = record.metadata["source"].removeprefix(f"{OLMO}@"), hub.repos[OLMO]
        names[name] = replace(names[name], commit=record.metadata["commit"])
    report = run(f"{OLMO}@step[0-3]*", out=out, precision="run")
    assert report.kept == [f"{OLMO}@{name}" for name in STEPS[:2]]
    assert report.measured == [f"{OLMO}@{name}" for name in STEPS[2:]]
    assert json.loads((out / "replay.json").read_text())["options"] == options
    assert steps_shown(out) == [0, 1000, 2000, 3000]


def test_other_checkpoints_are_refused(history: Path, tmp_path: Path, out: Path) -> None:
    other = checkpoints(tmp_path / "other", 1)
    assert_refused(f"are those of {history} and not of {other}; name anoth", other, out=out)
    renamed = (other / "checkpoint-1").rename(tmp_path / "step-1")
    run(renamed, out=tmp_path / "second")
    again = renamed.rename(tmp_path / "checkpoint-1")
    said = f"holds {renamed} at step 1, where {again} belongs"
    assert_refused(said, again, out=tmp_path / "second")


def test_a_first_try_with_a_mistake_in_it_binds_nobody(
    measured_history: Path, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(InputError, match="layer=9"):
        run(measured_history, out=out, layer=9)
    put({"prompts.json": b"of a try that was killed"}, out / "stable_regions")
    other = checkpoints(tmp_path / "other", 1)
    assert run(other, out=out, prompts=some_prompts(5)).failures == {}
    assert prompts_in(out).fingerprint == some_prompts(5).fingerprint


def test_a_live_run_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    training.train(folder, save_strategy="steps", save_steps=2)
    prompts = PromptSet.from_token_ids(some_prompts().token_ids % VOCAB)
    run(folder, out=folder, prompts=prompts)
    watch = training.watch(every=1, writer=None, prompts=prompts, num_pairs=3, num_steps=4)
    training.train(folder, watch, max_steps=8, resume=folder / "checkpoint-6")
    said = r"holds a record at step [78] that no replay has made"
    assert_refused(said, folder, out=folder, prompts=prompts)
    (folder / "replay.json").unlink()
    assert_refused("was not written by a replay", folder, out=folder, prompts=prompts)


def test_a_folder_that_is_taken_or_damaged_or_cannot_be_written_to(
    history: Path, out: Path
) -> None:
    def bar(name: str) -> Progress:
        with pytest.raises(InputError, match="written to by another replay"):
            run(history, out=out)
        return lambda done, total: None

    run(history, out=out, bar=bar)
    for content in ("{", "[]", 100_000 * "[", '{"schema": 2, "options": {}, "runs": {}}'):
        (out / "replay.json").write_text(content)
        said = "has schema 2, and this" if "schema" in content else "is damaged"
        assert_refused(said, history, out=out)
    victim = out.parent / "victim"
    shutil.copytree(out / "stable_regions", victim / "stable_regions")
    (out / "linked").symlink_to(victim)
    before = what_is_in(victim)
    for name in ("../victim", str(victim), "linked"):
        content = json.dumps({"schema": 1, "options": {}, "runs": {name: str(history)}})
        (out / "replay.json").write_text(content)
        assert_refused("names a folder outside of it", history, out=out)
    assert what_is_in(victim) == before
    (out / "replay.json").unlink()
    shutil.rmtree(out / "stable_regions")
    (out / "stable_regions").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        run(history, out=out)


def _killed_at_event(wanted: str, number: int, work: Callable[[], object]) -> None:
    """Run until the interpreter tells of something for the n-th time, and die right before it."""
    left = number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if re.search(wanted, f"{event} {args[:2]}"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()


def audited(name: str) -> Progress:
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
    "a record is half written": (r"os\.rename .*step-000001000", 1),
    "the options are written": (r"os\.rename .*replay\.json", 1),
    "a download is under way": (f"open .*{_WEIGHTS}", 2),
    "it is measured": (r"measuring", 4),
    "prompts are written": (r"os\.rename .*prompts\.json", 1),
    "a download is deleted": (r"shutil\.rmtree .*\.downloads/", 4),
    "all downloads are deleted": (r"shutil\.rmtree .*\.downloads'", 2),
}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[pytest.mark.slow] if n else []) for n, m in enumerate(MOMENTS)],
)
def test_killed_and_started_again_it_ends_as_if_nothing_had_been(
    hub: HubServer, tmp_path: Path, out: Path, moment: str
) -> None:
    run(f"{OLMO}@step[0-3]*", out=tmp_path / "whole")

    def work() -> object:
        return run(f"{OLMO}@step[0-3]*", out=out, bar=audited)

    assert not in_a_process(lambda: _killed_at_event(*MOMENTS[moment], work)), "it went through"
    done = [path.stat().st_mtime_ns for path in list_records(out)]
    assert in_a_process(work)
    assert what_is_in(out) == what_is_in(tmp_path / "whole")
    after = [path.stat().st_mtime_ns for path in list_records(out)]
    assert after[: len(done)] == done, "measured twice"
    assert not (out / ".downloads").exists()
    assert steps_shown(out) == [0, 1000, 2000, 3000]


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends(hub: HubServer, tmp_path: Path, out: Path) -> None:
    run(f"{OLMO}@step[0-3]*", out=tmp_path / "whole")
    changes = rf"os\.(rename|remove|mkdir) .*|open .*{tmp_path}"

    def work() -> object:
        return run(f"{OLMO}@step[0-3]*", out=out)

    lives = (partial(_killed_at_event, changes, 20 + 15 * kills, work) for kills in range(99))
    kills = sum(1 for _ in takewhile(lambda life: not in_a_process(life), lives))
    assert kills > 5
    assert what_is_in(out) == what_is_in(tmp_path / "whole")
    assert weights_there(tmp_path) == []


@pytest.mark.parametrize("moment", ["paths", "checkpoints"])
def test_an_interrupt_leaves_a_curve_and_no_downloads(
    hub: HubServer, tmp_path: Path, out: Path, moment: str
) -> None:
    def bar(name: str) -> Progress:
        def interrupt(done: int, total: int) -> None:
            if name == moment and steps_in(out) == [0, 1000]:
                raise KeyboardInterrupt

        return interrupt

    with pytest.raises(KeyboardInterrupt) as held:  # which keeps all frames alive
        run(f"{OLMO}@step[0-3]*", out=out, bar=bar)
    assert held.tb
    assert weights_there(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if "download" in thread.name]
    assert steps_shown(out) == [0, 1000]
    assert len(run(f"{OLMO}@step[0-3]*", out=out).kept) == 2


def models(folder: Path, **sizes: int) -> list[Path]:
    """Models of these widths in folders, each with its tokenizer."""
    for name, width in sizes.items():
        put(tokenizer_files(), folder / name)
        model = tiny_model("Qwen2", hidden_size=width, num_key_value_heads=4)
        save_folder(model, folder / name)
    return [folder / name for name in sizes]


def test_a_sweep_is_over_the_number_of_parameters(tmp_path: Path, out: Path) -> None:
    folders = models(tmp_path, large=48, small=32)
    retrained(folders[1])
    assert run(*folders, out=out, prompts=None).failures == {}
    small, large = records_in(out)
    for record, folder in zip((large, small), folders, strict=True):
        model, tokenizer = load_model(str(folder), device="cpu"), load_tokenizer(str(folder))
        assert record.step == sum(weight.numel() for weight in model.parameters())
        prompts = PromptSet.load(out / f"stable_regions/prompts-{record.step:09d}.json")
        about = {
            "x_axis": "parameters",
            "tokenizer": str(folder),
            "texts": "the help topics of Python",
            "prompts": prompts.fingerprint,
        }
        assert record.metadata.items() >= about.items()
        assert prompts.texts == tuple(map(tokenizer.decode, prompts.token_ids.tolist()))
    assert small.metadata["prompts"] != large.metadata["prompts"]
    assert steps_shown(out) == [small.step, large.step]


def test_a_sweep_goes_on_with_more_models(tmp_path: Path, out: Path) -> None:
    a, b, c = models(tmp_path, a=32, b=48, c=64)
    run(a, b, out=out, prompts=None)
    assert run(c, a, b, out=out, prompts=None).measured == [str(c)]
    assert len(steps_in(out)) == 3
    assert_refused("seed 0' there and .* seed 1' now", a, b, out=out, prompts=None, seed=1)
    assert_refused("those of sizes and not of", a, out=out, prompts=None)


def test_two_models_of_one_size_are_both_kept(tmp_path: Path, out: Path) -> None:
    folders = models(tmp_path, base=32, chat=32)
    for kept in (0, 2):
        assert len(run(*folders, out=out, prompts=None).kept) == kept
        (base,) = records_in(out)
        (chat,) = records_in(out / str(folders[1]).replace("/", "--").strip("-"))
        assert base.step == chat.step
        assert measured(base) != measured(chat)


def test_a_sweep_passes_over_models_without_prompts(tmp_path: Path, out: Path) -> None:
    a, b = models(tmp_path / "models", a=32, b=48)
    retrained(b)
    tokenizer = load_tokenizer(str(a))
    prompts = PromptSet.from_texts(["Some words to say. "] * 99, tokenizer, num_prompts=4)
    report = run(a.parent, out=out, prompts=prompts)
    assert report.measured == [str(a)]
    assert "made with another tokenizer" in report.failures[str(b)]
    for path in a.glob("tokenizer*"):
        path.unlink()
    report = run(a.parent, out=tmp_path / "other", prompts=None)
    assert report.measured == [str(b)]
    assert "Its tokenizer is needed" in report.failures[str(a)]
