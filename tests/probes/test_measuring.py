"""All probes of a measurement share one session, and one pass over the points of each set."""

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_monitor import PromptSet, measure_paths, measure_slices
from sr_monitor.errors import InputError
from sr_monitor.model.engine import Chunk, Way
from sr_monitor.model.selfcheck import EngineName
from sr_monitor.model.session import Session, SessionOptions
from sr_monitor.probes.arc import Arc
from sr_monitor.probes.base import Gather, Part, Probe, Run
from sr_monitor.probes.measuring import Bar, measure_probes, no_bar
from sr_monitor.probes.paths import PathsProbe
from sr_monitor.probes.regions import Regions
from sr_monitor.probes.sampling import Sampling
from sr_monitor.probes.slices import SlicesProbe
from tests import zoo
from tests.model.helpers import LENGTH, watched
from tests.model.test_engine import with_a_wrong_cache
from tests.outside_probe import Norms

SLICES = SlicesProbe(num_slices=2, slice_resolution=8)


class Seen:
    """Keeps the distance of each point that it is shown, and how often it was shown it."""

    def __init__(self, num_contexts: int, num_places: int) -> None:
        self.distance = torch.full((num_contexts, num_places), torch.nan)
        self.times = torch.zeros(num_contexts, num_places, dtype=torch.long)
        self.clean: dict[int, Tensor] = {}
        self.memory = torch.inf

    def read(self, chunk: Chunk) -> None:
        assert torch.equal(chunk.contexts, chunk.contexts.sort().values)  # each stands together
        self.memory -= 1
        if self.memory < 0:
            self.memory = torch.inf
            raise torch.OutOfMemoryError
        self.distance[chunk.contexts, chunk.places] = chunk.distance
        ones = torch.ones_like(chunk.places)
        self.times.index_put_((chunk.contexts, chunk.places), ones, accumulate=True)
        for context, output in zip(chunk.contexts.tolist(), chunk.clean, strict=True):
            assert torch.equal(self.clean.setdefault(context, output.clone()), output)

    def part(self, gather: Gather) -> Part:
        return {"distance": gather(self.distance), "times": gather(self.times)}


@dataclass(frozen=True, kw_only=True)
class Watching(Probe):
    """Watches the points of paths."""

    name = "watching"
    rides = "paths"
    memory: float = torch.inf
    """How many chunks fit before memory runs out, once."""

    def reader(self, session: Session, num_contexts: int, num_places: int) -> Seen:
        seen = Seen(num_contexts, num_places)
        seen.memory = self.memory
        return seen

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Part:
        return part | {"distance_of_points": parts[self.rides or ""].distance}


class WatchingSlices(Watching):
    name = "watching_slices"
    rides = "slices"


class Steepest(Probe):
    name = "steepest"

    def derive(self, parts: Mapping[str, Part]) -> Part | None:
        return {"slope": parts["paths"].max_slope.max()} if "paths" in parts else None


class Doubled(Probe):
    name = "doubled"

    def derive(self, parts: Mapping[str, Part]) -> Part | None:
        return {"slope": 2 * parts["steepest"]["slope"]} if "steepest" in parts else None


RIDERS = (Watching(), WatchingSlices(), Norms())


def _measure(
    specimen: zoo.Specimen,
    probes: Sequence[Probe],
    way: Way | None = None,
    bar: Bar = no_bar,
    **options: Any,
) -> dict[str, Part]:
    prompts = PromptSet.from_token_ids(specimen.prompts(4, LENGTH))
    given = SessionOptions(**options)
    return measure_probes(specimen.model, prompts, probes, given, way=way, bar=bar)


def _assert_shown_as_measured(parts: dict[str, Part]) -> None:
    """Bit for bit, whichever shape the chunks had; contexts of slices are 3 corners a triple."""
    paths, on_paths = parts["paths"], parts["watching"]
    looked = ~paths.distance.isnan()
    assert torch.equal(on_paths["times"] > 0, looked)
    assert torch.equal(on_paths["distance"][looked], paths.distance[looked])
    assert on_paths["distance_of_points"] is paths.distance
    slices, on_slices = parts["slices"].distance, parts["watching_slices"]
    assert torch.equal(on_slices["distance"].view(slices.shape), slices)


@pytest.mark.parametrize(
    ("name", "engine", "max_tokens", "sampling"),
    [
        ("llama", "shared", None, "grid"),
        ("llama", "shared", 30, "adaptive"),
        ("gpt2", "rows", 30, "grid"),
        ("gpt2", "rows", 30, "adaptive"),
        ("mamba", "auto", None, "adaptive"),
    ],
)
def test_riders_see_each_point_once_and_cost_no_forward(
    name: str, engine: EngineName, max_tokens: int | None, sampling: Sampling
) -> None:
    """65 points do not fit evenly into rows: what fills a row up is not shown."""
    specimen = zoo.build(name)
    measuring = PathsProbe(num_steps=65, sampling=sampling), SLICES
    forwards: list[list[tuple[int, int]]] = []
    parts: list[dict[str, Part]] = []
    for riders in ((), RIDERS):
        forwards.append([])
        with watched([specimen.stack[1]], lambda *shape: forwards[-1].append(shape)):
            parts.append(
                _measure(specimen, [*measuring, *riders], engine=engine, max_tokens=max_tokens)
            )
    assert forwards[0] == forwards[1]
    bare, full = parts
    assert list(full) == ["paths", "watching", "norms", "slices", "watching_slices"]
    assert bits(full) == bits(bare)
    _assert_shown_as_measured(full)
    assert full["watching"]["times"].max() == full["watching_slices"]["times"].min() == 1
    assert full["watching"]["times"].sum() == full["paths"].num_points
    assert full["watching_slices"]["times"].sum() == full["slices"].num_points - 2 * 3
    assert torch.equal(full["norms"]["norm"].isfinite(), full["watching"]["times"] > 0)


