"""Build the documentation: `make docs`, strict, into docs/_build."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

project = "sr-monitor"
author = "The sr-monitor developers"
release = metadata.version("sr-monitor")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "sr-monitor"
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes in words are in the docstrings; as cross-references they break
default_role = "code"  # docstrings write `name`
autodoc_default_options = {"members": True, "show-inheritance": False}


def _write_keys(_: Any) -> None:
    """Write the page of logged names, from the probes themselves."""
    from sr_monitor.probes.base import built_in
    from sr_monitor.probes.keys import RUN_KEYS

    lines = [
        "# Logged names",
        "",
        "Every name that is logged. What is before the slash is its group on a dashboard; a second monitor in one log has",
        "`stable_regions-2` in the place of `stable_regions`.",
        "This page is made from the probes themselves.",
    ]
    groups = {"of every measurement": RUN_KEYS}
    groups |= {name: probe.keys for name, probe in built_in().items() if probe.keys}
    for name, keys in groups.items():
        lines += ["", f"## {name}", "", "| name | kind | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{key.name}` | {key.kind} | {key.meaning} |" for key in keys]
    page = _HERE / "keys.md"
    text = "\n".join([*lines, ""])
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def _show_code(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Show what is indented after a blank line as code, as docstrings mean it."""
    shown: list[str] = []
    in_section = False
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith(" "):
            in_section = line.rstrip() in ("Args:", "Raises:", "Returns:")
        is_code = line.startswith("    ") and not before and not in_section
        if is_code and not (shown and shown[-2:-1] and shown[-2].startswith("    ")):
            shown += [".. code-block:: python", ""]
        shown.append(line)
    lines[:] = shown


def setup(app: Any) -> None:
    """Make the generated page before the sources are read."""
    sys.path.insert(0, str(_HERE.parent / "integrations"))
    app.connect("autodoc-process-docstring", _show_code, priority=400)  # before napoleon
    app.connect("builder-inited", _write_keys)
