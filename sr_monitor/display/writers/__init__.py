"""Where results go: one file for each dashboard or file format.

writers = as_writers("writers", SummaryWriter("runs/1"))
writers[0].scalar("stable_regions/width", 0.21, step)
"""

from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import refused


def as_writers(name: str, given: object) -> list[Writer]:
    """Return writers for the argument `name`: a writer, a `SummaryWriter`, or several of them."""
    several = given if isinstance(given, list | tuple) else [given]
    return [_as_writer(name, each) for each in several]


def _as_writer(name: str, given: object) -> Writer:
    is_class = isinstance(given, type)  # it has all the methods
    if hasattr(given, "add_scalar") and not is_class:
        return TensorBoardWriter(given)
    if is_class or not isinstance(given, Writer):
        raise refused(
            name,
            given,
            f"a {type(given).__name__} is no writer; pass a TensorBoardWriter, a SummaryWriter, a "
            "JSONLWriter, or anything with the methods of sr_monitor.display.writers.base.Writer",
        )
    return given
