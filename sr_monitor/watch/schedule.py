"""When to measure: any function of the training step that returns a bool.

every(n, start=s)        s, s + n, s + 2n, ...
at(steps)                these steps
log_spaced(first)        0, and first * 10**(k / per_decade) for k = 0, 1, ..., rounded
budget(share)            whenever the measurements stay within their share of the wall time

schedule = every(500)
schedule(1000)                                 # True
schedule = budget(0.01, schedule=every(500))   # of those steps, the ones there is time for
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, SupportsIndex

from sr_monitor.errors import InputError, refused, warn, whole

Schedule = Callable[[int], bool]

_NUM_RECENT = 5  # costs looked back on: enough to see one that drew pictures


def every(n: SupportsIndex, *, start: SupportsIndex = 0) -> Schedule:
    """Measure every n-th step, counted from `start`, which is one of them."""
    call = f"every({n}, start={start})"
    num_steps = whole("n", n, least=1, call=call)
    return partial(_is_multiple, num_steps, whole("start", start, least=0, call=call))


def at(steps: Iterable[SupportsIndex]) -> Schedule:
    """Measure at these steps and no others; 0 is before the first update."""
    steps = list(steps)
    call = f"at({steps})"
    return frozenset(whole("a step", step, least=0, call=call) for step in steps).__contains__


def log_spaced(
    first: int = 1,
    last: int | None = None,
    *,
    num: int | None = None,
    per_decade: int | None = None,
) -> Schedule:
    """Measure at step 0, then at ever sparser steps, evenly spaced in the logarithm and rounded.

        log_spaced()                      # 0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100, ...
        log_spaced(10, 10_000, num=4)     # 0, 10, 100, 1000, 10000

    Early steps that round to the same one count once.

    Args:
        first: The first step after 0.
        last: No step after this one; without it there is no end.
        num: How many steps from `first` to `last`, both included.
        per_decade: How many steps until a step is ten times as far; 5 by default.
    """
    call = f"log_spaced({first}, {last}, num={num}, per_decade={per_decade})"
    first = whole("first", first, least=1, call=call)
    if last is not None:
        last = whole("last", last, least=first, call=call)
    if num is None:
        in_ten = whole("per_decade", 5 if per_decade is None else per_decade, least=1, call=call)
        return partial(_is_log_spaced, first, last, in_ten)
    if last is None or per_decade is not None:
        raise InputError(f"{call}: `num` goes with `last` and without `per_decade`; pass one way")
    num = whole("num", num, least=2, call=call)
    return at([0, *(round(first * (last / first) ** (k / (num - 1))) for k in range(num))])


def _is_multiple(n: int, start: int, step: int) -> bool:
    return step >= start and (step - start) % n == 0


def _is_log_spaced(first: int, last: int | None, per_decade: int, step: int) -> bool:
    if step < first or (last is not None and step > last):
        return step == 0
    nearest = round(per_decade * math.log10(step / first))
    near = (nearest - 1, nearest, nearest + 1)
    return any(step == round(first * 10 ** (k / per_decade)) for k in near)


def budget(
    share: float,
    *,
    schedule: Schedule | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> "Budget":
    """Measure as often as `schedule` says, while measurements keep to their share of the time.

        within = budget(0.01, schedule=every(100))    # at most 1% of the wall time
        if within(step):
            within.spend(seconds_of(measurement))

    Args:
        share: The largest share of the run's wall time, above 0, at most 1.
        schedule: When to measure if time were no matter; every step by default.
        clock: Returns the time in seconds.
    """
    if not 0 < share <= 1:
        raise InputError(f"budget({share}): a share is above 0 and at most 1; for 1% pass 0.01")
    schedule = every(1) if schedule is None else schedule
    check_schedule(schedule)
    return Budget(share, schedule, clock)


def answers_alike(schedule: Schedule) -> bool:
    """Return whether a schedule is one of ours, which say the same everywhere and draw nothing."""
    ours = isinstance(schedule, partial) and schedule.func in (_is_multiple, _is_log_spaced)
    return ours or isinstance(getattr(schedule, "__self__", None), frozenset)


def check_schedule(schedule: Any) -> None:
    """Refuse what cannot be called with a step, such as a number of steps."""
    if not callable(schedule):
        fix = "pass every(500), at([0, 100, 1000]), log_spaced() or any function of the step"
        raise refused("schedule", schedule, fix)


class Budget:
    """A schedule that keeps an account of time; made by `budget`.

    A measurement is affordable if afterwards all of them would have taken no more than their share
    of the wall time, their own time included. It is expected to cost as much as the dearest of the
    last five. The first is always made, and then paid back, as is whatever a later one costs above
    expectation. The clock starts at the first question.
    """

    def __init__(self, share: float, schedule: Schedule, clock: Callable[[], float]) -> None:
        """Open an account with nothing in it."""
        self.share = share
        self.schedule = schedule
        self._clock = clock
        self._started: float | None = None
        self._latest = -math.inf  # what the clock said last
        self._lost, self._is_told = 0.0, False  # seconds it ran backwards, and whether it is told
        self._earlier = 0.0  # seconds of the run before it was resumed
        self._spent = 0.0
        self._recent: deque[float] = deque(maxlen=_NUM_RECENT)

    def __call__(self, step: int) -> bool:
        """Return whether the schedule says to measure at this step, and there is time for it."""
        return self.affordable() and self.schedule(step)

    def affordable(self) -> bool:
        """Return whether there is time for a measurement now, whatever the schedule says."""
        return self.seconds_to_wait() <= 0

    def seconds_to_wait(self) -> float:
        """Return how much longer the run has to go on until there is time for a measurement."""
        wall, cost = self.wall_seconds, max(self._recent, default=0.0)
        if self._lost and not self._is_told:
            self._is_told = True
            warn(
                f"budget({self.share}): its clock ran backwards by {self._lost:g} s; that counts "
                "as no time, and measuring goes on; pass a clock= that does not, such as "
                "time.perf_counter",
                stacklevel=2,
            )
        return (self._spent + cost) / self.share - cost - wall

    @property
    def wall_seconds(self) -> float:
        """How long the run has gone on since the first question, earlier parts included.

        Time that runs backwards counts as none.
        """
        now = self._clock()
        self._started = now if self._started is None else self._started
        if now < self._latest:
            self._lost += self._latest - now
            self._started -= self._latest - now
        self._latest = now
        return self._earlier + now - self._started

    def spend(self, seconds: float) -> None:
        """Enter what a measurement that has just ended took, even if it failed."""
        if self._started is None:
            self._started = self._clock() - seconds
        self._spent += seconds
        self._recent.append(seconds)

    @property
    def spent_share(self) -> float:
        """The share of the wall time that measurements took so far; 0 before the clock starts."""
        wall = self.wall_seconds
        return self._spent / wall if wall > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the account as plain values."""
        recent = list(self._recent)
        return {"spent": self._spent, "elapsed": self.wall_seconds, "recent": recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a saved account; what is missing counts as nothing.

        The time between saving and loading is not part of the run.
        """
        self._spent = float(state.get("spent", 0.0))
        self._earlier = float(state.get("elapsed", self._spent))
        self._recent = deque(map(float, state.get("recent", ())), maxlen=_NUM_RECENT)
        self._started, self._latest = None, -math.inf
