"""The code that the docs show does what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_monitor import MonitorConfig, PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.watch.measure import take_record
from tests import zoo

PAGE = Path(__file__).parents[1] / "docs" / "5-probes.md"


def test_the_probe_of_the_docs_measures_the_length_of_the_output_s_way() -> None:
    (code,) = re.findall(r"```python\n(from dataclasses.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 45
    space: dict[str, Any] = {"__name__": __name__}
    exec(code, space)
    specimen = zoo.build("linear")
    prompts = PromptSet.from_token_ids(specimen.prompts(4, 6))
    probes = [PathsProbe(num_steps=9), space["Length"]()]
    found = measure_probes(specimen.model, prompts, probes, SessionOptions())
    # The outputs of a linear network lie on a straight line.
    torch.testing.assert_close(found["length"]["length"], torch.ones(3), rtol=1e-4, atol=0)
    curved = zoo.build("llama")
    prompts = PromptSet.from_token_ids(curved.prompts(4, 6))
    found = measure_probes(curved.model, prompts, probes, SessionOptions())
    assert (found["length"]["length"] > 1.001).all()
    assert probes[1].scalars(found["length"]) != {}


def test_a_record_is_read_as_the_docs_say(tmp_path: Path) -> None:
    page = (PAGE.parent / "6-records.md").read_text()
    with_us, without = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(without.strip().splitlines()) <= 13
    specimen = zoo.build("llama")
    prompts = PromptSet.from_token_ids(specimen.prompts(9, 6))
    record = take_record(
        specimen.model,
        prompts,
        MonitorConfig(num_pairs=8, probes=["divergence"]),
        step=240,
        tokens=7,
    )
    record.save(tmp_path / "record.safetensors")
    space: dict[str, Any] = {}
    for code in (with_us, without):
        file = "runs/demo/stable_regions/step-000000800.safetensors"
        assert file in code
        exec(code.replace(file, str(tmp_path / "record.safetensors")), space)
    assert (space["record"].step, space["about"]["tokens"]) == (240, 7)
    expected = record.paths.max_slope[record.paths.kept].numpy()
    assert space["slope"][space["kept"]] == pytest.approx(expected, rel=1e-4)
    for field in re.findall(r"^\| `((?:paths|slices)\.\w+)` \| \w", page, re.MULTILINE):
        name, _, key = field.partition(".")
        assert isinstance(getattr(record.parts[name], key), torch.Tensor)
