"""The command about label errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipelines.commands.options import AsJson, RunArgument, run_folder, show, user_errors


@user_errors
def errors(
    run: RunArgument = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many to show, the surest first.")] = 50,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only missing, spurious, location, class, duplicate, conflict or invalid. Repeatable."),
    ] = None,
    least: Annotated[float, typer.Option(min=0, max=1, help="Only errors with at least this score.")] = 0.5,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all of them, not only the top: .parquet or .csv.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the errors found in the labels that the images came with.

    Writes a contact sheet of them, the likeliest first.
    """
    from labelmill.pipelines.label_errors.collect import list_label_errors
    from labelmill.pipelines.label_errors.print import print_label_errors
    from labelmill.pipelines.label_errors.sheet import write_sheet

    found = list_label_errors(run_folder(run), top, kind or (), least, out)
    found["sheet"] = write_sheet(found) if found["errors"] else None
    show(plain(found) if as_json else found, as_json, print_label_errors)


def plain(value: object) -> object:
    """The same with null for numbers that JSON does not have, and sensible digits."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None
    return value
