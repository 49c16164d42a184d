"""The examples, run as a user runs them."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from sr_monitor import Record
from sr_monitor.cli.demo_training import run_demo
from sr_monitor.probes.base import available
from sr_monitor.probes.measuring import no_bar
from sr_monitor.results.record import list_records
from tests.cli.test_demo import TINY
from tests.hub_server import hub_server
from tests.replays import olmo_repo
from tests.saved import save_model, save_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*command: str, **more: str) -> str:
    """What the command prints; a failure shows what it complained about."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps_under(folder: Path) -> list[int]:
    (records,) = {path.parent for path in folder.rglob("step-*.safetensors")}
    assert list(records.parent.rglob("events.out.tfevents.*"))
    return [Record.load(path).step for path in list_records(records)]


SLOW = pytest.mark.slow  # the type checker reads these, and the adapters have suites of their own

NEEDS_OLMO_CORE = pytest.mark.skipif(
    find_spec("olmo_core") is None, reason="pip install 'sr-monitor[olmo-core]'"
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain_loop", marks=SLOW),
        pytest.param("hf_trainer", marks=SLOW),
        pytest.param("lightning_module", marks=SLOW),
        pytest.param("olmo_core_trainer", marks=[SLOW, NEEDS_OLMO_CORE]),
    ],
)
def test_an_example_leaves_a_watched_run(name: str, tmp_path: Path) -> None:
    run(str(EXAMPLES / f"{name}.py"), str(tmp_path))
    assert steps_under(tmp_path) == [0, 10, 20]


@pytest.mark.slow
def test_two_processes_share_a_sharded_model(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    out = run(*torchrun, str(EXAMPLES / "fsdp.py"), str(tmp_path))
    assert out.count("step 20: maximum slope") == 1
    assert steps_under(tmp_path) == [0, 10, 20]


@pytest.mark.slow
def test_the_history_of_olmo_is_replayed(tmp_path: Path) -> None:
    """From a hub on this machine, with tiny models under the real names."""
    with hub_server(olmo_repo()) as hub:
        environment = hub.environment(tmp_path / "home")
        out = run(str(EXAMPLES / "replay_olmo.py"), str(tmp_path / "out"), **environment)
    assert re.findall(r"^step (\d+), (\d+) tokens: maximum slope \d\.\d\d$", out, re.M) == [
        *(("0", "0"), ("1000", "2000000000")),
        *(("2000", "4000000000"), ("3000", "6000000000")),
    ]
    assert steps_under(tmp_path / "out") == [0, 1000, 2000, 3000]
    assert not list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.slow
def test_a_model_is_compared_with_random_weights_by_every_probe(tmp_path: Path) -> None:
    folder = save_tokenizer(save_model(tmp_path))
    lines = run("-W", "ignore", str(EXAMPLES / "beside_random.py"), str(folder), "4").splitlines()
    found = {name: values for name, *values in map(str.split, lines)}
    for probe in set(available()) - {"readout"}:
        assert any(name.startswith(f"stable_regions_{probe}/") for name in found), probe
    assert all(len(values) == 2 for values in found.values())


def test_the_notebook_holds_pictures_and_runs_without_edits() -> None:
    """In the file as it was saved; the slow test below makes them anew."""
    notebook = nbformat.read(EXAMPLES / "first_hour.ipynb", 4)
    assert len(_pictures(notebook)) == 4
    assert "%pip install" in notebook.cells[1].source
    assert not any(output.get("name") == "stderr" for output in _outputs(notebook))


@pytest.mark.slow
def test_the_demo_is_shown_by_every_probe(tmp_path: Path) -> None:
    """From the records of a shorter training than its own."""
    probes = ["regions", "map", "geometry"]
    plan = replace(TINY, config=replace(TINY.config, num_pairs=12, probes=probes))
    run_demo(tmp_path, plan, "transformers", no_bar)
    out = run("-W", "ignore", str(EXAMPLES / "demo_probes.py"), str(tmp_path))
    for number in ("regions/count", "geometry/rank", "meaning/finals/value", "readout/r2"):
        assert f"stable_regions_{number}" in out
    pictures = {path.name for path in (tmp_path / "pictures").glob("*.png")}
    names = "regions-hypotheses", "map-0", "geometry-spectrum", "meaning-pairs", "readout-predicted"
    assert pictures >= {f"{name}.png" for name in names}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "first_hour.ipynb", 4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(_pictures(notebook)) == 4
    said = "".join(each["text"] for each in _outputs(notebook) if each.get("name") == "stdout")
    assert said.count("maximum slope") == 3


def _outputs(notebook: Any) -> list[Any]:
    return [each for cell in notebook.cells for each in cell.get("outputs", [])]


def _pictures(notebook: Any) -> list[str]:
    data = [each.get("data", {}) for each in _outputs(notebook)]
    return [each["image/png"] for each in data if "image/png" in each]


def test_every_example_is_run_here() -> None:
    ran = {
        "beside_random",
        "demo_probes",
        "hf_trainer",
        "lightning_module",
        "olmo_core_trainer",
        "plain_loop",
        "fsdp",
        "replay_olmo",
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} == ran
