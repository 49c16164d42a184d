"""Checkpoints as Ray tasks: the same records, whatever becomes of the workers."""

import logging
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sr_monitor import Record
from sr_monitor.errors import InputError
from sr_monitor.replay import replay
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.hub import HubCheckpoint
from sr_monitor.replay.job import Failure, Job
from sr_monitor.results.record import list_records
from tests.hub_server import HubServer, hub_server
from tests.outside_probe import Norms
from tests.replays import (
    FEW,
    OLMO,
    STEPS,
    TWIN,
    checkpoints,
    olmo_files,
    olmo_repo,
    some_prompts,
    talk_to,
    what_is_in,
)

Driver = Callable[..., Any]


def run(*sources: str, out: Path, **options: Any) -> Any:
    everything: dict[str, Any] = {"engine": "ray"} | FEW | options
    return replay(sources, out, **everything)


def test_without_ray_one_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"not installed; run: pip install 'sr-monitor\[ray\]'"):
        run(".", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_address_where_no_ray_is_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    folder = checkpoints(tmp_path / "run", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=rf"ray_address='{address}': no Ray there .*refused"):
        run(str(folder), out=tmp_path / "out", prompts=some_prompts(), ray_address=address)


# With a real Ray; it is an extra. Its threads can end the process that they are in, so it has one.


def _start_ray() -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def _end_ray() -> None:
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub, which this process and those started from here ask."""
    home = tmp_path_factory.mktemp("home")
    repos = olmo_repo(**{TWIN: olmo_files(1)})
    with pytest.MonkeyPatch.context() as patch, hub_server(repos) as server:
        talk_to(server, patch, home)
        yield server


@pytest.fixture(scope="module")
def on_ray(hub: HubServer) -> Iterator[Driver]:
    """Call functions in a process in which Ray has two workers, which ask that hub."""
    pytest.importorskip("ray", reason="Ray is an extra")
    spawn = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_start_ray)

        def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
            return pool.submit(function, *args, **options).result(timeout=120)

        yield call
        processes = list(pool._processes.values())
        try:
            call(_end_ray)
        finally:  # whatever state they are in
            for process in processes:
                process.kill()
            pool.shutdown()


def weights_there() -> list[Path]:
    return list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))


def run_watched(*sources: str, out: Path) -> tuple[Any, list[tuple[int, int]]]:
    """The report, and what the bar of checkpoints was told."""
    seen: list[tuple[int, int]] = []

    def bar(name: str) -> Callable[[int, int], None]:
        into = seen if name == "checkpoints" else []
        return lambda done, total: into.append((done, total))

    return run(*sources, out=out, bar=bar), seen


def run_deadly(*sources: str, out: Path, flag: Path, deaths: int = 1, **options: Any) -> Any:
    """Workers die when a checkpoint has come, so many of them."""

    class Deadly(Job):
        def outcome(
            self, planned: Any, find_local: Any, *rest: Any, **more: Any
        ) -> list[Record] | Failure:
            def come() -> LocalCheckpoint:
                local: LocalCheckpoint = find_local()
                # Not below `out`, which may be on no disk of the worker's machine.
                is_beside_cache = Path(os.environ["HF_HOME"]) in local.path.parents
                assert is_beside_cache == isinstance(planned.source, HubCheckpoint)
                with flag.open("a") as file:
                    file.write(".")
                if flag.stat().st_size <= deaths:
                    os._exit(1)
                return local

            return Job.outcome(self, planned, come, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sr_monitor.replay.run.Job", Deadly)
        return run(*sources, out=out, **options)


@pytest.mark.slow  # starts Ray, whose workers import everything anew
def test_records_are_those_of_one_process(hub: HubServer, on_ray: Driver, tmp_path: Path) -> None:
    before = hub.count("GET .*model.safetensors/")
    report, seen = on_ray(run_watched, f"{OLMO}@step*", out=tmp_path / "ray")
    assert hub.count("GET .*model.safetensors/") - before == 4
    here = run(f"{OLMO}@step*", out=tmp_path / "here", engine="local")
    assert what_is_in(tmp_path / "ray") == what_is_in(tmp_path / "here")
    assert report == here
    assert report.measured == [f"{OLMO}@{name}" for name in STEPS]
    assert report.same == {f"{OLMO}@{TWIN}": f"{OLMO}@{STEPS[1]}"}
    assert seen == [(done, 5) for done in range(6)]
    assert weights_there() == []


@pytest.mark.slow  # starts Ray, whose workers import everything anew
def test_a_worker_that_dies_is_started_again(on_ray: Driver, tmp_path: Path) -> None:
    run(f"{OLMO}@step*", out=tmp_path / "whole", engine="local")
    run(f"{OLMO}@step1*", out=tmp_path / "out", engine="local")  # a replay may change its engine
    flag = tmp_path / "flag"
    report = on_ray(run_deadly, f"{OLMO}@step*", out=tmp_path / "out", flag=flag)
    assert report.failures == {}
    assert report.kept == [f"{OLMO}@{STEPS[1]}"]
    assert flag.stat().st_size == 4  # three checkpoints, and one of them twice
    assert what_is_in(tmp_path / "out") == what_is_in(tmp_path / "whole")
    assert weights_there() == []  # also what the dead one had fetched


@pytest.mark.slow  # starts Ray, whose workers import everything anew
def test_what_cannot_be_measured_is_named_in_its_place(on_ray: Driver, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer=9"):
        on_ray(run, f"{OLMO}@step*", out=tmp_path / "none", layer=9)
    assert not list_records(tmp_path / "none")
    folder = checkpoints(tmp_path / "run", 1, 2, 3)
    damaged = folder / "checkpoint-2"
    (damaged / "model.safetensors").write_bytes(b"no weights")
    options: dict[str, Any] = {"prompts": some_prompts(), "probes": [Norms()]}
    report = on_ray(run, str(folder), out=tmp_path / "out", **options)
    assert report.measured == [str(folder / f"checkpoint-{step}") for step in (1, 3)]
    assert "is damaged" in report.failures[str(damaged)]
    for path in list_records(tmp_path / "out"):  # a probe of another package goes along
        record = Record.load(path, [Norms()])
        assert record.parts["norms"]["norm"].isfinite().all()


@pytest.mark.slow  # a worker is started again after some seconds, three times
def test_a_checkpoint_that_kills_every_worker_is_named(on_ray: Driver, tmp_path: Path) -> None:
    folder, flag = checkpoints(tmp_path / "run", 1), tmp_path / "flag"
    options: dict[str, Any] = {"flag": flag, "deaths": 99, "prompts": some_prompts()}
    report = on_ray(run_deadly, str(folder), out=tmp_path / "out", **options)
    assert flag.stat().st_size == 4  # the first try, and three more
    reason = report.failures[str(folder / "checkpoint-1")]
    assert reason.startswith("its Ray task was lost (WorkerCrashedError: The worker died")
    assert ".log" not in reason


@pytest.mark.slow  # starts a Ray in a process of its own
def test_a_ray_of_our_own_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    folder = checkpoints(tmp_path / "run", 1, 2)
    some_prompts().save(tmp_path / "prompts.json")
    code = (
        "import sys, psutil; from sr_monitor.cli import main; "
        "status = main(sys.argv[1:]); "
        "names = [c.name() for c in psutil.Process().children(recursive=True)]; "
        "print([name for name in names if 'ray' in name.lower()]); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "replay", str(folder), "--out", str(tmp_path / "out")]
    command += ["--engine", "ray", "--prompts", str(tmp_path / "prompts.json"), "--num-pairs", "3"]
    command += ["--num-steps", "4", "--num-slices", "0", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "2 measured, 0 failed" in done.stdout
