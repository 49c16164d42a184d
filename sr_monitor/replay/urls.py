"""Checkpoints of OLMo-core by URL, as the CSV files list them that OLMo publishes.

Of each `stepN` folder, config.json and the table of shards are read, and of the shards only the
bytes of the model's weights, by range: a third of them, since the optimizer's state is left.

    Step,Checkpoint Directory
    1000,https://olmo-checkpoints.org/ai2-llm/peteish32/step1000/
"""

import csv
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from threading import Event
from typing import ClassVar
from urllib.error import HTTPError

from sr_monitor.errors import InputError, unsigned
from sr_monitor.probes.base import Progress, no_progress
from sr_monitor.replay.names import CheckpointName, read_name
from sr_monitor.replay.readers.olmo_core import SHARDS, tokenizer_in
from sr_monitor.replay.readers.sharded import METADATA, Range, listed_ranges
from sr_monitor.replay.retry import Stopped

_CONFIG = "config.json"
_URL = re.compile(r"https?://[^\s/]+/\S*")
_SECONDS, _TRIES, _FIRST_PAUSE = 30.0, 5, 1.0
_PART = 2**20  # bytes read at once
_MOST_BYTES = 2**30  # of a list, a config or a table


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlCheckpoint:
    """One saved state of a model, in a folder on a web server."""

    url: str
    # Known once the table is read.
    commit: ClassVar[None] = None
    fingerprint: ClassVar[None] = None
    problem: ClassVar[None] = None
    needs_base: ClassVar[bool] = False
    num_bytes: ClassVar[int] = 0
    missing_bytes: ClassVar[int] = 0

    @property
    def label(self) -> str:
        """Its address."""
        return self.url

    def tokenizer(self) -> str | None:
        """Return the tokenizer that its config names."""
        try:
            return tokenizer_in(json.loads(_read(f"{self.url}/{_CONFIG}")))
        except (ValueError, RecursionError):  # whoever reads the config says so
            return None

    def fetch(
        self, folder: Path, progress: Progress = no_progress, stop: Event | None = None
    ) -> None:
        """Put what a measurement needs into a folder, each byte where it lies there."""
        shards = folder / SHARDS
        shutil.rmtree(folder, ignore_errors=True)
        shards.mkdir(parents=True)
        (folder / _CONFIG).write_bytes(_read(f"{self.url}/{_CONFIG}"))
        (shards / METADATA).write_bytes(_read(f"{self.url}/{SHARDS}/{METADATA}"))
        ranges = listed_ranges(shards)
        done, total = 0, sum(each.length for each in ranges)
        if total > (free := shutil.disk_usage(folder).free):
            raise InputError(
                f"{self.url} needs {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at "
                f"{str(folder)!r}; make room there, or name an --out on a larger disk"
            )
        for each in ranges:
            for size in _copy(f"{self.url}/{SHARDS}/{each.name}", shards / each.name, each):
                if stop is not None and stop.is_set():
                    raise Stopped
                done += size
                progress(done, total)


def is_list(source: str) -> bool:
    """Return whether a source is a list of addresses, on a disk or on the web."""
    return source.lower().endswith(".csv") and (
        bool(_URL.fullmatch(source)) or Path(source).is_file()
    )


def read_list(source: str) -> list[tuple[CheckpointName, UrlCheckpoint]]:
    """Return the checkpoints that a CSV file lists, each with what it says about it."""
    content = _read(source) if _URL.fullmatch(source) else Path(source).read_bytes()
    rows = csv.DictReader(content.decode("utf-8-sig", errors="replace").splitlines())
    found = [
        (_name({str(k).strip().lower(): str(v).strip() for k, v in row.items()}), _url(row))
        for row in rows
    ]
    pairs = [(name, UrlCheckpoint(url=url)) for name, url in found if name and url]
    if not pairs or len(pairs) < len(found):
        raise InputError(
            f"{source!r}: {len(found) - len(pairs)} of {len(found)} lines have no step or no "
            "address; it takes a column 'Step' and one with addresses (https://...)"
        )
    return pairs


def _url(row: dict[str, str]) -> str | None:
    values = (str(value).strip() for value in row.values())
    return next((value.rstrip("/") for value in values if _URL.fullmatch(value)), None)


def _name(row: dict[str, str]) -> CheckpointName | None:
    """Return the name that a line's step, stage, ingredient and tokens come to."""
    stage = re.search(r"\d+", row.get("stage", ""))
    ingredient = row.get("ingredient", "")
    parts = [f"stage{stage[0]}"] if stage else []
    parts += [f"ingredient{ingredient}"] if ingredient.isdigit() else []
    parts += [f"step{row.get('step', '')}"]
    parts += [ingredient] if ingredient and not ingredient.isdigit() else []
    name, tokens = read_name("-".join(parts)), row.get("tokens seen", "")
    return replace(name, tokens=int(tokens)) if name and tokens.isdigit() else name


def _read(url: str) -> bytes:
    """Return a small file, whole."""
    tries = 0
    while True:
        try:
            return b"".join(_once(url, 0, None))
        except (OSError, HTTPException) as error:
            _pause(url, error, tries := tries + 1)


def _copy(url: str, path: Path, part: Range) -> Iterator[int]:
    """Copy a range of a file to where it lies in it; yield the bytes that have come."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.seek(part.start)
        for block in _stream(url, part.start, part.length):
            file.write(block)
            yield len(block)


def _stream(url: str, start: int, length: int) -> Iterator[bytes]:
    """Yield the bytes of a range; after a failure, go on from where the line was cut."""
    done = tries = 0
    while done < length:
        try:
            for block in _once(url, start + done, length - done):
                done, tries = done + len(block), 0
                yield block
        except (OSError, HTTPException) as error:
            _pause(url, error, tries := tries + 1)


def _once(url: str, start: int, length: int | None) -> Iterator[bytes]:
    """Yield the bytes of one answer; raise OSError if it ends early."""
    headers = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        if length is not None and answer.status != 206:
            raise InputError(
                f"{unsigned(url)}: the server gives out whole files only; download it instead"
            )
        left = _MOST_BYTES if length is None else length
        while left and (block := answer.read(min(_PART, left))):
            left -= len(block)
            yield block
        if answer.length:
            raise OSError(f"{answer.length} bytes are missing")


def _pause(url: str, error: Exception, tries: int) -> None:
    """Wait before the next try; give up if it cannot help."""
    status = error.code if isinstance(error, HTTPError) else 0
    is_refused = 400 <= status < 500 and status not in (408, 429)
    if is_refused or tries == _TRIES:
        said = unsigned(f"{url} could not be downloaded ({error}; tries: {tries})")
        fix = "check the address and the connection, and run the same again"
        raise InputError(f"{said}; {fix}") from error
    time.sleep(_FIRST_PAUSE * 2 ** (tries - 1))
