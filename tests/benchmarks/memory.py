"""Peak bytes of live tensors during a call, counted, not sampled; CPU allocators hide theirs."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each new storage once, until it dies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        inputs = {
            item.untyped_storage()._cdata for item in tree_iter((args, kwargs)) if _is_tensor(item)
        }
        result = func(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if _is_tensor(item):
                self._note(item.untyped_storage(), inputs)
        return result

    def _note(self, storage: Any, inputs: set[int]) -> None:
        key = storage._cdata
        if key in inputs or key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _is_tensor(item: Any) -> bool:
    return isinstance(item, torch.Tensor)


def peak_tensor_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that tensors made inside `work` held at one time."""
    counter = _Counter()
    with counter:
        work()
    return counter.peak
