"""The same measurement over saved checkpoints: folders on disk, or revisions on the hub.

`sources` tells folders from repositories, `names` reads what a checkpoint is called, `checkpoints`
finds those in a folder, `reading` takes tensors from files without running anything in them,
`weights` puts them into a model, `models` keeps that model in memory from one checkpoint to the
next. `hub`, `downloads`, `cache` and `prefetch` have a revision here while it is needed. `plan`
makes a list of `stops`, `run` measures them, here or as `ray_tasks`, and `folder` and `curves` keep
what was found.

    from sr_monitor.replay import replay
    report = replay(["runs/gpt2"], "replays/gpt2", num_pairs=64)
"""

from sr_monitor.replay.run import Report as Report
from sr_monitor.replay.run import replay as replay

__all__ = ["Report", "replay"]
