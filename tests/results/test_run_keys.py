"""The names that are logged, and the docs' table of them."""

import re
from pathlib import Path

from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe
from sr_monitor.results.run_keys import RUN_KEYS, documented_keys

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


def test_the_names_are_those_that_were_promised() -> None:
    promised = {(f"stable_regions/{name}", kind) for kind in PROMISED for name in PROMISED[kind]}
    ours = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
    assert {(key.name, key.kind) for key in ours} == promised
    assert documented_keys()[: len(PathsProbe.keys)] == PathsProbe.keys
    assert set(ours) <= set(documented_keys())


def test_no_name_is_there_twice_and_each_can_be_shown() -> None:
    keys = documented_keys()
    assert len({key.name for key in keys}) == len(keys)
    for key in keys:
        assert re.fullmatch(r"stable_regions/[a-z0-9_/]+(<k>)?", key.name)
        assert re.fullmatch(r"[A-Z][^|\n]+\.", key.meaning)


def test_the_docs_hold_the_table() -> None:
    """Exactly: no documented name is missing, and none is left over. Paste what this expects."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [f"| `{key.name}` | {key.kind} | {key.meaning} |" for key in documented_keys()]
    assert [line for line in page if line.startswith("| `stable_regions/")] == rows
