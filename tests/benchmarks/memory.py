"""Peak bytes of live tensors during a call, counted, not sampled; CPU allocators hide theirs."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each new storage once, until it dies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in given | self.known:
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key, size)
        return result

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _storages(tree: Any) -> list[Any]:
    return [item.untyped_storage() for item in tree_iter(tree) if isinstance(item, Tensor)]


def peak_tensor_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes that tensors made inside `work` held at one time."""
    counter = _Counter()
    with counter:
        work()
    peak: int = counter.peak
    return peak
