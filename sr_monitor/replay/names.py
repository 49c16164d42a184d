"""Parse the names of checkpoints, sort them into runs, and choose among them.

Names are chosen from a listing, never computed: some families round their tokens down, others up.

    names = read_names(revisions)
    chosen = choose_spaced(names, 20)
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from operator import attrgetter

from sr_monitor.errors import InputError

# Steps of at most 18 digits are below 2**63, the largest that TensorBoard knows.
_NAME = re.compile(
    r"(?:(?P<before>.+?)[-_/])??"
    r"(?:stage[-_]?(?P<stage>\d{1,18})[-_])?"
    r"(?:ingredient[-_]?(?P<ingredient>\d{1,18})[-_])?"
    r"(?:(?:(?:global[-_]?)?step|checkpoint|ckpt|iter(?:ation)?)[-_=]?|^(?=\d+$))(?P<step>\d{1,18})"
    r"(?:[-_]tokens[-_=]?(?P<tokens>\d+(?:\.\d+)?[KMBT]))?"
    r"(?:[-_](?P<after>.+?))??"
    r"(?:\.ckpt)?",
    re.IGNORECASE,
)
_TITLE = re.compile(
    r"(?:Training in progress,|Saving HF Model --) step (\d{1,18})\b", re.IGNORECASE
)
_END = re.compile(r"End of training\b", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|\w+)"
_PASSING = re.compile(rf"epoch[-_]?\d+|[\w.]+={_NUMBER}", re.IGNORECASE)
"""What changes from one checkpoint of a run to the next: `epoch=3`, `val_loss=0.21`."""
_TOKENS = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMBT]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """What a name says; names sort by stage, branch and step."""

    text: str
    step: int = 0
    """Optimizer steps; some families count from the start of the stage."""
    tokens: int | None = None
    """Tokens as written, which are rounded; None if the name says none."""
    stage: int = 0
    """Stage of pretraining; 0 if the name says none."""
    ingredient: int | None = None
    """Which of several parallel runs of a stage."""
    rest: str = ""

    @property
    def has_step(self) -> bool:
        """Whether a step is known, even if it is step 0."""
        return self.step > 0 or read_name(self.text) is not None

    @property
    def branch(self) -> str:
        """The run it belongs to, such as an ingredient or an ablation; "" for the main run."""
        ingredient = "" if self.ingredient is None else f"ingredient{self.ingredient}"
        words = re.split(r"[-_/]+", _PASSING.sub("", self.rest))
        return "-".join(filter(None, [ingredient, *words]))

    def __lt__(self, other: "CheckpointName") -> bool:
        """Return whether it comes before the other."""
        return self._key < other._key

    @property
    def _key(self) -> tuple[int, int, str, int, str]:
        return self.stage, self.ingredient or 0, self.branch, self.step, self.text


def read_name(text: str) -> CheckpointName | None:
    """Parse a name; return None if it has no step."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    return CheckpointName(
        text=text,
        step=int(found["step"]),
        tokens=parse_tokens(found["tokens"])[0] if found["tokens"] else None,
        stage=int(found["stage"] or 0),
        ingredient=int(found["ingredient"]) if found["ingredient"] else None,
        rest="-".join(filter(None, found.group("before", "after"))),
    )


