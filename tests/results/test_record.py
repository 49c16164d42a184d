"""Records there and back bit for bit, and whole or not at all whatever happens."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.probes import keys
from sr_monitor.probes.paths import Paths
from sr_monitor.probes.slices import Slices
from sr_monitor.results.record import Record, list_records, record_path, step_of

NAN, INF = math.nan, math.inf
METADATA = {
    "fingerprint": "0123456789abcdef",
    "odd text": 'ünï "quoted" \ud800 \n',
    "nested": {"span": [-0.25, 1.25], "none": None, "on": True},
    "seconds": 12.5,
    "nothing": NAN,
    "large": 2**70,
    "third": 1 / 3,
}


def make_paths(num_pairs: int = 5, num_steps: int = 11) -> Paths:
    """Curves of known slopes, each a straight line, with one pair that is not finite."""
    alphas = torch.linspace(0, 1, num_steps, dtype=torch.float64).float()
    distance = alphas * torch.arange(1.0, num_pairs + 1)[:, None]
    distance[-1:, -2] = INF
    distance[1:2, 3] = NAN
    return Paths(
        alphas=alphas,
        distance=distance,
        input_distance=torch.arange(10.0, 10 + num_pairs),
        noise_distance=1e-6,
        noise_floor=1 / 3e6,
        num_points=num_pairs * num_steps - 1,
        engine="shared",
        noise=torch.arange(1.0, num_pairs + 1) / 1e6,
    )


def make_slices(num_triples: int = 2, resolution: int = 4) -> Slices:
    shape = (num_triples, 3, resolution, resolution)
    distance = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    distance[:1, 1, 2, 3] = INF
    return Slices(
        coordinates=torch.linspace(-0.25, 1.25, resolution),
        distance=distance,
        foot=torch.tensor([0.5, NAN])[:num_triples],
        num_points=math.prod(shape),
        engine="rows",
    )


def make_record(**changes: Any) -> Record:
    whole = {"step": 500, "tokens": 10**12, "paths": make_paths(), "slices": make_slices()}
    return Record(**{**whole, "metadata": dict(METADATA), **changes})


def bits(value: Any) -> Any:
    """Something that is equal only if every bit is, NaNs included."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    return repr(value)


def everything(record: Record) -> dict[str, Any]:
    found = {name: bits(getattr(record, name)) for name in ("step", "tokens", "metadata")}
    for name, part in (("paths", record.paths), ("slices", record.slices)):
        found |= {f"{name}.{k}": bits(v) for k, v in (vars(part) if part else {}).items()}
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = record_path(tmp_path, 500)
    make_record().save(path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]) -> None:
    """Change the header and the tensors of a file."""
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"slices": None, "tokens": None, "metadata": {}, "step": 0},
        {"paths": make_paths(num_pairs=0), "slices": make_slices(num_triples=0)},
    ],
)
def test_a_record_comes_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    record = make_record(**changes)
    record.save(tmp_path / "a record")
    again = Record.load(str(tmp_path / "a record"))
    assert everything(again) == everything(record)
    assert (again.slices is None) == (record.slices is None)


def test_every_bit_pattern_of_a_float_comes_back(tmp_path: Path) -> None:
    patterns = torch.tensor(
        [0x7FC00001, -0x400000, -0x80000000, 0x7F800000, -0x800000, 1, 0x7F7FFFFF]
    )
    odd = patterns.to(torch.int32).view(torch.float32)
    paths = make_paths(num_pairs=7)
    paths.distance[:, 0] = odd
    make_record(paths=paths).save(tmp_path / "odd")
    again = Record.load(tmp_path / "odd").paths.distance[:, 0]
    assert again.view(torch.int32).tolist() == patterns.tolist()


def test_tensors_that_share_memory_or_have_gaps_can_be_saved(tmp_path: Path) -> None:
    paths, shared = make_paths(), torch.rand(11, 5)
    paths = replace(paths, distance=shared.t(), input_distance=shared[0])
    record = make_record(paths=paths)
    record.save(tmp_path / "shared")
    assert everything(Record.load(tmp_path / "shared")) == everything(record)


