"""Prompts by one word: a file, a data set, or the text that comes with any Python.

prompts = choose_prompts("corpus.txt", tokenizer, num_tokens=10, num_prompts=257, seed=0)
"""

import ast
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from sr_monitor.errors import InputError
from sr_monitor.model.loading import check_hub
from sr_monitor.prompts.corpora import Tokenizer
from sr_monitor.prompts.prompt_set import PromptSet


def choose_prompts(
    source: PromptSet | str | None, tokenizer: Tokenizer, **options: Any
) -> PromptSet:
    """Take prompts from a file, a local or hub data set, or, with None, Python's help topics.

    The options are num_tokens, num_prompts and seed; a set of prompts is taken as it is.
    """
    if isinstance(source, PromptSet):
        return source
    if source is None:
        topics = "the help topics of Python"
        return PromptSet.from_texts(help_topics(), tokenizer, source=topics, **options)
    if Path(source).is_file():
        return PromptSet.from_file(source, tokenizer, **options)
    if not Path(source).is_dir():
        if Path(source).suffix in {".txt", ".json", ".jsonl"}:
            raise InputError(f"--prompts {source!r}: there is no such file")
        check_hub(source, "dataset")
    return PromptSet.from_dataset(source, tokenizer, **options)


def help_topics() -> list[str]:
    """Return Python's help topics: about 460,000 characters of English."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def docstrings() -> list[str]:
    """Return the docstrings of the standard library's single-file modules."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: list[str | None] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old string escapes in other people's code
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            nodes = ast.walk(ast.parse(path.read_bytes()))
            found += [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return [text for text in found if text]
