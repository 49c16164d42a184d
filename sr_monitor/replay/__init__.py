"""The same measurement over saved checkpoints: folders on disk, or revisions on the hub.

`names` reads what a checkpoint is called, `checkpoints` finds those in a folder, `reading` takes
tensors from files without running anything in them, `weights` puts them into a model, `models`
keeps that model in memory from one checkpoint to the next.

    for checkpoint in find_checkpoints("runs/gpt2"):
        model = keeper.load(checkpoint)
"""
