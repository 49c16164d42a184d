"""The names that are logged, and the docs' table of them."""

import re
from pathlib import Path

from sr_monitor.probes.base import built_in
from sr_monitor.probes.keys import RUN_KEYS
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe

DOCUMENTED = (*(key for probe in built_in().values() for key in probe.keys), *RUN_KEYS)
PROMISED = {
    "scalar": "max_slope/median max_slope/q25 max_slope/q75 max_slope/low max_slope/high location "
    "width end_distance input_distance noise_floor pairs_left_out num_points seconds "
    "share_of_time failures tokens",
    "histogram": "max_slope",
    "image": "curves slice/<k> film/<k>",
    "animation": "animation/<k>",
    "text": "prompts",
}


def test_the_names_are_those_that_were_promised_and_none_is_there_twice() -> None:
    promised = {
        (f"stable_regions/{name}", kind) for kind in PROMISED for name in PROMISED[kind].split()
    }
    ours = (*PathsProbe.keys, *SlicesProbe.keys, *RUN_KEYS)
    assert {(key.name, key.kind) for key in ours} == promised
    assert len({key.name for key in DOCUMENTED}) == len(DOCUMENTED)


def test_the_docs_hold_the_table() -> None:
    """Exactly: no documented name is missing, and none is left over. Paste what this expects."""
    page = Path(__file__).parents[2] / "docs" / "3-watching.md"
    rows = [f"| `{key.name}` | {key.kind} | {key.meaning} |" for key in DOCUMENTED]
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| `stable_regions/")] == rows
    assert all(re.fullmatch(r"[A-Z][^|\n]+\.", key.meaning) for key in DOCUMENTED)
