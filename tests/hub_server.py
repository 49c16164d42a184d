"""A small model hub on this machine, for the real client of the real one.

It serves refs, the info of a revision, and files by HEAD and GET with ranges; weights come, as on
the real hub, by a redirect to another host. It fails on demand, and counts.

    with hub_server({"some/model": {"main": {"config.json": b"{}"}, "step1": folder}}) as server:
        server.use(monkeypatch, tmp_path / "home")
        server.fail("GET .*safetensors", Fault("error", times=2))
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.xet import reconstruction, xorb

Files = Mapping[str, bytes] | Path
"""A revision's files by name, or the folder they lie in."""
Repos = Mapping[str, Mapping[str, Files]]
"""Repositories by name, their revisions by name; "refs/tags/v1" is a tag."""
_LFS = (".safetensors", ".bin")


@dataclass
class Fault:
    """Something that goes wrong with the requests that match."""

    kind: Literal["error", "stall", "truncate", "short", "slow", "drop", "flip"]
    """An error status; no answer; half a body, then the line is cut; half a body, and its length
    said to be that; a body piece by piece; the line cut before an answer; a wrong last byte."""
    times: int = 1
    """How many requests it is for; afterwards all is well."""
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 30.0
    """How long a stall is, or a slow body."""


@dataclass
class Window:
    """A limit of the hub's kind: so many requests in each window; the headers of answers say it."""

    quota: int
    seconds: int
    refused: int = 0
    """How many requests came when none was left."""
    left: int = 0
    ends: float = 0.0

    def count(self) -> tuple[bool, dict[str, str]]:
        """Count a request; return whether it is within the limit, and the headers to answer."""
        if (now := time.monotonic()) >= self.ends:
            self.left, self.ends = self.quota, now + self.seconds
        is_within = self.left > 0
        self.refused += not is_within
        self.left -= is_within
        said = f'"api";r={self.left};t={int(self.ends - now)}'
        return is_within, {"RateLimit": said}


@dataclass(frozen=True)
class Revision:
    """A commit: its hash, and its files."""

    commit: str
    files: Mapping[str, bytes]


class HubServer:
    """What is served, what goes wrong, what was asked for."""

    def __init__(self, repos: Repos) -> None:
        self.repos = {
            repo: {name: _revision(repo, name, files) for name, files in revisions.items()}
            for repo, revisions in repos.items()
        }
        self.endpoint = ""
        self.claimed_sizes: dict[str, int] = {}
        """Sizes, by file name, that the listings give in place of the true ones."""
        self.claimed_hashes: dict[str, str] = {}
        """Hashes of small files, likewise."""
        self.titles: dict[str, list[tuple[str, str]]] = {}
        """The titles of a repository's commits, each with its revision, the newest first."""
        self.gated: set[str] = set()
        """Repositories that list their files, and give none out."""
        self.xet = False
        """Whether weights come by Xet, for clients that can."""
        self.answers: dict[str, str] = {}
        """JSON that is answered, whatever is there, to requests in which a pattern is found."""
        self.window: Window | None = None
        """How many questions to the API are answered in how much time; None: all."""
        self.requests: list[str] = []
        """Each as "GET /path?query", in order."""
        self.closing = Event()
        self._faults: list[tuple[re.Pattern[str], Fault]] = []
        self._lock = Lock()

    def fail(self, pattern: str, fault: Fault) -> None:
        """Let the requests fail in which the pattern is found, as in `requests`."""
        self._faults.append((re.compile(pattern), fault))

    def count(self, pattern: str) -> int:
        """Return how many requests there were in which the pattern is found."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def commit(self, repo: str, name: str) -> str:
        """Return the commit that a revision stands for."""
        return self.repos[repo][name].commit

    def note(self, request: str) -> Fault | None:
        """Count a request, and return what goes wrong with it."""
        with self._lock:
            self.requests.append(request)
            for pattern, fault in self._faults:
                if fault.times and pattern.search(request):
                    fault.times -= 1
                    return fault
        return None

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Make this process's client talk to this hub, with its cache in `home`."""
        for name, value in {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/"
            "{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": not self.xet,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the same for a new process."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": str(int(not self.xet)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def hub_server(repos: Repos) -> Iterator[HubServer]:
    """Serve these repositories until the block ends."""
    hub = HubServer(repos)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Hub,), {"hub": hub})) as server:
        server.daemon_threads = True
        server.block_on_close = False
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()


