"""The probe that docs/5-probes.md shows is whole, short, and measures what it says."""

import re
from pathlib import Path
from typing import Any

import torch

from sr_monitor import PromptSet
from sr_monitor.model.session import SessionOptions
from sr_monitor.probes.measuring import measure_probes
from sr_monitor.probes.paths import PathsProbe
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
