"""Which prompts a replay measures, and what it takes over from a live run beside the checkpoints.

Each training, and each model of a sweep, tokenises the same text with its own tokenizer.

    choice = PromptChoice(ReplayOptions(prompts="corpus.txt"), num_prompts=257)
    choice.for_trainings(checkpoints);  choice.for_model(planned)
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, get_args

from sr_monitor.errors import InputError
from sr_monitor.model.engine import Way
from sr_monitor.model.loading import TokenizerOnDemand
from sr_monitor.probes.keys import NAME
from sr_monitor.prompts.choose import PromptOptions, Source, choose_prompts
from sr_monitor.prompts.corpora import encode
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.sets import by_name
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.options import ReplayOptions
from sr_monitor.replay.plan import PlannedCheckpoint
from sr_monitor.replay.urls import UrlCheckpoint
from sr_monitor.results.store import RecordStore
from sr_monitor.watch.config import MonitorConfig
from sr_monitor.watch.samples import Sample, is_resampled

RECORDS = NAME
"""The folder of records in that of a run."""
NamedSets: TypeAlias = dict[str, PromptSet]
"""Sets of prompts by name; "" is that of the only one."""
Ways: TypeAlias = dict[str, int]
"""The first step of a curve that was measured in each way, `record.paths.engine`."""

_TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "tokenizer.model"),
    *("vocab.json", "spiece.model"),
)


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """The prompts that were asked for, made for each training or each model of a sweep."""

    options: ReplayOptions
    num_prompts: int = 257

    def for_trainings(self, checkpoints: Iterable[PlannedCheckpoint]) -> dict[str, NamedSets]:
        """Map each training to the sets of its live run, or else `for_model`."""
        prompts: dict[str, NamedSets] = {}
        for each in checkpoints:
            if each.training not in prompts:
                live = _live_sets(each) if self.options.prompts is None else {}
                prompts[each.training] = live or self.for_model(each)
        return prompts

    def for_model(self, planned: PlannedCheckpoint) -> NamedSets:
        """Return the given sets, or draw from the given texts with this model's tokenizer."""
        trust = self.options.trust_remote_code
        tokenizer = TokenizerOnDemand(self.tokenizer_of(planned), trust)
        sets: NamedSets = {}
        for name, given in by_name(self.options.prompts).items():
            options = PromptOptions(
                prompts=given, num_tokens=self.options.num_tokens, seed=self.options.seed
            )
            sets[name] = choose_prompts(options, tokenizer, self.num_prompts)
            _check_tokenizer(tokenizer, sets[name])
        return sets

    def tokenizer_of(self, planned: PlannedCheckpoint) -> str:
        """Return the folder or repository whose tokenizer is used: the nearest that has one."""
        if self.options.base is not None:
            return self.options.base
        if isinstance(planned.source, UrlCheckpoint):
            return planned.source.tokenizer() or planned.training
        if not isinstance(planned.source, LocalCheckpoint):
            return planned.training
        if _has_tokenizer(planned.source.path):
            return str(planned.source.path)
        return planned.source.tokenizer() or planned.training

    def described(self) -> str:
        """Describe the source of a sweep's prompts, for a later replay to compare."""
        named = by_name(self.options.prompts).items()
        return "; ".join(f"{name}: " * bool(name) + self._describe(given) for name, given in named)

    def _describe(self, given: Source | None) -> str:
        if isinstance(given, PromptSet):
            return given.fingerprint
        text = os.fspath(given or "the help topics of Python")
        if Path(text).is_file():
            digest = hashlib.sha256(Path(text).read_bytes()).hexdigest()[:16]
            text = f"{Path(text).name} ({digest})"
        return f"{text}, {self.options.num_tokens} tokens a prompt, seed {self.options.seed}"


def live_ways(planned: PlannedCheckpoint, sample: Sample, config: MonitorConfig) -> Ways:
    """Return the ways of those records of the live run that were measured as `config` says."""
    wanted = {"prompts": sample.prompts.fingerprint}
    wanted |= sample.measured_as(config).recorded("curve")
    wanted.pop("probes", None)
    store = _live_store(planned)
    store = store.of_set(sample.name) if store and sample.name else store
    ways: Ways = {}
    for outline in () if store is None else store.outlines():
        found = outline.metadata | outline.metadata.get("config", {})
        if all(found.get(name) == value for name, value in wanted.items()):
            ways.setdefault(outline.way, outline.step)  # they come by step
    return ways


def slowest_way(curves: Iterable[Ways], step: int) -> Way | None:
    """Return the slowest way up to a step: a curve takes no faster one from there on."""
    earlier = {way for ways in curves for way, first in ways.items() if first <= step}
    found: list[Way] = [way for way in get_args(Way) if way in earlier]
    return found[-1] if found else None


def _live_sets(planned: PlannedCheckpoint) -> NamedSets:
    """Return the sets of a live run by name: the only one, or those in folders of their own."""
    if (store := _live_store(planned)) is None or store.folder is None:
        return {}
    if (only := store.load_prompts()) is not None:
        return {"": only}
    found = {path.parent.name: PromptSet.load(path) for path in _inner_prompts(store.folder)}
    return {name: prompts for name, prompts in found.items() if not is_resampled(name)}


def _inner_prompts(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*/prompts.json"))
    return [file for file in files if not file.parent.name.startswith("superseded")]


def _live_store(planned: PlannedCheckpoint) -> RecordStore | None:
    """Return the records that a live run left beside its checkpoints or beside their folder."""
    folder = Path(planned.training)
    places = [folder, folder.parent] if folder.name == "checkpoints" else [folder]
    stores = [RecordStore.at(place / RECORDS) for place in places]
    is_local = isinstance(planned.source, LocalCheckpoint)
    there = (s for s in stores if s.prompts_path().is_file() or _inner_prompts(s.folder or folder))
    return next(there, None) if is_local else None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _check_tokenizer(tokenizer: TokenizerOnDemand, prompts: PromptSet) -> None:
    """Refuse token ids that mean another text to this model, where it has a tokenizer."""
    folder = Path(tokenizer.source)
    if prompts.texts is None or (folder.is_dir() and not _has_tokenizer(folder)):
        return
    ids, text = prompts.token_ids[0].tolist(), prompts.texts[0]
    try:
        meant = str(tokenizer.decode(ids))
    except InputError:
        return
    # A text that was given, not drawn, may decode to another spelling (in lower case, say).
    if meant != text and encode(tokenizer, text) != ids:
        raise InputError(
            f"the prompts were made with another tokenizer: their first text is {text!r}, and to "
            f"{tokenizer.source!r} its tokens say {meant!r}; give a text file, which is tokenised "
            "for each model by its own"
        )
