"""Commands about a run: status, explain, evaluate, search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipelines.commands.options import (
    AsJson,
    RunArgument,
    RunFolder,
    RunRequired,
    run_folder,
    show,
    user_errors,
)


@user_errors
def status(run: RunArgument = None, as_json: AsJson = False) -> None:
    """Show how far a run is and what became of its images."""
    from labelmill.pipelines.inspection.status import print_status, status_of

    found = status_of(run_folder(run))
    show(found, as_json, print_status)


@user_errors
def explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="An image's key (its path below the source), or its image_id.")
    ],
    run: RunFolder = None,
    as_json: AsJson = False,
) -> None:
    """Tell one image's whole story: every step and decision, and why."""
    from labelmill.pipelines.inspection.explain import print_explanation
    from labelmill.pipelines.run_folder.image_story import explain_image

    story = explain_image(run_folder(run), key)
    show(story, as_json, print_explanation, default=str)


@user_errors
def evaluate(
    truth: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Labels of any kind that a source can be (COCO, data.yaml, a folder, …), a folder such as OUT/truth "
            "that `labelmill world` writes, another run, or a run that was reviewed.",
        ),
    ],
    run: RunArgument = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.yaml", help="Write the score of each class that is best for F1, as `select` takes it."
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="With --calibrate: the lowest score with this precision instead."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how right a finished run is, against truth.

    Compares labels, masks, words, gaze, captions, duplicates and bad images with what the truth has of them.
    """
    from labelmill.pipelines.errors import UserError
    from labelmill.pipelines.evaluation.evaluate import Calibration, evaluate_run
    from labelmill.pipelines.evaluation.print import print_evaluation

    if precision is not None and calibrate is None:
        raise UserError("--precision says what --calibrate should look for: give both")
    found = evaluate_run(run_folder(run), truth, None if calibrate is None else Calibration(calibrate, precision))
    show(found, as_json, print_evaluation)


@user_errors
def search(
    run: RunRequired,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What the images should show.")] = None,
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
    """Find a run's images by text, or by an image like them.

    Prints their keys and writes a contact sheet. The run must have an `embed` step.
    """
    from labelmill.pipelines.search.contact_sheet import write_contact_sheet
    from labelmill.pipelines.search.print import print_search
    from labelmill.pipelines.search.search import Query, search_run

    found = search_run(run_folder(run), Query(text, image, key), top, everything, step)
    found["sheet"] = write_contact_sheet(found)
    show(found, as_json, print_search)
