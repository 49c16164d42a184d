"""A curve that is continued shows what an uninterrupted one shows, and reads only what it needs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from sr_monitor.errors import InputError
from sr_monitor.replay.curves import Curve
from sr_monitor.results.record import Record, record_path
from tests.made import PROMPTS, Rise, make_record

STEPS = (1, 2, 3, 5, 7, 8)
OTHER_CUTS = ((1,), (1, 2, 3, 4, 5), (6,))


def record_of(step: int) -> Record:
    return make_record(step, 0, metadata={"source": f"checkpoint-{step}"})


def run(folder: Path, steps: Sequence[int], *, is_killed: bool = False, **options: Any) -> Curve:
    """Add records as one process would; one that is killed finishes nothing."""
    curve = Curve(folder, **options)
    curve.begin()
    for step in steps:
        curve.add(record_of(step), PROMPTS)
    if not is_killed:
        curve.finish()
    curve.close()
    return curve


def shown(folder: Path) -> dict[str, Any]:
    """Everything that TensorBoard shows; a text that is purged and written again counts once."""
    limits = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    board = EventAccumulator(str(folder), size_guidance=limits).Reload()
    tags: Any = board.Tags()
    found: dict[str, Any] = {}
    for kind, read in (
        ("scalars", lambda tag: [(e.step, e.value) for e in board.Scalars(tag)]),
        ("images", lambda tag: [(e.step, e.encoded_image_string) for e in board.Images(tag)]),
        (
            "histograms",
            lambda tag: [(e.step, repr(e.histogram_value)) for e in board.Histograms(tag)],
        ),
        (
            "tensors",
            lambda tag: sorted({(e.step, str(e.tensor_proto)) for e in board.Tensors(tag)}),
        ),
    ):
        found |= {f"{kind} {tag}": read(tag) for tag in tags[kind] if "custom_scalars" not in tag}
    return found


@pytest.fixture(autouse=True, scope="module")
def _files_in_order() -> None:
    """Readers sort event files by name, and the tenth of a process comes before its ninth."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(1000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "stable_regions"
    run(folder, STEPS)
    return shown(folder)


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize(
    "cuts", [(3,), *(pytest.param(cuts, marks=pytest.mark.slow) for cuts in OTHER_CUTS)]
)
def test_a_curve_that_is_continued_shows_what_a_whole_one_shows(
    tmp_path: Path, whole: dict[str, Any], cuts: tuple[int, ...], is_killed: bool
) -> None:
    folder, starts = tmp_path / "stable_regions", (0, *cuts)
    for start, end in zip(starts, (*cuts, len(STEPS)), strict=True):
        run(folder, STEPS[start:end], is_killed=is_killed and end < len(STEPS))
    assert shown(folder) == whole


@pytest.mark.slow
def test_records_that_came_late_or_were_never_shown_are_shown_in_their_place(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    late, unshown = tmp_path / "late", tmp_path / "unshown"
    run(late, (1, 3, 8))
    run(late, (2, 5, 7))
    assert shown(late) == whole
    run(unshown, (1, 3, 8))
    run(unshown, (2, 5, 7), is_killed=True)
    run(unshown, ())
    assert shown(unshown) == whole
    run(killed := tmp_path / "killed", (1, 2, 3), is_killed=True)
    for step in (5, 7, 8):  # as if it had been killed before it showed them
        record_of(step).save(killed / record_path("", step).name)
    run(killed, ())
    assert shown(killed) == whole
    (late / ".shown.json").write_text("[]")
    run(late, ())
    assert shown(late) == whole


def test_a_probe_that_is_derived_is_shown_for_earlier_records_too(tmp_path: Path) -> None:
    run(folder := tmp_path / "stable_regions", STEPS[:3])
    run(folder, STEPS[3:], probes=[Rise()])
    name = "scalars stable_regions_rise/median"
    assert [step for step, _ in shown(folder)[name]] == list(STEPS)


def test_only_what_is_needed_is_read_and_nothing_is_written_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder := tmp_path / "stable_regions", range(1, 41))
    before = sorted(folder.iterdir())
    read: list[str] = []
    load = Record.load

    def counted(path: Any, probes: Any = ()) -> Record:
        read.append(Path(path).name)
        return load(path, probes)

    monkeypatch.setattr(Record, "load", counted)
    assert run(folder, ()).at(7) == "checkpoint-7"
    assert (sorted(folder.iterdir()), read) == (before, [])
    curve = run(folder, (41,))
    # The picture steps, the one before the last that is shown again, and that one.
    steps = [1, 2, 4, 8, 16, 32, 39, 40, 41]
    assert read == [record_path("", step).name for step in steps]
    assert (curve.ways, curve.at(41), curve.at(50)) == ({"shared": 1}, "checkpoint-41", None)
    found = curve.load("checkpoint-7")
    assert found is not None
    assert found.step == 7
    assert curve.load("elsewhere") is None


def test_a_damaged_record_is_measured_again_and_a_foreign_one_refused(tmp_path: Path) -> None:
    run(folder := tmp_path / "stable_regions", STEPS)
    file = folder / record_path("", 3).name
    file.write_bytes(file.read_bytes()[:-9])
    assert list(Curve(folder).outlines) == [f"checkpoint-{step}" for step in (1, 2, 5, 7, 8)]
    replace(record_of(9), metadata={}).save(folder / record_path("", 9).name)
    with pytest.raises(InputError, match="a record at step 9 that no replay has made"):
        Curve(folder)
