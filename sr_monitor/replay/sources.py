"""What is named to be measured: a folder, a file, or a repository on the hub.

What exists as a path is that path, and else `owner/name` is the hub's. What is neither gets the
likeliest fix: the closest names, or how what was meant is written.

    if is_repo("allenai/OLMo-1B-0724-hf@step*"): ...
    raise InputError(not_found("gpt2"))
"""

import re
from pathlib import Path

from sr_monitor.replay.names import closest

REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""The name of a repository."""

_ADDRESS = re.compile(rf"https?://[^/]+/(?P<repo>{REPO.pattern})(/tree/(?P<revision>[^/?#]+))?.*")
_PATTERN = re.compile(r"[*?\[]")
_ON_THE_HUB = "a repository on the hub is named owner/name, such as openai-community/gpt2"


def is_repo(source: str) -> bool:
    """Whether it is meant as a repository of the hub, perhaps with `@` and revisions."""
    return bool(REPO.fullmatch(source.partition("@")[0])) and not exists(Path(source))


def exists(path: Path) -> bool:
    """Whether something is there, whatever the path looks like."""
    try:
        return path.exists()
    except OSError:  # a name too long for any disk
        return False


def not_found(source: str | Path) -> str:
    """That nothing is there, what is, and the fix if it is known what was meant."""
    path = Path(source)
    beside = [entry.name for entry in path.parent.glob("*")] if exists(path.parent) else []
    there = ", ".join(closest(path.name, beside)) or "nothing there"
    told = f"there is no folder {str(source)!r}; the closest in {str(path.parent)!r}: {there}"
    return "; ".join(filter(None, [told, _fix(str(source))]))


def _fix(source: str) -> str:
    """How to write what was probably meant; empty where that is not known."""
    if address := _ADDRESS.fullmatch(source):
        name = "@".join(filter(None, address.group("repo", "revision")))
        return f"for that address on the hub, name {name}"
    if source.startswith("~"):
        return "the shell puts the home folder in place of ~: leave the quotes out"
    if _PATTERN.search(source):
        return "the shell expands a pattern: leave the quotes out (if there are none, nothing fits)"
    has_no_owner = "/" not in source or source.startswith("http")
    return _ON_THE_HUB if has_no_owner else ""
