"""The command `sr-monitor`: one file for each subcommand, and what they share.

What a user gets wrong is one line on stderr that names the fix, and exit status 2. Ctrl-C ends
with 130. A traceback is a bug of ours.

    sr-monitor demo
    sr-monitor measure runs/demo/model --prompts prompts.json --out stable-regions/demo
"""

import errno
import inspect
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from sr_monitor.cli.terminal import complain, drop_output, one_line_warnings
from sr_monitor.errors import InputError, describe, is_out_of_memory

# NOTE: by its version, typer needs click or carries a copy of it; this is the UsageError in use.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_COMMANDS = {
    "measure": "Measure a model now.",
    "demo": "Watch regions form in a small model.",
    "replay": "Measure saved checkpoints.",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command, or show its help if there are no arguments; return the exit status."""
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    with one_line_warnings():
        try:
            command = typer.main.get_command(_app(args[0]))
            with command.make_context("sr-monitor", args) as context:
                command.invoke(context)
        except typer.Exit as end:
            return end.exit_code
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except BrokenPipeError:  # nobody reads the help to its end
            drop_output()
        except (InputError, _UsageError, OSError, RuntimeError) as error:
            complain("error", _reason(error))
            return 2
    return 0


def _app(wanted: str) -> typer.Typer:
    """Return the command; only the subcommand that is wanted is imported, and torch with it."""
    app = typer.Typer(
        help="Track how stable regions form in a language model's residual stream.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for name, sentence in _COMMANDS.items():
        run = getattr(import_module(f"{__name__}.{name}"), name) if name == wanted else _elsewhere
        app.command(name, help=f"{sentence}\n\n{inspect.getdoc(run) or ''}")(run)
    return app


def _elsewhere() -> None:
    """Stand for a subcommand that is listed in the help, not run."""


def _reason(error: Exception) -> str:
    """Return what a user got wrong, or the machine could not do; raise anything else again."""
    if isinstance(error, _UsageError):
        return f"{getattr(error, 'format_message', error.__str__)()} (see --help)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        drop_output()  # stdout may be on that disk
        return f"{error}; make room there, or write elsewhere"
    if isinstance(error, InputError | OSError):
        return str(error)
    if is_out_of_memory(error):
        return describe(error)
    raise error
