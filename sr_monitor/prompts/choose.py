"""Choose prompts by one word: a file, a data set, or the text that comes with any Python.

prompts = choose_prompts(PromptOptions(prompts="corpus.txt"), tokenizer, num_prompts=257)
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sr_monitor.errors import InputError, refused
from sr_monitor.model.loading import check_hub
from sr_monitor.options import Options, option
from sr_monitor.prompts.corpora import Tokenizer
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.sets import check_sets

Source: TypeAlias = PromptSet | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class PromptOptions(Options):
    """Which prompts are measured."""

    prompts: Source | Mapping[str, Source] | None = option(
        None,
        "A saved set, a file of text or JSONL, a data set's name on the hub, or the word meaning: "
        "labelled pairs that come with the package; by default those of the live run if there was "
        "one, else Python's help topics. A replay takes several, NAME=FILE,NAME=FILE.",
        effect="nothing",
    )
    num_tokens: int = option(
        10, "The length of a prompt that is drawn from a text.", least=2, effect="nothing"
    )
    seed: int = option(0, "Seed of the choice of prompts.", effect="nothing")

    def __post_init__(self) -> None:
        """Refuse values of the wrong type."""
        super().__post_init__()
        fix = "pass a PromptSet, a file, or a data set's name"
        check_sets(self.prompts, PromptSet | str | os.PathLike | None, fix)


def choose_prompts(chosen: PromptOptions, tokenizer: Tokenizer, num_prompts: int) -> PromptSet:
    """Take a set as it is, or draw from a file, a data set or, by default, Python's help topics."""
    if isinstance(chosen.prompts, PromptSet):
        return chosen.prompts
    if isinstance(chosen.prompts, Mapping):
        raise refused("prompts", list(chosen.prompts), "name one set; a replay takes several")
    options: Any = {
        "num_tokens": chosen.num_tokens,
        "num_prompts": num_prompts,
        "seed": chosen.seed,
    }
    if chosen.prompts is None:
        topics = "the help topics of Python"
        return PromptSet.from_texts(help_topics(), tokenizer, source=topics, **options)
    source = Path(chosen.prompts)
    if source.is_file():
        return PromptSet.from_file(source, tokenizer, **options)
    name = os.fspath(chosen.prompts)
    if name == "meaning":
        return PromptSet.from_meaning(tokenizer)
    if source.is_dir():
        _check_rows(source)
    else:
        if source.suffix in {".txt", ".json", ".jsonl"}:
            raise InputError(f"--prompts {name!r}: there is no such file; check the path")
        check_hub(name, "dataset")
    return PromptSet.from_dataset(name, tokenizer, **options)


def _check_rows(folder: Path) -> None:
    """Refuse JSON files of nothing but nulls, on which the reader of `datasets` crashes."""
    for file in folder.rglob("*.json*"):
        if file.is_file():
            with file.open("rb") as opened:
                begins = opened.read(100).lstrip()
            if begins.startswith(b"null"):
                raise InputError(f"--prompts: {str(file)!r} holds no rows; leave it out")


def help_topics() -> list[str]:
    """Return Python's help topics: about 460,000 characters of English."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]
