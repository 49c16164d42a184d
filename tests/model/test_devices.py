"""Devices and number formats by name."""

import re

import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.model.devices import find_device, torch_dtype

HAS_ACCELERATOR = torch.accelerator.is_available()


def test_auto_is_the_accelerator_or_the_cpu() -> None:
    assert find_device("auto").type == ("cpu" if not HAS_ACCELERATOR else "cuda")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    expected = f"device {re.escape(repr(name))} cannot be used here .*; name one that can: cpu"
    with pytest.raises(InputError, match=expected):
        find_device(name)


def test_dtype_auto_is_as_stored_and_float32_on_a_cpu() -> None:
    assert torch_dtype("auto", torch.device("cpu")) == torch.float32
    assert torch_dtype("auto", torch.device("cuda")) == "auto"
    assert torch_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