def read_titles(titles: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map a name for each step to its commit, from commits with their titles, the newest first.

    A step that was pushed twice is the newer one. "End of training", if it is the newest, counts
    as the step after the last.
    """
    found: dict[str, str] = {}
    end, last = None, -1
    for title, commit in titles:
        if match := _TITLE.match(title):
            found.setdefault(f"step{int(match[1])}", commit)
            last = max(last, int(match[1]))
        elif _END.match(title) and not found:
            end = end or commit
    return found if end is None or not found else {**found, f"step{last + 1}": end}


def read_names(texts: Iterable[str]) -> list[CheckpointName]:
    """Return the names that have a step, in order; "main" has none."""
    return sorted(name for text in texts if (name := read_name(text)) is not None)


def split_runs(names: Iterable[CheckpointName]) -> dict[str, list[CheckpointName]]:
    """Group names into runs, by run name, with steps that grow; "" is the main run.

    Parallel branches are runs of their own. So is a stage whose steps restart (OLMo 2 and 3); a
    stage that continues the steps of the one before (SmolLM3) stays in its run. Pass all the names:
    only the first step of a stage shows which of the two it is.
    """
    ordered = sorted(names)
    first = min((name.stage for name in ordered if name.stage), default=0)
    runs: dict[str, list[CheckpointName]] = {}
    last: dict[str, str] = {}
    for number, stage in groupby(ordered, key=attrgetter("stage")):
        for branch, members in groupby(stage, key=attrgetter("branch")):
            group = list(members)
            key = last.get(branch)
            if key is None or runs[key][-1].step >= group[0].step:
                is_later = number > first or key is not None
                key = "-".join(filter(None, [f"stage{number}" if is_later else "", branch]))
            runs.setdefault(key, []).extend(group)
            last[branch] = key
    return runs


def choose_spaced(names: Iterable[CheckpointName], num: int) -> list[CheckpointName]:
    """Choose at most `num` of each run, evenly spaced in the logarithm of the step.

    The first and the last are always among them.
    """
    runs = split_runs(names).values()
    return sorted(name for run in runs for name in _spaced(run, num))


def add_tokens(names: Iterable[CheckpointName]) -> dict[CheckpointName, int]:
    """Map each name that says its tokens to these and those of the stages before.

    Pass all the names: a selection does not show how long the stages before it were.
    """
    totals: dict[CheckpointName, int] = {}
    for _, stage in groupby(sorted(names), key=attrgetter("stage")):
        before = max(totals.values(), default=0)
        totals |= {name: before + name.tokens for name in stage if name.tokens is not None}
    return totals


def choose_tokens(
    totals: Mapping[CheckpointName, int | None], tokens: Iterable[int | float]
) -> dict[CheckpointName, list[int | float]]:
    """Map each name to be chosen to the numbers of tokens that it is nearest to.

    Of parallel branches, each is chosen from that reaches the number or is as near to it.
    """
    known = {name: total for name, total in totals.items() if total is not None}
    if not known:
        shown = ", ".join(name.text for name in sorted(totals)[:3]) or "there are none"
        fix = "choose by number (--num 20) or by name"
        raise InputError(f"no name says how many tokens it has seen ({shown}); {fix}")
    chosen: dict[CheckpointName, list[int | float]] = {}
    for wanted in tokens:
        for name in _nearest(known, wanted):
            chosen.setdefault(name, []).append(wanted)
    return chosen


def _nearest(totals: Mapping[CheckpointName, int], wanted: int | float) -> Iterator[CheckpointName]:
    """Yield the nearest name, and those of the branches beside it."""
    gaps = {name: abs(total - wanted) for name, total in totals.items()}
    best = min(gaps, key=gaps.__getitem__)
    beside = sorted(name for name in totals if name.stage == best.stage)
    for _, members in groupby(beside, key=attrgetter("branch")):
        branch = list(members)
        nearest = min(branch, key=gaps.__getitem__)
        spans = totals[branch[0]] <= wanted <= totals[branch[-1]]
        if spans or gaps[nearest] == gaps[best]:
            yield nearest


def parse_tokens(text: str) -> list[int]:
    """Parse numbers of tokens, such as "4B,10B,0.5T" or "4e9"."""
    numbers = []
    for word in text.split(","):
        match = _TOKENS.fullmatch(word.strip())
        number = float(match[1]) * _UNITS[match[2].upper()] if match else math.inf
        if math.isinf(number):
            reason = f"{word.strip()!r} is no number of tokens"
            raise InputError(f"tokens {text!r}: {reason}; write them like 4B,10B (K, M, B or T)")
        numbers.append(round(number))
    return numbers


def match_names(pattern: str, texts: Sequence[str]) -> list[str]:
    """Return the texts that equal the pattern or match it as a glob, such as `step*`."""
    found = [text for text in texts if text == pattern or fnmatchcase(text, pattern)]
    if not found:
        there = ", ".join(closest(pattern, texts)) or "nothing there"
        raise InputError(f"no checkpoint {pattern!r} among {len(texts)}; the closest: {there}")
    return found


def closest(text: str, texts: Sequence[str], num: int = 3) -> list[str]:
    """Return the names most like this one: the nearest steps, or else the nearest spelling."""
    wanted = read_name(text)
    known = read_names(texts)
    if wanted is None or not known:
        return difflib.get_close_matches(text, texts, n=num, cutoff=0.0)
    step, kin = wanted.step, (wanted.stage, wanted.branch)
    known.sort(key=lambda name: ((name.stage, name.branch) != kin, abs(name.step - step)))
    return [name.text for name in known[:num]]


def _spaced(run: list[CheckpointName], num: int) -> list[CheckpointName]:
    if len(run) <= num:
        return run
    start = int(run[0].step == 0)  # step 0 has no logarithm: it is taken by itself
    logs = [math.log(max(name.step, 1)) for name in run]
    spacing = (logs[-1] - logs[start]) / max(num - start - 1, 1)
    chosen = list(range(start))
    for left in reversed(range(num - start)):
        # Where steps are sparse, at the start, each is taken once; enough are left for the rest.
        free = range(chosen[-1] + 1 if chosen else 0, len(run) - left)
        wanted = logs[-1] - left * spacing
        chosen.append(min(free, key=lambda index: abs(logs[index] - wanted)))
    return [run[index] for index in chosen]
