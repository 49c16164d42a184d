"""Checkpoints by URL: only the bytes of the model's weights come, and a cut line is no harm."""

import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay import replay
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.plan import make_plan
from sr_monitor.replay.prompts import PromptChoice
from sr_monitor.replay.urls import UrlCheckpoint, read_list
from sr_monitor.results.record import Record
from tests.olmo_core_saved import optimizer_bytes, save_step, tiny_olmo
from tests.replays import FEW, measured, some_prompts

OPTIONS: dict[str, Any] = {**FEW, "prompts": some_prompts()}


class Web(SimpleHTTPRequestHandler):
    """Serves a folder, parts of files included; cuts some lines."""

    asked: ClassVar[list[tuple[str, int, int]]]
    cut: ClassVar[list[str]]
    knows_ranges: ClassVar[bool] = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file():
            return self.send_error(404)
        body = path.read_bytes()
        if found and self.knows_ranges:
            start, end = int(found[1]), int(found[2]) + 1
            self.asked.append((path.name, start, end - start))
            body = body[start:end]
        self.send_response(206 if found and self.knows_ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if any(name in self.path for name in self.cut):
            self.cut.clear()
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Site(NamedTuple):
    url: str
    handler: Any


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for step in (10, 20):
        save_step(tiny_olmo("olmo2"), tmp_path / "www" / f"step{step}")
    monkeypatch.setattr("sr_monitor.replay.urls._FIRST_PAUSE", 0.0)
    handler = type("Bound", (Web,), {"asked": [], "cut": []})
    serve = partial(handler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Site(f"http://127.0.0.1:{server.server_port}", handler)
        server.shutdown()


def listed(web: Site, folder: Path) -> Path:
    (file := folder / "official.csv").write_text(
        "Stage,Step,Tokens Seen,Checkpoint Directory\n"
        + "".join(f"stage1_pretraining,{n},{n * 100},{web.url}/step{n}/\n" for n in (10, 20))
    )
    return file


def test_only_the_weights_come_and_they_are_measured_as_from_a_disk(
    web: Site, tmp_path: Path
) -> None:
    web.handler.cut.append("__0_0.distcp")
    (tmp_path / "www" / "list.csv").write_bytes(listed(web, tmp_path).read_bytes())
    report = replay([f"{web.url}/list.csv"], tmp_path / "out", **OPTIONS)
    assert report.measured == [f"{web.url}/step10", f"{web.url}/step20"]
    assert not (tmp_path / "out" / ".downloads").exists()
    replay([tmp_path / "www"], tmp_path / "here", **OPTIONS)
    for step in (10, 20):
        name = f"stable_regions/step-{step:09d}.safetensors"
        there, here = (Record.load(tmp_path / out / name) for out in ("out", "here"))
        assert measured(there) == measured(here)
        assert (there.tokens, there.metadata["source"]) == (step * 100, f"{web.url}/step{step}")
    asked = [(name, start, start + length) for name, start, length in web.handler.asked]
    left = optimizer_bytes(tmp_path / "www" / "step10")
    assert len(asked) > 2
    for file, start, length in left:
        assert not any(n == file.name and a < start + length and start < b for n, a, b in asked)
    again = replay([f"{web.url}/list.csv"], tmp_path / "out", **OPTIONS)
    assert (again.measured, len(again.kept)) == ([], 2)


def test_a_checkpoint_that_is_not_there_is_named_and_the_others_are_measured(
    web: Site, tmp_path: Path
) -> None:
    (tmp_path / "www" / "step10" / "config.json").unlink()
    report = replay([listed(web, tmp_path)], tmp_path / "out", **OPTIONS)
    (reason,) = report.failures.values()
    assert re.search(
        r"step10/config.json could not be downloaded \(HTTP Error 404.*tries: 1", reason
    )
    assert report.measured == [f"{web.url}/step20"]
    web.handler.knows_ranges = False
    report = replay([listed(web, tmp_path)], tmp_path / "other", **OPTIONS)
    assert "the server gives out whole files only" in report.failures[f"{web.url}/step20"]


def test_a_table_names_files_of_its_folder_only(web: Site, tmp_path: Path) -> None:
    table = tmp_path / "www" / "step10" / "model_and_optim" / ".metadata"
    table.write_bytes(table.read_bytes().replace(b"__0_0.distcp", b"../../secret"))
    with pytest.raises(InputError, match=r"names '../../secret', which is no file of shards"):
        UrlCheckpoint(url=f"{web.url}/step10").fetch(tmp_path / "folder")


def test_the_tokenizer_is_the_one_that_the_config_names(web: Site, tmp_path: Path) -> None:
    (first, _) = make_plan([str(listed(web, tmp_path))])
    choice = PromptChoice(ReplayOptions())
    assert choice.tokenizer_of(first) == "allenai/dolma2-tokenizer"
    (tmp_path / "www" / "step10" / "config.json").write_text(json.dumps({"model": {}}))
    assert choice.tokenizer_of(first) == str(tmp_path / "official.csv")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("Step,Checkpoint Directory\n0,http://a/b/step0/\n7,http://a/b/step7", ["step0", "step7"]),
        ("step,url\n7,https://a/x\n", ["step7"]),
        ("Ingredient,Step,Checkpoint Directory\n1,7,http://a/1\nsoup,7,http://a/2\n",
         ["ingredient1-step7", "step7-soup"]),
        ("Stage,Step,Tokens Seen,Checkpoint Directory\nstage_3_longcontext,7,90,http://a/1\n",
         ["stage3-step7"]),
    ],
)  # fmt: skip
def test_lists_as_they_are_published(tmp_path: Path, content: str, names: list[str]) -> None:
    (file := tmp_path / "list.csv").write_text(content)
    assert [name.text for name, _ in read_list(str(file))] == names


@pytest.mark.parametrize("content", ["", "Step,Checkpoint Directory\n7,\n", "a,b\n1,http://a/b\n"])
def test_what_is_no_list_is_refused(tmp_path: Path, content: str) -> None:
    (file := tmp_path / "list.csv").write_text(content)
    with pytest.raises(
        InputError, match=r"list.csv': .* lines have no step or no address; it takes"
    ):
        make_plan([str(file)])
