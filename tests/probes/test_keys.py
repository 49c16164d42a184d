"""The names that are logged, and the docs' table of them."""

import re
import runpy
from pathlib import Path

import pytest

from sr_monitor.probes.base import built_in
from sr_monitor.probes.keys import RUN_KEYS, of_run, without_run
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTED = (*(key for probe in built_in().values() for key in probe.keys), *RUN_KEYS)
PROMISED = {
    "scalar": "/max_slope/median /max_slope/q25 /max_slope/q75 "
    "/max_slope/median_low /max_slope/median_high "
    "_paths/location _paths/width _paths/end_distance _paths/input_distance "
    "_diagnostics/noise_floor _diagnostics/pairs_left_out _diagnostics/num_points "
    "_diagnostics/seconds _diagnostics/share_of_time _diagnostics/failures _diagnostics/tokens",
    "histogram": "/max_slope",
    "image": "/curves /slice/<k> /film/<k>",
    "animation": "_video/<k>",
    "text": "/prompts",
}


def test_the_names_are_those_that_were_promised_and_none_is_there_twice() -> None:
    promised = {
        (f"stable_regions{name}", kind) for kind in PROMISED for name in PROMISED[kind].split()
    }
    ours = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
    assert {(key.name, key.kind) for key in ours} == promised
    assert len({key.name for key in DOCUMENTED}) == len(DOCUMENTED)


def test_the_median_comes_first_in_a_dashboard_that_sorts() -> None:
    numbers = sorted(key.name for key in DOCUMENTED if key.kind == "scalar")
    assert numbers[0] == PathsProbe.MAX_SLOPE_MEDIAN.name


def test_the_docs_hold_what_is_always_logged_and_the_generated_page_everything(
    tmp_path: Path,
) -> None:
    """Exactly: no name is missing, and none is left over. Paste what this expects."""
    conf = runpy.run_path(str(DOCS / "conf.py"))
    conf["_write_keys"].__globals__["_HERE"] = tmp_path
    conf["_write_keys"](None)
    always = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
    for page, keys in ((DOCS / "3-watching.md", always), (tmp_path / "keys.md", DOCUMENTED)):
        rows = {f"| `{key.name}` | {key.kind} | {key.meaning} |" for key in keys}
        lines = page.read_text(encoding="utf-8").splitlines()
        assert {line for line in lines if line.startswith("| `stable_regions")} == rows
    assert all(re.fullmatch(r"[A-Z][^|\n]+\.", key.meaning) for key in DOCUMENTED)


@pytest.mark.parametrize("run", ["stable_regions", "stable_regions-2", "x/code", "x/code-2", "x"])
def test_the_name_of_a_run_and_a_set_comes_and_goes(run: str) -> None:
    for key in DOCUMENTED:
        logged = of_run(key.name, run)
        assert without_run(logged, run) == key.name
        others = {"stable_regions", "stable_regions-2", "x/code", "x/code-2"} - {run}
        assert run == "x" or not [each for each in others if without_run(logged, each)]
    assert of_run("stable_regions_paths/width", "x/code") == "x_paths/code/width"
    assert of_run("stable_regions_radius", "stable_regions-2") == "stable_regions-2_radius"
