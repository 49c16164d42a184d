"""All subcommands in one command, and the exit status and one line of an error.

status = run(["measure", "runs/demo/model"])
"""

import errno
import inspect
import os
from importlib import import_module

import typer

from sr_monitor.cli.terminal import complain, drop_output, one_line_warnings
from sr_monitor.errors import InputError, describe, is_out_of_memory, unsigned_logs

# NOTE: some versions of typer need click, others carry a copy; this is the UsageError in use.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_COMMANDS = {
    "measure": "Measure a model now.",
    "demo": "Watch regions form in a small model.",
    "replay": "Measure saved checkpoints.",
    "report": "Make one page of runs that were measured.",
    "export": "Show runs that were measured on a dashboard again.",
    "doctor": "Look at what is installed here.",
}

_COMPLETES = "_SR_MONITOR_COMPLETE"
"""Set by the script of `--show-completion`, which asks for candidates at each Tab."""


def run(words: list[str]) -> int:
    """Run the subcommand that `words` begin with, and return the exit status."""
    for word in words:
        if "\0" in word:  # no system call takes it, and each would raise an error of its own
            raise InputError(f"{word!r}: an argument cannot hold a NUL byte; leave it out")
        if word != word.encode("utf-8", "replace").decode():  # TensorBoard and safetensors fail
            raise InputError(f"{word!r}: a name has to be UTF-8; rename it, or name another")
    if _COMPLETES in os.environ:
        _app(_word_to_complete_after())(prog_name="sr-monitor")  # prints the candidates, and exits
    command = typer.main.get_command(_app(words[0]))
    with one_line_warnings(), unsigned_logs(), command.make_context("sr-monitor", words) as context:
        command.invoke(context)
    return 0


def status_of(error: BaseException) -> int:
    """Complain in one line about what a user or the machine did; raise anything else again."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):  # so ends what typer does for a shell's completion
        return int(error.code or 0)
    if isinstance(error, BrokenPipeError):  # nobody reads the help to its end
        drop_output()
        return 0
    if isinstance(error, _UsageError):
        complain("error", f"{getattr(error, 'format_message', error.__str__)()} (see --help)")
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        complain("error", f"{error}; make room there, or write elsewhere")
        drop_output()  # it may be on that disk
    elif isinstance(error, InputError | OSError):
        complain("error", str(error))
    elif is_out_of_memory(error):
        complain("error", describe(error))
    else:
        raise error
    return 2


def _app(wanted: str) -> typer.Typer:
    """Return the command; import only the subcommand that is wanted, and torch with it."""
    app = typer.Typer(
        help="Track how stable regions form in a language model's residual stream.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for name, sentence in _COMMANDS.items():
        function = _elsewhere
        if name == wanted:
            function = getattr(import_module(f"sr_monitor.cli.{name}"), name)
        app.command(name, help=f"{sentence}\n\n{inspect.getdoc(function) or ''}")(function)
    return app


def _word_to_complete_after() -> str:
    """Return the subcommand of the line that a shell wants completed, or "" if it has none yet."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return next(iter(line.split()[1:]), "")


def _elsewhere() -> None:
    """Stand in for a subcommand that is listed in the help but not run."""
