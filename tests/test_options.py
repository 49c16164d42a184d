"""Options are declared once: from that come their checks, signatures, documentation and records."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch

from sr_monitor.errors import InputError
from sr_monitor.options import Options, declared, explains, option, takes

pytestmark = pytest.mark.usefixtures("_as_users_run_it")

Size = Literal["small", "large"]


@dataclass(frozen=True, kw_only=True)
class Cake(Options):
    size: Size = option("small", "How big it is.")
    layers: int = option(3, "Layers of cream.", least=2, effect="record")
    candles: int | None = option(None, "Candles on it.", least=0, effect="nothing")


@dataclass(frozen=True, kw_only=True)
class WeddingCake(Cake):
    figures: str = "two"


class Baker:
    """Bakes."""

    @takes(WeddingCake)
    def __init__(self, **options: Any) -> None:
        """Bake one cake."""
        self.cake = WeddingCake(**options)


@pytest.mark.parametrize("five", [5, np.int64(5), np.uint8(5), torch.tensor(5)])
def test_whole_numbers_of_any_kind_become_int(five: Any) -> None:
    cake = WeddingCake(layers=five, candles=five)
    assert [(each, type(each)) for each in (cake.layers, cake.candles)] == 2 * [(5, int)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "huge"}, "size='huge': pass one of small, large"),
        ({"layers": 1}, "layers=1: pass 2 or more"),
        ({"layers": 2.5}, "layers=2.5: pass a whole number"),
        ({"layers": None}, "layers=None: pass a whole number"),
        ({"layers": torch.tensor([3, 4])}, "layers=tensor([3, 4]): pass a whole number"),
    ],
)
def test_what_is_out_of_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        WeddingCake(**given)
    assert str(caught.value) == message


def test_a_record_keeps_options_by_their_effect() -> None:
    """One that is not declared may change anything; none may stand where the default is none."""
    cake = WeddingCake(candles=None)
    assert cake.recorded("curve") == {"size": "small", "figures": "two"}
    assert cake.recorded("record", "nothing") == {"layers": 3, "candles": None}
    assert list(declared(WeddingCake)) == ["size", "layers", "candles"]


def test_a_function_that_takes_options_shows_them_as_its_own() -> None:
    assert Baker(layers=4).cake == WeddingCake(layers=4)
    method, shown = inspect.signature(Baker.__init__), inspect.signature(Baker)
    assert [*method.parameters] == ["self", "size", "layers", "candles", "figures"]
    assert shown.parameters == inspect.signature(WeddingCake).parameters
    assert all(each.kind is each.KEYWORD_ONLY for each in shown.parameters.values())
    assert inspect.getdoc(Baker.__init__) == (
        "Bake one cake.\n\n"
        "Args:\n    size: How big it is.\n    layers: Layers of cream.\n    candles: Candles on it."
    )
    with pytest.raises(TypeError, match="marzipan"):
        Baker(marzipan=True)  # type: ignore[call-arg]

    @explains(Cake)
    def bake(layers: int = 3, **options: Any) -> None: ...

    assert "candles: Candles on it." in str(inspect.getdoc(bake))
