"""A room imports only rooms below it, and no file of the package imports an adapter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sr_monitor"
ROOMS = ["model", "prompts", "probes", "results", "display", "watch", "replay", "cli"]
"""From the bottom up; single files in the package are below all of them."""


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def height(module: str) -> int:
    """Return how high a module of ours stands: -1 for a single file, else the room's place."""
    room = [*module.split("."), ""][1]
    return ROOMS.index(room) if room in ROOMS else -1


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    files = list((ROOT / room).rglob("*.py") if room else ROOT.glob("*.py"))
    own = ROOMS.index(room) if room else -1
    assert files
    upward = [
        f"{file.relative_to(ROOT)}: {module}"
        for file in files
        if room or not file.name.startswith("__")  # the front doors open onto all rooms
        for module in imported(file)
        if module.startswith("sr_monitor") and height(module) > own
    ]
    assert upward == []


def test_every_folder_is_a_room_and_none_imports_an_adapter() -> None:
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == set(ROOMS)
    modules = {module for file in ROOT.rglob("*.py") for module in imported(file)}
    forbidden = ("sr_monitor_", "lightning", "transformers.trainer")
    assert not [module for module in modules if module.startswith(forbidden)]