def test_what_is_loaded_does_not_lie_in_the_file(saved: Path) -> None:
    record = Record.load(saved)
    with saved.open("r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert everything(record) == everything(make_record())


def test_scalars_are_the_medians_of_the_pairs_that_count() -> None:
    record = make_record(metadata={"seconds": 2.5, "share_of_time": 0.01, "failures": 3, "more": 7})
    straight = pytest.approx(1.0, rel=1e-5)
    assert record.scalars == {
        "stable_regions/max_slope/median": straight,
        "stable_regions/max_slope/q25": straight,
        "stable_regions/max_slope/q75": straight,
        "stable_regions/location": record.paths.location[record.paths.kept].median().item(),
        "stable_regions/width": pytest.approx(0.5, rel=1e-5),
        "stable_regions/end_distance": 2.5,  # of 1, 2, 3, 4; the fifth is left out
        "stable_regions/input_distance": 11.5,
        "stable_regions/noise_floor": 1 / 3e6,
        "stable_regions/pairs_left_out": 1.0,
        "stable_regions/num_points": 54 + 96,
        "stable_regions/tokens": 1e12,
        "stable_regions/seconds": 2.5,
        "stable_regions/share_of_time": 0.01,
        "stable_regions/failures": 3.0,
    }
    assert all(type(value) is float for value in record.scalars.values())


def test_quartiles_of_different_slopes() -> None:
    """Slopes of 1, 2, 3, 4, 5: all of the rise in a half, a third, ... of the way."""
    alphas = torch.linspace(0, 1, 61)
    distance = torch.stack([(alphas * slope).clamp(max=1) for slope in (1, 2, 3, 4, 5)])
    steep = replace(make_paths(), alphas=alphas, distance=distance)
    scalars = make_record(paths=steep).scalars
    names = (keys.MAX_SLOPE_Q25, keys.MAX_SLOPE_MEDIAN, keys.MAX_SLOPE_Q75)
    assert [scalars[key.name] for key in names] == pytest.approx([2, 3, 4], rel=1e-5)
    assert scalars[keys.WIDTH.name] == pytest.approx(0.5 / 3, rel=1e-5)


def test_the_names_of_scalars_are_keys() -> None:
    all_of_them = {key.name for key in keys.KEYS if key.kind == "scalar"}
    timed = {"seconds": 1.0, "share_of_time": 0.5, "failures": 0}
    assert set(make_record(metadata=timed).scalars) == all_of_them
    few = set(make_record(metadata={}, tokens=None, slices=None).scalars)
    later = {f"stable_regions/{name}" for name in (*timed, "tokens")}
    assert few == all_of_them - later


def test_nothing_left_to_count_is_nan_and_no_complaint() -> None:
    paths = make_paths()
    paths.distance.fill_(0)
    scalars = make_record(paths=paths).scalars
    assert scalars[keys.PAIRS_LEFT_OUT.name] == 5
    assert math.isnan(scalars[keys.MAX_SLOPE_MEDIAN.name])


def test_where_records_lie(tmp_path: Path) -> None:
    assert record_path("runs/1", 500) == Path("runs/1/stable_regions/step-000000500.safetensors")
    steps = [500, 0, 1_234_567_890_123, 999_999_999, 1_000_000_000]
    paths = {step: record_path(tmp_path, step) for step in steps}
    paths[0].parent.mkdir()
    for path in paths.values():
        path.touch()
    others = ["step-5.safetensors", "step-000000001.safetensors.tmp", "prompts.json", "step-x"]
    others += [".step-000000001.safetensors.0a1b2c3d.tmp", "xstep-000000001.safetensors"]
    for name in [*others, "step-0000000001.safetensors"]:
        (paths[0].parent / name).touch()
    expected = [paths[step] for step in sorted(steps)]
    assert list_records(tmp_path) == list_records(str(tmp_path / "stable_regions")) == expected
    assert [step_of(path) for path in expected] == sorted(steps)
    assert list_records(tmp_path / "missing") == []
    with pytest.raises(InputError, match=r"step_of\('.*prompts\.json'\): a record is named"):
        step_of(paths[0].parent / "prompts.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, r"Record\(step=-1\): pass a whole number, 0 or more"),
        ({"tokens": -5}, r"Record\(tokens=-5\): pass a whole number, 0 or more"),
        (
            {"metadata": {"a": [1, {"b": (1, 2)}]}},
            r"metadata\['a'\]\[1\]\['b'\] is a tuple, \(1, 2\)",
        ),
        ({"metadata": {"a": {1: 2}}}, r"metadata\['a'\] is a dict, \{1: 2\}; metadata is text"),
        ({"metadata": {"a": np.float32(1)}}, r"metadata\['a'\] is a float32"),
        ({"metadata": {"a": torch.zeros(1)}}, r"metadata\['a'\] is a Tensor"),
    ],
)
def test_what_could_not_be_saved_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_record(**changes)
    assert "\n" not in str(caught.value)


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Record.load(path)
    text = str(caught.value)
    assert text.startswith(f"Record.load({str(path)!r}): ")
    assert "\n" not in text


