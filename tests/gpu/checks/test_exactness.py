"""The fast ways equal the plain way on CUDA, and CUDA equals the CPU, for every architecture."""

from collections.abc import Callable

import pytest
import torch

from tests import zoo
from tests.gpu.checks.helpers import TOLERANCE, gap, on_device
from tests.model.helpers import measure

# Those of no library make tensors on the CPU.
HUGGING_FACE = [name for name in zoo.ARCHITECTURES if name not in zoo.OWN]
CASES = [
    *((name, None, torch.float32) for name in HUGGING_FACE),
    *((name, None, torch.bfloat16) for name in HUGGING_FACE),
    *((name, "eager", torch.float32) for name in zoo.ALSO_EAGER),
]


@pytest.mark.parametrize(("name", "attention", "dtype"), CASES)
def test_every_way_gives_the_distances_of_the_plain_way(
    name: str,
    attention: str | None,
    dtype: torch.dtype,
    record_property: Callable[[str, object], None],
) -> None:
    species, specimen = zoo.SPECIES[name], on_device(name, dtype, attention=attention)
    plain = measure(specimen, engine="plain")
    assert plain.arithmetic == "float32"
    ways = {"auto": True, "shared": species.shared, "rows": species.rows}
    found = {way: measure(specimen, engine=way) for way, works in ways.items() if works}
    if species.rows:
        assert found["auto"].engine in (("shared",) if species.shared else ("shared", "rows"))
    gaps = {way: gap(paths, plain) for way, paths in found.items()}
    specimen.model.cpu()
    from_cpu = gap(plain, measure(specimen, engine="plain"))
    record_property("largest gap between two ways", max(gaps.values()))
    record_property("largest gap between CUDA and the CPU", from_cpu)
    assert max(gaps.values()) <= TOLERANCE, gaps
    assert from_cpu <= 10 * TOLERANCE
