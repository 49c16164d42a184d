"""A `.ckpt` file of Lightning: weights under "state_dict", and the step.

Its sharded checkpoints are folders of `torch.distributed.checkpoint`; see `sharded`.
"""

from pathlib import Path

from sr_monitor.replay.readers.base import CheckpointReader, register, step_in
from sr_monitor.replay.readers.files import read_torch, tensors_in
from sr_monitor.replay.readers.saved import Saved, saved_in


@register
class LightningFile(CheckpointReader):
    """A Lightning `.ckpt` file."""

    looked_for = "a Lightning .ckpt file"

    def recognises(self, path: Path) -> bool:
        """Return whether it is a file called `.ckpt`."""
        return path.suffix == ".ckpt" and path.is_file()

    def read(self, path: Path) -> dict[str, Saved]:
        """Return the weights of the whole module; the model in it is found by its names."""
        return saved_in([path], lambda file: tensors_in(read_torch(file)))

    def step(self, path: Path) -> int | None:
        """Return the step that the file says."""
        return step_in(read_torch(path))
