"""Every code block of README and docs: run as it stands there, or excused in the page."""

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import pytest
import transformers
import typer
from transformers import AutoTokenizer, Trainer

from sr_monitor import MonitorConfig, PromptSet
from sr_monitor.cli import main
from sr_monitor.cli.command import _app
from sr_monitor.probes.base import available, probe_class
from sr_monitor.replay import replay
from sr_monitor.results.record import record_path
from sr_monitor.watch.measure import take_record
from tests import lightning_runs, made, replays
from tests.hub_server import hub_server
from tests.pages import PAGES, ROOT, Block, blocks, execute
from tests.reports import save_run
from tests.saved import save_model, save_tokenizer, tiny_model
from tests.training import rows

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_BY_SPHINX = {"{eval-rst}", "{image}", "{toctree}"}
TEXT = {"", "bibtex"}
ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in ALL if block.language == "bash"]
SMALL: dict[str, Any] = {"num_pairs": 4, "num_steps": 5, "num_slices": 1, "slice_resolution": 5}


def test_every_kind_of_block_is_run() -> None:
    known = {"python", "bash", "toml"} | BUILT_BY_SPHINX | TEXT
    assert [block.where for block in ALL if block.language not in known] == []
    assert {block.language for block in ALL} == known


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer")  # a part of TensorBoard's own
@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.where)
def test_a_command_has_the_options_that_a_page_names(block: Block) -> None:
    for command, *words in block.commands:
        CHECKS[command](words)


def _is_ours(words: list[str]) -> None:
    group: Any = typer.main.get_command(_app(words[0]))
    with group.commands[words[0]].make_context(words[0], list(words[1:])):
        pass


def _is_a_target(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[0] in targets


def _installs_ours(words: list[str]) -> None:
    assert words[0] == "install"
    (extras,) = re.findall(r"\[(.*)\]", words[-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}


def _is_a_file(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()


def _shows_a_run(words: list[str]) -> None:
    from tensorboard import program

    program.TensorBoard().configure(argv=["tensorboard", *words])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "sr-monitor": _is_ours,
    "make": _is_a_target,
    "pip": _installs_ours,
    "python": _is_a_file,
    "tensorboard": _shows_a_run,
    "ray": lambda words: None,
}


def test_each_guarantee_names_a_test_that_there_is() -> None:
    page = (ROOT / "docs/3-watching.md").read_text()
    named = re.findall(r"\]\(\.\./(tests/\S+\.py)\): ((?:`test_\w+`(?:, )?)+)", page)
    assert len(named) == page.count("](../tests/") > 10
    for file, names in named:
        for name in re.findall(r"test_\w+", names):
            assert f"def {name}(" in (ROOT / file).read_text()


def test_tables_for_a_pyproject_are_read_as_the_library_reads_them() -> None:
    (block,) = (block for block in ALL if block.language == "toml")
    from sr_monitor.probes.base import ENTRY_POINTS

    table = tomllib.loads(block.code)["project"]["entry-points"]
    assert list(table) == [ENTRY_POINTS]


@dataclass(frozen=True, kw_only=True)
class Sideways(made.Rise):
    """A probe of another package, of the name that the docs use."""

    name = "sideways"
    at_least: float = 0.1


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The folders and names that the pages speak of, and a hub with tiny models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    save_tokenizer(save_model(tmp_path / "runs/demo/model"))
    model = tiny_model()
    tokenizer = AutoTokenizer.from_pretrained("runs/demo/model")
    texts = (ROOT / "README.md").read_text()
    prompts = PromptSet.from_texts(texts, tokenizer, num_tokens=6, num_prompts=9, seed=0)
    config = MonitorConfig(**SMALL, probes=["divergence"])
    take_record(model, prompts, config, step=800, tokens=614_400).save(
        record_path(Path("runs/demo"), 800)
    )
    prompts.save(tmp_path / "runs/demo/stable_regions/prompts.json")
    for name in ("small", "large"):
        save_run(tmp_path / "runs" / name, [0, 10])
    save_run(tmp_path / "replays/small", [0, 10])
    for name in ("README.md", "runs/corpus.txt"):
        (tmp_path / Path(name).name).write_text(texts)
    for name in ("code.json", "prompts.json"):
        prompts.save(tmp_path / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    replays.checkpoints(tmp_path / "runs/gpt2", 10, 20)
    monkeypatch.setattr("sr_monitor.probes.base.available", lambda: [*available(), "sideways"])
    monkeypatch.setattr(
        "sr_monitor.probes.base.probe_class",
        lambda name: Sideways if name == "sideways" else probe_class(name),
    )
    space = _names() | {"model": model, "tokenizer": tokenizer, "texts": texts, "prompts": prompts}
    with hub_server(_hub()) as server:
        replays.talk_to(server, monkeypatch, tmp_path / "home")
        yield space


def _names() -> dict[str, Any]:
    """What the pages take for granted: a training as it is without sr-monitor."""
    from sr_monitor_transformers import StableRegionCallback

    from sr_monitor import Monitor

    quiet: dict[str, Any] = {
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    light: dict[str, Any] = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
    names: dict[str, Any] = {
        "__name__": __name__,
        "Trainer": Trainer,
        "args": transformers.TrainingArguments("runs/trained", disable_tqdm=True, **quiet),
        "dataset": rows(300, 24),
        "L": type("L", (), {"Trainer": partial(lightning.Trainer, **light)}),
        "module": lightning_runs.LitLM(),
        "loader": range(3),
        "StableRegionCallback": StableRegionCallback,
        "Monitor": Monitor,
        "MonitorConfig": MonitorConfig,
        "replay": replay,
        "Sideways": Sideways,
    }
    names["module"].train_dataloader = lambda: lightning_runs.loader(rows(300, 24))
    return names


def _hub() -> dict[str, Any]:
    """The repositories that the pages name."""
    main_branch = replays.olmo_files(3) | replays.tokenizer_files()
    return {
        **replays.olmo_repo(),
        "allenai/OLMo-1B-hf": {"main": main_branch},
        **{f"Qwen/Qwen2-{size}": {"main": files} for size, files in _sizes().items()},
    }


def _sizes() -> dict[str, dict[str, bytes]]:
    """Models of several sizes, small ones."""
    found = {}
    for number, size in enumerate(("0.5B", "1.5B", "7B"), start=1):
        with tempfile.TemporaryDirectory() as folder:
            wider: dict[str, Any] = {"intermediate_size": 64 * number, "num_key_value_heads": 4}
            save_model(Path(folder), "Qwen2", **wider)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        found[size] = files | replays.tokenizer_files()
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer")  # a part of TensorBoard's own
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, workplace: dict[str, Any]) -> None:
    """All blocks in order, in one folder and one namespace."""
    for block in blocks(page):
        if block.language == "bash":
            for line in block.lines:
                if block.is_run(line):
                    _run_line(line)
        elif block.language == "python" and block.is_run(block.code):
            value = execute(block, workplace)
            if isinstance(value, Trainer):
                value.train()


def _run_line(line: str) -> None:
    command, *words = shlex.split(line, comments=True)
    words = ["runs/demo/model" if word == "MODEL" else word for word in words]
    if "--trackio" in words and find_spec("trackio") is None:
        return  # an extra for developers; tests/display/test_export.py skips it by name
    if command == "sr-monitor":
        assert main(words) == 0, line
    else:
        assert command != "ray", f"{line}: no test runs it; say why in the page"
        CHECKS[command](words)
