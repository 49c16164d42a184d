"""`--probe NAME:OPTION=VALUE,...` on the command line."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest

from sr_monitor.cli.options import named_prompts, parse_probe
from sr_monitor.errors import InputError
from sr_monitor.options import option
from sr_monitor.probes.base import Probe


@dataclass(frozen=True, kw_only=True)
class Girth(Probe):
    """A probe with options of every kind."""

    name = "girth"
    must: int
    top: int = option(1, "How many.", least=1)
    scale: float = 1.0
    signed: bool = False
    mode: Literal["fast", "slow"] = "fast"
    most: int | None = 3
    label: str = ""
    edges: tuple[float, ...] = ()


@pytest.fixture(autouse=True)
def _another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("girth", f"{__name__}:Girth", "sr_monitor.probes")
    monkeypatch.setattr("sr_monitor.probes.base.entry_points", lambda group: [point])


def test_every_field_of_a_probe_is_an_option() -> None:
    text = "girth:must=2,top=3,scale=1,signed=true,mode=slow,most=none,label=7,edges=0.5,1,2"
    probe = parse_probe(text)
    assert isinstance(probe, Girth)
    assert probe == Girth(
        must=2, top=3, scale=1, signed=True, mode="slow", most=None, label="7", edges=(0.5, 1, 2)
    )
    assert type(probe.scale) is float


def test_several_sets_of_prompts_are_given_by_name(tmp_path: Path) -> None:
    (odd := tmp_path / "a=b.txt").touch()
    several = named_prompts("train=a.json,the-code=x,y.json")
    assert several == {"train": "a.json", "the-code": "x,y.json"}
    for text in (None, "a.json", str(odd)):
        assert named_prompts(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"there is no probe ''; available: .*girth"),
        ("girt:must=1", r"no probe 'girt'; did you mean 'girth'\? available: "),
        ("girth:must=1,tob=2", r"no option 'tob'; did you mean 'top'\? available: must, top"),
        ("girth:must=x", r"must is 'x'; pass must= and a value of int"),
        ("girth:must=1,most=2.5", r"most is '2\.5'; .* int \| None"),
        ("girth:must=1,mode=medium", r"mode is 'medium'; .*'fast', 'slow'"),
        ("girth:must=1,top=0", r"top=0: pass 1 or more"),
        ("girth", r"missing 1 required .*'must'"),
    ],
)
def test_what_no_probe_can_be_made_of_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=rf"^--probe '{text}': .*{told}"):
        parse_probe(text)
