"""The names that are logged, and the docs' table of them."""

import re
from pathlib import Path

import pytest

from sr_monitor.errors import InputError
from sr_monitor.probes import keys

PROMISED = {
    "scalar": [
        *("max_slope/median", "max_slope/q25", "max_slope/q75", "location", "width"),
        *("end_distance", "input_distance", "noise_floor", "pairs_left_out", "num_points"),
        *("seconds", "share_of_time", "failures", "tokens"),
    ],
    "histogram": ["max_slope"],
    "image": ["curves", "slice/<k>", "film/<k>"],
    "animation": ["animation/<k>"],
    "text": ["prompts"],
}
PAGE = Path(__file__).parents[2] / "docs" / "3-watching.md"


def rows(markdown: str) -> list[list[str]]:
    """The cells of the table's rows: name, kind, meaning."""
    lines = [line for line in markdown.splitlines() if line.startswith("| `stable_regions/")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_names_are_those_that_were_promised() -> None:
    promised = [(f"stable_regions/{name}", kind) for kind in PROMISED for name in PROMISED[kind]]
    assert [(key.name, key.kind) for key in keys.KEYS] == promised


def test_no_name_is_there_twice_and_none_is_hard_to_show() -> None:
    names = [key.name for key in keys.KEYS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"stable_regions/[a-z0-9_/]+(<k>)?", name) for name in names)


def test_the_table_is_the_names() -> None:
    cells = rows(keys.markdown_table())
    assert cells == [[f"`{key.name}`", key.kind, key.meaning] for key in keys.KEYS]
    assert all(re.fullmatch(r"[A-Z][^|\n]+\.", meaning) for _, _, meaning in cells)


def test_the_docs_hold_the_table() -> None:
    """As it is rendered, so that no documented name is missing, and none is left over."""
    page = PAGE.read_text(encoding="utf-8")
    assert keys.markdown_table() in page
    assert len(rows(page)) == len(keys.KEYS)


def test_a_logged_name_leads_to_its_key() -> None:
    for key in keys.KEYS:
        assert keys.key_of(key.of(12)) is key
    assert keys.SLICE.of(12) == "stable_regions/slice/12"
    assert keys.WIDTH.of(12) == "stable_regions/width"


@pytest.mark.parametrize(
    "name", ["width", "stable_regions/widths", "stable_regions/slice/a", "stable_regions/width/3"]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"key_of\('{name}'\): nothing is logged"):
        keys.key_of(name)
