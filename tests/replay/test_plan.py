"""Which checkpoints are measured, in which order, and which curve each is on."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.replay.plan import is_sweep, make_plan, with_files
from tests.hub_server import Fault, HubServer, hub_server
from tests.replays import OLMO, STEPS, put

WEIGHTS = {"config.json": b"{}", "model.safetensors": b"x" * 1000}
OLMO2 = "allenai/OLMo-2-0425-1B"
STAGED = [
    *("stage1-step0-tokens0B", "stage1-step20000-tokens42B", "stage1-step1907359-tokens4001B"),
    *("stage2-ingredient1-step1000-tokens3B", "stage2-ingredient1-step23852-tokens51B"),
    "stage2-ingredient2-step1000-tokens3B",
]
OLMO3 = "allenai/Olmo-3-1025-7B"
MIX = "mix-round5-from-2T-ckpt"
STAGED_3 = ["stage1-step1413814", "stage2-step2000", f"stage2-step2000-{MIX}"]
PUSHED = "lab/pushed"
TITLES = [
    ("End of training", "main"),
    ("Training in progress, step 1500", ".c"),
    ("Training in progress, step 1000", ".b, again"),
    ("Update README.md", ".r"),
    ("Training in progress, step 1000", ".b"),
    ("Training in progress, step 500", ".a"),
    ("initial commit", ".0"),
]
QWENS = ("Qwen/Qwen2-0.5B", "Qwen/Qwen2-1.5B")


def own(name: str) -> dict[str, bytes]:
    """Files that no other revision has."""
    return WEIGHTS | {"model.safetensors": name.encode() * 50}


@pytest.fixture(scope="module")
def serving() -> Iterator[HubServer]:
    repos = {
        OLMO: {name: own(name) for name in (*STEPS, "main")},
        OLMO2: {name: own(name) for name in (*STAGED, "main")},
        OLMO3: {name: own(name) for name in (*STAGED_3, "main")},
        "lab/twice": {"step1": own("one"), "step2": own("one"), "step3": own("3"), "main": own("")},
        "lab/holes": {"main": {}, "step1": own("step1"), "step2": {"README.md": b"gone"}},
        "lab/tags": {"main": own("main"), "v1": own("v1"), "v2": own("v2"), "refs/tags/a/b": {}},
        **{name: {"main": own(name)} for name in QWENS},
        PUSHED: {name: own(name) for _, name in TITLES},
    }
    with hub_server(repos) as server:
        server.titles[PUSHED] = TITLES
        yield server


@pytest.fixture
def hub(serving: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    serving.use(monkeypatch, tmp_path / "home")
    serving.requests.clear()
    monkeypatch.chdir(tmp_path)
    yield serving
    serving._faults.clear()


def planned(*sources: str | Path, **options: object) -> list[str]:
    found = make_plan(list(map(str, sources)), **options)  # type: ignore[arg-type]
    return [f"{each.run}: {each.name.text}".removeprefix(": ") for each in found]


def curves(*sources: str | Path) -> list[str]:
    return [each.curve for each in make_plan(list(map(str, sources)))]


def folders(root: Path, *names: str) -> list[Path]:
    return [put(WEIGHTS, root / name) for name in names]


# Folders


def test_steps_come_in_their_order_and_are_chosen_by_their_logarithm(tmp_path: Path) -> None:
    names = [f"checkpoint-{10 * step}" for step in (1, 2, 3, 9, 10, 11, 99, 100)]
    folders(tmp_path, *reversed(names))
    assert planned(tmp_path) == names
    assert planned(tmp_path, num=3) == [names[0], names[4], names[-1]]
    # As a shell expands checkpoint-*: one training, and so one choice.
    assert planned(*tmp_path.iterdir(), num=3) == planned(tmp_path, num=3)


def test_a_checkpoint_is_known_by_its_real_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(map(str, folders(tmp_path, "run/checkpoint-1", "run/checkpoint-2")))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    sources = (str(tmp_path / "run"), ".", "../link", f"{tmp_path}/run/../run/")
    for source in sources:
        assert [each.label for each in make_plan([source])] == every
    assert len(make_plan(sources)) == 2  # each once, however often it is named


def test_trainings_and_branches_are_curves(tmp_path: Path) -> None:
    folders(tmp_path, "a/run/checkpoint-2", "a/run/checkpoint-10", "b/run/checkpoint-1", "c/step5")
    a, b, c = (tmp_path / name for name in ("a/run", "b/run", "c"))
    assert planned(a / "checkpoint-10", a / "checkpoint-2") == ["checkpoint-2", "checkpoint-10"]
    assert curves(a / "checkpoint-10", a / "checkpoint-2") == curves(a) == [str(a)] * 2
    assert curves(a / "checkpoint-2") == [str(a)]
    every = ["a--run: checkpoint-2", "a--run: checkpoint-10", "b--run: checkpoint-1"]
    assert planned(a, b) == every
    assert planned(a / "checkpoint-2", c) == ["run: checkpoint-2", "c: step5"]
    names = ("stage1-step8", "stage2-ingredient1-step4", "stage2-ingredient2-step4")
    folders(tmp_path / "d", *names)
    assert planned(tmp_path / "d") == [
        names[0],
        f"stage2-ingredient1: {names[1]}",
        f"stage2-ingredient2: {names[2]}",
    ]
    # One of them alone lies at the top, and still is that curve and no other.
    assert planned(tmp_path / "d" / names[1]) == [names[1]]
    assert curves(tmp_path / "d" / names[1]) != curves(tmp_path / "d")[:1]


def test_a_second_checkpoint_of_a_step_is_a_curve_of_its_own_and_a_link_is_none(
    tmp_path: Path,
) -> None:
    first, second = "epoch=0-step=5-val_loss=0.2", "epoch=0-step=5-val_loss=0.3"
    folders(tmp_path, first, second, "step-7")
    every = [first, f"{second}: {second}", "step-7"]
    assert planned(tmp_path) == every
    (tmp_path / "latest").symlink_to("step-7")
    assert planned(*sorted(tmp_path.iterdir())) == every
    assert planned(tmp_path / "latest") == ["step-7"]


def test_copies_are_left_out_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    for name, step in {"step=2": 2, "step=4": 4, "last": 4, "last-v1": 2, "other": 2}.items():
        torch.save({"global_step": step}, tmp_path / f"{name}.ckpt")
    files = sorted(tmp_path.iterdir())  # as a shell expands run/*.ckpt
    every = ["other.ckpt", "step=2.ckpt: step=2.ckpt", "step=4.ckpt"]
    for sources in ([tmp_path], files, files[::-1], [files[0], tmp_path]):
        assert planned(*sources) == every
    assert planned(tmp_path / "last.ckpt", tmp_path / "step=2.ckpt") == ["step=2.ckpt", "last.ckpt"]


def test_models_without_steps_are_a_sweep(hub: HubServer, tmp_path: Path) -> None:
    small, large = map(str, folders(tmp_path, "models/small", "models/large"))
    folders(tmp_path, "other/checkpoint-5")
    for sources in ([small, large], ["models"], QWENS):
        found = make_plan(sources)
        assert is_sweep(found)
        assert {(each.run, each.curve) for each in found} == {("", "sizes")}
    assert [each.label for each in found] == [f"{name}@main" for name in QWENS]
    assert not is_sweep(make_plan([small]))
    assert not is_sweep(make_plan([small, "other"]))


def test_sizes_leave_the_optimizer_aside(tmp_path: Path) -> None:
    (folder,) = folders(tmp_path, "checkpoint-1")
    (folder / "optimizer.pt").write_bytes(b"x" * 5000)
    shards = tmp_path / "checkpoint-2" / "pytorch_model_fsdp_0"
    put({".metadata": b"x" * 10, "__0_0.distcp": b"x" * 700}, shards)
    put({"optim": b"x" * 9000}, tmp_path / "checkpoint-2" / "optimizer_0")
    (tmp_path / "step=3.ckpt").write_bytes(b"x" * 300)
    sources = [each.source for each in make_plan([str(tmp_path)])]
    assert [source.num_bytes for source in sources] == [1000, 710, 300]
    assert {source.missing_bytes for source in sources} == {0}
    assert curves(shards) == [str(tmp_path)]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("none", "name at least one source"),
        ("", "a source is empty"),
        ("runn", "there is no folder 'runn'; the closest in '.': run"),
        ("gpt2", "; a repository on the hub is named owner/name, such as openai-community/gpt2"),
        ("gpt2@main", "is named owner/name"),
        ("https://huggingface.co/Qwen/Qwen2-0.5B", "on the hub, name Qwen/Qwen2-0.5B"),
        (f"https://huggingface.co/{OLMO}/tree/{STEPS[1]}", f"name {OLMO}@{STEPS[1]}"),
        ("https://huggingface.co/gpt2", "such as openai-community/gpt2"),
        ("run/checkpoint-*", "checkpoint-1; the shell expands a pattern: leave the quotes out"),
        ("~/run", "the shell puts the home folder in place of ~: leave the quotes out"),
    ],
)
def test_how_it_is_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    folders(tmp_path, "run/checkpoint-1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(told)):
        make_plan([source] if source != "none" else [])


# The hub


def test_a_glob_of_revisions(hub: HubServer, tmp_path: Path) -> None:
    assert planned(f"{OLMO}@step*") == [*STEPS]
    assert planned(f"{OLMO}@step1*", f"{OLMO}@step0*") == [*STEPS[:2]]
    assert planned(OLMO) == planned(f"{OLMO}@main") == ["main"]
    assert planned(f"{OLMO}@*") == [*STEPS]  # main says no step
    assert planned(f"{OLMO}@step*", num=2) == [STEPS[0], STEPS[-1]]
    assert planned("lab/tags@v1") == ["v1"]
    hub.requests.clear()
    assert planned(f"{OLMO}@step*", tokens=[3.9e9]) == ["step2000-tokens4B"]
    assert len(hub.requests) == 1  # that for all names and commits
    assert not (tmp_path / "home").exists()


def test_commits_of_a_training_that_pushed_are_its_steps(hub: HubServer, tmp_path: Path) -> None:
    steps = {"step500": ".a", "step1000": ".b, again", "step1500": ".c", "step1501": "main"}
    for found in (
        make_plan([f"{PUSHED}@commits"]),
        make_plan([PUSHED], revisions="commits"),
        make_plan([f"{PUSHED}@commits"], num=20),
    ):
        assert [each.name.text for each in found] == list(steps)
        assert {each.source.commit for each in found} == {
            hub.commit(PUSHED, name) for name in steps.values()
        }
    assert found[0].label == f"{PUSHED}@step500"
    assert with_files(found)[0].source.problem is None
    assert planned(f"{PUSHED}@commits", num=2) == ["step500", "step1501"]
    assert planned(PUSHED) == ["main"]
    with pytest.raises(InputError, match=r"no title of a commit says a step.*name lab/twice@GLOB"):
        make_plan(["lab/twice@commits"])


def test_stages_and_ingredients_are_curves(hub: HubServer) -> None:
    assert planned(f"{OLMO2}@*") == [
        *STAGED[:3],
        *(f"stage2-ingredient1: {name}" for name in STAGED[3:5]),
        f"stage2-ingredient2: {STAGED[5]}",
    ]
    first, second, ablation = STAGED_3
    every = [first, f"stage2: {second}", f"stage2-{MIX}: {ablation}"]
    assert planned(f"{OLMO3}@stage*") == every
    assert planned(f"{OLMO2}@stage2-ingredient1*") == STAGED[3:5]
    assert set(curves(f"{OLMO2}@stage2-ingredient1*")) == {f"{OLMO2}, stage2-ingredient1"}
    over_stages = make_plan([f"{OLMO2}@*"], tokens=[4.05e12, 42e9, 41e9])
    assert [(each.name.text, each.wanted, each.tokens) for each in over_stages] == [
        (STAGED[1], (42e9, 41e9), 42 * 10**9),
        (STAGED[4], (4.05e12,), 4052 * 10**9),
    ]


@pytest.mark.usefixtures("hub")
def test_a_glob_leaves_the_tokens_of_the_stages_before_as_they_are() -> None:
    tokens = [4.05e12, 4.004e12, 4.02e12, 9e12]
    every, second = (make_plan([f"{OLMO2}@{glob}"], tokens=tokens) for glob in ("*", "stage2*"))
    assert [(each.label, each.wanted) for each in second] == [
        (each.label, each.wanted) for each in every
    ]
    assert [each.name.text for each in second] == STAGED[3:]


def test_a_folder_goes_before_a_repository(hub: HubServer, tmp_path: Path) -> None:
    folders(tmp_path, "mine/checkpoint-7")
    assert planned(f"{OLMO}@step0*", "mine", f"{OLMO2}@stage1-step2*") == [
        f"allenai--OLMo-1B-0724-hf: {STEPS[0]}",
        "mine: checkpoint-7",
        f"allenai--OLMo-2-0425-1B: {STAGED[1]}",
    ]
    hub.requests.clear()
    folders(tmp_path, f"{OLMO}/checkpoint-7", "lab/checkpoint-3")
    assert planned(OLMO) == ["checkpoint-7"]
    assert planned("lab/checkpoint-3") == ["checkpoint-3"]
    assert hub.requests == []
    assert planned(f"{OLMO2}@stage1-step0*") == STAGED[:1]  # a folder called like its owner
    said = r"there is no folder 'lab/twicee'.*'lab': checkpoint-3; .*the hub has no such repository"
    with pytest.raises(InputError, match=said):
        make_plan(["lab/twicee"])
    for path in ("./lab/twice", "../lab/twice", "lab/twice/", "lab/.twice"):
        with pytest.raises(InputError, match=r"there is no folder '[^;]*; the closest in '[^;]*$"):
            make_plan([path])


def test_a_revision_that_cannot_be_measured_is_named_and_kept(hub: HubServer) -> None:
    fine, empty = with_files(make_plan(["lab/holes@step*"]))
    assert fine.source.problem is None
    assert str(empty.source.problem).startswith("it holds no weights")
    hub.fail(f"GET .*{hub.commit(OLMO, STEPS[1])}", Fault("error", status=403, times=9))
    steps = make_plan([f"{OLMO}@step*"])
    problems = [each.source.problem for each in with_files(steps)]
    assert [bool(problem) for problem in problems] == [False, True, False, False]
    assert f"{OLMO}@{STEPS[1]}" in str(problems[1])
    hub.fail("GET /api/models/.*/revision/", Fault("error", status=403, times=99))
    with pytest.raises(InputError, match="does not give it out"):  # if it refuses them all
        with_files(steps)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nobody/nothing", "the hub has no such repository"),
        (f"{OLMO}@step1000-tokens4B", f"'step1000-tokens4B' among 5; the closest: {STEPS[1]}"),
        ("lab/tags@refs/pr/1", "hf download lab/tags --revision refs/pr/1 --local-dir FOLDER"),
        ("lab/tags@v*", r"'lab/tags@v\*' fits 2 revisions.*\(v1, v2\)"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_on_the_hub_is_refused(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_plan([source])
