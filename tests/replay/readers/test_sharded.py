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
from sr_monitor.replay.readers.sharded import read_sharded
from tests.trained import save_shards

Halves = tuple[Path, Tensor]
FIRST, SECOND, THIRD = (MetadataIndex("model.w", [start, 0]) for start in (0, 4, 7))


def read_all(folder: Path) -> dict[str, Tensor]:
    return {name: saved.load() for name, saved in read_sharded(folder).items()}


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
    ("key", "beside"),
    [
        ("model", {"optimizer_0": {"state": {"a": torch.ones(3)}}}),
        ("state_dict", {"optimizer_states": {"m": torch.ones(3), "n": 1}}),
        ("", {}),
        ("a prefix is none", {}),
    ],
)
def test_weights_are_read_whole_in_each_layout(
    tmp_path: Path, key: str, beside: dict[str, Any]
) -> None:
    weights = some_weights()
    if "prefix" in key:
        weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    content = {key: weights} if key.isidentifier() else weights
    assert_same(read_all(save_shards(content | beside, tmp_path / "dcp")), weights)


@pytest.fixture
def halves(tmp_path: Path) -> Halves:
    """The folder that three ranks leave, one of them without rows, and the weight in it."""
    whole = torch.randn(7, 3)
    content = {"w": whole[:4], "second": whole[4:], "third": whole[7:]}

    def join(table: Any) -> None:
        weight = table.state_dict_metadata["model.w"]
        weight.size = whole.shape
        for index, (name, start) in enumerate({"model.second": 4, "model.third": 7}.items(), 1):
            weight.chunks += table.state_dict_metadata.pop(name).chunks
            weight.chunks[-1].offsets = torch.Size([start, 0])
            found = table.storage_data.pop(MetadataIndex(name, [0, 0]))
            table.storage_data[MetadataIndex("model.w", [start, 0], index)] = found
            del table.planner_data[name]

    return change(save_shards({"model": content}, tmp_path / "halves"), join), whole


def test_parts_from_several_ranks_are_joined(halves: Halves) -> None:
    assert_same(read_all(halves[0]), {"w": halves[1]})


def move(table: Any, offsets: list[int]) -> None:
    """Let the second half begin elsewhere."""
    table.state_dict_metadata["model.w"].chunks[1].offsets = torch.Size(offsets)
    table.storage_data[MetadataIndex("model.w", offsets)] = table.storage_data.pop(SECOND)


def place(**values: Any) -> Callable[[Any], None]:
    """Edit where the second half is said to lie."""
    return lambda table: vars(table.storage_data[SECOND]).update(values)


def entry(**values: Any) -> Callable[[Any], None]:
    """Edit what is said of the weight."""
    return lambda table: vars(table.state_dict_metadata["model.w"]).update(values)


def enlarge(table: Any) -> None:
    """Claim a weight that no machine holds."""
    weight = table.state_dict_metadata["model.w"]
    del weight.chunks[1:], table.storage_data[SECOND], table.storage_data[THIRD]
    weight.size = weight.chunks[0].sizes = torch.Size([2**50, 3])


def share(table: Any) -> None:
    """Claim nine more weights in the same bytes."""
    for name in map("model.w{}".format, range(9)):
        table.state_dict_metadata[name] = table.state_dict_metadata["model.w"]
        table.planner_data[name] = ("model", name)
        for index in (FIRST, SECOND, THIRD):
            table.storage_data[MetadataIndex(name, index.offset)] = table.storage_data[index]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: move(t, [3, 0]), "overlap"),
        (lambda t: move(t, [5, 0]), "beyond"),
        (lambda t: t.state_dict_metadata["model.w"].chunks.pop(), "not those"),
        (lambda t: t.storage_data.pop(SECOND), "not those"),
        (entry(size=torch.Size([8, 3])), "add up"),
        (lambda t: t.storage_data.update({SECOND: t.storage_data[FIRST]}), "another tensor"),
        (entry(properties=TensorProperties(torch.int32)), "another tensor"),
        (place(length=2**40), "too short"),
        (place(offset=-1), "a size that is none"),
        (place(transform_descriptors=["zstd"]), "compress"),
        (enlarge, "too short"),
        (share, "share the same bytes"),
        (place(relative_path="../elsewhere"), "outside"),
        (place(relative_path="/etc/passwd"), "outside"),
        (place(relative_path="link"), "outside"),
        (place(relative_path="."), "is missing"),
    ],
)
def test_a_table_that_does_not_fit_its_shards_is_refused(
    halves: Halves, edit: Callable[[Any], object], said: str
) -> None:
    folder = halves[0]
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").hardlink_to(next(folder.glob("*.distcp")))
    with pytest.raises(InputError, match=said):
        read_all(change(folder, edit))


