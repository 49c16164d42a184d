"""Text that comes with any Python, for when no other is given: nothing is downloaded.

prompts = python_prompts(tokenizer, num_prompts=257)
"""

import ast
import sysconfig
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from sr_monitor.prompts.corpora import Tokenizer
from sr_monitor.prompts.prompt_set import PromptSet


def python_texts() -> list[str]:
    """Return Python's help topics: about 460,000 characters of English."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


@cache
def docstrings() -> tuple[str, ...]:
    """Return the docstrings of the standard library's single-file modules."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found: list[str | None] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old string escapes in other people's code
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            nodes = ast.walk(ast.parse(path.read_bytes()))
            found += [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return tuple(text for text in found if text)


def python_prompts(tokenizer: Tokenizer, **options: Any) -> PromptSet:
    """Draw prompts from the help topics, with the options of `PromptSet.from_texts`."""
    source = "the help topics of Python"
    return PromptSet.from_texts(python_texts(), tokenizer, source=source, **options)
