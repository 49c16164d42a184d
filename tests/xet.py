"""Files as the hub's Xet storage gives them out: where their chunks lie, and the chunks.

A file here is one xorb, whose name is the file's; chunks are not compressed. The layout is that of
https://huggingface.co/docs/xet: eight bytes before each chunk, offsets in the answer's JSON.
"""

from typing import Any

CHUNK = 3_000  # bytes; the real ones have 64 KiB on average


def xorb(body: bytes) -> bytes:
    """Return the chunks of a file, each with its header."""
    return b"".join(_header(len(part)) + part for part in _chunks(body))


def reconstruction(name: str, body: bytes, start: int, url: str) -> dict[str, Any]:
    """Say which chunks make up a file from its byte `start` on, and where they are."""
    first, num = start // CHUNK, len(_chunks(body))
    chunks = {"start": first, "end": num}
    place = {"start": first * (CHUNK + 8), "end": len(xorb(body)) - 1}
    return {
        "offset_into_first_range": start - first * CHUNK,
        "terms": [{"hash": name, "unpacked_length": len(body) - first * CHUNK, "range": chunks}],
        "xorbs": {name: [{"url": url, "ranges": [{"chunks": chunks, "bytes": place}]}]},
    }


def _chunks(body: bytes) -> list[bytes]:
    return [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]


def _header(size: int) -> bytes:
    """Version 0, the length as sent, compression 0, the length."""
    length = size.to_bytes(3, "little")
    return b"\0" + length + b"\0" + length
