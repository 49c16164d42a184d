"""The command `sr-monitor`: one file for each subcommand, and what they share.

A user's mistake ends with one line on stderr that names the fix, and exit status 2; Ctrl-C ends
with 130. A traceback is a bug.

    sr-monitor demo
    sr-monitor measure runs/demo/model --prompts prompts.json --out stable-regions/demo
"""

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run the command, or show its help if there are no arguments; return the exit status."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        from sr_monitor.cli.command import run  # here, so that Ctrl-C ends it quietly from now on

        return run(words)
    except BaseException as error:
        if _is_interrupt(error):
            return 130
        from sr_monitor.cli.command import status_of

        return status_of(error)


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: libraries turn it into others as they import."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
