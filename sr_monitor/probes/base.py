"""Define probes: each is a quantity that is measured, logged, drawn and kept.

A probe is a frozen dataclass whose fields are its options. Its *part* of a measurement is a
dataclass or a mapping of CPU tensors and plain values. A probe overrides one of three methods:

- `measure` runs points of its own through the session (`paths`, `slices`);
- `reader` looks at the points that another probe runs, named by `rides`, in the same pass;
- `derive` computes the part from other parts, so that old records gain it, too.

    @dataclass(frozen=True, kw_only=True)
    class Steepness(Probe):
        name = "steepness"
        keys = (MEDIAN := Key.scalar("steepness/median", "The median of the steepest rises."),)

        def derive(self, parts):
            return {"steepness": parts["paths"].relative.diff(dim=1).amax(dim=1)}

        def scalars(self, part):
            return {self.MEDIAN: float(part["steepness"].nanmedian())}

    StableRegionCallback(probes=[Steepness()])
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped, UInt8, jaxtyped
from torch import Tensor

from sr_monitor.errors import InputError, MissingPartError, level_of_caller, refused, warn
from sr_monitor.model.engine import Chunk
from sr_monitor.model.outputs import Tap
from sr_monitor.options import Options
from sr_monitor.probes.keys import Key

if TYPE_CHECKING:
    from sr_monitor.model.session import Session
    from sr_monitor.model.stream import Stream
    from sr_monitor.prompts.prompt_set import PromptSet

_T = TypeVar("_T")

ENTRY_POINTS = "sr_monitor.probes"
ALWAYS = ("paths", "slices")
"""The probes that every measurement takes."""

Part: TypeAlias = Any
"""What a probe keeps of a measurement: a dataclass or a mapping of tensors and plain values."""
Gather: TypeAlias = Callable[[Shaped[Tensor, "mine ..."]], Shaped[Tensor, "context ..."]]
"""Joins each rank's rows of a tensor, on the CPU; the first dimension is the context."""
Progress: TypeAlias = Callable[[int, int], None]
RGB: TypeAlias = UInt8[np.ndarray, "row column 3"]


def no_progress(done: int, total: int) -> None:
    """Show no progress."""


@runtime_checkable
class Reader(Protocol):
    """Sees every point of a pass once, and keeps little of it."""

    def read(self, chunk: Chunk) -> None:
        """Look at some points. Where memory ran out in between, a point comes again: replace it."""

    def part(self, gather: Gather) -> Part:
        """Return what was found, gathered from all ranks."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One measurement as pictures see it: the probe's own part, and the `parts` of all probes."""

    title: str
    """Such as "step 500"."""
    part: Part
    parts: Mapping[str, Part]
    prompts: "PromptSet"
    memo: dict[Any, Any] = field(default_factory=dict)
    """Holds what is drawn once and shown again in later pictures."""


@dataclass(frozen=True, kw_only=True)
class Probe(Options):
    """A quantity to measure; see `sr_monitor.probes.base`."""

    name: ClassVar[str]
    """Its part of a record, and its word on the command line."""
    rides: ClassVar[str | None] = None
    """The probe whose points it reads, if it runs none of its own."""
    keys: ClassVar[tuple[Key, ...]] = ()
    """Every name it logs."""
    holds: ClassVar[tuple[str, ...]] = ()
    """What its part has to hold to be explained, where that is a mapping."""

    def measure(self, run: "Run") -> Part:
        """Run points of its own, show them to the riders, and return its part."""
        raise NotImplementedError

    def taps(self, stream: "Stream") -> Mapping[str, Tap]:
        """Name the modules that its reader looks at besides F, at every point.

        Modules of one name are read once for all probes. Where the model has none, raise
        `MissingPartError`: the probe is left out, and the others are measured.
        """
        return {}

    def reader(self, session: "Session", num_contexts: int, num_places: int) -> Reader:
        """Return a reader of the points of the probe it rides on, for this rank's contexts."""
        raise NotImplementedError

    def settle(self, part: Part, parts: Mapping[str, Part]) -> Part:
        """Complete what its reader found, once all points are read.

        `parts` holds what was measured so far, that of the points included: which pairs count.
        """
        return part

    def derive(self, parts: Mapping[str, Part]) -> Part | None:
        """Compute its part from other parts; None where they do not hold what it takes."""
        return None

    def scalars(self, part: Part) -> Mapping[Key, float]:
        """Return the numbers that are logged."""
        return {}

    def changes(self, page: Page, before: Page) -> Mapping[Key, float]:
        """Return the numbers that compare a measurement with the one before it."""
        return {}

    def histograms(self, part: Part) -> Mapping[Key, Float[Tensor, " value"]]:
        """Return the distributions that are logged."""
        return {}

    def pictures(self, page: Page, earlier: Sequence[Page]) -> Iterator[tuple[Key, Any]]:
        """Draw what is shown at picture steps, each with its key.

        An image is an array "row column 3", an animation "frame row column 3". `earlier` are
        the pages of at most 15 earlier picture steps that have this part, the first of them first.
        """
        yield from ()

    def facts(self, part: Part) -> Mapping[str, str]:
        """Return the lines for the table that `sr-monitor measure` prints."""
        return {key.label: f"{value:.4g}" for key, value in self.scalars(part).items()}

    def pack(self, part: Part) -> dict[str, Any]:
        """Return the tensors and plain values that a record keeps, by name."""
        return pack(part)

    def unpack(self, values: Mapping[str, Any]) -> Part:
        """Make a part of what a record kept; raise ValueError or TypeError if it is damaged."""
        return dict(values)


