"""What all pictures share: files, pixels, and no trace of the user's settings or left in them."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from sr_monitor.probes.drawing import pixels, rasterise, save_figure
from sr_monitor.probes.paths_pictures import draw_curves, draw_slopes
from sr_monitor.probes.slices_pictures import draw_film, draw_slice
from tests.made import make_paths, make_slices

PATHS, SLICES = make_paths(3), make_slices(3)


def figures() -> list[Figure]:
    return [
        draw_curves(PATHS),
        draw_slopes(PATHS),
        draw_slice(SLICES, 0, prompts=["a", "b", "c"]),
        draw_film([("step 1", SLICES)], 0),
    ]


def test_the_file_holds_the_picture(tmp_path: Path) -> None:
    for figure in figures():
        save_figure(figure, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        loaded = (imread(tmp_path / "picture.png")[..., :3] * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(loaded, rasterise(figure))
        np.testing.assert_array_equal(loaded, pixels(figure))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    class Broken(Text):
        def draw(self, *_: Any, **__: Any) -> None:
            raise OSError("the disk is full")

    figure = draw_curves(PATHS)
    save_figure(figure, path := tmp_path / "curves.png")
    before = path.read_bytes()
    figure.add_artist(Broken())
    with pytest.raises(OSError, match="disk is full"):
        save_figure(figure, str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_users_settings_neither_change_the_picture_nor_are_changed() -> None:
    expected = [rasterise(figure) for figure in figures()]
    strange: Any = {
        "figure.facecolor": "black",
        "text.usetex": True,
        "font.size": 30,
        "savefig.dpi": 20,
        "savefig.bbox": "tight",
        "image.origin": "upper",
        "axes.grid": True,
        "xtick.major.size": 20,
    }
    with matplotlib.rc_context(strange):
        settings = dict(matplotlib.rcParams)
        found = [rasterise(figure) for figure in figures()]
        (tick, *_) = draw_curves(PATHS).axes[0].xaxis.get_major_ticks()
        assert tick.label1.get_fontsize() == 8.5
        assert dict(matplotlib.rcParams) == settings
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
