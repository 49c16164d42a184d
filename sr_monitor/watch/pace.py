"""When the ranks measure: as scheduled, within the budget, and all at the same steps.

pace = Pace(budget(0.01, schedule=every(100)))
if pace.is_due(step, measured=last_step, is_off=False, ranks=ranks):
pace.account.spend(seconds_of(measurement))
"""

from sr_monitor.model.ranks import RankGroup
from sr_monitor.watch.schedule import Budget, Schedule, budget

_MOST_PASSED_OVER = 1000  # a step that counts tokens jumps by more


class Pace:
    """Decides at each step whether the ranks measure."""

    def __init__(self, schedule: Schedule) -> None:
        """Keep an account of the time in any case; one of 100% allows everything."""
        self.account = schedule if isinstance(schedule, Budget) else budget(1.0, schedule=schedule)
        self._asked = -1  # the last step that the schedule was asked about
        self._next_question = 0  # no rank asks the leader's clock before this step
        self._began = (0, 0.0)  # the step, and the wall time

    def begin(self, step: int) -> None:
        """Start the clock."""
        self._began = step, self.account.wall_seconds

    def is_due(
        self, step: int, *, measured: int, is_off: bool, ranks: RankGroup, also: bool = False
    ) -> bool:
        """Return whether to measure now; all ranks make this call and get the same answer.

        `measured` is the last step that was measured, `is_off` whether this rank has given up;
        `also` asks the budget alone, whatever the schedule says.
        """
        if not (self._is_scheduled(step, measured) or also):
            return False
        if ranks.size == 1:
            return not is_off and self.account.affordable()
        if step < self._next_question and not also:
            return False
        # Errors can be one rank's alone: the leader's in saving, say.
        if not ranks.minimum(int(not is_off)):
            return False
        wait = ranks.broadcast(self.steps_to_wait(step))  # clocks differ
        self._next_question = step + max(1, wait)
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

    def _is_scheduled(self, step: int, measured: int) -> bool:
        """Return whether a step since the last call is scheduled: some frameworks skip steps."""
        earlier = max(self._asked, measured)
        first = earlier + 1 if earlier >= 0 and step - earlier <= _MOST_PASSED_OVER else step
        self._asked = max(step, self._asked)
        return any(map(self.account.schedule, range(first, step + 1)))
