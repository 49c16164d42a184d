"""When the ranks measure: as scheduled, within the budget, and all at the same steps.

pace = Pace(budget(0.01, schedule=every(100)))
if pace.is_due(step, measured=last_step, also=False, is_off=False, ranks=ranks):
pace.account.spend(seconds_of(measurement))
"""

from sr_monitor.model.ranks import RankGroup
from sr_monitor.watch.schedule import Budget, Schedule, answers_alike, budget

_MOST_PASSED_OVER = 1000  # a step that counts tokens jumps by more
_NEVER = 2**62  # steps


class Pace:
    """Decides at each step whether the ranks measure."""

    def __init__(self, schedule: Schedule) -> None:
        """Keep an account of the time in any case; one of 100% allows everything."""
        self.account = schedule if isinstance(schedule, Budget) else budget(1.0, schedule=schedule)
        own = self.account.schedule
        self.shared: Schedule | None = own if answers_alike(own) else None
        """The schedule, if each rank can ask it for itself; None if only the leader asks it."""
        self.asked: int | None = None
        """The last step that the schedule was asked about; it is asked of all later ones."""
        self._next_question = 0  # no rank asks the leader before this step
        self._began = (0, 0.0)  # the step, and the wall time

    def begin(self, step: int) -> None:
        """Start the clock."""
        self._began = step, self.account.wall_seconds

    def may_be_due(self, step: int, *, measured: int, also: bool) -> bool:
        """Return whether `is_due` has to be asked: a schedule of ours that says no is enough.

        This runs no code of the user's, draws nothing and exchanges nothing.
        """
        if self._next_question >= _NEVER or self.shared is None:
            return self._next_question < _NEVER
        is_scheduled = self._is_scheduled(self.shared, step, measured)
        return also or (is_scheduled and step >= self._next_question)

    def is_due(
        self, step: int, *, measured: int, also: bool, is_off: bool, ranks: RankGroup
    ) -> bool:
        """Return whether to measure now: the leader's answer, or its error, on every rank.

        `measured` is the last step that was measured, `is_off` whether this rank has given up, as
        the leader alone may if saving fails; `also` asks the budget alone. One exchange.
        """

        def steps_to_wait() -> int:
            if is_off or not ranks.is_leader:
                return _NEVER if is_off else 0
            if self.shared is None:
                schedule = self.account.schedule
                if not self._is_scheduled(schedule, step, measured) and not also:
                    return 1
            return self.steps_to_wait(step)

        wait = ranks.largest(steps_to_wait)
        if ranks.size > 1 or wait == _NEVER:
            self._next_question = step + wait
        return wait == 0

    def steps_to_wait(self, step: int) -> int:
        """Estimate in how many steps the budget allows a measurement, at the pace so far."""
        seconds = self.account.seconds_to_wait()
        if seconds <= 0:
            return 0
        began_step, began_wall = self._began
        done = max(1, step - began_step)
        seconds_each = max(1e-6, (self.account.wall_seconds - began_wall) / done)
        return max(1, min(round(seconds / seconds_each), done))

    def _is_scheduled(self, schedule: Schedule, step: int, measured: int) -> bool:
        """Return whether a step since the last call is scheduled: some frameworks skip steps."""
        earlier = measured if self.asked is None else max(self.asked, measured)
        is_known = self.asked is not None or measured >= 0
        first = earlier + 1 if is_known and step - earlier <= _MOST_PASSED_OVER else step
        self.asked = max(step, earlier)
        return any(map(schedule, range(first, step + 1)))
