"""The files that people and services read beside the code agree with it."""

import re
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = metadata("sr-monitor")


def test_the_citation_is_of_this_version() -> None:
    cited = dict(re.findall(r"^(\w+): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert (cited["version"], cited["license"]) == (
        PROJECT["Version"],
        PROJECT["License-Expression"],
    )


def test_the_public_ci_runs_what_is_promised() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "bash .ci/run" in workflow
    (versions,) = re.findall(r"python: \[(.*)\]", workflow)
    lowest = PROJECT["Requires-Python"].removeprefix(">=")
    assert versions.split(", ")[0] == f'"{lowest}"'
    for system in ("ubuntu-latest", "macos-latest"):
        assert system in workflow
