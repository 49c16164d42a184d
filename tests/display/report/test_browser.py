"""The page in a real browser: it draws, moves with its slider, and complains of nothing."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_monitor.display.report import write_report
from tests.browser import BROWSER, Page, browser
from tests.made import PROMPTS, Rise, make_paths, make_record, make_slices
from tests.reports import rising, save_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]
STEPS = [0, 10, 20, 30]
SHOWN = (
    "[...document.querySelectorAll('main section')].filter(s => !s.hidden && s.id).map(s => s.id)"
)
EVIL = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    evil = replace(PROMPTS, texts=(EVIL,) * 7, labels=(EVIL,) * 6)
    run = save_run(folder / "<b>demo", STEPS, prompts=evil)
    return write_report(run, folder / "one.html", probes=[Rise()])[0]


@pytest.fixture
def page() -> Iterator[Page]:
    with browser() as page:
        yield page
        assert page.complaints == []


def look(page: Page, script: str = "null") -> Any:
    """Run a script, and wait until pictures are painted."""
    value = page.run(script)
    page.run("new Promise(done => setTimeout(done, 150))")
    return value


def canvas(page: Page) -> Any:
    return page.run("document.querySelector('.plane canvas').toDataURL()")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_window(
    page: Page, report: Path, width: int, dark: bool
) -> None:
    page.open(report, width=width, dark=dark)
    shown = look(page, SHOWN)
    assert shown == ["slope", "curves", "slopes", "slices", "pairs", "groups", "facts"]
    for chart in ("slope-chart", "curves-chart", "slopes-chart", "pair-chart"):
        drawn = f"document.querySelectorAll('#{chart} svg :is(path, rect, line)').length"
        assert page.run(drawn) > 5, chart
    assert page.run("document.documentElement.scrollWidth") <= width
    image = np.asarray(Image.open(io.BytesIO(page.picture())).convert("L"))
    assert (np.median(image) < 60) == dark
    assert page.run("document.querySelector('#groups img').naturalWidth") == 6
    assert page.run("window.stolen === undefined")
    assert page.run("document.querySelector('.pair').textContent").count("<script>") == 2


def test_the_slider_moves_slices_curves_slopes_and_words_together(page: Page, report: Path) -> None:
    page.open(report)
    look(page)
    drawn = "['curves-chart', 'slopes-chart', 'pair-chart', 'now'].map(id => byId(id).innerHTML)"
    before, picture = page.run(drawn), canvas(page)
    slide = "byId('slider').value = 1; byId('slider').dispatchEvent(new Event('input'))"
    look(page, slide)
    after = page.run(drawn)
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert canvas(page) != picture
    assert page.run("byId('now').textContent").startswith("step 10")
    look(page, "byId('slider').value = 3; byId('slider').dispatchEvent(new Event('input'))")
    assert (page.run(drawn), canvas(page)) == (before, picture)


def test_keys_move_it_and_reach_every_control(page: Page, report: Path) -> None:
    page.open(report)
    look(page)
    page.press("ArrowLeft")
    assert page.run("byId('now').textContent").startswith("step 20")
    page.press("ArrowRight")
    page.press("ArrowRight")  # there is no later one
    assert page.run("byId('now').textContent").startswith("step 30")
    reached = set()
    for _ in range(80):
        page.press("Tab")
        reached.add(page.run("document.activeElement.id || document.activeElement.className"))
    assert {"theme", "pair", "play", "slider"} <= reached
    look(page, "document.querySelectorAll('.pair')[3].focus()")
    page.press("Enter")
    assert page.run("byId('pair-caption').textContent").startswith("Pair 1, step 30")


def test_playing_runs_to_the_end(page: Page, report: Path) -> None:
    page.open(report)
    look(page, "byId('play').click()")
    assert page.run("byId('now').textContent").startswith("step 0")
    page.run("new Promise(done => setTimeout(done, 3200))")
    assert page.run("byId('now').textContent").startswith("step 30")
    assert page.run("byId('play').getAttribute('aria-label')") == "Play"


def test_colours_are_those_of_the_record_and_others_for_the_colour_blind(
    page: Page, report: Path
) -> None:
    page.open(report)
    look(page)
    pixels = (
        "[...document.querySelector('.plane canvas').getContext('2d')"
        ".getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 < 3)"
    )
    slices = rising(30).slices
    assert slices is not None
    expected = (255 * slices.rgb[0]).round().flip(0)
    assert page.run(pixels) == expected.flatten().tolist()
    look(page, "document.querySelector('#palette [data-value=safe]').click()")
    close = expected.double() / 255
    weights = close**2
    safe = np.array([[240, 228, 66], [213, 94, 0], [0, 89, 178]])
    mean = (weights / weights.sum(-1, keepdim=True)).numpy() @ safe
    found = np.array(page.run(pixels)).reshape(4, 4, 3)
    np.testing.assert_allclose(found, mean * close.amax(-1, keepdim=True).numpy(), atol=0.51)


def test_several_runs_take_turns_below_and_sizes_have_an_axis(page: Page, folder: Path) -> None:
    for number, size in enumerate((100, 300)):
        metadata = {"parameters": size}
        save_run(
            folder / "sizes" / f"m{size}",
            [0, 5],
            lambda step, n=number, about=metadata: make_record(  # type: ignore[misc]
                step, paths=make_paths(2 + n), slices=make_slices(step), metadata=about, tokens=None
            ),
        )
    page.open(write_report(folder / "sizes", folder / "sizes.html")[0])
    look(page)
    before = page.run("byId('curves-chart').innerHTML")
    look(page, "document.querySelector('#legend [data-value=\"1\"]').click()")
    assert page.run("byId('curves-chart').innerHTML") != before
    look(page, "document.querySelector('#axes [data-value=parameters]').click()")
    assert "parameters" in page.run("byId('slope-chart').textContent")
    assert page.run("document.querySelectorAll('#slope-chart circle').length") == 2
    look(page, "document.querySelector('#axes [data-value=steps]').click()")
    assert page.run("document.querySelectorAll('#slope-chart circle').length") == 4
