"""Activations that are spread over ranks (DTensors), as tensor parallelism leaves them.

Each of the ranks makes these calls, with the same tensors.

    hidden = whole(output)
    output = placed_like(output, hidden + 1)
"""

from typing import Any

from torch import Tensor


def whole(tensor: Any) -> Any:
    """Return a tensor with all its parts on this rank, and there; anything else as it is."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    # What an exchange has yet to bring would be kept for good if nobody waited for it.
    return full.wait() if hasattr(full, "wait") else full


def placed_like(old: Any, new: Tensor) -> Any:
    """Return `new`, which every rank has whole, spread as `old` is."""
    if not hasattr(old, "full_tensor"):
        return new
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * old.device_mesh.ndim
    spread = DTensor.from_local(new.contiguous(), old.device_mesh, everywhere, run_check=False)
    # A sum that is still to be made has its value already, so it stays on every rank.
    wanted = [Replicate() if each.is_partial() else each for each in old.placements]
    return spread.redistribute(placements=wanted)
