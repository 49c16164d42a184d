"""Track how stable regions form in a language model's residual stream.

The measurement itself, on any causal language model:

    from sr_monitor import measure_paths
    paths = measure_paths(model, prompts_a, prompts_b, layer=1, num_steps=51)
"""

from sr_monitor.errors import InputError as InputError
from sr_monitor.paths import Paths as Paths
from sr_monitor.paths import measure_paths as measure_paths
from sr_monitor.prompts import PromptSet as PromptSet
from sr_monitor.slices import Slices as Slices
from sr_monitor.slices import measure_slices as measure_slices

__all__ = ["InputError", "Paths", "PromptSet", "Slices", "measure_paths", "measure_slices"]
