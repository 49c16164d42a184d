"""The report of `make gpu`: what passed, and one table of costs.

run_checks(keep)            # keep(found) is called whenever there is more
to_markdown({"checks": found, "OLMo-1B": figures})
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Found = dict[str, Any]
"""What a part has found so far: plain values, as they are kept in JSON."""

_COLUMNS = (
    "model", "sampling", "precision", "arithmetic", "engine", "ms", "share of matmul rate",
    "peak GB beside the model", "training step, ms (sequences)", "overhead at every=500",
    "1% at every=",
)  # fmt: skip
_NOTES = """\
A measurement is a default one (256 pairs x 51, 4 slices of 41 x 41) without its pictures, which few
steps have. A training step is AdamW's, on the largest batch of 2,048-token sequences that fits, by
doubling, with gradient checkpointing."""


class _Recorder:
    """A plugin of pytest that notes each outcome at once, and the numbers that tests recorded."""

    def __init__(self, keep: Callable[[Found], None]) -> None:
        self.keep = keep
        self.found: Found = {"passed": 0, "failed": [], "skipped": {}, "largest": {}}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.found["running"] = nodeid
        self.keep(self.found)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.pytest_collectreport(report)
        self.found["passed"] += report.passed and report.when == "call"
        largest = self.found["largest"]
        for name, value in report.user_properties:
            largest[name] = max(value, largest.get(name, value))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found["failed"].append(report.nodeid)
        elif report.skipped:
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            self.found["skipped"][reason] = self.found["skipped"].get(reason, 0) + 1


def run_checks(keep: Callable[[Found], None]) -> None:
    """Run the checks in this process, with an ini file of their own."""
    import pytest

    folder, recorder = Path(__file__).parent / "checks", _Recorder(keep)
    options = ["-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider", "--durations=15", "-v"]
    pytest.main([*options, str(folder)], plugins=[recorder])
    recorder.found.pop("running", None)
    keep(recorder.found)


def has_passed(checks: Mapping[str, Any]) -> bool:
    """Return whether all checks ran, and none failed."""
    return bool(checks["status"] == "complete" and checks["passed"] and not checks["failed"])


def to_markdown(found: Mapping[str, Found]) -> str:
    """Return the report of the parts that have run, by name."""
    costs = {name: part for name, part in found.items() if name != "checks"}
    lines = [*_of_checks(found["checks"]), ""] if "checks" in found else []
    rows = [_COLUMNS, ["---"] * len(_COLUMNS)]
    rows += [cells for name, part in costs.items() for cells in _cells(name, part)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    for name, part in costs.items():
        rates = [f"{rate / 1e12:.3g} in {kind}" for kind, rate in part.get("rates", {}).items()]
        if rates:
            where = f"{part['device']}, torch {part['torch']}"
            lines += ["", f"{name} on {where}; TFLOP/s of a matrix product: {', '.join(rates)}."]
    return "\n".join([*lines, "", _NOTES, ""])


def _of_checks(checks: Found) -> Iterator[str]:
    failed, skipped = checks.get("failed", []), checks.get("skipped", {})
    numbers = f"{checks.get('passed', 0)} passed, {len(failed)} failed"
    yield f"Checks: {checks['status']}; {numbers}, {sum(skipped.values())} skipped."
    yield ""
    yield from (f"- failed: {name}" for name in failed)
    yield from (f"- skipped: {reason} ({count})" for reason, count in skipped.items())
    yield from (f"- {name}: {value:.3g}" for name, value in checks.get("largest", {}).items())
    if "running" in checks:
        yield f"- was running: {checks['running']}"


def _cells(name: str, part: Found) -> Iterator[list[str]]:
    """Yield the cells of each measurement of a model, and of what went wrong."""
    for row in part.get("measurements", []):
        begin = [name, row["sampling"], row["precision"]]
        if "error" in row:
            yield [*begin, f"failed: {row['error']}".replace("|", "/"), *[""] * 7]
            continue
        operations, rates = row["operations"], part["rates"]
        at_best = sum(count / rates.get(kind, math.nan) for kind, count in operations.items())
        yield [
            *begin,
            ", ".join(operations),
            row["engine"],
            f"{row['ms']:.0f}",
            f"{1000 * at_best / row['ms']:.2f}",
            f"{row['peak_gb']:.2f}",
            *_beside_training(row["ms"], part.get("step")),
        ]
    if part["status"] != "complete":
        yield [name, part["status"], *[""] * (len(_COLUMNS) - 2)]


def _beside_training(measurement: float, step: Found | None) -> list[str]:
    """Return a training step, a measurement's share of 500, and how many it is 1% of."""
    if step is None:
        return [""] * 3
    batch = f"{step['sequences']}" + ("" if step["fills_memory"] else ", more were not tried")
    share = measurement / (500 * step["ms"])
    return [f"{step['ms']:.0f} ({batch})", f"{share:.2%}", f"{math.ceil(50_000 * share)}"]
