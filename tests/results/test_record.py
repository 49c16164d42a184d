"""Records there and back bit for bit, and whole or not at all whatever happens."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr_monitor.errors import InputError
from sr_monitor.probes.base import Probe
from sr_monitor.probes.keys import Key
from sr_monitor.results.record import Record, list_records, record_path, step_of
from tests.made import INF, NAN, Rise, make_paths, make_record, make_slices
from tests.saved import unmapped

SCHEMA_1 = Path(__file__).parent / "schema1"
METADATA = {
    "odd text": 'ünï "quoted" \ud800 \n',
    "nested": {"span": [-0.25, 1 / 3, 2**70, NAN], "none": None, "on": True},
}
ODD_FLOATS = (0x7FC00001, -0x400000, -0x80000000, 0x7F800000, -0x800000, 1, 0x7F7FFFFF)
UNKNOWN = {
    "floats": torch.tensor(ODD_FLOATS, dtype=torch.int32).view(torch.float32),
    "halves": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16).t(),
    "numbers": torch.tensor([2**60]),
    "mask": torch.tensor([[True, False]]),
    "none": torch.empty(0, 3),
    "a.dotted name": torch.ones(1),
    "text": "\n",
    "nested": {"list": [1, 1.5, None, NAN]},
}


def bits(value: Any) -> Any:
    """Something that is equal only if every bit is, NaNs included."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.flatten().view(torch.uint8).tolist()
    if is_dataclass(value):
        return {each.name: bits(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items()}
    return repr(value)


def everything(record: Record) -> dict[str, Any]:
    return {each: bits(getattr(record, each)) for each in ("step", "tokens", "metadata", "parts")}


def whole_record(**changes: Any) -> Record:
    """What is hard to keep: NaN, Inf, shared and scattered memory, an unknown and an empty part."""
    shared, slices = torch.arange(66.0).reshape(11, 6), make_slices(num_slices=2)
    shared[3, 0], shared[4, 1] = NAN, INF
    paths = replace(make_paths(), distance=shared.t(), input_distance=shared[0])
    slices.distance[0, 1, 2, 3], slices.foot[1] = INF, NAN
    parts = {"paths": paths, "slices": slices, "unknown": dict(UNKNOWN), "empty": {}}
    whole = {"step": 500, "tokens": 10**12, "parts": parts, "metadata": dict(METADATA)}
    return Record(**{**whole, **changes})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = record_path(tmp_path, 500)
    whole_record().save(path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], Any]) -> None:
    """Change the header and the tensors of a file."""
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    tensors = unmapped(path)
    change(header, tensors)
    save_file(tensors, path, header)


@pytest.mark.parametrize(
    "record",
    [
        whole_record(),
        make_record(0, num_slices=0, tokens=None, metadata={}),
        make_record(paths=make_paths(num_pairs=0), slices=make_slices(num_slices=0)),
        make_record(paths=replace(make_paths(), noise=None)),
        Record(step=1),
    ],
    ids=["whole", "small", "no pairs", "no noise of each pair", "no parts"],
)
def test_a_record_comes_back_bit_for_bit(tmp_path: Path, record: Record) -> None:
    """And once more: an unknown part survives a version that does not know it."""
    record.save(tmp_path / "one")
    Record.load(str(tmp_path / "one")).save(tmp_path / "two")
    assert everything(Record.load(tmp_path / "two")) == everything(record)


