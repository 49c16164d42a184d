"""nanochat's `model_000500.pt`: a model that no library but nanochat has.

Its streams, value embeddings and windows changed several times, under the same names of files.
"""

import re
from pathlib import Path

from sr_monitor.replay.readers.base import CheckpointReader, register

_NAME = re.compile(r"model_(\d+)\.pt")


@register
class NanochatFile(CheckpointReader):
    """A file of nanochat's weights, with its `meta_000500.json` beside it."""

    def recognises(self, path: Path) -> bool:
        """Return whether it is a file of that name with its description beside it."""
        match = _NAME.fullmatch(path.name)
        return match is not None and path.with_name(f"meta_{match[1]}.json").is_file()

    def problem(self, path: Path) -> str:
        """Return what to do instead."""
        return (
            f"{str(path)!r} is of nanochat, whose model (value embeddings, a second path for the "
            "embedding) no Hugging Face model computes; measure it while it trains: "
            "monitor.step(orig_model, step) in scripts/base_train.py"
        )