def test_a_file_cut_short_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        saved.write_bytes(content[:length])
        refused(saved, "no whole safetensors file")


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "No such file")
    refused(tmp_path, "Is a directory|no whole safetensors|No such device")
    text = tmp_path / "text"
    text.write_text("step,loss\n" * 1000)
    refused(text, "no whole safetensors file")
    weights = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, weights)
    refused(weights, "no file that Record.save wrote")
    save_file({"weight": torch.zeros(2)}, weights, {"format": "pt"})
    refused(weights, "no file that Record.save wrote")


def test_a_newer_schema_is_refused_by_name(saved: Path) -> None:
    rewrite(saved, lambda header, tensors: header.update(schema="7", record="of another kind"))
    refused(saved, r"the file has schema 7, this sr-monitor reads up to schema 1; run: pip install")


def test_an_older_file_may_lack_much(saved: Path) -> None:
    def strip(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
        header["schema"] = "0"
        header["record"] = json.dumps({"step": 500, "of the future": 1})
        for name in [name for name in tensors if name.startswith("slices")]:
            del tensors[name]

    rewrite(saved, strip)
    record, before = Record.load(saved), make_record()
    assert (record.step, record.tokens, record.slices, record.metadata) == (500, None, None, {})
    assert (record.paths.num_points, record.paths.engine) == (0, "")
    assert bits(record.paths.distance) == bits(before.paths.distance)
    assert record.paths.kept.tolist() == before.paths.kept.tolist()
    assert math.isnan(record.paths.noise_floor)


def test_a_file_without_a_schema_counts_as_the_first(saved: Path) -> None:
    rewrite(saved, lambda header, tensors: header.__delitem__("schema"))
    assert everything(Record.load(saved)) == everything(make_record())


DAMAGES: list[Callable[[dict[str, str], dict[str, Tensor]], Any]] = [
    lambda header, tensors: tensors.pop("paths.alphas"),
    lambda header, tensors: tensors.pop("slices.foot"),
    lambda header, tensors: header.pop("record"),
    lambda header, tensors: header.update(record="{"),
    lambda header, tensors: header.update(record="[" * 100_000),
    lambda header, tensors: header.update(record="[]"),
    lambda header, tensors: header.update(record="{}"),
    lambda header, tensors: header.update(record='{"step": "5"}'),
    lambda header, tensors: header.update(record='{"step": 5, "paths": 3}'),
    lambda header, tensors: header.update(record='{"step": 5, "metadata": [1]}'),
    lambda header, tensors: header.update(schema="new"),
    lambda header, tensors: tensors.update({"paths.alphas": torch.zeros(3)}),
    lambda header, tensors: tensors.update({"paths.alphas": torch.zeros(11).long()}),
    lambda header, tensors: tensors.update(
        {"paths.distance": torch.zeros(11), "paths.input_distance": torch.zeros(11)}
    ),
    lambda header, tensors: tensors.update({"slices.distance": torch.zeros(2, 4, 4, 4)}),
    lambda header, tensors: tensors.update({"slices.distance": torch.zeros(2, 3, 4, 5)}),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(
    saved: Path, damage: Callable[[dict[str, str], dict[str, Tensor]], Any]
) -> None:
    rewrite(saved, damage)
    refused(saved, r"the file is damaged \(.*\); measure again")


def test_damaged_files_are_refused_without_the_type_checks_of_these_tests(tmp_path: Path) -> None:
    for step, damage in enumerate(DAMAGES):
        make_record().save(record_path(tmp_path, step))
        rewrite(record_path(tmp_path, step), damage)
    done = run_script(
        "for path in list_records(log_dir):\n"
        "    try: Record.load(path)\n"
        "    except ValueError as error: print(type(error).__name__, error)\n",
        tmp_path,
    )
    lines = done.stdout.splitlines()
    assert [line.startswith("InputError Record.load(") for line in lines] == [True] * len(DAMAGES)
    assert all(line.endswith("; measure again") for line in lines)


def test_what_is_of_another_type_is_refused_without_the_type_checks(tmp_path: Path) -> None:
    make_record().save(record_path(tmp_path, 0))
    done = run_script(
        "paths = Record.load(list_records(log_dir)[0]).paths\n"
        "for change in ({'step': 1.5}, {'step': None}, {'tokens': '8'}, {'metadata': None}):\n"
        "    try: Record(**({'step': 1, 'paths': paths} | change))\n"
        "    except ValueError as error: print(error)\n",
        tmp_path,
    )
    assert done.stdout.splitlines() == [
        "Record(step=1.5): pass a whole number, 0 or more",
        "Record(step=None): pass a whole number, 0 or more",
        "Record(tokens='8'): pass a whole number, 0 or more",
        "Record(metadata=None): pass a dict of plain values",
    ]


def test_a_step_below_zero_in_a_file_is_refused(saved: Path) -> None:
    rewrite(saved, lambda header, tensors: header.update(record='{"step": -5}'))
    with pytest.raises(InputError, match=r"Record\(step=-5\)"):
        Record.load(saved)


def test_saving_again_replaces_and_leaves_nothing_else(saved: Path) -> None:
    make_record(tokens=7).save(saved)
    assert Record.load(saved).tokens == 7
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_vanished_is_made_again(saved: Path) -> None:
    saved.unlink()
    saved.parent.rmdir()
    make_record().save(saved)
    assert list_records(saved.parents[1]) == [saved]


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        make_record().save(tmp_path / "taken")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def run_script(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code that starts with a record `record` and the folder `log_dir`."""
    before = (
        "import os, resource, signal, sys, time, torch\n"
        "from pathlib import Path\n"
        "from sr_monitor.results.record import Record, list_records, record_path\n"
        "from tests.results.test_record import make_paths, make_record\n"
        "torch.set_num_threads(1)\n"  # a forked process would wait for the others for ever
        "log_dir = Path(sys.argv[1])\n"
        "record = make_record(paths=make_paths(num_pairs=20_000))\n"
    )
    command = [sys.executable, "-c", before + code, str(folder)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_a_full_disk_leaves_the_old_record_and_nothing_else(tmp_path: Path) -> None:
    """The limit on the size of a file stops a write in its middle, as a full disk does."""
    path = record_path(tmp_path, 500)
    make_record().save(path)
    done = run_script(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "for step in (500, 600):\n"
        "    try: record.save(record_path(log_dir, step))\n"
        "    except OSError as error: print(error)\n",
        tmp_path,
    )
    assert done.stdout.count("File too large") == 2, done.stderr
    assert list(path.parent.iterdir()) == [path]
    assert everything(Record.load(path)) == everything(make_record())


def test_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """Certainly so: the signal of the limit on the size of a file comes after half a record."""
    path = record_path(tmp_path, 500)
    make_record().save(path)
    done = run_script(
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "record.save(record_path(log_dir, 500))\n",
        tmp_path,
    )
    assert done.returncode < 0, done.stderr
    [left] = [file for file in path.parent.iterdir() if file != path]
    assert left.stat().st_size == 100_000  # half-written, and recognised as such:
    assert list_records(tmp_path) == [path]
    assert everything(Record.load(path)) == everything(make_record())


def test_killed_at_any_time(tmp_path: Path) -> None:
    """Thirty processes that save without end are killed, each a little later; all is whole."""
    done = run_script(
        "for turn in range(30):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        for step in range(10**9): record.save(record_path(log_dir, step % 3))\n"
        "    while len(list_records(log_dir)) < 3: time.sleep(0.01)\n"
        "    time.sleep(0.02 + 0.002 * turn)\n"
        "    os.kill(child, signal.SIGKILL)\n"
        "    os.waitpid(child, 0)\n"
        "    for path in list_records(log_dir):\n"
        "        assert len(Record.load(path).paths.distance) == 20_000\n"
        "print('done')\n",
        tmp_path,
    )
    assert done.stdout == "done\n", done.stderr
    assert len(list_records(tmp_path)) == 3
    assert len(list((tmp_path / "stable_regions").iterdir())) > 3  # what was being written


def test_a_record_without_the_noise_of_each_pair_is_read(tmp_path: Path) -> None:
    paths = replace(make_paths(), noise=None)
    make_record(paths=paths).save(tmp_path / "old.safetensors")
    loaded = Record.load(tmp_path / "old.safetensors").paths
    assert loaded.noise is None
    assert torch.equal(loaded.kept, paths.kept)
