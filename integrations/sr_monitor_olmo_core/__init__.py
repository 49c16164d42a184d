"""Stable regions of a model that OLMo-core trains: one callback.

from sr_monitor_olmo_core import StableRegionCallback
TrainerConfig(...).with_callback("stable_regions", StableRegionCallback(every=1000))
"""

from sr_monitor_olmo_core.callback import StableRegionCallback as StableRegionCallback

__all__ = ["StableRegionCallback"]
