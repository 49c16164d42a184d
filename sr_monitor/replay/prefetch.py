"""One ahead: the next checkpoint is fetched in a thread while the caller works on the current one.

Each turn comes in order, at once, and its result is waited for; an error of one is raised at its
turn, and the rest go on. Whoever leaves early stops the thread, and what was fetched for nobody is
given away.

    with prefetched(revisions, lambda one, stop: fetch(repo, one, stop=stop), discard) as turns:
        folders = (turn.result().folder for turn in turns)
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Thread
from typing import Generic, TypeVar

_SECONDS = 15.0  # the hub's client notices nothing for as long while a line is dead

Key = TypeVar("Key")
Value = TypeVar("Value")


class Turn(Generic[Key, Value]):
    """One of the things that are fetched."""

    def __init__(self, key: Key) -> None:
        """Something that is still to be fetched."""
        self.key = key
        self._future: Future[Value] = Future()
        self._is_taken = False

    def result(self) -> Value:
        """Waits until it is there, and returns it; raises what fetching it raised."""
        value = self._future.result()
        self._is_taken = True
        return value

    def is_ready(self) -> bool:
        """Whether `result` would not wait."""
        return self._future.done()

    def fetch(self, fetch: Callable[[Key, Event], Value], stop: Event) -> None:
        """Fetches it, in the thread."""
        if not self._future.set_running_or_notify_cancel():
            return
        try:
            self._future.set_result(fetch(self.key, stop))
        except BaseException as error:
            self._future.set_exception(error)

    def give_away(self, abandon: Callable[[Value], object]) -> None:
        """Hands over what was fetched and never taken; what was not begun never will be."""
        if self._future.cancel() or not self._future.done() or self._is_taken:
            return
        if self._future.exception() is None:
            abandon(self._future.result())


class _Line(Generic[Key, Value]):
    """A thread that works off the turns in order."""

    def __init__(self, fetch: Callable[[Key, Event], Value]) -> None:
        self._fetch = fetch
        self._stop = Event()
        self._queue: SimpleQueue[Turn[Key, Value] | None] = SimpleQueue()
        self._turns: list[Turn[Key, Value]] = []
        # NOTE: a daemon, so that a line that never answers does not keep the process from ending.
        self._thread = Thread(target=self._work, name="sr-monitor-prefetch", daemon=True)
        self._thread.start()

    def turns(self, keys: Iterable[Key]) -> Iterator[Turn[Key, Value]]:
        waiting: deque[Turn[Key, Value]] = deque()
        for key in keys:
            waiting.append(self._add(key))
            if len(waiting) == 2:
                yield waiting.popleft()
        yield from waiting

    def close(self, abandon: Callable[[Value], object]) -> None:
        self._stop.set()
        self._queue.put(None)
        self._thread.join(_SECONDS)
        for turn in self._turns:
            turn.give_away(abandon)

    def _add(self, key: Key) -> Turn[Key, Value]:
        turn: Turn[Key, Value] = Turn(key)
        # Those whose turn is over are let go: what they hold may be large.
        self._turns = [*self._turns[-1:], turn]
        self._queue.put(turn)
        return turn

    def _work(self) -> None:
        while (turn := self._queue.get()) is not None:
            if self._stop.is_set():
                return
            turn.fetch(self._fetch, self._stop)


@contextmanager
def prefetched(
    keys: Iterable[Key],
    fetch: Callable[[Key, Event], Value],
    abandon: Callable[[Value], object] = lambda value: None,
) -> Iterator[Iterator[Turn[Key, Value]]]:
    """The turns of all keys, in order, fetched one ahead of the caller.

    Args:
        keys: what to fetch, such as revisions.
        fetch: fetches one; it should give up soon after the event it is given is set.
        abandon: gets what was fetched and not taken when the caller leaves early.
    """
    line = _Line(fetch)
    try:
        yield line.turns(keys)
    finally:
        line.close(abandon)