def test_code_in_a_table_or_a_shard_is_not_run(tmp_path: Path, trap: object) -> None:
    folder = save_shards({"model": {"a": torch.ones(3)}}, tmp_path / "dcp")
    (shard,), table = folder.glob("*.distcp"), table_of(folder)
    (found,) = table.storage_data.values()
    torch.save({"trap": trap}, shard)
    found.offset, found.length = 0, shard.stat().st_size
    for protocol in (2, 4, 5):
        (folder / ".metadata").write_bytes(pickle.dumps(table, protocol))
        with pytest.raises(InputError, match=r"dcp' holds more than weights .*GLOBAL"):
            read_all(folder)
    table.planner_data["trap"] = trap
    for protocol in (2, 4, 5):
        (folder / ".metadata").write_bytes(pickle.dumps(table, protocol))
        with pytest.raises(InputError, match=r"metadata' holds more than weights .*GLOBAL"):
            read_all(folder)


def test_what_is_no_tensor_is_never_opened(tmp_path: Path, trap: object) -> None:
    """Not even an entry of bytes with a size and a dtype, whose shard torch would unpickle."""
    folder = save_shards({"model": {"a": torch.ones(3), "extra": trap}}, tmp_path / "dcp")
    assert read_all(folder).keys() == {"a"}

    def disguise(table: Any) -> None:
        extra = table.state_dict_metadata["model.extra"]
        assert isinstance(extra, BytesStorageMetadata)
        vars(extra).update(size=torch.Size([3]), properties=TensorProperties())

    assert read_all(change(folder, disguise)).keys() == {"a"}


def test_a_state_for_a_class_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PosixPath, "is_file", Path.is_file)  # put back in any case
    state = b"(N}X\x07\x00\x00\x00is_filectorch\nSize\nst"
    (tmp_path / ".metadata").write_bytes(b"\x80\x02cpathlib\nPosixPath\n" + state + b"b.")
    with pytest.raises(InputError, match="damaged"):
        read_all(tmp_path)
    assert PosixPath.is_file is Path.is_file


@pytest.mark.parametrize("name", ["torch load", "torch float32.__class__", "pathlib Path.touch"])
def test_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    parts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split()]
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + b"".join(parts) + b"\x93.")
    with pytest.raises(InputError, match=r"holds more than weights \(GLOBAL"):
        read_all(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = save_shards({"model": some_weights()}, tmp_path / "dcp")
    table, (shard,) = (folder / ".metadata"), folder.glob("*.distcp")
    kept, whole = table.read_bytes(), shard.read_bytes()
    for content in (kept[:50], pickle.dumps(3)):
        table.write_bytes(content)
        with pytest.raises(InputError, match="metadata' is damaged or no file of weights"):
            read_all(folder)
    table.write_bytes(kept)
    for content in (whole[:100], whole[:-1], bytes(len(whole))):
        shard.write_bytes(content)
        with pytest.raises(InputError, match="dcp' is damaged or no file of weights"):
            read_all(folder)


SEEN: list[tuple[str, Any]] = []
"""Audit events of the thread that is watched: imports, files opened, code made or run."""
_watched: list[int] = []
SNIPPETS = [
    b"cos\nsystem\n(Vtrue\ntR",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R",
    b"cpathlib\nPosixPath\n(N}X\x07\x00\x00\x00is_fileNstb",
    b"(Vtrue\nios\nsystem\n",
    b"ctorch\nSize\n)\x81}b",
    b"\x82\x01",  # a registered extension
    b"Vx\nQ",  # a persistent id
    b"r\xff\xff\xff\x7f",  # a memo of billions
    b"../../x",
    *(bytes([opcode]) for opcode in b"bR\x81}]2"),
]


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


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes, take some out, put some in twice, or put in something that bites."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(content))
        end = start + rng.choice((1, 1, 2, 5, 30))
        part = content[start:end]
        new = (b"", 2 * part, part[::-1], rng.randbytes(len(part)), rng.choice(SNIPPETS))
        content = content[:start] + rng.choice(new) + content[end:]
    return content


@pytest.mark.usefixtures("_as_users_run_it")
def test_nothing_happens_whatever_is_changed_in_a_table_or_a_shard(halves: Halves) -> None:
    """The hook that watches cannot be taken out again, but is idle outside of `watched`."""
    folder, whole = halves
    rng, read, refused = random.Random(0), 0, 0
    table, (shard,) = (folder / ".metadata"), folder.glob("*.distcp")
    for codec in ("raw-unicode-escape", "cp437"):  # of pickles and of zip files, imported once
        codecs.lookup(codec)
    read_all(folder)
    sys.addaudithook(_note)
    for file, times in ((table, 600), (shard, 150)):
        kept = file.read_bytes()
        for _ in range(times):
            file.write_bytes(mutated(kept, rng))
            with watched():
                try:
                    found = read_all(folder)
                except InputError:
                    refused += 1
                else:
                    read += 1
                    assert all(type(tensor) is Tensor for tensor in found.values())
        file.write_bytes(kept)
    assert (read > 30, refused > 300) == (True, True)
    harmless = {("open", str(table)), ("open", str(shard))}
    assert {seen for seen in SEEN if seen[0] != "builtins.id"} == harmless
    assert_same(read_all(folder), {"w": whole})
    with watched():
        pickle.loads(b"cstring\nTemplate\n.")
    assert ("pickle.find_class", "string") in SEEN  # the watch works