class _Refused(Exception):
    """A status and an error code."""


class _Hub(BaseHTTPRequestHandler):
    """Answers one request; faults come first."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.fault = self.hub.note(f"{self.command} {self.path}")
        self.limit: dict[str, str] = {}
        if self.hub.window is not None and "/api/models/" in self.path:
            is_within, self.limit = self.hub.window.count()
            self.fault = self.fault if is_within else Fault("error", status=429)
        match self.fault:
            case Fault(kind="error", status=status, headers=headers):
                self._answer(status, b"", **headers)
            case Fault(kind="stall" | "drop" as kind, seconds=seconds):
                self.hub.closing.wait(seconds if kind == "stall" else 0)
                self.close_connection = True
            case _:
                try:
                    self._route(urlsplit(self.path).path)
                except _Refused as refused:
                    status, code = refused.args
                    self._answer(status, b"", X_Error_Code=code, X_Error_Message=f"{code} here")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _route(self, path: str) -> None:
        if re.search("/auth-check|/resolve/", path) and any(
            repo in path for repo in self.hub.gated
        ):
            raise _Refused(403, "GatedRepo")
        # Another host to the client, which then leaves the user's token away.
        odd = (text for pattern, text in self.hub.answers.items() if re.search(pattern, path))
        if self.headers["Host"].startswith("localhost"):
            self._store(path)
        elif (answer := next(odd, None)) is not None:
            self._answer(200, answer.encode(), Content_Type="application/json")
        elif found := re.fullmatch(r"/api/models/(.+?)/refs", path):
            self._refs(found[1])
        elif found := re.fullmatch(r"/api/models/(.+?)/commits/main", path):
            self._commits(found[1])
        elif found := re.fullmatch(r"/api/models/(.+?)/auth-check", path):
            self._answer(200, b"")
        elif found := re.fullmatch(r"/api/models/(.+?)/xet-read-token/(.+)", path):
            self._xet_token()
        elif found := re.fullmatch(r"/xet/v2/reconstructions/(.+)", path):
            self._reconstruction(found[1])
        elif "/tree/" in path:  # transformers asks for a folder of chat templates
            raise _Refused(404, "EntryNotFound")
        elif found := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
            self._info(found[1], unquote(found[2] or "main"))
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], unquote(found[2]), unquote(found[3]))
        else:
            raise _Refused(404, "")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        if self.fault and self.fault.kind == "short":
            body = body[: len(body) // 2]
        if self.fault and self.fault.kind == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers | self.limit).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self._send(body)

    def _answer_range(self, body: bytes, **headers: str) -> None:
        start, end = self._range(len(body))
        if start or end < len(body):
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        self._answer(206 if "Content_Range" in headers else 200, body[start:end], **headers)

    def _range(self, size: int) -> tuple[int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (asked[1], asked[2]) if asked else (0, "")
        return int(start), min(int(end) + 1, size) if end else size

    def _send(self, body: bytes) -> None:
        match self.fault:
            case Fault(kind="truncate"):
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            case Fault(kind="slow", seconds=seconds):
                size = -(-len(body) // 20)
                for start in range(0, len(body), size):
                    if self.hub.closing.wait(seconds / 20):
                        break
                    try:
                        self.wfile.write(body[start : start + size])
                    except OSError:  # nobody listens any more
                        break
                self.close_connection = True
            case _:
                self.wfile.write(body)

    def _store(self, path: str) -> None:
        assert not self.headers.get("Authorization"), "a token must not leave the hub"
        body = self._body(path.rpartition("/")[2])
        self._answer_range(xorb(body) if path.startswith("/xorbs/") else body)

    def _body(self, digest: str) -> bytes:
        revisions = (r for names in self.hub.repos.values() for r in names.values())
        every = (body for revision in revisions for body in revision.files.values())
        return next(body for body in every if sha256(body).hexdigest() == digest)

    @property
    def _storage(self) -> str:
        return self.hub.endpoint.replace("127.0.0.1", "localhost")

    def _xet_token(self) -> None:
        token = {
            "X_Xet_Cas_Url": f"{self.hub.endpoint}/xet",
            "X_Xet_Access_Token": "xet_for_a_while",
            "X_Xet_Token_Expiration": str(int(time.time()) + 3600),
        }
        self._answer(200, b"", **token)

    def _reconstruction(self, name: str) -> None:
        assert self.headers["Authorization"] == "Bearer xet_for_a_while"
        body = self._body(name)
        start, _ = self._range(len(body))
        if start >= len(body):
            raise _Refused(416, "")
        url = f"{self._storage}/xorbs/{name}?X-Xet-Signature=secret"
        self._json(reconstruction(name, body, start, url))

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _revisions(self, repo: str) -> Mapping[str, Revision]:
        if repo not in self.hub.repos:  # what is hidden and what is not there look the same
            raise _Refused(401, "RepoNotFound")
        return self.hub.repos[repo]

    def _revision(self, repo: str, name: str) -> Revision:
        for known, revision in self._revisions(repo).items():
            if name in (_short(known), revision.commit):
                return revision
        raise _Refused(404, "RevisionNotFound")

    def _refs(self, repo: str) -> None:
        listed: dict[str, list[Any]] = {"branches": [], "converts": [], "tags": []}
        for name, revision in self._revisions(repo).items():
            if name.startswith("."):  # a commit without a name
                continue
            kind = "tags" if name.startswith("refs/tags/") else "branches"
            ref = name if kind == "tags" else f"refs/heads/{name}"
            entry = {"name": _short(name), "ref": ref, "targetCommit": revision.commit}
            listed[kind].append(entry)
        self._json(listed)

    def _commits(self, repo: str) -> None:
        """Answer one page of two commits, with a link to the next."""
        page = int(parse_qs(urlsplit(self.path).query).get("p", ["0"])[0])
        listed = [
            {"id": self._revisions(repo)[name].commit, "title": title, "message": "", "authors": []}
            | {"date": "2026-01-01T00:00:00.000Z"}
            for title, name in self.hub.titles.get(repo, [])
        ]
        more = f'<{self.hub.endpoint}/api/models/{repo}/commits/main?p={page + 1}>; rel="next"'
        link = {"Link": more} if listed[2 * page + 2 :] else {}
        body = json.dumps(listed[2 * page : 2 * page + 2]).encode()
        self._answer(200, body, Content_Type="application/json", **link)

    def _info(self, repo: str, name: str) -> None:
        revision = self._revision(repo, name)
        detailed = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            {"rfilename": file} | (self._details(file, body) if detailed else {})
            for file, body in revision.files.items()
        ]
        about = {"id": repo, "modelId": repo, "gated": "auto" if repo in self.hub.gated else False}
        self._json(about | {"sha": revision.commit, "siblings": siblings})

    def _details(self, name: str, body: bytes) -> dict[str, Any]:
        size = self.hub.claimed_sizes.get(name, len(body))
        git_hash = self.hub.claimed_hashes.get(name, _git_hash(body))
        details: dict[str, Any] = {"size": size, "blobId": git_hash}
        if name.endswith(_LFS):
            digest = sha256(body).hexdigest()
            details["lfs"] = {"size": size, "pointerSize": 134, "sha256": digest}
        return details

    def _resolve(self, repo: str, name: str, file: str) -> None:
        revision = self._revision(repo, name)
        commit = revision.commit
        if (body := revision.files.get(file)) is None:
            self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        elif not file.endswith(_LFS):
            etag = f'"{_git_hash(body)}"'
            self._answer_range(body, ETag=etag, X_Repo_Commit=commit)
        else:
            digest = sha256(body).hexdigest()
            token = f"{self.hub.endpoint}/api/models/{repo}/xet-read-token/{commit}"
            xet = {"X_Xet_Hash": digest, "Link": f'<{token}>; rel="xet-auth"'}
            self._answer(
                302,
                b"",
                Location=f"{self._storage}/{repo}/{file}/{digest}?X-Amz-Signature=secret",
                X_Repo_Commit=commit,
                X_Linked_ETag=f'"{digest}"',
                X_Linked_Size=str(self.hub.claimed_sizes.get(file, len(body))),
                **(xet if self.hub.xet else {}),
            )


def _short(name: str) -> str:
    return name.removeprefix("refs/tags/")


def _git_hash(body: bytes) -> str:
    return sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _revision(repo: str, name: str, files: Files) -> Revision:
    if isinstance(files, Path):
        files = {path.name: path.read_bytes() for path in sorted(files.iterdir())}
    listed = json.dumps([repo, name, {file: _git_hash(body) for file, body in files.items()}])
    return Revision(sha1(listed.encode()).hexdigest(), files)
