"""Files of prompts: saved sets, texts, JSON lines of texts, JSON lines of pairs.

text = read_text(path, call)
content = parse_saved(text, call) if SAVED.match(text) else parse_entries(text, path, call)
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sr_monitor.errors import InputError

_SCHEMA = 1
_FORMAT = "sr-monitor prompts"
SAVED = re.compile(rf'\s*{{\s*"format"\s*:\s*"{_FORMAT}"')
"""Matches the text of a saved set."""
_json = partial(json.dumps, ensure_ascii=False)


def read_text(path: Path, call: str) -> str:
    """Read a file as utf-8; refuse a folder and a missing, empty or binary file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{call}: cannot be read as utf-8 text: {error}") from error
    if not text.strip():
        raise InputError(f"{call}: the file is empty")
    return text


def format_saved(header: Mapping[str, Any], prompts: Iterable[Mapping[str, Any]]) -> str:
    """Return the JSON of a saved set, one line for each prompt."""
    header = {"format": _FORMAT, "schema": _SCHEMA, **header}
    lines = [f"  {_json(key)}: {_json(value)}," for key, value in header.items()]
    rows = ",\n".join(f"    {_json(prompt)}" for prompt in prompts)
    return "\n".join(["{", *lines, '  "prompts": [', rows, "  ]", "}", ""])


def parse_saved(text: str, call: str) -> dict[str, Any]:
    """Return the content of a saved set; refuse other files and those of later versions."""
    content = _parse_json(text)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{call}: this is no file that PromptSet.save wrote")
    if content.get("schema") != _SCHEMA:
        raise InputError(
            f"{call}: the file has schema {content.get('schema')}, this sr-monitor reads "
            f"schema {_SCHEMA}; run: pip install --upgrade sr-monitor, or make a new set"
        )
    return content


def parse_entries(text: str, path: Path, call: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines, or a plain text as one {"text": ...}.

    JSON lines are recognised by a name that ends in .jsonl, .ndjson or .json, or by the first line.
    """
    # Not `splitlines`, which also cuts at separators that may stand inside a JSON string.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix not in {".jsonl", ".ndjson", ".json"} and not _kind(_parse_json(lines[0][1])):
        return [{"text": text}]
    entries = [_parse_json(line) for _, line in lines]
    for (number, line), entry in zip(lines, entries, strict=True):
        if not _kind(entry) or _kind(entry) != _kind(entries[0]):
            raise InputError(
                f"{call}: line {number} is {line[:60]!r}; the lines of a JSON file must be all "
                '{"text": "..."} or all {"a": "...", "b": "...", "label": "..."}'
            )
    return entries


def is_pair(entry: Any) -> bool:
    """Return whether `entry` is a mapping with the texts "a" and "b"."""
    return isinstance(entry, Mapping) and all(isinstance(entry.get(k), str) for k in ("a", "b"))


def _kind(entry: Any) -> str:
    if is_pair(entry):
        return "pair"
    return "text" if isinstance(entry, Mapping) and isinstance(entry.get("text"), str) else ""


def _parse_json(text: str) -> Any:
    """Return what `text` says, None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError):  # a damaged state may hold a number there
        return None