def test_what_is_loaded_does_not_lie_in_the_file(saved: Path) -> None:
    assert {"paths.distance", "slices.foot", "unknown.a.dotted name"} <= set(load_file(saved))
    record = Record.load(saved)
    with saved.open("r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert everything(record) == everything(whole_record())


def test_scalars_are_the_medians_of_the_pairs_that_count() -> None:
    """Slopes of 1, 2, 3, 4, 5: all of the rise in a half, a third, ... of the way."""
    alphas = torch.linspace(0, 1, 61)
    distance = torch.stack([(alphas * slope).clamp(max=1) for slope in (1, 2, 3, 4, 5, 0)])
    paths = replace(make_paths(), alphas=alphas, distance=distance * 2)
    timed = {"seconds": 2.5, "share_of_time": 0.01, "failures": 3, "more": 7}
    record = make_record(num_slices=2, paths=paths, metadata=timed)
    expected = {
        "max_slope/median": 3,
        "max_slope/q25": 2,
        "max_slope/q75": 4,
        "max_slope/median_low": 1,
        "max_slope/median_high": 5,
        "paths/location": float(paths.location[:-1].median()),
        "paths/width": 0.5 / 3,
        "paths/end_distance": 2,
        "paths/input_distance": 12,
        "diagnostics/noise_floor": 1 / 3e6,
        "diagnostics/pairs_left_out": 1,
        "diagnostics/num_points": 66 + 96,
        "diagnostics/tokens": 5000,
        "diagnostics/seconds": 2.5,
        "diagnostics/share_of_time": 0.01,
        "diagnostics/failures": 3,
    }
    named = {Key.scalar(name, "").name: value for name, value in expected.items()}
    assert record.scalars == pytest.approx(named, rel=1e-5)
    assert all(type(value) is float for value in record.scalars.values())
    bare = make_record(num_slices=0, tokens=None, metadata={}).scalars
    assert set(bare) == set([*named][:12])  # the rest is told by whoever measures


def test_a_record_may_lack_parts() -> None:
    assert make_record(num_slices=0).slices is None
    record = Record(step=7, parts={"slices": make_slices()})
    assert record.slices is record.parts["slices"]
    with pytest.raises(InputError, match=r"Record\(step=7\): it holds no paths"):
        _ = record.paths


@dataclass(frozen=True, kw_only=True)
class Packed(Probe):
    """A probe whose part is not what is kept of it."""

    name = "unknown"

    def pack(self, part: Any) -> dict[str, Any]:
        return {"total": torch.tensor(float(sum(part)))}

    def unpack(self, values: Any) -> list[float]:
        return [float(values["total"])]


def test_a_part_that_lacks_what_its_probe_holds_is_kept_but_not_explained(tmp_path: Path) -> None:
    kl = torch.zeros(2, 3)
    record = Record(step=1, parts={"divergence": {"kl": kl}})
    record.save(path := tmp_path / "step-000000001.safetensors")
    for each in (record, Record.load(path)):
        assert not [name for name in each.scalars if "divergence" in name]
        assert list(each.known()) == []
        assert torch.equal(each.parts["divergence"]["kl"], kl)


def test_a_given_probe_packs_and_unpacks_its_part(tmp_path: Path) -> None:
    Record(step=1, parts={"unknown": [1.0, 2.0]}, probes=(Packed(),)).save(tmp_path / "one")
    assert Record.load(tmp_path / "one", [Packed()]).parts["unknown"] == [3.0]
    assert bits(Record.load(tmp_path / "one").parts["unknown"]) == bits(
        {"total": torch.tensor(3.0)}
    )


def test_an_old_record_gains_what_can_be_derived_from_it(tmp_path: Path) -> None:
    old = Record.load(SCHEMA_1 / "slices.safetensors")
    assert "rise" not in old.parts
    new = old.with_derived([Rise(at=0.3), Packed()])
    assert "unknown" not in new.parts
    assert torch.equal(new.parts["rise"]["rise"], old.paths.relative[:, 3])
    median = float(new.parts["rise"]["rise"].nanmedian())
    assert new.scalars == old.scalars | {"stable_regions_rise/median": median}
    new.save(tmp_path / "new")
    assert Record.load(tmp_path / "new").scalars == old.scalars  # nobody explains the part
    again = Record.load(tmp_path / "new", [Rise()]).with_derived([Rise()])  # measured is measured
    assert again.scalars == new.scalars
    assert "rise" not in Record(step=1).with_derived([Rise()]).parts


def test_where_records_lie(tmp_path: Path) -> None:
    assert record_path("runs/1", 500) == Path("runs/1/stable_regions/step-000000500.safetensors")
    steps = [0, 500, 999_999_999, 1_000_000_000, 1_234_567_890_123]
    paths = [record_path(tmp_path, step) for step in steps]
    folder = paths[0].parent
    folder.mkdir()
    others = ["step-5.safetensors", "step-0000000001.safetensors", "step-000000001.safetensors.tmp"]
    others += [".step-000000001.safetensors.0a1b2c3d.tmp", "xstep-000000001.safetensors", "step-x"]
    for path in (*paths[::-1], *(folder / name for name in others)):
        path.touch()
    assert list_records(tmp_path) == list_records(str(folder)) == paths
    assert [step_of(path) for path in paths] == steps
    assert list_records(tmp_path / "missing") == []


@pytest.mark.usefixtures("_as_users_run_it")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, r"Record\(step=-1\): pass a whole number, 0 or more"),
        ({"step": 2**63}, r"below 2\*\*63"),
        ({"step": None}, r"Record\(step=None\): pass a whole number"),
        ({"tokens": "8"}, r"Record\(tokens='8'\): pass a whole number"),
        ({"metadata": None}, r"Record\(metadata=None\): pass a dict"),
        ({"metadata": {"a": [1, {"b": (1, 2)}]}}, r"\['a'\]\[1\]\['b'\] is a tuple, \(1, 2\)"),
        ({"metadata": {"a": {1: 2}}}, r"metadata\['a'\] is a dict, \{1: 2\}"),
        ({"parts": {"a.b": {}}}, r"parts=\{'a.b': ...\}\): name a part without a dot"),
        ({"parts": {"a": {"b": np.zeros(3)}}}, r"parts\['a'\]\['b'\] is a ndarray"),
    ],
)
def test_what_could_not_be_saved_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        whole_record(**changes).save(tmp_path / "record")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Record.load(path)
    text = str(caught.value)
    assert text.startswith(f"Record.load({str(path)!r}): ")
    assert "\n" not in text


