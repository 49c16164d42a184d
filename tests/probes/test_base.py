"""Probes come as objects, or by the name of a built-in one or of an entry point."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sr_monitor import InputError
from sr_monitor.probes.base import Probe, available, resolve
from sr_monitor.probes.divergence import Divergence
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.slices import SlicesProbe

pytestmark = pytest.mark.usefixtures("_as_users_run_it")

_MODULE = """
from sr_monitor.probes.base import Probe
class Depth(Probe):
    name = "depth"
class Rider(Probe):
    name, rides = "rider", "depth"
number = 5
"""
_METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: diving\nVersion: 1.0\n",
    "entry_points.txt": (
        "[sr_monitor.probes]\ndepth = diving:Depth\nrider = diving:Rider\nnumber = diving:number\n"
        "[other]\nother = diving:Depth\n"
    ),
}


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution with probes, as pip would."""
    (tmp_path / "diving.py").write_text(_MODULE)
    (tmp_path / "diving-1.0.dist-info").mkdir()
    for name, text in _METADATA.items():
        (tmp_path / "diving-1.0.dist-info" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("diving", None)


def test_a_probe_is_an_object_or_a_name() -> None:
    own = Divergence()
    assert resolve([own], beside=["paths"]) == (own,)
    assert resolve(own, beside=["paths"]) == (own,)  # type: ignore[arg-type]
    found = resolve(["paths", "slices", "divergence", "rider", "depth"])
    names = ["PathsProbe", "SlicesProbe", "Divergence", "Rider", "Depth"]
    assert [type(probe).__name__ for probe in found] == names
    assert found[:3] == (PathsProbe(), SlicesProbe(), Divergence())


@pytest.mark.parametrize("unknown", ["breadth", "base", "number", "other", "", 5])
def test_an_unknown_name_is_refused_with_all_that_there_are(unknown: Any) -> None:
    with pytest.raises(InputError, match=r"^probes=.*: .*depth, divergence, .*rider") as caught:
        resolve([unknown])
    assert "\n" not in str(caught.value)
    assert not {"paths", "slices", "base", "other"} & set(available())  # paths are always measured


@pytest.mark.parametrize(
    ("given", "beside", "message"),
    [
        (["depth", "depth"], [], "two probes"),
        ([Divergence(), "divergence"], ["paths"], "two probes"),
        (["depth", "paths"], ["paths"], "two probes"),
        (["divergence"], [], "'divergence'.* 'paths'.*add 'paths'"),
    ],
)
def test_names_differ_and_what_is_ridden_on_has_to_be_measured(
    given: list[str | Probe], beside: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve(given, beside=beside)
