"""What all pictures share: no trace of the user's settings, nor any left in them."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sr_monitor.probes.drawing import pixels, rasterise
from sr_monitor.probes.paths_pictures import draw_curves, draw_slopes
from sr_monitor.probes.slices_pictures import draw_frame, draw_slice
from tests.made import make_paths, make_slices

STRANGE: Any = {
    "figure.facecolor": "black",
    "text.usetex": True,
    "font.size": 30,
    "savefig.dpi": 20,
    "savefig.bbox": "tight",
    "image.origin": "upper",
    "axes.grid": True,
    "xtick.major.size": 20,
}


def figures() -> list[Figure]:
    paths, slices = make_paths(3), make_slices(3)
    return [
        draw_curves(paths),
        draw_slopes(paths),
        draw_slice(slices, 0, prompts=["a", "b", "c"]),
        draw_frame(slices, 0, "step 1"),
    ]


def test_the_users_settings_neither_change_the_picture_nor_are_changed() -> None:
    expected = figures()
    with matplotlib.rc_context(STRANGE):
        settings = dict(matplotlib.rcParams)
        found = figures()
        pictures = [rasterise(figure) for figure in found]
        (tick, *_) = found[0].axes[0].xaxis.get_major_ticks()
        assert tick.label1.get_fontsize() == 8.5
        assert dict(matplotlib.rcParams) == settings
    for figure, picture in zip(expected, pictures, strict=True):
        np.testing.assert_array_equal(rasterise(figure), picture)
        np.testing.assert_array_equal(pixels(figure), picture)
