"""Which prompts a replay measures: the same for all steps, and for each model of a sweep its own.

The models of a sweep tokenise the same text each with its own tokenizer.

    choice = PromptChoice(given="corpus.txt", loading=Loading())
    choice.for_all(stops);  choice.for_model(stop)
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_monitor import keys
from sr_monitor.demo import python_prompts
from sr_monitor.errors import InputError
from sr_monitor.loading import TokenizerOnDemand, check_hub
from sr_monitor.prompts import PromptSet
from sr_monitor.replay.models import Loading
from sr_monitor.replay.stops import Stop

_LIVE = Path(keys.PREFIX.rstrip("/"), "prompts.json")


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

    def for_all(self, stops: list[Stop]) -> PromptSet:
        """The prompts of a training: given, or those of its live run, or drawn from a text."""
        if isinstance(self.given, PromptSet):
            return self.given
        if self.given is None and (live := _live_prompts(stops[0])) is not None:
            return PromptSet.load(live)
        return self._drawn(stops[0])

    def for_model(self, stop: Stop) -> PromptSet:
        """The prompts of one model among others: the same text, by its own tokenizer."""
        prompts = self.given if isinstance(self.given, PromptSet) else self._drawn(stop)
        if prompts.texts is not None:
            self._check_tokenizer(stop, prompts)
        return prompts

    def tokenizer_of(self, stop: Stop) -> str:
        """The repository's or the folder's; a checkpoint of a training may have none of its own."""
        if self.loading.base is not None:
            return self.loading.base
        if stop.checkpoint is None:
            return stop.home
        folder = stop.checkpoint.path
        return str(folder if (folder / "tokenizer_config.json").is_file() else stop.home)

    def described(self) -> str:
        """What makes the prompts of a sweep, in words: texts, and how they are cut."""
        if isinstance(self.given, PromptSet):
            return self.given.fingerprint
        text = self.given or "the help topics of Python"
        if Path(text).is_file():
            digest = hashlib.sha256(Path(text).read_bytes()).hexdigest()[:16]
            text = f"{Path(text).name} ({digest})"
        return f"{text}, {self.num_tokens} tokens a prompt, seed {self.seed}"

    def _drawn(self, stop: Stop) -> PromptSet:
        assert not isinstance(self.given, PromptSet)
        return choose_prompts(
            self.given,
            self._tokenizer(stop),
            num_tokens=self.num_tokens,
            num_prompts=self.num_prompts,
            seed=self.seed,
        )

    def _tokenizer(self, stop: Stop) -> TokenizerOnDemand:
        return TokenizerOnDemand(self.tokenizer_of(stop), self.loading.trust_remote_code)

    def _check_tokenizer(self, stop: Stop, prompts: PromptSet) -> None:
        """Refuses token ids that mean another text to this model."""
        assert prompts.texts is not None
        meant = self._tokenizer(stop).decode(prompts.token_ids[0].tolist())
        if meant != prompts.texts[0]:
            raise InputError(
                f"the prompts were made with another tokenizer: their first text is "
                f"{prompts.texts[0]!r}, and to {self.tokenizer_of(stop)!r} its tokens say "
                f"{meant!r}; give a text file, which each model tokenises for itself"
            )


def _live_prompts(stop: Stop) -> Path | None:
    """Those that a live run left beside its checkpoints, or beside the folder that they are in."""
    home = Path(stop.home)
    if stop.checkpoint is None:
        return None
    places = [home, home.parent] if home.name == "checkpoints" else [home]
    return next((place / _LIVE for place in places if (place / _LIVE).is_file()), None)
