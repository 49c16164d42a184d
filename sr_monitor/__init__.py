"""Track how stable regions form in a language model's residual stream.

The measurement itself, on any causal language model:

    from sr_monitor import measure_paths
    paths = measure_paths(model, prompts_a, prompts_b, layer=1, num_steps=51)
"""

from sr_monitor.dashboards import TensorBoardWriter as TensorBoardWriter
from sr_monitor.errors import InputError as InputError
from sr_monitor.measurement import MonitorConfig as MonitorConfig
from sr_monitor.monitor import Monitor as Monitor
from sr_monitor.paths import Paths as Paths
from sr_monitor.paths import measure_paths as measure_paths
from sr_monitor.prompts import PromptSet as PromptSet
from sr_monitor.records import Record as Record
from sr_monitor.schedule import at as at
from sr_monitor.schedule import budget as budget
from sr_monitor.schedule import every as every
from sr_monitor.schedule import log_spaced as log_spaced
from sr_monitor.slices import Slices as Slices
from sr_monitor.slices import measure_slices as measure_slices

__all__ = [
    "InputError",
    "Monitor",
    "MonitorConfig",
    "Paths",
    "PromptSet",
    "Record",
    "Slices",
    "TensorBoardWriter",
    "at",
    "budget",
    "every",
    "log_spaced",
    "measure_paths",
    "measure_slices",
]
