"""Measure how much each attention and feed-forward adds to the stream it is added to.

    share = ||c s|| / ||x||,    turn = cos(c s, x)

with s what the sublayer puts out, c the factor the block gives it (mostly 1), and x the stream
before, all at the last position of the A prompts as they are. A turn below 0 erases.

    StableRegionCallback(probes=["contributions"])
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sr_monitor.model.engine import Chunk
from sr_monitor.model.outputs import Tap
from sr_monitor.model.session import Session
from sr_monitor.model.stream import Stream
from sr_monitor.model.sublayers import find_parts
from sr_monitor.probes.base import RGB, Gather, Page, Part, Probe
from sr_monitor.probes.drawing import (
    BLUE,
    LEFT,
    WIDTH,
    Figure,
    new_page,
    own_style,
    pixels,
    place_axes,
    settled,
    write_headline,
)
from sr_monitor.probes.keys import Key
