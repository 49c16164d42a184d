"""Run a measurement in the precision in force, or in float32.

Both leave autocast and TF32 as they were.

    with in_precision("float32", anatomy):
        ...                                # no autocast, no TF32
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch

from sr_monitor.errors import InputError
from sr_monitor.model.anatomy import Anatomy
from sr_monitor.model.stream import Stream
from sr_monitor.model.wrappers import without_autocast_patch

Precision = Literal["run", "float32"]


@contextmanager
def in_precision(wanted: Precision, anatomy: Anatomy) -> Iterator[None]:
    """Leave the precision in force, or turn autocast and TF32 off; put both back afterwards."""
    if wanted == "run":
        yield
        return
    matmul = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(without_autocast_patch(anatomy.root))
        stack.enter_context(torch.autocast(anatomy.device.type, enabled=False))
        stack.callback(torch.set_float32_matmul_precision, matmul)
        torch.set_float32_matmul_precision("highest")
        yield


def check_precision(wanted: Precision, stream: Stream) -> None:
    """Refuse float32 where the weights or the sharding are coarser."""
    if wanted == "float32" and stream.precision != torch.float32:
        raise InputError(
            f"precision='float32': the weights or the sharding run {stream.precision}; pass "
            "precision='run', or keep the weights in float32"
        )
