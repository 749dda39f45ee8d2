"""The command that writes the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipelines.commands.options import RunArgument, console, run_folder, user_errors


@user_errors
def report(
    run: RunArgument = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Hold the run against this: labels of any kind that a source can be, another run, or a run that was "
            "reviewed.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write; report.html in the run if not given.")
    ] = None,
) -> None:
    """Write a run's report: one HTML file that needs no network.

    Charts, galleries, labels on images, and what was lost and why.
    """
    from rich.progress import Progress

    from labelmill.pipelines.report.write import write_report

    folder = run_folder(run)
    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading the run", total=None)
        address = write_report(
            folder,
            truth,
            out,
            on_progress=lambda done, of: progress.update(task, description="pictures", completed=done, total=of),
        )
    typer.echo(address)
