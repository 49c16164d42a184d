"""Shards come back whole, and nothing that a table or a shard says is ever run or looked up."""

import codecs
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
    TensorProperties,
)

from sr_monitor.errors import InputError
from sr_monitor.replay.reading import read_sharded
from tests.trained import save_shards


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """A trap that is known to work, and has to be untouched at the end."""
    trap = Trap(tmp_path / "ran")
    pickle.loads(pickle.dumps(trap))
    trap.marker.unlink()
    yield trap
    assert not trap.marker.exists()


def some_weights() -> dict[str, Tensor]:
    return {"a.weight": torch.randn(5, 3), "b": torch.randn(4).bfloat16(), "c": torch.tensor(3)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def table_of(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())


def change(folder: Path, edit: Callable[[Any], object]) -> Path:
    """Edit the table of a folder."""
    table = table_of(folder)
    edit(table)
    (folder / ".metadata").write_bytes(pickle.dumps(table))
    return folder


@pytest.mark.parametrize(
    ("wrap", "beside"),
    [
        (lambda weights: {"model": weights}, {"optimizer_0": {"state": {"a": torch.ones(3)}}}),
        (
            lambda weights: {"state_dict": weights},
            {"optimizer_states": {"m": torch.ones(3), "n": 1}},
        ),
        (lambda weights: weights, {}),
        (lambda weights: {f"model.{name}": tensor for name, tensor in weights.items()}, {}),
    ],
)
def test_shards_are_read_whole_in_each_layout(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]], beside: dict[str, Any]
) -> None:
    weights = some_weights()
    content = wrap(weights)
    save_shards(content | beside, tmp_path / "dcp")
    flat = all(isinstance(entry, Tensor) for entry in content.values())
    assert_same(read_sharded(tmp_path / "dcp"), content if flat else weights)


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Tensor]:
    """The folder that two ranks leave, one weight in two chunks, and that weight."""
    whole = torch.randn(7, 3)
    folder = save_shards({"model": {"w": whole[:4], "other": whole[4:]}}, tmp_path / "halves")

    def join(table: Any) -> None:
        entries, places = table.state_dict_metadata, table.storage_data
        second = entries.pop("model.other").chunks[0]
        second.offsets = torch.Size([4, 0])
        entries["model.w"].chunks.append(second)
        entries["model.w"].size = whole.shape
        place = places.pop(MetadataIndex("model.other", [0, 0]))
        places[MetadataIndex("model.w", [4, 0], 1)] = place
        del table.planner_data["model.other"]

    return change(folder, join), whole


def test_halves_from_two_ranks_are_joined(halves: tuple[Path, Tensor]) -> None:
    assert_same(read_sharded(halves[0]), {"w": halves[1]})


def move(table: Any, index: MetadataIndex, offsets: list[int]) -> None:
    """Let a chunk of the weight begin elsewhere."""
    chunk = table.state_dict_metadata[index.fqn].chunks[index.index or 0]
    chunk.offsets = torch.Size(offsets)
    table.storage_data[MetadataIndex(index.fqn, offsets)] = table.storage_data.pop(index)