def test_files_cut_short_of_others_and_of_newer_versions_are_refused(
    tmp_path: Path, saved: Path
) -> None:
    refused(tmp_path / "missing", "No such file")
    refused(tmp_path, "Is a directory|damaged|No such device")
    content = saved.read_bytes()
    for part in (b"step,loss\n" * 1000, *(content[:end] for end in (0, 7, 8, 500, -1))):
        saved.write_bytes(part)
        refused(saved, "damaged or cannot be read .SafetensorError")
    for header in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, saved, header)
        refused(saved, "no file that Record.save wrote")
    whole_record().save(saved)
    rewrite(saved, lambda header, tensors: header.update(schema="7", record="of another kind"))
    refused(saved, r"has schema 7, .* reads up to schema 2; run: pip install")


Damage = Callable[[dict[str, str], dict[str, Tensor]], Any]


def says(**content: Any) -> Damage:
    """The header of a file whose content says something else."""

    def damage(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
        header["record"] = json.dumps({**json.loads(header["record"]), **content})

    return damage


def holds(**tensors: Tensor) -> Damage:
    """A file with other tensors; the first underscore stands for the dot."""
    named = {name.replace("_", ".", 1): tensor for name, tensor in tensors.items()}
    return lambda _, found: found.update(named)


PATHS = {"noise_distance": 0.0, "noise_floor": 0.0, "num_points": 3, "engine": "plain"}
DAMAGES: list[Damage] = [
    lambda header, tensors: tensors.pop("paths.alphas"),
    lambda header, tensors: tensors.pop("slices.foot"),
    lambda header, tensors: header.pop("record"),
    lambda header, tensors: header.update(schema="new"),
    *(
        lambda header, tensors, text=text: header.update(record=text)
        for text in ("{", "[" * 100_000, "[]", "{}", '{"step": 5}')
    ),
    says(metadata=[1]),
    says(parts=[]),
    says(parts={"paths": 3}),
    says(parts={"paths": PATHS | {"num_points": "text"}}),
    says(parts={"paths": PATHS | {"noise_floor": [1.0]}}),
    says(parts={"paths": PATHS | {"engine": None}}),
    *(says(parts={"paths": PATHS | {name: 10**400}}) for name in ("num_points", "noise_floor")),
    says(metadata={"parameters": [-(10**400)]}),
    says(step="5"),
    says(tokens=-5),
    says(parts={"a.b": {}}),
    holds(nobody=torch.zeros(3)),
    holds(paths_alphas=torch.zeros(3)),
    holds(paths_alphas=torch.zeros(11).long()),
    holds(paths_noise=torch.zeros(5)),
    holds(paths_distance=torch.zeros(11), paths_input_distance=torch.zeros(11)),
    holds(slices_distance=torch.zeros(2, 4, 4, 4)),
    holds(slices_distance=torch.zeros(2, 3, 4, 5)),
]


@pytest.mark.usefixtures("_as_users_run_it")
def test_a_damaged_file_is_refused(saved: Path) -> None:
    """As is one that says what no record can; the file is named."""
    content = saved.read_bytes()
    for damage in DAMAGES:
        saved.write_bytes(content)
        rewrite(saved, damage)
        refused(saved, r"the file is damaged or cannot be read \(.*\); measure again")


@pytest.mark.parametrize("name", ["slices", "paths", "adaptive", "no-noise"])
def test_records_of_schema_1_are_read(tmp_path: Path, name: str) -> None:
    """Every tensor bit for bit, every number that was logged then; and kept so in a new file."""
    path = SCHEMA_1 / f"{name}.safetensors"
    record = Record.load(path)
    logged = json.loads((SCHEMA_1 / "scalars.json").read_text())[name]
    later = {f"stable_regions/max_slope/{edge}" for edge in ("median_low", "median_high")}
    found = {name: v for name, v in record.scalars.items() if name not in later}
    # Groups have other names since.
    ends, former = ({n.split("/", 1)[1]: v for n, v in of.items()} for of in (found, logged))
    assert ends == former
    assert set(record.parts) == ({"paths", "slices"} if name == "slices" else {"paths"})
    parts = {probe: vars(part) for probe, part in record.parts.items()}
    held = [(f"{probe}.{key}", parts[probe][key]) for probe in parts for key in parts[probe]]
    kept = {key: bits(value) for key, value in held if isinstance(value, Tensor)}
    assert kept == {key: bits(value) for key, value in load_file(path).items()}
    assert record.metadata["config"]["num_pairs"] == 5
    assert record.paths.engine == "shared"
    assert bool(record.paths.distance.isnan().any()) == (name == "adaptive")
    assert (record.paths.noise is None) == (name == "no-noise")
    record.save(tmp_path / "new")
    assert everything(Record.load(tmp_path / "new")) == everything(record)


@pytest.mark.parametrize("schema", ["0", None])
def test_a_still_older_file_may_lack_much(tmp_path: Path, schema: str | None) -> None:
    def strip(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
        header.pop("schema")
        header.update({"schema": schema} if schema else {})
        header["record"] = json.dumps({"step": 500, "of the future": 1})
        del tensors["paths.noise"]

    before = Record.load(SCHEMA_1 / "paths.safetensors")
    (path := tmp_path / "old").write_bytes((SCHEMA_1 / "paths.safetensors").read_bytes())
    rewrite(path, strip)
    record, paths = Record.load(path), Record.load(path).paths
    assert (record.step, record.tokens, record.metadata) == (500, None, {})
    assert list(record.parts) == ["paths"]
    assert (paths.num_points, paths.engine, math.isnan(paths.noise_floor)) == (0, "", True)
    assert bits(paths.distance) == bits(before.paths.distance)
    assert paths.kept.tolist() == before.paths.kept.tolist()


def test_saving_again_replaces_and_makes_a_folder_that_vanished(saved: Path) -> None:
    whole_record(tokens=7).save(saved)
    assert Record.load(saved).tokens == 7
    assert list(saved.parent.iterdir()) == [saved]
    saved.unlink()
    with pytest.raises(OSError, match="stable_regions"):
        whole_record().save(saved.parent)
    assert list(saved.parents[1].iterdir()) == [saved.parent]  # and nothing beside it
    saved.parent.rmdir()
    whole_record().save(saved)
    assert list_records(saved.parents[1]) == [saved]


WRITE = """
import resource, signal, sys
from sr_monitor.results.record import record_path
from tests.made import make_paths, make_record
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path, record = record_path(sys.argv[1], 500), make_record(paths=make_paths(num_pairs=20_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try: record.save(path)
except OSError as error: print(error, flush=True)
print([file.name for file in path.parent.iterdir()], flush=True)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
record.save(path)
"""


def test_a_write_that_is_stopped_leaves_the_old_file_whole(saved: Path, tmp_path: Path) -> None:
    """By a full disk, which leaves nothing beside it; or in its middle by a signal."""
    command, root = [sys.executable, "-c", WRITE, str(tmp_path)], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    error, left = done.stdout.splitlines()
    assert "File too large" in error
    assert (left, done.returncode) == (f"['{saved.name}']", -signal.SIGXFSZ)
    assert [file.stat().st_size for file in saved.parent.glob(".step*")] == [100_000]
    assert list_records(tmp_path) == [saved]
    assert everything(Record.load(saved)) == everything(whole_record())
