"""The command line. Each command imports what it needs when it is called, so that --help answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="labelmill",
    help="Turn a pile of images into a clean, labelled dataset. A pipeline is one YAML file.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(
    help="Model cards: which there are, and whether their weights are here.",
    no_args_is_help=False,
    invoke_without_command=True,
)
app.add_typer(models_app, name="models")

PipelineFile = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline file, such as conf/pipelines/demo.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key or a step's parameter, such as detect.floor=0.2. Repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="At most so many workers in a pool; also the CPUs of a local Ray.")
]
RunFolder = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="A run's directory; the newest below runs/ if not given.")
]


def _user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print an error that is the user's to mend without a traceback, and exit with 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from pipelines.errors import UserError

        try:
            return command(*args, **kwargs)
        except UserError as error:
            for line in str(error).splitlines():
                typer.secho(f"error: {line}", fg="red" if sys.stderr.isatty() else None, err=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return wrapped


@app.command()
@_user_errors
def run(
    pipeline: PipelineFile,
    set_: Overrides = None,
    inline: Annotated[bool, typer.Option("--inline", help="Run in this process, without Ray.")] = False,
    workers: Workers = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; a local one is started if not given.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show Ray's own messages and full tracebacks.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline: do whatever of it is not done yet."""
    from operators.columns import ContractError
    from pipelines.config import load_pipeline
    from pipelines.run import Options
    from pipelines.run import run as run_pipeline
    from pipelines.terminal import TerminalReporter

    loaded = load_pipeline(pipeline, set_)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is as clean as a person's
    reporter = TerminalReporter(_console(stderr=as_json))
    again = f"labelmill run {' '.join(_quote(word) for word in [pipeline, *(f'--set={item}' for item in set_ or [])])}"
    try:
        summary = run_pipeline(loaded, Options(inline, workers, address, verbose), reporter)
    except KeyboardInterrupt:
        reporter.close()
        typer.echo(f"\nstopped; what was finished is kept. Go on with: {again}", err=True)
        raise typer.Exit(130) from None
    except ContractError as error:
        reporter.close()
        typer.echo(f"error: {error}\nThis is a mistake in the operator's code.", err=True)
        raise typer.Exit(1) from error if verbose else None
    finally:
        reporter.close()
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        reporter.finished(summary, loaded.settings.output)


@app.command()
@_user_errors
def check(pipeline: PipelineFile, set_: Overrides = None) -> None:
    """Check a pipeline file: names, parameters, columns and types. Reads no image and starts nothing."""
    from pipelines.config import load_pipeline

    loaded = load_pipeline(pipeline, set_)
    exports = ", ".join(export.name for export in loaded.exports) or "none"
    typer.echo(f"{pipeline}: good. {len(loaded.steps)} steps, exports: {exports}, output: {loaded.settings.output}")


@app.command()
@_user_errors
def plan(pipeline: PipelineFile, set_: Overrides = None, workers: Workers = None, as_json: AsJson = False) -> None:
    """Show what a run would do: steps, what is done already, and how the rest is placed. Runs nothing."""
    from pipelines.config import load_pipeline
    from pipelines.inspect_run import plan_of, print_plan

    planned = plan_of(load_pipeline(pipeline, set_), workers)
    if as_json:
        typer.echo(json.dumps(planned, indent=2, ensure_ascii=False))
    else:
        print_plan(planned, _console())


@app.command()
@_user_errors
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's directory; the newest below runs/ if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is and what became of its images."""
    from pipelines.inspect_run import print_status, status_of

    found = status_of(_run_folder(run))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_status(found, _console())


@app.command()
@_user_errors
def explain(
    key: Annotated[str, typer.Argument(help="An image's key (its path below the source), or its image_id.")],
    run: RunFolder = None,
    as_json: AsJson = False,
) -> None:
    """Tell one image's whole story: what each step saw, computed and decided."""
    from pipelines.inspect_run import explain_image, print_explanation

    story = explain_image(_run_folder(run), key)
    if as_json:
        typer.echo(json.dumps(story, indent=2, ensure_ascii=False, default=str))
    else:
        print_explanation(story, _console())


@app.command()
@_user_errors
def evaluate(
    truth: Annotated[
        Path,
        typer.Option(metavar="PATH", help="A COCO file, or a folder such as OUT/truth that `labelmill world` writes."),
    ],
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's directory; the newest below runs/ if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how right a finished run is: labels, masks, words, gaze, captions, duplicates, bad images."""
    from pipelines.evaluate import evaluate_run
    from pipelines.print_evaluation import print_evaluation

    found = evaluate_run(_run_folder(run), truth)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_evaluation(found, _console())


@app.command()
@_user_errors
def search(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's directory.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What the images should show.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="Find images like this file, instead of a text.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Find images like this one of the run, by key or image_id.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many images.")] = 20,
    step: Annotated[str | None, typer.Option(metavar="NAME", help="The step with the embeddings, if several.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Dropped, duplicate and failed images too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find a run's images by text, or by an image like them; print their keys and write a contact sheet."""
    from pipelines.contact_sheet import write_contact_sheet
    from pipelines.print_search import print_search
    from pipelines.search import Query, search_run

    found = search_run(_run_folder(run), Query(text, image, key), top, everything, step)
    found["sheet"] = write_contact_sheet(found)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_search(found, _console())


@app.command()
@_user_errors
def ops(
    name: Annotated[str | None, typer.Argument(help="An operator; all of them if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the operators, or show one: its parameters, what it reads and what it writes."""
    from pipelines.catalogue import describe_operator, list_operators, print_operator, print_operators

    if name is None:
        listed = list_operators()
        typer.echo(json.dumps(listed, indent=2)) if as_json else print_operators(listed, _console())
    else:
        described = describe_operator(name)
        typer.echo(json.dumps(described, indent=2)) if as_json else print_operator(described, _console())


@models_app.callback()
@_user_errors
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the model cards and whether their weights are on this machine."""
    if context.invoked_subcommand is not None:
        return
    from pipelines.catalogue import list_models, print_models

    listed = list_models()
    typer.echo(json.dumps(listed, indent=2)) if as_json else print_models(listed, _console())


@models_app.command("pull")
@_user_errors
def pull(
    cards: Annotated[list[str], typer.Argument(metavar="CARD…", help="Names of model cards, or paths to them.")],
) -> None:
    """Download the weights of model cards, and verify them."""
    from pipelines.catalogue import pull_models

    pull_models(cards, _console())


@app.command()
@_user_errors
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write; must be empty or new.")],
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
) -> None:
    """Draw images with exact truth beside them: objects, words, faces, duplicates, bad images."""
    from pipelines.catalogue import draw_world

    draw_world(out, images, seed, _console())


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _quote(word: str) -> str:
    import shlex

    return shlex.quote(word)


def _run_folder(given: str | None) -> str:
    """The run that was named, or the newest one below runs/."""
    from pipelines.errors import UserError
    from pipelines.run import PIPELINE_FILE
    from pipelines.store import Store

    if given is not None:
        if not Store(given).exists(PIPELINE_FILE):
            raise UserError(f"there is no run at {given!r} (it has no {PIPELINE_FILE})")
        return given
    found = sorted(Path("runs").glob(f"*/{PIPELINE_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError("there is no run below runs/; name one, or start one with: labelmill run PIPELINE")
    return str(found[-1].parent)


def main() -> None:
    """Entry point of the console script."""
    app()
