"""The sentence says what the medians did, and when regions emerged, by the rule it states."""

import random
from collections.abc import Sequence

import pytest
import torch

from sr_monitor.display.report.headline import SHARP, Point, criterion, emergence, headline

EVERY = 100


def course(medians: Sequence[float], *, half: float = 0.02, is_size: bool = False) -> list[Point]:
    """Points at steps 0, 100, ..., each median with an interval of `half` around it.

    The median of a resample is hardly ever the one value in the middle.
    """
    sample = torch.tensor([-half] * 10 + [0.0] + [half] * 10, dtype=torch.float64)
    return [
        Point(step=EVERY * index, slopes=sample + median, is_size=is_size)
        for index, median in enumerate(medians)
    ]


def test_the_points_of_these_tests_have_the_interval_that_is_said() -> None:
    (point,) = course([2.0], half=0.25)
    assert (point.quartiles, point.interval) == ((1.75, 2.0, 2.25), (1.75, 2.25))


def by_hand(medians: Sequence[float], half: float) -> int | None:
    """The rule word by word: the first place from which on every median is above halfway."""
    first, last = medians[0], medians[-1]
    if last - half <= first + half or first >= 1.5 or last < 1.5:
        return None
    above = [median > (first + last) / 2 for median in medians]
    return min(place for place in range(len(above)) if all(above[place:]))


def test_the_example_of_the_docs() -> None:
    points = course([1.07, 1.65, 2.01, 2.12, 2.11, 2.28, 2.09])
    assert headline(points) == (
        "Median maximum slope rose from 1.07 (step 0) to 2.09 (step 600); "
        "regions emerged around step 100."
    )
    said = criterion(points)
    assert "above 1.58" in said  # (1.07 + 2.09) / 2
    assert "at step 0, the measurement before, it was 1.07" in said
    assert said.endswith("It was highest at step 500: 2.28.")


def test_emergence_is_what_the_rule_says_word_by_word() -> None:
    draw = random.Random(0)
    found = []
    for _ in range(150):
        medians = [draw.uniform(0.9, 2.5) for _ in range(draw.randint(1, 8))]
        expected = by_hand(medians, 0.1) if len(medians) > 1 else None
        both = emergence(course(medians, half=0.1))
        assert (None if both is None else both[1].step // EVERY) == expected
        assert both is None or both[0].step == both[1].step - EVERY
        found.append(expected)
    assert 15 < sum(place is not None for place in found) < 135


def test_a_rise_that_does_not_last_is_none() -> None:
    """Up at step 100 and down again: only the rise at step 300 lasts."""
    both = emergence(course([1.0, 2.0, 1.1, 2.0, 2.0]))
    assert both is not None
    assert [point.step for point in both] == [200, 300]


@pytest.mark.parametrize(
    ("medians", "half", "said", "why"),
    [
        ([1.05, 1.4], 0.02, "rose from 1.05 (step 0) to 1.40 (step 100).", "is below 1.5"),
        ([3.0, 4.0], 0.02, "rose from 3.00 (step 0) to 4.00 (step 100).", "at the first measure"),
        ([4.0, 3.0], 0.02, "fell from 4.00 (step 0) to 3.00 (step 100).", "at the first measure"),
        ([1.4, 1.6], 0.2, "did not clearly change: from 1.40 (step 0)", "intervals of the first"),
        ([1.7], 0.2, "is 1.70 (step 0).", "1 is a straight line"),
    ],
)
def test_where_no_step_of_emergence_is_named(
    medians: list[float], half: float, said: str, why: str
) -> None:
    points = course(medians, half=half)
    assert said in headline(points)
    assert why in criterion(points)
    assert "emerged around" not in headline(points)
    assert SHARP == 1.5  # as the sentences say


def test_sizes_are_no_steps_and_nothing_emerges_over_them() -> None:
    points = course([1.1, 2.0, 3.0], is_size=True)
    assert headline(points).endswith("to 3.00 (200 parameters).")
    assert "emerged" not in headline(points) + criterion(points)


def test_nothing_to_say() -> None:
    assert "every one was left out" in headline([])
    assert "moves by more than the noise" in criterion([])
