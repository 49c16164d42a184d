"""Which samples of prompts are measured side by side, and which prompts are theirs at a step."""

from dataclasses import replace

import pytest
import torch

from sr_monitor import InputError, MonitorConfig, PromptSet
from sr_monitor.prompts.sets import as_given, by_name, check_sets
from sr_monitor.watch.samples import Sample, samples_of
from tests.made import PROMPTS
from tests.outside_probe import Norms, Steepness

RESAMPLED = MonitorConfig(num_pairs=3, resample=True)


class OnSlices(Norms):
    """Rides on slices."""

    name, rides = "on_slices", "slices"


def test_each_set_is_a_sample_and_another_one_where_pairs_are_drawn_anew() -> None:
    one, other = PROMPTS, replace(PROMPTS, seed=1)
    assert samples_of(one, MonitorConfig()) == [Sample(name="", prompts=one)]
    named = samples_of({"a": one, "b": other}, RESAMPLED)
    found = [(sample.name, sample.prompts, sample.is_resampled) for sample in named]
    assert found == [
        *(("a", one, False), ("a-resampled", one, True)),
        *(("b", other, False), ("b-resampled", other, True)),
    ]
    assert [sample.name for sample in samples_of(one, RESAMPLED)] == ["", "resampled"]
    assert named[0].at(5) is one
    assert named[1].at(5).fingerprint == one.reordered(5).fingerprint
    assert named[3].noted() == {"set": "b-resampled", "resampled": True}
    assert samples_of(one, MonitorConfig())[0].noted() == {}


def test_no_slice_is_taken_of_pairs_that_change() -> None:
    config = replace(RESAMPLED, num_slices=2, probes=[Steepness(), OnSlices()])
    kept, drawn = samples_of(PROMPTS, config)
    assert kept.measured_as(config) is config
    assert [probe.name for probe in drawn.measured_as(config).measured] == ["paths", "steepness"]


@pytest.mark.parametrize(
    ("prompts", "config", "message"),
    [
        ({}, MonitorConfig(), r"prompts=\{\}: pass a PromptSet"),
        ({"a/b": PROMPTS}, MonitorConfig(), "prompts='a/b': pass the name of one folder"),
        ({"superseded": PROMPTS}, MonitorConfig(), r"prompts=\{'superseded': ...\}: this name is"),
        (dict.fromkeys(("a", "a-resampled"), PROMPTS), RESAMPLED, ".*two curves would"),
        (replace(PROMPTS, token_ids=torch.arange(18).view(6, 3), texts=None, pairing="explicit"),
         RESAMPLED, "resample=True, num_pairs=3: the prompts form 3 explicit pairs"),
    ],
)  # fmt: skip
def test_mistakes_are_told(prompts: PromptSet, config: MonitorConfig, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        samples_of(prompts, config)


def test_one_goes_without_a_name() -> None:
    for given in ("one", {"a": 1, "b": None}):
        assert as_given(by_name(given)) == given
    assert by_name("one") == {"": "one"}
    check_sets({"a": None}, str | None, "")
    with pytest.raises(InputError, match=r"^prompts\['a'\]=3: pass a text"):
        check_sets({"a": 3}, str | None, "pass a text")
