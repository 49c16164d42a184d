"""Stable regions of a model that the Hugging Face Trainer trains: one callback.

from sr_monitor_transformers import StableRegionCallback
Trainer(model, args, train_dataset=dataset, callbacks=[StableRegionCallback()])
"""

from sr_monitor_transformers.callback import StableRegionCallback as StableRegionCallback

__all__ = ["StableRegionCallback"]
