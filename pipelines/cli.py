"""The command line. Each command imports what it needs when it is called, so that --help answers at once."""

from __future__ import annotations

import sys

import typer

from labelmill.pipelines.commands import errors, looking, new, report, review, running, serve, supplies

app = typer.Typer(
    name="labelmill",
    help="Turn a pile of images into a clean, labelled dataset. A pipeline is one YAML file.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(supplies.version)
for command in (
    new.new,
    running.run,
    running.check,
    running.plan,
    looking.status,
    looking.explain,
    looking.evaluate,
    report.report,
    looking.search,
    serve.serve,
    errors.errors,
    supplies.ops,
    supplies.world,
):
    app.command()(command)

models = typer.Typer(
    help="Model cards: which there are, whether their weights are here.",
    no_args_is_help=False,
    invoke_without_command=True,
)
models.callback()(supplies.models)
models.command("pull")(supplies.pull)
app.add_typer(models, name="models")
app.add_typer(review.review, name="review")


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except Exception:
        import traceback

        from labelmill.operators.secrets import hide

        sys.stderr.write(hide(traceback.format_exc()))
        raise SystemExit(1) from None
