"""The processes of one training: they share a measurement, and none waits for one that failed.

Every process measures its share of the pairs and gathers everybody's results. Before each
exchange there is a roll call; a process that failed answers it with its reason, and then all of
them stop with an error instead of waiting. Shares are of equal size, filled up with the last
item, so that all processes run equally many forwards.

    ranks = RankGroup.present()
    with ranks.failing_together():
        distance = ranks.gather(measure(pairs[ranks.share(len(pairs))]), len(pairs))
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor

from sr_monitor.errors import InputError, PeerError, PeerInputError, describe

_REASON_BYTES = 512


class RankGroup:
    """The processes that measure together; one alone unless told otherwise."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """Process number `rank` of `size`."""
        self.rank = rank
        self.size = size
        self._depth = 0  # of `failing_together` in itself
        self._failure: PeerError | None = None  # what ended the outermost one for everybody

    @classmethod
    def present(cls) -> "RankGroup":
        """All processes of the default process group; this one alone where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_leader(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def share(self, count: int) -> Int[Tensor, " mine"]:
        """The numbers of this process's items, out of `count`; the last one fills up."""
        each = -(-count // self.size)
        return torch.arange(self.rank * each, (self.rank + 1) * each).clamp_max(count - 1)

    def gather(self, mine: Shaped[Tensor, "mine ..."], count: int) -> Shaped[Tensor, "count ..."]:
        """Everybody's results in the order of the items, on the CPU."""
        if self.size == 1:
            return mine.cpu()
        self.sync_errors()
        here = mine.to(_device()).contiguous()
        everybody = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(everybody, here)
        return torch.cat(everybody)[:count].cpu()

    def broadcast(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The leader's value, on every process; the shapes are equal."""
        if self.size == 1:
            return value
        self.sync_errors()
        here = value.to(_device()).contiguous().clone()
        dist.broadcast(here, src=0)
        return here.to(value.device)

    def broadcast_number(self, number: int) -> int:
        """The leader's number, on every process."""
        return int(self.broadcast(torch.tensor(number))) if self.size > 1 else number

    def minimum(self, number: int) -> int:
        """The smallest of everybody's numbers."""
        return -self._largest(-number)

    def sum(self, number: int) -> int:
        """Everybody's numbers added up."""
        if self.size == 1:
            return number
        self.sync_errors()
        dist.all_reduce(total := torch.tensor(number, device=_device()))
        return int(total)

    def sync_errors(self) -> None:
        """Waits for the others; raises `PeerError` if one of them has failed."""
        if self.size > 1:
            self._answer(None)

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Whatever fails inside, fails on every process; there is a roll call at the end.

        Where this is used in itself, a failure is told by the outermost one, once. Until that has
        ended, nothing is exchanged any more: processes are no longer at the same place.
        """
        self._depth += 1
        try:
            yield
            self.sync_errors()
        except Exception as error:
            if self.size > 1 and self._depth == 1 and self._failure is None:
                self._answer(error)
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._failure = None

    def all_failed(self, error: Exception) -> None:
        """Returns if all processes failed here, to try something else; else it is raised."""
        if self.size > 1 and not self._answer(error, all_failed=True):
            failure = _peer_error(str(error), isinstance(error, InputError))
            self._failure = failure if self._depth else None
            raise error

    def _answer(self, error: Exception | None, *, all_failed: bool = False) -> bool:
        """Whether every process has failed, if this one has; else another's reason is raised.

        An `InputError` is raised on all processes, whatever else failed: all have to give up.
        """
        if self._failure is not None:
            raise copy(self._failure)  # not itself, which would keep the frames it went through
        refuses = isinstance(error, InputError)
        failed = 0 if error is None else self.rank + 1 + self.size * refuses
        last_failed = self._largest(failed, called=True)
        if not last_failed:
            return False
        refused, who = divmod(last_failed - 1, self.size)
        dist.all_reduce(num_failed := torch.tensor(int(failed > 0), device=_device()))
        said = _to_bytes("" if error is None else describe(error)).to(_device())
        dist.broadcast(said, src=who)
        everybody = int(num_failed) == self.size
        if error is None or (refused > refuses and not (all_failed and everybody)):
            failure = _peer_error(f"process {who} of {self.size}: {_to_text(said)}", bool(refused))
            self._failure = failure if self._depth else None
            raise copy(failure)
        return everybody

    def _largest(self, number: int, *, called: bool = False) -> int:
        if self.size == 1:
            return number
        if not called:
            self.sync_errors()
        dist.all_reduce(top := torch.tensor(number, device=_device()), op=dist.ReduceOp.MAX)
        return int(top)


ALONE = RankGroup()


def _peer_error(reason: str, refused: bool) -> PeerError:
    return PeerInputError(reason) if refused else PeerError(reason)


def _device() -> torch.device:
    """Where the process group exchanges tensors: the CPU, if its backend knows it."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _to_bytes(text: str) -> Int[Tensor, " byte"]:
    said = text.encode()[:_REASON_BYTES].ljust(_REASON_BYTES)
    return torch.tensor(list(said), dtype=torch.uint8)


def _to_text(said: Int[Tensor, " byte"]) -> str:
    return bytes(said.tolist()).decode(errors="replace").strip()
