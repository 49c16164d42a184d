"""Records shown again are what the run itself showed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr_monitor.cli import main
from sr_monitor.display.album import Album
from sr_monitor.display.export import export_run
from sr_monitor.errors import InputError
from sr_monitor.results.record import Record, list_records
from sr_monitor.results.runs import find_runs
from tests.display.test_writers import accumulate, import_trackio
from tests.made import PROMPTS, Rise, make_prompts
from tests.memory_writer import MemoryWriter
from tests.reports import save_run

STEPS = [0, 10, 20, 30]
PICTURE = "stable_regions_rise/picture"


def small(step: int) -> Record:
    """A record whose picture takes no time to draw."""
    part = {"rise": torch.tensor([step / 30, 0.5]), "at": 0.5}
    return Record(step=step, parts={"rise": part}, probes=(Rise(),))


def bare(step: int) -> Record:
    """A record with no numbers but those of every measurement."""
    return Record(step=step, tokens=10 * step, metadata={"seconds": 1.5})


def content(writer: MemoryWriter) -> dict[str, Any]:
    """Everything that was written, in a form that can be compared."""
    kinds = ("scalars", "histograms", "images", "animations", "texts")
    return {
        f"{kind} {name}": [(step, np.asarray(value).tobytes()) for step, value in entries]
        for kind in kinds
        for name, entries in getattr(writer, kind).items()
    }


def test_what_is_exported_is_what_the_run_wrote(tmp_path: Path) -> None:
    """Pictures at 0, 10, 20 and, as the last step, 30; changes since the record before, too."""
    live, again = MemoryWriter(), MemoryWriter()
    album = Album([live])
    album.introduce(PROMPTS, 0)
    for step in STEPS:
        album.show(small(step), prompts=PROMPTS, last=step == STEPS[-1])
    (run,) = find_runs(save_run(tmp_path / "run", STEPS, small), [Rise()])
    assert export_run(run, [again]) == len(STEPS)
    assert content(again) == content(live)
    assert [step for step, _ in again.images[PICTURE]] == [0, 10, 20, 30]


def test_names_begin_with_the_folder_of_the_records(tmp_path: Path) -> None:
    second = save_run(tmp_path / "run", [0], small) / "stable_regions"
    second = second.rename(second.with_name("stable_regions-2"))
    (run,) = find_runs(second, [Rise()])
    export_run(run, [writer := MemoryWriter()])
    assert {"stable_regions-2/prompts", "stable_regions-2_rise/median"} <= writer.names


def test_each_model_of_a_sweep_has_its_prompts(tmp_path: Path) -> None:
    about = {"x_axis": "parameters"}
    folder = save_run(tmp_path, [5, 6], lambda step: replace(small(step), metadata=about))
    for size in (5, 6):
        path = folder / "stable_regions" / f"prompts-{size:09d}.json"
        make_prompts(size).save(path)
    (run,) = find_runs(folder)
    export_run(run, [writer := MemoryWriter()])
    assert [step for step, _ in writer.texts["stable_regions/prompts"]] == [5, 6]


def test_a_damaged_record_is_left_out_even_if_it_is_the_last(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", STEPS, small)
    list_records(folder)[-1].write_bytes(b"")
    (run,) = find_runs(folder, [Rise()])
    assert export_run(run, [writer := MemoryWriter()]) == 3
    assert [step for step, _ in writer.images[PICTURE]] == [0, 10, 20]
    assert list(run.damaged) == ["step-000000030.safetensors"]


def test_prompts_that_are_missing_are_told(tmp_path: Path) -> None:
    (run,) = find_runs(save_run(tmp_path / "run", [0], small, prompts=None))
    with pytest.raises(InputError, match=r"prompts of 'run' at step 0 are missing.*prompts\.json"):
        export_run(run, [MemoryWriter()])


def test_the_command_writes_tensorboard_and_never_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_run(tmp_path / "runs" / name, [0, 10], bare)
    assert main(["export", "runs", "--log-dir", "again"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {name} to again: 2 measurements" for name in ("a", "b")
    ]
    events = accumulate(Path("again/b"))
    for name, value in bare(10).scalars.items():
        assert events.Scalars(name)[-1].value == value, name
    for words, said in (
        (["--log-dir", "again"], "'again/a' holds a TensorBoard run already"),
        ([], "say where to: --log-dir DIR, --wandb PROJECT, --trackio PROJECT"),
    ):
        assert main(["export", "runs", *words]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_the_command_writes_a_run_of_trackio_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.chdir(tmp_path)
    trackio: Any = import_trackio()
    save_run(tmp_path / "runs" / "a", [0, 10], bare)
    project = f"{tmp_path.name}-again"
    assert main(["export", "runs", "--trackio", project]) == 0
    rows = trackio.SQLiteStorage.get_logs(project, "a")
    name = "stable_regions_diagnostics/tokens"
    tokens = {row["step"]: row[name] for row in rows if name in row}
    assert tokens == {0: 0, 10: 100}
