"""Options of more than one subcommand; those of a config are made from its declarations.

@takes_config
def measure(model: str, config: MonitorConfig, *, seed: Seed = 0) -> None: ...
"""

import inspect
import os
from collections.abc import Callable, Iterator
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from sr_monitor.errors import InputError
from sr_monitor.options import Options, declared

_FLAGS = {
    "engine": "--way",  # replay's --engine says where checkpoints are measured
    "probes": "--probe",
}


def folder(text: str | Path) -> Path:
    """Return the folder of this name; refuse an empty one, as of a variable that is not set."""
    if not text:
        raise typer.BadParameter("it is empty; name a folder ('.' is this one)")
    return Path(text)


def path_option(help: str) -> Any:
    """Declare an option that names a folder for results."""
    return typer.Option(parser=folder, metavar="PATH", help=help)


Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE-OR-DATASET",
        help="A text, JSONL or saved prompts.json file, or a data set's name on the hub; without "
        "it, the prompts of a live run if there was one, else text that any Python brings along.",
    ),
]
NumTokens = Annotated[int, typer.Option(min=2, help="Tokens in a prompt.")]
Seed = Annotated[int, typer.Option(help="Of the choice of prompts.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="auto: as stored, but float32 on a CPU."),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: the accelerator if there is one.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model.")
]


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's `config` by one option for each field that its class declares."""
    own = inspect.signature(command).parameters
    kind: type[Options] = own["config"].annotation
    from sr_monitor.cli.probe_option import parse_probe  # not for the demo: torch comes with it

    def run(**given: Any) -> None:
        options = {name: given.pop(name) for name in declared(kind)}
        options["probes"] = [parse_probe(text) for text in options["probes"]]
        command(config=kind(**options), **given)

    parameters: list[Parameter] = []
    for each in own.values():
        shown = _parameters_of(kind) if each.name == "config" else [each]
        parameters += (one.replace(kind=Parameter.KEYWORD_ONLY) for one in shown)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run


def _parameters_of(options: type[Options]) -> Iterator[Parameter]:
    on_the_line: dict[str, Any] = {"probes": list[str], "layer_path": str | None}  # names alone
    hints: dict[str, Any] = get_type_hints(options) | on_the_line
    for name, field in declared(options).items():
        default = typer.Option(
            field.default,
            _FLAGS.get(name, f"--{name.replace('_', '-')}"),
            min=field.metadata["least"],
            metavar="NAME[:OPTION=VALUE,...]" if name == "probes" else None,
            help=field.metadata["doc"],
        )
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])


def check_writable(folder: Path) -> None:
    """Refuse a folder for results before the work, not after it."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise InputError(f"--out {str(folder)!r}: {error.strerror}; name another") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "a folder that can be written to" if there.is_dir() else "a folder"
        raise InputError(f"--out {str(folder)!r}: {str(there)!r} is not {kind}; name another")
