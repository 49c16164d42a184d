"""The same measurement over saved checkpoints: folders on disk, or revisions on the hub.

`names` reads what a checkpoint is called, `discover` finds those that a source names, and `plan`
chooses among them. `hub` lists revisions, `fetch` brings them to this machine; `readers`, `weights`
and `models` make a model of one without running anything that is in its files. `run` measures it,
here or as a `ray` task, and `folder` and `curves` keep what was found.

    from sr_monitor.replay import replay
    report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=64)
"""

from sr_monitor.replay.run import Report as Report
from sr_monitor.replay.run import replay as replay

__all__ = ["Report", "replay"]
