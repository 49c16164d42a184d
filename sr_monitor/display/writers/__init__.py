"""Where results go: one file for each dashboard or file format.

writers = as_writers("writers", SummaryWriter("runs/1"))
writers[0].scalar("stable_regions_paths/width", 0.21, step)
"""

from sr_monitor.display.writers.base import Writer
from sr_monitor.display.writers.tensorboard import TensorBoardWriter
from sr_monitor.errors import refused


def as_writers(name: str, given: object) -> list[Writer]:
    """Return writers for the argument `name`: a writer, a `SummaryWriter`, or several of them."""
    writers: list[Writer] = []
    for each in given if isinstance(given, list | tuple) else [given]:
        is_class = isinstance(each, type)  # it has all the methods
        writer = TensorBoardWriter(each) if hasattr(each, "add_scalar") and not is_class else each
        if is_class or not isinstance(writer, Writer):
            raise refused(
                name,
                each,
                f"a {type(each).__name__} is no writer; pass a TensorBoardWriter, a SummaryWriter, "
                "a JSONLWriter, or anything with the methods of "
                "sr_monitor.display.writers.base.Writer",
            )
        writers.append(writer)
    return writers
