"""What the trainings of these tests share."""

import gc
from collections.abc import Iterator

import pytest
from coverage import Coverage

_LIGHTNING_IN_TEST_ALL = (
    "test_a_killed_run",
    "test_sets_are_measured_side_by_side",
    "test_pairs_that_are_kept",
    "test_a_resumed_run_keeps_to_its_way",
    "test_a_training_that_failed_gives_up_its_folder",
    "test_two_callbacks_at_once_and_resumed",
    "test_one_callback_serves_one_training",
    "test_a_callback_that_is_added_on_resume",
    "test_a_probe_of_another_package",
    "test_steps_that_are_measured",
)
"""What the watcher does for all adapters; by hand and with the Trainer it is always tested."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_lightning = "test_contract.py" in item.nodeid and item.name.endswith("[lightning]")
        if is_lightning and item.name.startswith(_LIGHTNING_IN_TEST_ALL):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """The Trainer collects garbage at each start, which takes long when much was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _untraced() -> Iterator[None]:
    """Count no line as covered here: the rooms have tests of their own; tracing costs a third."""
    tracer = Coverage.current()
    if tracer is not None:
        tracer.stop()
    yield
    if tracer is not None:
        tracer.start()
