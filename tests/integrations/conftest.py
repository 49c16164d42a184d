"""What the trainings of these tests share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """The Trainer collects garbage at each start, which takes long when much was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
