"""One ahead: order, how far ahead, whose error comes when, and that nothing is left running."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event

import pytest

from sr_monitor.errors import InputError
from sr_monitor.replay.downloads import Fetched, discard, fetch
from sr_monitor.replay.hub import Revision
from sr_monitor.replay.patience import Stopped
from sr_monitor.replay.prefetch import prefetched
from tests.hub_server import Fault, HubServer, hub_server

REPO = "lab/tiny"
NAMES = ("step0", "step1", "step2", "step3")


class Shelf:
    """Fetches by name, and says what happened in which order."""

    def __init__(self, bad: str = "") -> None:
        self.begun: list[str] = []
        self.fetched: list[str] = []
        self.abandoned: list[str] = []
        self.allowed = {name: Event() for name in NAMES}
        self._bad = bad

    def fetch(self, name: str, stop: Event) -> str:
        self.begun.append(name)
        while not self.allowed[name].wait(0.01):
            if stop.is_set():
                raise Stopped
        self.fetched.append(name)
        if name == self._bad:
            raise InputError(f"no {name}")
        return name.upper()

    def allow_all(self) -> None:
        for event in self.allowed.values():
            event.set()


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prefetch" in thread.name]


def test_all_come_in_order() -> None:
    shelf = Shelf()
    shelf.allow_all()
    with prefetched(NAMES, shelf.fetch, shelf.abandoned.append) as turns:
        assert [(turn.key, turn.result()) for turn in turns] == [(n, n.upper()) for n in NAMES]
    assert shelf.fetched == list(NAMES)
    assert shelf.abandoned == []
    assert _threads() == []


def test_nothing_comes_of_nothing() -> None:
    with prefetched((), Shelf().fetch) as turns:
        assert list(turns) == []
    assert _threads() == []


def test_one_is_fetched_while_the_caller_works_and_no_more() -> None:
    shelf = Shelf()
    shelf.allow_all()
    asked: list[str] = []

    def names() -> Iterator[str]:
        for name in NAMES:
            asked.append(name)
            yield name

    with prefetched(names(), shelf.fetch) as turns:
        first = next(turns)
        assert first.result() == "STEP0"
        _until(lambda: len(shelf.fetched) == 2)
        assert asked == ["step0", "step1"]
        assert next(turns).is_ready()
        _until(lambda: len(shelf.fetched) == 3)
        assert asked == ["step0", "step1", "step2"]


def test_a_turn_comes_before_its_download_is_over() -> None:
    shelf = Shelf()
    with prefetched(NAMES[:1], shelf.fetch) as turns:
        turn = next(turns)
        assert not turn.is_ready()
        shelf.allow_all()
        assert turn.result() == "STEP0"
        assert turn.is_ready()


def test_an_error_comes_at_its_turn_and_the_rest_go_on() -> None:
    shelf = Shelf(bad="step1")
    shelf.allow_all()
    with prefetched(NAMES, shelf.fetch) as turns:
        assert next(turns).result() == "STEP0"
        _until(lambda: "step1" in shelf.fetched)
        with pytest.raises(InputError, match="no step1"):
            next(turns).result()
        assert [turn.result() for turn in turns] == ["STEP2", "STEP3"]


def test_who_leaves_early_leaves_no_thread_and_nothing_fetched() -> None:
    shelf = Shelf()
    shelf.allow_all()
    with prefetched(NAMES, shelf.fetch, shelf.abandoned.append) as turns:
        assert next(turns).result() == "STEP0"
        _until(lambda: len(shelf.fetched) == 2)
    assert shelf.abandoned == ["STEP1"]
    assert shelf.fetched == ["step0", "step1"]
    assert _threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_of_the_caller_stops_the_fetch_that_goes_on(error: type[BaseException]) -> None:
    shelf = Shelf()
    shelf.allowed["step0"].set()
    with pytest.raises(error):
        _leave(shelf, error, fetched=1)
    assert shelf.fetched == ["step0"]  # the next one was being waited for
    assert shelf.abandoned == ["STEP0"]
    assert _threads() == []


def test_what_was_ready_and_not_taken_is_given_away() -> None:
    shelf = Shelf()
    shelf.allow_all()
    with pytest.raises(KeyboardInterrupt):
        _leave(shelf, KeyboardInterrupt, fetched=2)
    assert shelf.abandoned == ["STEP0", "STEP1"]


def _leave(shelf: Shelf, error: type[BaseException], fetched: int) -> None:
    with prefetched(NAMES, shelf.fetch, shelf.abandoned.append) as turns:
        next(turns)
        _until(lambda: len(shelf.fetched) == fetched)
        raise error


def test_what_was_not_begun_never_is() -> None:
    shelf = Shelf()
    with prefetched(NAMES, shelf.fetch, shelf.abandoned.append) as turns:
        first = next(turns)
        second = next(turns)
        _until(lambda: len(shelf.begun) == 1)
    assert (shelf.begun, shelf.fetched, shelf.abandoned) == (["step0"], [], [])
    with pytest.raises(Stopped):
        first.result()
    with pytest.raises(CancelledError):
        second.result()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    files = {
        name: {"config.json": b"{}", "model.safetensors": name.encode() * 100} for name in NAMES
    }
    with hub_server({REPO: files}) as server:
        server.use(monkeypatch, tmp_path)
        yield server


def _until_gone(hub: HubServer, turn_limit: int) -> list[str]:
    """What a replay does: each is read, and discarded; returns what was read."""
    revisions = [Revision(name, hub.commit(REPO, name)) for name in NAMES]
    read: list[str] = []

    def get(revision: Revision, stop: Event) -> Fetched:
        return fetch(REPO, revision, stop=stop, sleep=lambda seconds: None)

    with prefetched(revisions, get, discard) as turns:
        for _, turn in zip(range(turn_limit), turns, strict=False):
            try:
                fetched = turn.result()
            except InputError as error:
                read.append(str(error)[:22])
                continue
            read.append((fetched.folder / "model.safetensors").read_text()[:5])
            discard(fetched)
    return read


def _left(tmp_path: Path) -> list[str]:
    folders = (tmp_path / "hub" / "models--lab--tiny").glob("*/*")
    return [path.name for path in folders if path.is_file() or any(path.iterdir())]


def test_a_replay_reads_all_and_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    assert _until_gone(hub, 9) == list(NAMES)
    assert _left(tmp_path) == []
    assert hub.count("GET .*/model.safetensors/") == 4


def test_a_bad_checkpoint_is_passed_over(hub: HubServer, tmp_path: Path) -> None:
    broken = f"HEAD .*{hub.commit(REPO, 'step1')}/model.safetensors"
    hub.fail(broken, Fault("error", times=-1, status=403))
    assert _until_gone(hub, 9) == ["step0", "lab/tiny@step1 cannot ", "step2", "step3"]
    assert _left(tmp_path) == []


@pytest.mark.parametrize("limit", [1, 2])
def test_a_replay_that_ends_early_leaves_nothing(
    hub: HubServer, tmp_path: Path, limit: int
) -> None:
    assert _until_gone(hub, limit) == list(NAMES[:limit])
    assert _left(tmp_path) == []
    assert _threads() == []


def _until(done: Callable[[], bool]) -> None:
    waited = Event()
    for _ in range(500):
        if done():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come")
