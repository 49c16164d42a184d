"""Which prompts a replay measures: the same for all steps of a training, each training its own.

Trainings, and the models of a sweep, tokenise the same text each with its own tokenizer; so those
that share a tokenizer have the same prompts.

    choice = PromptChoice(given="corpus.txt", loading=Loading())
    choice.for_trainings(stops);  choice.for_model(stop)
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_monitor.cli.demo import python_prompts
from sr_monitor.errors import InputError
from sr_monitor.model.loading import TokenizerOnDemand, check_hub
from sr_monitor.probes import keys
from sr_monitor.prompts.corpora import encode
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.models import Loading
from sr_monitor.replay.stops import Stop

_LIVE = Path(keys.PREFIX.rstrip("/"), "prompts.json")
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)


def choose_prompts(source: str | None, tokenizer: TokenizerOnDemand, **options: Any) -> PromptSet:
    """The prompts from a file, a data set on the hub, or the text that Python brings along."""
    if source is None:
        return python_prompts(tokenizer, **options)
    if Path(source).is_file():
        return PromptSet.from_file(source, tokenizer, **options)
    if not Path(source).is_dir():
        if Path(source).suffix in {".txt", ".json", ".jsonl"}:
            raise InputError(f"--prompts {source!r}: there is no such file")
        check_hub(source, "dataset")
    return PromptSet.from_dataset(source, tokenizer, **options)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptChoice:
    """What was asked for."""

    given: PromptSet | str | None = None
    """A set, a file, a data set's name on the hub; None is what there is."""
    loading: Loading
    """Says whose tokenizer is used."""
    num_tokens: int = 10
    """The length of a prompt that is drawn from a text."""
    num_prompts: int = 257
    """How many are drawn."""
    seed: int = 0
    """Of the choice."""

    def for_trainings(self, stops: Iterable[Stop]) -> dict[str, PromptSet]:
        """The prompts of each training, by its home: those of its live run, or `for_model`."""
        prompts: dict[str, PromptSet] = {}
        for stop in stops:
            if stop.home not in prompts:
                prompts[stop.home] = self._of_live_run(stop) or self.for_model(stop)
        return prompts

    def for_model(self, stop: Stop) -> PromptSet:
        """The prompts that are given, or the same text for all, by this one's tokenizer."""
        tokenizer = TokenizerOnDemand(self.tokenizer_of(stop), self.loading.trust_remote_code)
        prompts = self.given if isinstance(self.given, PromptSet) else self._drawn(tokenizer)
        _check_tokenizer(tokenizer, prompts)
        return prompts

    def tokenizer_of(self, stop: Stop) -> str:
        """The repository's or the folder's; a checkpoint of a training may have none of its own."""
        if self.loading.base is not None:
            return self.loading.base
        if stop.checkpoint is None:
            return stop.home
        folder = stop.checkpoint.path
        return str(folder if _has_tokenizer(folder) else stop.home)

    def described(self) -> str:
        """What makes the prompts of a sweep, in words: texts, and how they are cut."""
        if isinstance(self.given, PromptSet):
            return self.given.fingerprint
        text = self.given or "the help topics of Python"
        if Path(text).is_file():
            digest = hashlib.sha256(Path(text).read_bytes()).hexdigest()[:16]
            text = f"{Path(text).name} ({digest})"
        return f"{text}, {self.num_tokens} tokens a prompt, seed {self.seed}"

    def _of_live_run(self, stop: Stop) -> PromptSet | None:
        live = None if self.given is not None else _live_prompts(stop)
        return None if live is None else PromptSet.load(live)

    def _drawn(self, tokenizer: TokenizerOnDemand) -> PromptSet:
        assert not isinstance(self.given, PromptSet)
        return choose_prompts(
            self.given,
            tokenizer,
            num_tokens=self.num_tokens,
            num_prompts=self.num_prompts,
            seed=self.seed,
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _check_tokenizer(tokenizer: TokenizerOnDemand, prompts: PromptSet) -> None:
    """Refuses token ids that mean another text to this model, as far as its tokenizer is there."""
    if prompts.texts is None:
        return
    ids, text = prompts.token_ids[0].tolist(), prompts.texts[0]
    meant = _meant(tokenizer, ids)
    # A text that was given, not drawn, may come back in another spelling.
    if meant not in (None, text) and encode(tokenizer, text) != ids:
        raise InputError(
            f"the prompts were made with another tokenizer: their first text is {text!r}, and to "
            f"{tokenizer.source!r} its tokens say {meant!r}; give a text file, which is tokenised "
            "for each model by its own"
        )


def _meant(tokenizer: TokenizerOnDemand, ids: list[int]) -> str | None:
    folder = Path(tokenizer.source)
    if folder.is_dir() and not _has_tokenizer(folder):
        return None
    try:
        return str(tokenizer.decode(ids))
    except InputError:
        return None


def _live_prompts(stop: Stop) -> Path | None:
    """Those that a live run left beside its checkpoints, or beside the folder that they are in."""
    home = Path(stop.home)
    if stop.checkpoint is None:
        return None
    places = [home, home.parent] if home.name == "checkpoints" else [home]
    return next((place / _LIVE for place in places if (place / _LIVE).is_file()), None)