@pytest.mark.parametrize(("memory", "sampling"), [(0, "grid"), (1, "adaptive"), (3, "grid")])
def test_what_is_run_again_after_memory_ran_out_is_shown_again(
    memory: int, sampling: Sampling
) -> None:
    specimen = zoo.build("llama")
    riders = [replace(rider, memory=memory) for rider in RIDERS[:2]]
    probes = [PathsProbe(num_steps=65, sampling=sampling), SLICES, *riders]
    parts = _measure(specimen, probes, max_tokens=50)
    _assert_shown_as_measured(parts)
    assert parts["paths"].num_points == (parts["watching"]["times"] > 0).sum()
    assert memory == 0 or parts["watching_slices"]["times"].max() == 2


def test_derived_probes_follow_from_one_another_in_any_order() -> None:
    """What has nothing to measure leaves no part; nor does what rides on it or follows from it."""
    specimen = zoo.build("linear")
    parts = _measure(specimen, [Doubled(), Steepest(), PathsProbe(num_steps=3)])
    assert list(parts) == ["paths", "steepest", "doubled"]
    assert parts["doubled"]["slope"] == 2 * parts["paths"].max_slope.max()
    none = SlicesProbe(num_slices=0)
    assert _measure(specimen, [none, WatchingSlices(), Steepest(), Doubled()]) == {}


class Ends(Probe):
    """Runs points of its own: every prompt's own activation, in its own context."""

    name = "ends"

    def measure(self, run: Run) -> Part:
        share, engine = run.session.share(run.prompts.token_ids), run.session.engine
        (points,) = share.activations()
        run.riders.begin(len(points), 1, share.gather)
        clean = engine.run(engine.open(share.prompts[0]), points[:, None], run.riders.read)
        run.progress(len(points), len(points))
        return {"clean": share.gather(clean.final)}


class WatchingEnds(Watching):
    name = "watching_ends"
    rides = "ends"

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Part:
        return part


def test_a_probe_with_points_of_its_own_has_riders_and_a_bar_too() -> None:
    told: list[tuple[str, int, int]] = []
    parts = _measure(
        zoo.build("llama"),
        [PathsProbe(num_steps=3), Ends(), WatchingEnds()],
        bar=lambda name: lambda done, total: told.append((name, done, total)),
    )
    assert told == [("paths", 3, 3), ("ends", 4, 4)]
    assert torch.equal(parts["watching_ends"]["distance"], torch.zeros(4, 1))
    assert parts["ends"]["clean"].shape == (4, zoo.WIDTH)


@pytest.mark.parametrize("target", [Arc(num_pairs=1), Regions()])
def test_a_rider_on_points_that_nobody_shows_is_refused(target: Probe) -> None:
    """One that keeps its points to itself, and one that runs none."""

    class Astray(Watching):
        name, rides = "astray", target.name

    match = f"probes='astray': it rides on the points of '{target.name}', which shows none; .*paths"
    with pytest.raises(InputError, match=match):
        _measure(zoo.build("llama"), [PathsProbe(num_steps=3), target, Astray()])


@pytest.mark.parametrize("function", [measure_paths, measure_slices])
def test_the_help_explains_every_argument(function: Callable[..., Any]) -> None:
    explained = inspect.getdoc(function) or ""
    for name in [*inspect.signature(function).parameters][1:]:
        assert f"`{name}`" in explained or f"\n    {name}: " in explained, name


def test_a_run_keeps_to_the_way_it_began_with() -> None:
    """No faster way is considered, so no warning comes again; a slower one is, if need be."""

    def engine(specimen: zoo.Specimen, way: Way | None) -> str:
        return str(_measure(specimen, [PathsProbe(num_steps=5)], way)["paths"].engine)

    assert engine(zoo.build("llama"), None) == "shared"
    assert engine(zoo.build("llama"), "rows") == "rows"
    assert engine(zoo.build("llama"), "plain") == "plain"
    assert engine(with_a_wrong_cache(), "plain") == "plain"
    with pytest.warns(UserWarning, match="'rows'.*disagrees"):
        assert engine(with_a_wrong_cache(), "rows") == "plain"


def bits(parts: Mapping[str, Part]) -> str:
    """Return a fingerprint of all numbers of paths and slices, and of how they were run."""
    paths, slices = parts["paths"], parts["slices"]
    numbers = (paths.distance, paths.noise, torch.tensor(paths.noise_floor), slices.distance)
    digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in numbers)).hexdigest()
    return f"{paths.engine} {slices.engine} {paths.num_points} {slices.num_points} {digest}"


def bits_of(name: str) -> str:
    return bits(_measure(zoo.build(name), [PathsProbe(), SLICES]))


@pytest.mark.slow
def test_measuring_again_gives_the_same_bits_in_another_process_too() -> None:
    """One that hashes names otherwise; the ways are chosen by a rule, and rules do not change."""
    names = ("llama", "mistral_window", "mamba")
    found = [bits_of(name) for name in names]
    assert [text.split()[0] for text in found] == ["shared", "rows", "plain"]
    code = (
        "import torch; torch.set_num_threads(1); from tests.probes.test_measuring import bits_of; "
        f"print(*map(bits_of, {names}), sep='\\n')"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == found
