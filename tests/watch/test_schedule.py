"""Schedules against their rules written out, and budgets in a simulated clock."""

import json
import math
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from sr_monitor.errors import InputError
from sr_monitor.watch.schedule import Budget, Schedule, at, budget, every, log_spaced


def chosen(schedule: Schedule, end: int, start: int = 0) -> list[int]:
    return [step for step in range(start, end) if schedule(step)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (every(3), [0, 3, 6, 9]),
        (every(4, start=3), [3, 7]),
        (at([5, 0, 2, 5]), [0, 2, 5]),
        (at(iter([7])), [7]),
        (at([]), []),
        (log_spaced(), [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100, 158, 251, 398, 631, 1000]),
        (log_spaced(10, 10_000, num=4), [0, 10, 100, 1000, 10_000]),
        (log_spaced(10, 10_000, per_decade=1), [0, 10, 100, 1000, 10_000]),
        (log_spaced(10, 9_999, per_decade=1), [0, 10, 100, 1000]),
        (log_spaced(7, 7, num=2), [0, 7]),
    ],
)
def test_steps_that_are_chosen(schedule: Schedule, expected: list[int]) -> None:
    assert chosen(schedule, expected[-1] + 2 if expected else 10, start=-9) == expected


@pytest.mark.parametrize(("first", "per_decade"), [(1, 7), (1, 50), (3, 4), (250, 9)])
def test_log_spaced_is_its_rule_written_out(first: int, per_decade: int) -> None:
    steps = {round(first * 10 ** (k / per_decade)) for k in range(14 * per_decade)}
    early = sorted({0, *(step for step in steps if step < 10_000)})
    schedule = log_spaced(first, per_decade=per_decade)
    assert chosen(schedule, 10_000) == early
    far = max(steps)
    assert [schedule(far + more) for more in (-1, 0, 1)] == [False, True, False]


