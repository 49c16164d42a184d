"""Prompts by one word: a file, a data set, or nothing.

prompts = choose_prompts("corpus.txt", tokenizer, num_tokens=10, num_prompts=257, seed=0)
"""

from pathlib import Path
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.model.loading import check_hub
from sr_monitor.prompts.corpora import Tokenizer
from sr_monitor.prompts.prompt_set import PromptSet
from sr_monitor.prompts.python_corpus import python_prompts


def choose_prompts(
    source: PromptSet | str | None, tokenizer: Tokenizer, **options: Any
) -> PromptSet:
    """Take prompts from a file, a local or hub data set, or, with None, Python's help topics.

    The options are num_tokens, num_prompts and seed; a set of prompts is taken as it is.
    """
    if isinstance(source, PromptSet):
        return source
    if source is None:
        return python_prompts(tokenizer, **options)
    if Path(source).is_file():
        return PromptSet.from_file(source, tokenizer, **options)
    if not Path(source).is_dir():
        if Path(source).suffix in {".txt", ".json", ".jsonl"}:
            raise InputError(f"--prompts {source!r}: there is no such file")
        check_hub(source, "dataset")
    return PromptSet.from_dataset(source, tokenizer, **options)
