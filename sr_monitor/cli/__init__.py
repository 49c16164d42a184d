"""The command `sr-monitor`: one file for each subcommand, and what they share.

What a user gets wrong is one line on stderr that names the fix, and exit status 2. Ctrl-C ends
with 130. A traceback is a bug of ours.

    sr-monitor demo
    sr-monitor measure runs/demo/model --prompts prompts.json --out stable-regions/demo
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, current_thread, main_thread


def main(args: Sequence[str] | None = None) -> int:
    """Run the command, or show its help if there are no arguments; return the exit status."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    with _noted_interrupts() as interrupted:
        try:
            # Imported here, so that Ctrl-C ends it quietly from the first moment.
            from sr_monitor.cli.command import run

            return run(words)
        except BaseException as error:
            if interrupted.is_set() or isinstance(error, KeyboardInterrupt):
                return 130
            from sr_monitor.cli.command import status_of

            return status_of(error)


@contextmanager
def _noted_interrupts() -> Iterator[Event]:
    """Note a Ctrl-C: libraries make other errors of it, in their imports above all."""
    interrupted = Event()

    def note(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or current_thread() is not main_thread():
        yield interrupted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