@pytest.mark.parametrize(("first", "last", "num"), [(1, 1000, 30), (5, 9_000, 11), (2, 3, 9)])
def test_log_spaced_by_number_is_its_rule_written_out(first: int, last: int, num: int) -> None:
    spaced = (first * math.exp(k / (num - 1) * math.log(last / first)) for k in range(num))
    expected = sorted({0, *map(round, spaced)})
    assert chosen(log_spaced(first, last, num=num), last + 100) == expected
    assert {0, first, last} <= set(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(0), r"every\(0, start=0\): n is 0; pass 1 or more"),
        (lambda: every(cast(Any, 0.5)), r"n is 0\.5; pass a whole number"),
        (lambda: every(5, start=-1), r"every\(5, start=-1\): start is -1; pass 0 or more"),
        (lambda: at([3, -2]), r"at\(\[3, -2\]\): a step is -2; pass 0 or more"),
        (lambda: log_spaced(0), r"log_spaced\(0, .*\): first is 0; pass 1 or more"),
        (lambda: log_spaced(10, 9), r"last is 9; pass 10 or more"),
        (lambda: log_spaced(per_decade=0), r"per_decade is 0; pass 1 or more"),
        (lambda: log_spaced(1, 10, num=1), r"num is 1; pass 2 or more"),
        (lambda: log_spaced(num=5), r"`num` goes with `last` and without"),
        (lambda: log_spaced(1, 10, num=5, per_decade=2), r"`num` goes with `last` and without"),
        (lambda: budget(0.5, schedule=cast(Any, 100)), r"schedule=100: pass every\(500\), at\("),
        (lambda: budget(0.0), r"budget\(0\.0\): a share is above 0 and at most 1"),
        (lambda: budget(1.01), r"a share is above 0"),
        (lambda: budget(math.nan), r"a share is above 0"),
    ],
)
@pytest.mark.usefixtures("_as_users_run_it")
def test_what_cannot_be_done_is_refused(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", [every(7, start=2), at([3]), log_spaced(), budget(0.5)])
def test_schedules_travel_to_other_processes(schedule: Schedule) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert chosen(again, 100) == chosen(schedule, 100)


class Run:
    """A training whose clock is ours, and an account of its own, event by event."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = self.began = now
        self.events: list[tuple[int, float, float]] = []  # step, seconds, wall time afterwards

    @property
    def share(self) -> float:
        return sum(cost for _, cost, _ in self.events) / (self.now - self.began)

    def train(
        self, within: Budget, step_seconds: Sequence[float], costs: Callable[[int], float]
    ) -> None:
        for step, seconds in enumerate(step_seconds):
            if within(step):
                cost = costs(step)
                self.now += cost
                within.spend(cost)
                self.events.append((step, cost, self.now - self.began))
            self.now += seconds


def account(run: Run, share: float = 0.01, schedule: Schedule | None = None) -> Budget:
    return budget(share, schedule=schedule, clock=lambda: run.now)


def test_a_run_in_which_everything_varies_keeps_its_share() -> None:
    """Costs the budget has seen before never go over; one it could not foresee is paid back."""
    chance = random.Random(0)
    run = Run()
    steps = [chance.choice([0.5, 2.0, 30.0]) * chance.random() for _ in range(20_000)]
    costs = {step: chance.uniform(0.5, 2.0) for step in range(len(steps))}
    within = account(run)
    run.train(within, steps, costs.__getitem__)
    assert within.spent_share == pytest.approx(run.share, rel=1e-9)
    assert len(run.events) > 100
    assert run.events[0][0] == 0
    assert 0.0095 < run.share < 0.01
    spent = run.events[0][1]
    for number, (_, cost, wall) in enumerate(run.events[1:], start=1):
        spent += cost
        expected = max(cost for _, cost, _ in run.events[max(0, number - 5) : number])
        assert spent <= 0.01 * wall + max(0.0, cost - expected) + 1e-9


def test_the_dearest_of_the_last_five_is_expected() -> None:
    run = Run()
    within = account(run, share=0.5)
    within(0)
    for cost in (4.0, 1.0, 1.0, 1.0, 1.0):
        run.now += cost
        within.spend(cost)
    run.now += 11.9 - 8.0  # 8 spent; with 4 more, 12 of 24 fits at a wall time of 20
    assert not within(1)
    run.now += 20.0 - 11.9
    assert within(1)
    run.now += 1.0
    within.spend(1.0)  # the 4 is forgotten; at once, 9 + 1 of 21 + 1 fits
    assert within(2)


@pytest.mark.parametrize(
    ("seconds", "cost", "least", "most"), [(2.0, 10.0, 5, 17), (0.5, 0.1, 18, 18)]
)
def test_a_budget_takes_only_steps_of_its_schedule(
    seconds: float, cost: float, least: int, most: int
) -> None:
    run = Run()
    run.train(account(run, schedule=every(500)), [seconds] * 9_000, lambda step: cost)
    steps = [step for step, _, _ in run.events]
    assert all(step % 500 == 0 for step in steps)
    assert least <= len(steps) <= most  # of 18, those that there was time for
    assert run.share < 0.01


def test_the_clock_starts_at_the_first_question() -> None:
    run = Run()
    within = account(run, share=0.5, schedule=at([3]))
    run.now += 1e6  # imports, data, the model: not the run's time
    for step in range(3):
        assert not within(step)
        run.now += 10.0
    assert within(3)
    run.now += 10.0
    within.spend(10.0)
    assert within.spent_share == 10 / 40
    unasked = account(run)
    run.now += 2.0
    unasked.spend(2.0)
    assert unasked.spent_share == 1.0


def test_time_that_runs_backwards_counts_as_none_and_is_told_once() -> None:
    run = Run()
    within = account(run, share=0.5)
    with pytest.warns(RuntimeWarning, match=r"budget\(0\.5\): its clock ran backwards by 599 s"):
        run.train(within, [1.0] * 50 + [-600.0] + [1.0] * 50, lambda step: 1.0)
    assert [step for step, _, _ in run.events] == [0, *range(2, 51), *range(53, 101)]
    assert within.wall_seconds == within.state_dict()["elapsed"] == 100.0 + 98 - 1
    run.now -= 5.0
    within(101)  # a second warning would be an error


def test_a_share_of_one_allows_everything() -> None:
    run = Run()
    run.train(account(run, share=1.0), [0.001] * 50, lambda step: 100.0 * (step + 1))
    assert len(run.events) == 50


def test_a_resumed_run_goes_on_with_its_account() -> None:
    """Interrupted every 777 steps, for a day each time, it measures when it would have anyhow."""
    whole, parts = Run(), Run()
    steps = [0.5] * 5_000
    costs = [0.5 + step % 3 for step in range(len(steps))]
    uninterrupted = account(whole, schedule=every(10))
    whole.train(uninterrupted, steps, costs.__getitem__)
    found: list[int] = []
    state = "{}"
    for start in range(0, len(steps), 777):
        within = account(parts, schedule=every(10, start=-start % 10))
        within.load_state_dict(json.loads(state))
        parts.events.clear()
        parts.train(within, steps[start : start + 777], costs[start:].__getitem__)
        found += [start + step for step, _, _ in parts.events]
        assert within.spent_share < 1
        state = json.dumps(within.state_dict())
        parts.now += 86_400.0
    assert found == [step for step, _, _ in whole.events]
    assert len(found) > 10
    final = account(parts)
    final.load_state_dict(json.loads(state))
    assert final.spent_share == pytest.approx(whole.share, rel=1e-9)


def test_what_a_saved_account_lacks_counts_as_nothing() -> None:
    run = Run()
    within = account(run)
    within.spend(5.0)
    within.load_state_dict({})
    assert (within.spent_share, within(0)) == (0.0, True)
    within.load_state_dict({"spent": 5.0, "unknown": None})
    assert within.spent_share == 1.0
    assert not within(0)
    assert within.state_dict() == {"spent": 5.0, "elapsed": 5.0, "recent": []}
    within.load_state_dict({"spent": 5.0, "elapsed": 50.0, "recent": [5.0]})
    assert within.spent_share == 0.1
    assert not within(0)


def test_the_real_clock_is_the_default() -> None:
    within = budget(0.5)
    assert within(0)
    within.spend(1e-9)
    assert 0 < within.spent_share < 0.5
    assert within(1)
    within.spend(1e6)
    assert not within(2)