SECOND = MetadataIndex("model.w", [4, 0], 1)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: move(t, SECOND, [3, 0]), "overlap"),
        (lambda t: move(t, SECOND, [5, 0]), "beyond"),
        (lambda t: t.state_dict_metadata["model.w"].chunks.pop(), "add up"),
        (lambda t: setattr(t.storage_data[SECOND], "length", 2**40), "too short"),
        (lambda t: setattr(t.storage_data[SECOND], "offset", -1), "a size that is none"),
        (lambda t: setattr(t.storage_data[SECOND], "transform_descriptors", ["zstd"]), "compress"),
        (lambda t: t.storage_data.pop(SECOND), "KeyError"),
        (
            lambda t: t.storage_data.update(
                {SECOND: t.storage_data[MetadataIndex("model.w", [0, 0])]}
            ),
            "another tensor than its table says",
        ),
        (
            lambda t: setattr(
                t.state_dict_metadata["model.w"], "properties", TensorProperties(torch.int32)
            ),
            "another tensor than its table says",
        ),
    ],
)
def test_a_table_that_does_not_fit_its_shards_is_refused(
    halves: tuple[Path, Tensor], edit: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read_sharded(change(halves[0], edit))


def test_no_more_memory_is_taken_than_the_files_are_large(tmp_path: Path) -> None:
    """Neither for a size that is only claimed, nor for many weights in the same bytes."""
    huge = save_shards({"w": torch.ones(1).expand(1)}, tmp_path / "huge")

    def enlarge(table: Any) -> None:
        entry = table.state_dict_metadata["w"]
        entry.size = entry.chunks[0].sizes = torch.Size([2**50])

    with pytest.raises(InputError, match="too short"):
        read_sharded(change(huge, enlarge))

    def share(table: Any) -> None:
        (place,) = table.storage_data.values()
        for k in range(9):
            table.state_dict_metadata[f"w{k}"] = table.state_dict_metadata["w"]
            table.storage_data[MetadataIndex(f"w{k}", [0])] = place
            table.planner_data[f"w{k}"] = (f"w{k}",)

    shared = save_shards({"w": torch.ones(1)}, tmp_path / "shared")
    with pytest.raises(InputError, match="share the same bytes"):
        read_sharded(change(shared, share))


def test_code_in_the_table_is_not_run(tmp_path: Path, trap: Trap) -> None:
    folder = save_shards({"model": some_weights()}, tmp_path / "dcp")
    table = table_of(folder)
    table.planner_data["trap"] = trap
    for protocol in (2, 4, 5):
        (folder / ".metadata").write_bytes(pickle.dumps(table, protocol))
        with pytest.raises(InputError, match=r"metadata' holds more than weights \(GLOBAL "):
            read_sharded(folder)


def test_what_passes_for_a_tensor_is_no_tensor(tmp_path: Path, trap: Trap) -> None:
    """An entry of bytes with a size and a dtype: torch would run what is in its shard."""
    folder = save_shards({"model": {"a": torch.ones(3), "extra": trap}}, tmp_path / "dcp")

    def disguise(table: Any) -> None:
        entry: Any = table.state_dict_metadata["model.extra"]
        assert isinstance(entry, BytesStorageMetadata)
        vars(entry).update(size=torch.Size([3]), properties=TensorProperties())

    assert read_sharded(change(folder, disguise)).keys() == {"a"}


def test_a_class_is_not_changed_by_a_state_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PosixPath, "is_file", Path.is_file)  # put back in any case
    state = b"(N}X\x07\x00\x00\x00is_filectorch\nSize\nst"
    (tmp_path / ".metadata").write_bytes(b"\x80\x02cpathlib\nPosixPath\n" + state + b"b.")
    with pytest.raises(InputError, match="damaged"):
        read_sharded(tmp_path)
    assert PosixPath.is_file is Path.is_file


@pytest.mark.parametrize("way", ["above", "absolute", "link", "folder"])
def test_files_elsewhere_are_not_read(tmp_path: Path, way: str) -> None:
    folder = save_shards({"model": {"a": torch.ones(3)}}, tmp_path / "dcp")
    (shard,) = folder.glob("*.distcp")
    elsewhere = shard.rename(tmp_path / "elsewhere")
    (folder / "link").symlink_to(elsewhere)
    named = {"above": "../elsewhere", "absolute": str(elsewhere), "link": "link", "folder": "."}

    def lead_out(table: Any) -> None:
        (place,) = table.storage_data.values()
        place.relative_path = named[way]

    with pytest.raises(InputError, match="is missing" if way == "folder" else "outside of the f"):
        read_sharded(change(folder, lead_out))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch", "load"),
        ("torch", "float32.__class__"),
        ("builtins", "eval"),
        ("pathlib", "Path.touch"),
    ],
)
def test_no_detour_leads_out_of_the_table(tmp_path: Path, module: str, name: str) -> None:
    # Protocol 4 looks dotted names up, attribute by attribute.
    opcodes = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
    opcodes += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    (tmp_path / ".metadata").write_bytes(opcodes)
    with pytest.raises(InputError, match=r"holds more than weights \(GLOBAL "):
        read_sharded(tmp_path)


def test_code_in_the_shards_is_not_run(tmp_path: Path, trap: Trap) -> None:
    folder = save_shards({"model": {"a": torch.ones(3)}}, tmp_path / "dcp")
    (shard,) = folder.glob("*.distcp")
    torch.save({"trap": trap}, shard)

    def point(table: Any) -> None:
        (place,) = table.storage_data.values()
        place.offset, place.length = 0, shard.stat().st_size

    with pytest.raises(InputError, match=r"dcp' holds more than weights \(.*GLOBAL "):
        read_sharded(change(folder, point))


