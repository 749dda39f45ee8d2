"""What commands share: options, errors without a traceback, the terminal, which run is meant."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer


def _pipeline_files(incomplete: str) -> list[str]:
    from labelmill.pipelines.commands.completion import pipeline_files

    return pipeline_files(incomplete)


def _keys_to_set(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from labelmill.pipelines.commands.completion import keys_to_set

    # Behind a `--set` that still lacks its value, arguments are left unparsed.
    named = [context.params.get("pipeline"), *context.args]
    return keys_to_set(next((word for word in named if word and not word.startswith("-")), None), incomplete)


def _run_folders(incomplete: str) -> list[str]:
    from labelmill.pipelines.commands.completion import run_folders

    return run_folders(incomplete)


def _operators(incomplete: str) -> list[str]:
    from labelmill.pipelines.commands.completion import operators

    return operators(incomplete)


def _model_cards(incomplete: str) -> list[tuple[str, str]]:
    from labelmill.pipelines.commands.completion import model_cards

    return model_cards(incomplete)


PipelineFile = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE",
        help="A pipeline file, such as conf/pipelines/demo.yaml.",
        autocompletion=_pipeline_files,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key or a step's parameter, such as detect.floor=0.2. Repeatable.",
        autocompletion=_keys_to_set,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Labels of the source that are missing altogether, or refused, are an error.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="At most so many workers in a pool; also the CPUs of a Ray started here.")
]


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be the memory of one GPU in GB, a number above 0, but is {value:g}")
    return value


GpuMemory = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        help="Memory of one GPU, where it cannot be asked or is shared (MIG); else LABELMILL_GPU_MEMORY_GB, or asked.",
        callback=_positive,
    ),
]


def _answering(context: typer.Context, value: str | None) -> str | None:
    """Refuse an address where nothing answers: Ray itself would try for ten minutes."""
    host, colon, port = (value or "").removeprefix("ray://").rpartition(":")
    if context.resilient_parsing or not colon or not port.isdecimal():
        return value
    import socket

    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise typer.BadParameter(
            f"nothing answers at {value}: {error}. Name a Ray cluster that runs (`ray start --head` starts one and "
            "tells its address), or leave --address out to work on this machine"
        ) from error
    return value


Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="A Ray cluster to run on, or auto for the one on this machine.",
        callback=_answering,
    ),
]
NEWEST = "A run's directory; the newest below runs/ if not given."
RunFolder = Annotated[str | None, typer.Option("--run", metavar="RUN", help=NEWEST, autocompletion=_run_folders)]
RunArgument = Annotated[str | None, typer.Argument(metavar="RUN", help=NEWEST, autocompletion=_run_folders)]
RunRequired = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory.", autocompletion=_run_folders)]
OperatorName = Annotated[
    str | None,
    typer.Argument(metavar="OPERATOR", help="An operator; all of them if not given.", autocompletion=_operators),
]
CardNames = Annotated[
    list[str],
    typer.Argument(metavar="CARD…", help="Names of model cards, or paths to them.", autocompletion=_model_cards),
]


def user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print an error that is the user's to mend without a traceback, and exit with its status."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from labelmill.operators.secrets import hide
        from labelmill.pipelines.errors import UserError

        try:
            return command(*args, **kwargs)
        except UserError as error:
            for line in hide(str(error)).splitlines():
                typer.secho(f"error: {line}", fg="red" if sys.stderr.isatty() else None, err=True)
            raise typer.Exit(error.exit_status) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return wrapped


def command_line(context: typer.Context) -> str:
    """The command as it was called, quoted for a shell: what was given, options under their long names."""
    words: list[str] = []
    at = context
    while at.parent is not None:
        words.insert(0, str(at.info_name))
        at = at.parent  # type: ignore[assignment,unused-ignore]
    arguments: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if parameter.param_type_name == "argument":
            arguments += [str(each) for each in (value if parameter.nargs != 1 else [value])]
        elif getattr(parameter, "is_flag", False):
            options.append(max(parameter.opts if value else parameter.secondary_opts, key=len))
        else:
            option = max(parameter.opts, key=len)
            options += [f"{option}={each}" for each in (value if getattr(parameter, "multiple", False) else [value])]
    if any(argument.startswith("-") for argument in arguments):
        return shlex.join(["labelmill", *words, *options, "--", *arguments])
    return shlex.join(["labelmill", *words, *arguments, *options])


def console(stderr: bool = False) -> Any:
    """A terminal to print to, as wide as it is."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def show(
    found: Any, as_json: bool, in_words: Callable[[Any, Any], None], default: Callable[[Any], Any] | None = None
) -> None:
    """Print what a command found: as JSON for a script to read, or in words on a `console`.

    Args:
        found: Plain values.
        as_json: The command's option.
        in_words: Prints the same for a person.
        default: Makes a plain value of one that JSON does not have.
    """
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False, default=default))
    else:
        in_words(found, console())


def run_folder(given: str | None) -> str:
    """The run that was named, or the newest one below runs/."""
    from labelmill.pipelines.errors import UserError, nearest
    from labelmill.pipelines.run_folder.reopen import PIPELINE_FILE
    from labelmill.pipelines.run_folder.store import Store

    found = sorted(Path("runs").glob(f"*/{PIPELINE_FILE}"), key=lambda path: path.stat().st_mtime)
    if given is not None:
        if not Store(given).exists(PIPELINE_FILE):
            known = [str(path.parent) for path in Path(given).parent.glob(f"*/{PIPELINE_FILE}")] or [
                str(path.parent) for path in found
            ]
            there = f"; there are {', '.join(sorted(known)[:5])}" if known else ""
            hint = nearest(given, known) or there
            raise UserError(f"there is no run at {given!r} (it has no {PIPELINE_FILE}){hint}")
        return given
    if not found:
        raise UserError("there is no run below runs/; name one, or start one with: labelmill run PIPELINE")
    return str(found[-1].parent)
