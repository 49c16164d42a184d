"""Runs to report on, made up, and a reading of the page that is written.

folder = save_run(tmp_path / "run", [0, 10, 20])
page = PageReader.of(write_report(folder, tmp_path / "report.html")[0])
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.results.record import Record, record_path
from tests.made import PROMPTS, make_paths, make_record

_EMPTY = {"meta", "input", "br", "img", "link"}


def rising(step: int) -> Record:
    """Sharper boundaries the later the step; six pairs, of which one does not count."""
    about = {"seconds": 1.5, "model": "LlamaForCausalLM", "dtype": "float32", "device": "cpu"}
    about |= {"config": {"layer": 1, "output": "final_norm", "sampling": "grid"}}
    return make_record(step, paths=make_paths(step // 10), num_slices=2, metadata=about)


def save_run(
    folder: Path,
    steps: Sequence[int],
    make: Callable[[int], Record] = rising,
    prompts: PromptSet | None = PROMPTS,
) -> Path:
    """Leave what a run leaves in its log folder."""
    for step in steps:
        make(step).save(record_path(folder, step))
    if prompts is not None:
        prompts.save(record_path(folder, 0).with_name("prompts.json"))
    return folder


class PageReader(HTMLParser):
    """The elements of a page, the texts in them, and its data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.inside: dict[str, list[str]] = {}
        self._open: list[str] = []

    @classmethod
    def of(cls, path: Path) -> "PageReader":
        reader = cls()
        reader.feed(path.read_text(encoding="utf-8"))
        assert reader._open == [], "every element is closed"
        return reader

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in {*self._open}:
            self.inside.setdefault(tag, []).append(data)

    def text(self, tag: str = "body") -> str:
        """The text in elements of one kind, joined."""
        return " ".join("".join(self.inside.get(tag, [])).split())

    @property
    def data(self) -> Any:
        """What the script draws: the first of the two scripts."""
        return json.loads(self.inside["script"][0])
