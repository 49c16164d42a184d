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


def test_the_repository_is_the_same_wherever_it_is_named() -> None:
    """To move it, change pyproject.toml, and then what this test shows."""
    (ours,) = re.findall(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    named = {}
    for file in ("CITATION.cff", "examples/first_hour.ipynb"):
        text = (ROOT / file).read_text()
        named[file] = re.findall(r"https://(?:github|gitlab)\.com/[\w.-]+/[\w-]+", text)
    assert all(urls == [ours] for urls in named.values()), named


def test_the_public_ci_runs_what_is_promised() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "bash .ci/run" in workflow
    assert "make test-lowest" in workflow
    (versions,) = re.findall(r"python: \[(.*)\]", workflow)
    lowest = PROJECT["Requires-Python"].removeprefix(">=")
    assert versions.split(", ")[0] == f'"{lowest}"'
    for system in ("ubuntu-latest", "macos-latest"):
        assert system in workflow
