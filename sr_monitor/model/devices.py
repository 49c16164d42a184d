"""Devices and number formats by name, as the command line takes them.

A device is tried out when it is named, so a mistake is told before a model is loaded.

device = find_device("auto")
dtype = torch_dtype("auto", device)
"""

from typing import Literal

import torch

from sr_monitor.errors import InputError


def find_device(name: str) -> torch.device:
    """The device by this name, tried out; "auto" is the accelerator if there is one."""
    if name == "auto":
        return _accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); "
            f"name one that can: {', '.join(_device_names())}"
        ) from error
    return device


def _accelerator() -> torch.device | None:
    there = torch.accelerator.is_available()
    return torch.accelerator.current_accelerator() if there else None


def _device_names() -> list[str]:
    accelerator = _accelerator()
    count = torch.accelerator.device_count() if accelerator else 0
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count) if accelerator)]


def torch_dtype(name: str, device: torch.device) -> torch.dtype | Literal["auto"]:
    """The dtype by this name; "auto" is as stored, and float32 on a CPU."""
    # NOTE: half precision is slow on most CPUs, and its noise is amplified by the slope.
    if name == "auto" and device.type == "cpu":
        return torch.float32
    return "auto" if name == "auto" else getattr(torch, name)
