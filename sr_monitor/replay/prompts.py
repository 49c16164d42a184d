"""Which prompts a replay measures: the same ones at every step of a training.

Each training, and each model of a sweep, tokenises the same text with its own tokenizer; those
that share a tokenizer share their prompts.

    choice = PromptChoice(given="corpus.txt", loading=Loading())
    choice.for_trainings(checkpoints);  choice.for_model(planned)
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sr_monitor.errors import InputError
from sr_monitor.model.loading import TokenizerOnDemand
from sr_monitor.prompts.choose import choose_prompts
from sr_monitor.prompts.corpora import encode
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.replay.discover import LocalCheckpoint
from sr_monitor.replay.live import live_prompts
from sr_monitor.replay.models import Loading
from sr_monitor.replay.plan import PlannedCheckpoint

_TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "tokenizer.model"),
    *("vocab.json", "spiece.model"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptChoice:
    """Which prompts were asked for; makes them for each training, or each model of a sweep."""

    given: PromptSet | str | None = None
    """A set, a file or a data set; None: the live run's prompts, else Python's help topics."""
    loading: Loading
    """How models are loaded; its base, if any, has the tokenizer."""
    num_tokens: int = 10
    """The length of a prompt that is drawn."""
    num_prompts: int = 257
    """How many prompts to draw."""
    seed: int = 0
    """The seed they are drawn with."""

    def for_trainings(self, checkpoints: Iterable[PlannedCheckpoint]) -> dict[str, PromptSet]:
        """Map each training to the prompts of its live run, or else `for_model`."""
        prompts: dict[str, PromptSet] = {}
        for each in checkpoints:
            if each.training not in prompts:
                live = live_prompts(each) if self.given is None else None
                prompts[each.training] = live or self.for_model(each)
        return prompts

    def for_model(self, planned: PlannedCheckpoint) -> PromptSet:
        """Return the given set, or draw from the given text with this model's tokenizer."""
        tokenizer = TokenizerOnDemand(self.tokenizer_of(planned), self.loading.trust_remote_code)
        prompts = choose_prompts(
            self.given,
            tokenizer,
            num_tokens=self.num_tokens,
            num_prompts=self.num_prompts,
            seed=self.seed,
        )
        _check_tokenizer(tokenizer, prompts)
        return prompts

    def tokenizer_of(self, planned: PlannedCheckpoint) -> str:
        """Return the folder or repository whose tokenizer is used: the nearest that has one."""
        if self.loading.base is not None:
            return self.loading.base
        if isinstance(planned.source, LocalCheckpoint) and _has_tokenizer(planned.source.path):
            return str(planned.source.path)
        return planned.training

    def described(self) -> str:
        """Describe the source of a sweep's prompts, for a later replay to compare."""
        if isinstance(self.given, PromptSet):
            return self.given.fingerprint
        text = self.given or "the help topics of Python"
        if Path(text).is_file():
            digest = hashlib.sha256(Path(text).read_bytes()).hexdigest()[:16]
            text = f"{Path(text).name} ({digest})"
        return f"{text}, {self.num_tokens} tokens a prompt, seed {self.seed}"


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
    # A text that was given, not drawn, may come back in another spelling.
    if meant != text and encode(tokenizer, text) != ids:
        raise InputError(
            f"the prompts were made with another tokenizer: their first text is {text!r}, and to "
            f"{tokenizer.source!r} its tokens say {meant!r}; give a text file, which is tokenised "
            "for each model by its own"
        )
