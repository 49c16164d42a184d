"""The code blocks of README and docs, and what stands in a page about those that are not run.

A comment before a block says why it, or each line of it that holds a text, is not run here:

    <!-- not run: needs a GPU -->                <!-- not run 'ray start': starts a cluster -->
"""

import ast
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_GENERATED = {"docs/keys.md"}
PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - _GENERATED)

COMMANDS = ("sr-monitor", "make", "pip", "python", "ray", "source", "tensorboard")
_FENCED = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}[^\n]*\n)(?:(?: {4}[^\n]*)?\n)*")
_MARK = re.compile(r"<!-- not run(?: '([^']+)')?: [^>]+ -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    where: str
    language: str
    """As the page says; "bash" also where an indented block begins with a command; "" is text."""
    code: str
    unrun: str | None
    """A text: lines that hold it are not run."""

    @property
    def lines(self) -> list[str]:
        """The lines of a shell block, those that end in a backslash joined with the next."""
        return self.code.replace("\\\n", " ").splitlines()

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block."""
        lines = (shlex.split(line, comments=True) for line in self.lines)
        return [words for words in lines if words]

    def is_run(self, line: str) -> bool:
        """Return whether no comment of the page excuses this line."""
        return self.unrun is None or self.unrun not in line


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in order: fenced ones, and those that are indented."""
    text = (ROOT / page).read_text()
    found = [(each.start(), each[1], each[2]) for each in _FENCED.finditer(text)]
    rest = _FENCED.sub(lambda each: re.sub(r"[^\n]", "-", each[0]), text)
    for each in _INDENTED.finditer(rest):
        code = textwrap.dedent(each[0]).strip() + "\n"
        found.append((each.start(), "bash" if code.split()[0] in COMMANDS else "", code))
    made = []
    for start, language, code in sorted(found):
        mark = _MARK.search(text, 0, start)
        where = f"{page}:{text.count(chr(10), 0, start) + 1}"
        made.append(Block(where, language, code, mark and (mark[1] or "")))
    return made


def execute(block: Block, space: dict[str, Any]) -> Any:
    """Run Python as it stands there; return the value of a last line that is an expression."""
    tree = ast.parse(block.code)
    *first, last = tree.body
    if not isinstance(last, ast.Expr):
        exec(compile(tree, block.where, "exec"), space)
        return None
    exec(compile(ast.Module(first, []), block.where, "exec"), space)
    return eval(compile(ast.Expression(last.value), block.where, "eval"), space)