def pack(part: Part) -> dict[str, Any]:
    """Return the fields of a part by name, whichever probe's it is."""
    if is_dataclass(part):
        return {each.name: getattr(part, each.name) for each in fields(part)}
    return dict(part)


def unpack_as(kind: Callable[..., _T], values: Mapping[str, Any], **added_later: Any) -> _T:
    """Make a dataclass of what a record kept; raise ValueError or TypeError if that is damaged.

        unpack_as(Depth, values, num_points=0)

    Each field has to be of its type and shape; what else the record kept is ignored. `added_later`
    stands in where an old record lacks a value.
    """
    dataclass_kind: Any = kind
    known = fields(dataclass_kind)
    found = {each.name: values[each.name] for each in known if each.name in values}
    made = kind(**{**added_later, **found})
    with jaxtyped("context"):  # dimensions of one name have one size
        for each in known:
            value: Any = getattr(made, each.name)
            wanted: Any = each.type
            if not isinstance(value, (int, float) if wanted is float else wanted):
                shown = tuple(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(f"{each.name} is {shown!r}, not {wanted}")
    return made


class Riders:
    """The readers of one pass: they see its points as they come."""

    def __init__(self, session: "Session", probes: Sequence[Probe]) -> None:
        """Start without readers; `begin` makes those of `probes`. What lacks a part stays out."""
        self._session = session
        self._readers: dict[str, Reader] = {}
        self._probes: list[Probe] = []
        self._begun = False
        self.taps: dict[str, Tap] = {}
        """The modules that they look at."""
        for probe in probes:
            with leaving_out(probe, session):
                self.taps |= probe.taps(session.stream)
                self._probes.append(probe)

    def __len__(self) -> int:
        """Return how many probes ride."""
        return len(self._probes)

    def begin(self, num_contexts: int, num_places: int, gather: Gather) -> None:
        """Make the readers, once it is known how many points there are."""
        self._gather, self._begun = gather, True
        for probe in self._probes:
            with leaving_out(probe, self._session):
                self._readers[probe.name] = probe.reader(self._session, num_contexts, num_places)

    def read(self, chunk: Chunk) -> None:
        """Show some points to all readers."""
        for reader in self._readers.values():
            reader.read(chunk)

    def parts(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """Return what they found, by probe; `parts` holds what was measured so far.

        Refuse those that nobody has shown any points.
        """
        if not self._begun:
            for probe in self._probes:
                raise unserved(probe)
        return {
            probe.name: probe.settle(self._readers[probe.name].part(self._gather), parts)
            for probe in self._probes
            if probe.name in self._readers
        }


def unserved(probe: Probe) -> InputError:
    """Return the error of a probe that rides on another which shows its points to nobody."""
    return InputError(
        f"probes={probe.name!r}: it rides on the points of {probe.rides!r}, which shows none; let "
        f"it ride on 'paths' or 'slices', or have {probe.rides!r} call run.riders.begin and .read"
    )


@contextmanager
def leaving_out(probe: Probe, session: "Session") -> Iterator[None]:
    """Go on without a probe whose part the model lacks, and say so."""
    try:
        yield
    except MissingPartError as error:
        if session.ranks.is_leader:
            text = f"probes={probe.name!r}: {error}; the other probes are measured"
            warn(text, category=UserWarning, stacklevel=level_of_caller())


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a probe with points of its own is given."""

    session: "Session"
    prompts: "PromptSet"
    riders: Riders
    """Who looks at its points, too."""
    progress: Progress
    parts: Mapping[str, Part]
    """What was measured before it: paths and slices, and the probes that were named before it."""


def resolve(given: Sequence[str | Probe], *, beside: Sequence[str] = ()) -> tuple[Probe, ...]:
    """Return the probes that were asked for; those named in `beside` are measured anyway."""
    if isinstance(given, str | Probe):
        given = [given]
    found: dict[str, Probe] = {}
    for each in given:
        probe = each if isinstance(each, Probe) else probe_class(each)()
        if probe.name in found or probe.name in beside:
            raise refused("probes", probe.name, "two probes have this name; leave one of them out")
        found[probe.name] = probe
    for probe in found.values():
        if probe.rides is not None and probe.rides not in (*beside, *found):
            raise InputError(
                f"probes={probe.name!r}: it rides on the points of {probe.rides!r}, which is not "
                f"measured; add {probe.rides!r}"
            )
    return tuple(found.values())


@functools.cache
def built_in() -> Mapping[str, Probe]:
    """Return the probes of this package by name, with default options: paths, slices, the others.

    A probe has the name of its module.
    """
    package = import_module("sr_monitor.probes")
    found: dict[str, Probe] = {}
    for name in (*ALWAYS, *sorted(module.name for module in iter_modules(package.__path__))):
        for kind in vars(import_module(f"{package.__name__}.{name}")).values():
            is_probe = isinstance(kind, type) and issubclass(kind, Probe)
            if is_probe and getattr(kind, "name", None) == name:
                found.setdefault(name, kind())
    return found


def available() -> list[str]:
    """Return the names that `probes=` and `--probe` take: built-in probes and entry points."""
    others = [each.name for each in entry_points(group=ENTRY_POINTS)]
    return sorted({*built_in(), *others} - {*ALWAYS})


def probe_class(name: Any) -> type[Probe]:
    """Return the class of the built-in probe or the entry point of this name."""
    if isinstance(name, str) and name in built_in():
        return type(built_in()[name])
    kinds = [each.load() for each in entry_points(group=ENTRY_POINTS) if each.name == name]
    if not kinds or not (isinstance(kinds[0], type) and issubclass(kinds[0], Probe)):
        names = ", ".join(available())
        raise refused("probes", name, f"pass a Probe, or the name of one: {names}")
    return kinds[0]
