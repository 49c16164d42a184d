"""What is wrong with an argument, in one short line."""

import io
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sr_monitor import PromptSet, measure_paths, measure_slices
from sr_monitor.errors import (
    InputError,
    check_folder_name,
    check_kind,
    describe,
    first_line,
    reason_of,
    tell,
    unsigned_logs,
    warn,
)
from tests import zoo

pytestmark = pytest.mark.usefixtures("_as_users_run_it")


def test_of_a_long_value_the_beginning_is_told_in_one_line() -> None:
    check_kind("prompts", "a", str | None, "pass text")
    with pytest.raises(InputError, match=r"^prompts=tensor\(\[\[0., 0., .{,50}\.\.\.: pass text$"):
        check_kind("prompts", torch.zeros(50, 9), str | None, "pass text")


def test_a_name_is_that_of_one_folder() -> None:
    for name in ("stable_regions", "layer 4!", "v1.2", "..."):
        check_folder_name("name", name)
    for wrong in ("", ".", "..", "a/b", "a/", "../a", "/tmp", None, 5, Path("a")):
        with pytest.raises(InputError, match=r"^name=.*: pass the name of one folder"):
            check_folder_name("name", wrong)


def _raise(*_: Any, **__: Any) -> Any:
    raise LookupError("nobody listens")


def _break(self: Any, *_: Any) -> Any:
    raise BrokenPipeError


class _Line(io.StringIO):
    """Whoever was to read it is gone."""

    write = flush = _break


_closed = io.StringIO()
_closed.close()


@pytest.mark.parametrize("stream", [_closed, _Line(), None])
@pytest.mark.parametrize("show", [lambda *_, **__: sys.stderr.write("line"), _raise])
@pytest.mark.parametrize("emit", [None, _raise])
def test_telling_never_raises(
    monkeypatch: pytest.MonkeyPatch, stream: Any, show: Any, emit: Any
) -> None:
    log, handler = logging.Logger("fresh"), logging.StreamHandler(stream)
    sets: list[list[logging.Handler]] = [[], [handler]]
    monkeypatch.setattr(handler, "emit", emit or handler.emit)
    monkeypatch.setattr("sr_monitor.errors._log", log)
    monkeypatch.setattr(sys, "stderr", stream)
    for log.handlers in sets:
        for action in ("always", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(action)
                monkeypatch.setattr(warnings, "showwarning", show)
                tell("results in runs/1")
                warn("training goes on")


def test_an_error_without_a_text_is_described_by_its_class() -> None:
    class Mute(Exception):
        __str__ = _raise

    assert describe(Mute()) == "Mute: Mute"


PATHS: Any = measure_paths
SLICES: Any = measure_slices
TEXTS: Any = PromptSet.from_texts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _, ids: PATHS("gpt2", ids, ids), r"^model='gpt2': pass the model itself"),
        (lambda model, ids: PATHS(model, ids.tolist(), ids), r"^prompts=\[\[0, .*: .* LongTensor"),
        (lambda model, ids: PATHS(model, ids, ids, layer=1.0), r"^layer=1\.0: .*whole"),
        (lambda model, ids: PATHS(model, ids, ids, num_steps=5.0), r"^num_steps=5\.0: .*whole"),
        (lambda model, ids: SLICES(model, ids, ids, ids, span=(0,)), r"^span=\(0,\): .*higher"),
        (lambda model, ids: SLICES(model, ids, ids, ids, span=(-torch.inf, 1)), r"^span=\(-inf, 1"),
        (lambda _, __: TEXTS("text", "gpt2"), r"^tokenizer='gpt2': .*tokenizer itself"),
    ],
)
def test_what_measuring_is_given_is_refused_in_words(
    call: Callable[[nn.Module, Tensor], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(zoo.build("gpt2").model, torch.arange(12).view(3, 4))
    assert "\n" not in str(caught.value)


def test_signed_urls_are_shown_without_their_signatures(caplog: pytest.LogCaptureFixture) -> None:
    url = "https://cdn.example/x/model.bin"
    for said, shown in {
        f"500 for url '{url}?Expires=1&X-Amz-Signature=ab%2F~'.": f"500 for url '{url}'.",
        "size 5 ((…)model.bin?X-Amz-Signature=secret); why?": "size 5 ((…)model.bin); why?",
        "is it so? a=b": "is it so? a=b",
    }.items():
        error = OSError(f"{said}\nadvice")
        assert (first_line(error), reason_of(error)) == (shown, f"OSError: {shown}")
    log = logging.getLogger("huggingface_hub.file_download")
    for context in (unsigned_logs(), nullcontext()):
        with context:
            log.warning("Error from %s: %s", f"{url}?Signature=secret", "cut")
    assert [record.getMessage() for record in caplog.records] == [
        f"Error from {url}: cut",
        f"Error from {url}?Signature=secret: cut",
    ]
