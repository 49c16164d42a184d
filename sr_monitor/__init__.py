"""Track how stable regions form in a language model's residual stream.

The measurement itself, on any causal language model:

    from sr_monitor import measure_paths
    paths = measure_paths(model, prompts_a, prompts_b, layer=1, num_steps=51)

A name is imported when it is first used: `sr-monitor --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sr_monitor.display.writers.tensorboard import TensorBoardWriter as TensorBoardWriter
    from sr_monitor.errors import InputError as InputError
    from sr_monitor.probes.paths import Paths as Paths
    from sr_monitor.probes.paths import measure_paths as measure_paths
    from sr_monitor.probes.slices import Slices as Slices
    from sr_monitor.probes.slices import measure_slices as measure_slices
    from sr_monitor.prompts.prompt_set import PromptSet as PromptSet
    from sr_monitor.results.record import Record as Record
    from sr_monitor.watch.config import MonitorConfig as MonitorConfig
    from sr_monitor.watch.monitor import Monitor as Monitor
    from sr_monitor.watch.schedule import at as at
    from sr_monitor.watch.schedule import budget as budget
    from sr_monitor.watch.schedule import every as every
    from sr_monitor.watch.schedule import log_spaced as log_spaced

_HOMES = {
    "display.writers.tensorboard": ["TensorBoardWriter"],
    "errors": ["InputError"],
    "probes.paths": ["Paths", "measure_paths"],
    "probes.slices": ["Slices", "measure_slices"],
    "prompts.prompt_set": ["PromptSet"],
    "results.record": ["Record"],
    "watch.config": ["MonitorConfig"],
    "watch.monitor": ["Monitor"],
    "watch.schedule": ["at", "budget", "every", "log_spaced"],
}

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has any name
    __all__ = sorted(name for names in _HOMES.values() for name in names)

    def __getattr__(name: str) -> object:
        """Import a public name."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