def test_pickles_beside_the_weights_are_never_opened(tmp_path: Path, trap: Trap) -> None:
    folder = save_shards({"model": some_weights(), "extra": trap}, tmp_path / "dcp")
    assert read_sharded(folder).keys() == some_weights().keys()
    bare = save_shards({"a": torch.ones(2), "extra": trap}, tmp_path / "bare")
    assert read_sharded(bare).keys() == {"a"}


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    folder = save_shards({"model": some_weights()}, tmp_path / "dcp")
    table, (shard,) = (folder / ".metadata"), folder.glob("*.distcp")
    kept, whole = table.read_bytes(), shard.read_bytes()
    for content in (kept[:50], pickle.dumps(3)):
        table.write_bytes(content)
        with pytest.raises(InputError, match=r"metadata' is damaged or no file of weights"):
            read_sharded(folder)
    table.write_bytes(kept)
    shard.write_bytes(whole[:100])
    with pytest.raises(InputError, match="dcp' is damaged or no file of weights"):
        read_sharded(folder)
    shard.unlink()
    with pytest.raises(InputError, match="dcp' "):
        read_sharded(folder)


SEEN: list[tuple[str, Any]] = []
"""Audit events of the thread that is watched: imports, files opened, code made or run."""
_watched: list[int] = []


def _note(event: str, args: tuple[Any, ...]) -> None:
    if threading.get_ident() in _watched:
        SEEN.append((event, args[0] if args else None))


@contextmanager
def watched() -> Iterator[None]:
    """Note what this thread does."""
    _watched.append(threading.get_ident())
    try:
        yield
    finally:
        _watched.clear()


SNIPPETS = [
    b"cos\nsystem\n(Vtrue\ntR",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R",
    b"cpathlib\nPosixPath\n(N}X\x07\x00\x00\x00is_fileNstb",
    b"(Vtrue\nios\nsystem\n",
    b"cbuiltins\nopen\nV/etc/passwd\n\x85R",
    b"ctorch\nSize\n)\x81}b",
    b"\x82\x01",  # a registered extension
    b"Vx\nQ",  # a persistent id
    b"r\xff\xff\xff\x7f",  # a memo of billions
    b"../../x",
    b"b",
    b"R",
    b"\x81",
    b"}",
    b"2",
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes, take some out, put some in twice, or put in something that bites."""
    place = rng.randrange(len(content))
    end = place + rng.choice((1, 1, 2, 5, 30))
    part = content[place:end]
    new = rng.choice((b"", part + part, rng.randbytes(len(part)), rng.choice(SNIPPETS), part[::-1]))
    return content[:place] + new + content[end:]


def test_nothing_happens_whatever_is_changed_in_a_table_or_a_shard(
    halves: tuple[Path, Tensor],
) -> None:
    """The hook that watches cannot be taken out again, but is idle outside of `watched`."""
    folder, whole = halves
    rng, read, refused = random.Random(0), 0, 0
    table, (shard,) = (folder / ".metadata"), folder.glob("*.distcp")
    for codec in ("raw-unicode-escape", "cp437"):  # of pickles and of zip files, imported once
        codecs.lookup(codec)
    read_sharded(folder)
    sys.addaudithook(_note)
    for file, times in ((table, 2000), (shard, 500)):
        kept = file.read_bytes()
        for _ in range(times):
            content = kept
            for _ in range(rng.choice((1, 1, 2, 4))):
                content = mutated(content, rng)
            file.write_bytes(content)
            with watched():
                try:
                    found = read_sharded(folder)
                except InputError:
                    refused += 1
                else:
                    read += 1
                    assert all(type(tensor) is Tensor for tensor in found.values())
        file.write_bytes(kept)
    assert read > 100
    assert refused > 1000
    harmless = {("open", str(table)), ("open", str(shard))}
    assert {seen for seen in SEEN if seen[0] != "builtins.id"} == harmless
    assert_same(read_sharded(folder), {"w": whole})
    with watched():
        pickle.loads(b"cstring\nTemplate\n.")
    assert ("pickle.find_class", "string") in SEEN  # the watch works
