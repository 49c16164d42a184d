"""The same measurement over saved checkpoints: folders on disk, or revisions on the hub.

from sr_monitor.replay import replay
report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=64)
"""

from sr_monitor.replay.report import Report as Report
from sr_monitor.replay.run import replay as replay

__all__ = ["Report", "replay"]
