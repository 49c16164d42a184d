"""Stable regions of a model that Lightning trains: one callback.

from sr_monitor_lightning import StableRegionCallback
L.Trainer(callbacks=[StableRegionCallback()]).fit(module)
"""

from sr_monitor_lightning.callback import StableRegionCallback as StableRegionCallback

__all__ = ["StableRegionCallback"]
