"""The ranks of one training: they share a measurement, and none waits for one that failed.

Items are divided among teams, of one rank each unless ranks make every forward together. Before
each exchange the ranks sync errors: where one has failed, all raise an error that says why.

    ranks = RankGroup.present()
    with ranks.failing_together():
        distance = ranks.gather(measure(pairs[ranks.share(len(pairs))]), len(pairs))
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor

from sr_monitor.errors import InputError, PeerError, PeerInputError, describe

_T = TypeVar("_T")


class RankGroup:
    """The ranks that measure together; one alone unless told otherwise."""

    def __init__(self, rank: int = 0, size: int = 1, teams: Sequence[int] | None = None) -> None:
        """Be rank number `rank` of `size`; `teams` holds the number of each rank's team."""
        self.rank = rank
        self.size = size
        self._teams = range(size) if teams is None else teams
        self._nesting = _Nesting()  # one for all copies

    @classmethod
    def present(cls) -> "RankGroup":
        """Return all ranks of the default process group; this one alone where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_leader(self) -> bool:
        """Whether this is the rank that decides and writes."""
        return self.rank == 0

    @property
    def team(self) -> int:
        """The number of this rank's team."""
        return self._teams[self.rank]

    @property
    def num_teams(self) -> int:
        """How many teams there are."""
        return len(set(self._teams))

    def in_teams(self, mates: Iterable[int]) -> "RankGroup":
        """Return the same ranks, each in one team with its `mates`, and with theirs."""
        if self.size == 1:
            return self
        self.sync_errors()
        told: list[set[int]] = [set()] * self.size
        dist.all_gather_object(told, {*mates, self.rank})
        other = copy(self)
        other._teams = number_teams(told)
        return other

    def share(self, count: int) -> Int[Tensor, " mine"]:
        """Return the numbers of this rank's items, out of `count`; a team has the same ones.

        The last one fills shares up: of equal size, they take equally many forwards.
        """
        each = -(-count // self.num_teams)
        return torch.arange(self.team * each, (self.team + 1) * each).clamp_max(count - 1)

    def gather(self, mine: Shaped[Tensor, "mine ..."], count: int) -> Shaped[Tensor, "count ..."]:
        """Return the results of all teams in the order of the items, on the CPU."""
        if self.size == 1:
            return mine.cpu()
        self.sync_errors()
        here = mine.to(_device()).contiguous()
        all_ranks = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(all_ranks, here)
        firsts = [self._teams.index(team) for team in range(self.num_teams)]
        # "mine ..." of one rank of each team to "item ..."; what only fills up comes last.
        return torch.cat([all_ranks[first] for first in firsts])[:count].cpu()

    def broadcast(self, value: _T) -> _T:
        """Return what the leader has on every rank: anything that can be pickled."""
        if self.size == 1:
            return value
        self.sync_errors()
        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def minimum(self, number: int) -> int:
        """Return the smallest number of all ranks."""
        return -self.largest(lambda: -number)

    def largest(self, ask: Callable[[], int]) -> int:
        """Return the largest answer of all ranks, or raise where one failed, in one exchange."""
        if self.size == 1:
            return ask()
        number, error = 0, None
        try:
            number = ask()
        except Exception as caught:
            error = caught
        _, top = self._exchange(error, number)
        if error is not None:
            self._keep(describe(error), refused=isinstance(error, InputError))
            raise error
        return top

    def sync_errors(self) -> None:
        """Wait for the other ranks; raise `PeerError` if one of them has failed."""
        if self.size > 1:
            self._exchange(None)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Make what fails inside on one rank fail on all; errors are synced at the end.

        Nested uses report a failure once. Until the outermost has ended, nothing more is exchanged:
        the ranks are no longer at the same place.
        """
        nesting = self._nesting
        nesting.depth += 1
        try:
            yield
            self.sync_errors()
        except Exception as error:
            if self.size > 1 and nesting.depth == 1 and nesting.failure is None:
                self._exchange(error)
            raise
        finally:
            nesting.depth -= 1
            if nesting.depth == 0:
                nesting.failure = None

    def all_failed(self, error: Exception) -> None:
        """Return if every rank failed here, so that they can try something else; else raise."""
        if self.size > 1 and not self._exchange(error, may_retry=True)[0]:
            self._keep(str(error), refused=isinstance(error, InputError))
            raise error

    def _exchange(
        self, error: Exception | None, number: int = 0, *, may_retry: bool = False
    ) -> tuple[bool, int]:
        """Return whether every rank has failed, and the largest number.

        Raise `PeerError` if only others failed.

        An `InputError` of one rank is raised on all, whatever else failed there, unless all failed
        and may try something else.
        """
        if self._nesting.failure is not None:
            raise copy(self._nesting.failure)  # an error keeps the frames it goes through
        largest = torch.tensor([error is not None, number], dtype=torch.int64, device=_device())
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        any_failed, top = largest.tolist()
        if not any_failed:
            return False, top
        mine = None if error is None else (isinstance(error, InputError), describe(error))
        told: list[tuple[bool, str] | None] = [None] * self.size
        dist.all_gather_object(told, mine)
        refused, who, reason = max((t[0], rank, t[1]) for rank, t in enumerate(told) if t)
        all_failed = None not in told
        if mine is None or (refused and not mine[0] and not (may_retry and all_failed)):
            raise copy(self._keep(f"rank {who} of {self.size}: {reason}", refused=refused))
        return all_failed, top

    def _keep(self, reason: str, *, refused: bool) -> PeerError:
        failure = PeerInputError(reason) if refused else PeerError(reason)
        self._nesting.failure = failure if self._nesting.depth else None
        return failure


@dataclass
class _Nesting:
    """How deep in nested `failing_together` a rank is."""

    depth: int = 0
    failure: PeerError | None = None
    """Of another rank; ends the outermost one."""


ALONE = RankGroup()


def number_teams(mates: Sequence[Iterable[int]]) -> list[int]:
    """Return the number of each rank's team; ranks that one rank is linked to are in its team."""
    teams = list(range(len(mates)))
    for each in mates:
        joined = {teams[rank] for rank in each}
        teams = [min(joined) if team in joined else team for team in teams]
    order = sorted(set(teams))
    return [order.index(team) for team in teams]


def _device() -> torch.device:
    """Return the device of what the group exchanges: the CPU, if its backend supports it."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
