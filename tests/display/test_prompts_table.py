"""The table of prompts, as TensorBoard renders it."""

import html
import importlib
import re
import warnings
from dataclasses import replace

import torch

from sr_monitor.display.prompts_table import describe_prompts
from sr_monitor.prompts.prompt_set import PromptSet
from tests.made import PROMPTS, make_prompts

NASTY = (
    "a | b || c",
    "`code` *bold* _it_ __init__ ~",
    "<b>tag</b> & &amp; &lt;",
    "[link](http://a.b) ![image](c)",
    "back\\slash \\| \\\\| $x$ \\( # -",
    "1. one --- | :-: |",
)


def table_of(prompts: PromptSet) -> tuple[str, list[str], list[list[str]]]:
    """The text before the table, its head and its rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard brings along
        render = importlib.import_module("tensorboard.plugin_util").markdown_to_safe_html
        page = render(describe_prompts(prompts))
    about, table = page.split("<table>")
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.S) for row in table.split("<tr>")[1:]]
    head, *body = [[html.unescape(cell) for cell in row] for row in rows]
    return html.unescape(about), head, body


def test_the_table_holds_the_pairs_and_tells_their_source() -> None:
    prompts = replace(PROMPTS, source="a <corpus> | of_mine_", seed=3)
    about, head, rows = table_of(prompts)
    assert "6 pairs of prompts of 3 tokens each, from a <corpus> | of_mine_;" in about
    assert f"fingerprint {prompts.fingerprint}. These are all:" in about
    assert head == ["pair", "A", "B"]
    assert rows == [[f"{pair}", f"prompt {pair}", f"prompt {pair + 1}"] for pair in range(6)]
    assert table_of(replace(PROMPTS, texts=None))[2][1] == ["1", "3 4 5", "6 7 8"]


def test_texts_are_shown_as_they_are_on_one_line() -> None:
    """A long one keeps its end."""
    texts = (
        *NASTY,
        "two\nlines\r\n\tand a bell \x07 and half a pair \udc80",
        "word " * 400 + "end",
        "",
    )
    _, _, rows = table_of(replace(make_prompts(len(texts)), texts=texts))
    *plain, odd, long = [row[1] for row in rows]
    assert plain == list(NASTY)
    assert odd == "two↵lines ↵ and a bell □ and half a pair □"
    assert re.fullmatch(r"….{150,155}word end", long)


def test_of_many_pairs_the_first_are_shown_and_all_counted() -> None:
    for prompts in (make_prompts(500), replace(make_prompts(500), texts=None)):
        about, _, rows = table_of(prompts)
        assert re.search("499 pairs.*The first 32 are:", about)
        assert [row[0] for row in rows] == [str(pair) for pair in range(32)]
    assert "These are all:" in table_of(make_prompts(33))[0]


def test_explicit_pairs_with_their_labels() -> None:
    explicit = replace(make_prompts(8), pairing="explicit", labels=("a", "b|", "", "d"))
    _, head, rows = table_of(explicit)
    assert head == ["pair", "label", "A", "B"]
    assert rows[1:3] == [["1", "b|", "prompt 2", "prompt 3"], ["2", "", "prompt 4", "prompt 5"]]
    assert len(rows) == 4


def test_the_texts_of_a_triple() -> None:
    explicit = replace(make_prompts(6), pairing="explicit")
    for prompts, count in ((PROMPTS, 5), (explicit, 2)):
        corners = torch.stack(prompts.triples(), dim=1)
        assert len(corners) == count
        for index, ids in enumerate(corners.tolist()):
            texts = tuple(f"prompt {first // 3}" for first, _, _ in ids)
            assert prompts.texts_of_triple(index) == texts
    assert replace(PROMPTS, texts=None).texts_of_triple(0) is None
