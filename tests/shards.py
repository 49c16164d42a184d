"""Sharded checkpoints, and a rank that saves its half of one.

Apart from `tests.trained`: a process that is spawned to save imports this file, and little else.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor


def save_shards(content: dict[str, Any], folder: Path) -> Path:
    """What `torch.distributed.checkpoint` writes."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        save(content, checkpoint_id=folder)
    return folder


def save_half(rank: int, folder: str, whole: Tensor) -> None:
    """Saves one of two halves, as a rank of FSDP does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    half = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
    save_shards({"model": {"w": half}}, Path(folder) / "dcp")
    dist.destroy_process_group()
