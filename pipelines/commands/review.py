"""Commands that give labels to a person and take them back: review export, review import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipelines.commands.options import AsJson, RunFolder, run_folder, show, user_errors


@user_errors
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write; must be empty or new.")],
    run: RunFolder = None,
    to: Annotated[str, typer.Option("--to", metavar="TOOL", help="label-studio or cvat.")] = "label-studio",
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 200,
    random: Annotated[
        int | None,
        typer.Option(min=0, help="How many of them make the random slice that statistics are made of; a fifth."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws another random slice.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write images for a person to look at, as a labelling tool's tasks.

    The models' labels are filled in.
    """
    from labelmill.pipelines.review.export import export_review
    from labelmill.pipelines.review.print import print_exported

    found = export_review(run_folder(run), to, out, images, random, seed)
    show(found, as_json, print_exported)


@user_errors
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Label Studio's JSON export, or CVAT for images 1.1 (XML or zip).")
    ],
    run: RunFolder = None,
    reviewer: Annotated[str | None, typer.Option(metavar="NAME", help="Who, where the file does not say.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take back what people decided, for a `review` step to apply.

    Says how right the models' labels are.
    """
    from labelmill.pipelines.review.collect import import_review
    from labelmill.pipelines.review.print import print_imported

    found = import_review(file, run_folder(run), reviewer)
    show(found, as_json, print_imported)


review = typer.Typer(help="Give labels to a person and take the decisions back.", no_args_is_help=True)
review.command("export")(export)
review.command("import")(import_)
