"""How saved weights are read: one file for each kind of checkpoint, each found by itself.

reader = recognise(Path("checkpoint-500"))
weights = reader.read(Path("checkpoint-500")) if reader else {}
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from sr_monitor.replay.readers.base import READERS
from sr_monitor.replay.readers.base import CheckpointReader as CheckpointReader

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def recognise(path: Path) -> CheckpointReader | None:
    """Return the reader for a file or a folder; None if it is no known checkpoint."""
    return next((reader for reader in READERS if reader.recognises(path)), None)


def outermost(path: Path) -> Path:
    """Return the checkpoint that a folder of shards is a part of, or else the folder itself."""
    inner = {reader.inner for reader in READERS} - {""}
    return path.parent if path.resolve().name in inner else path


def looked_for() -> str:
    """List what checkpoints are recognised by, for the error that none was found."""
    return ", ".join(reader.looked_for for reader in READERS if reader.looked_for)
