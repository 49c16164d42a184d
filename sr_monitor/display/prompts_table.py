"""The prompts that are measured, as a table in Markdown for dashboards.

writer.text("stable_regions/prompts", describe_prompts(prompts), step)
"""

import html
import re

from sr_monitor.prompts.prompt_set import PromptSet

_MOST_PAIRS = 32
_MOST_CHARACTERS = 160


def describe_prompts(prompts: PromptSet) -> str:
    """Describe where the prompts are from and how many there are, and list the first pairs."""
    shown = min(prompts.num_pairs, _MOST_PAIRS)
    which = "These are all" if shown == prompts.num_pairs else f"The first {shown} are"
    about = (
        f"{prompts.num_pairs} pairs of prompts of {prompts.num_tokens} tokens each, from "
        f"{_escape(prompts.source)}; fingerprint {prompts.fingerprint}. {which}:"
    )
    columns = _columns(prompts, shown)
    rows = [columns, ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join([about, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _columns(prompts: PromptSet, num_pairs: int) -> dict[str, list[str]]:
    """Return the columns of the first pairs: texts where they are known, else token ids."""
    every = 1 if prompts.pairing == "chain" else 2
    ids = prompts.token_ids[: 2 * num_pairs].tolist()
    words = prompts.texts or [" ".join(map(str, prompt)) for prompt in ids]
    labels = {"label": prompts.labels} if prompts.labels else {}
    columns = {"pair": range(num_pairs), **labels, "A": words[::every], "B": words[1::every]}
    return {
        name: [_escape(str(value)) for value in values[:num_pairs]]
        for name, values in columns.items()
    }


def _escape(text: str) -> str:
    """Put a text on one line that Markdown shows literally; keep the end of a long one."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"…{text[-_MOST_CHARACTERS:]}"
    spaced = ("↵" if char == "\n" else " " if char.isspace() else char for char in cut)
    printable = "".join(char if char.isprintable() else "□" for char in spaced)
    return re.sub(r"[\\`*_|\[\]]", r"\\\g<0>", html.escape(printable, quote=False))
