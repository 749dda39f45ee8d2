"""Commands about labelmill itself and what pipelines are made of: operators, model cards, drawn images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipelines.commands.options import AsJson, CardNames, OperatorName, console, show, user_errors


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            number = installed("labelmill")
        except PackageNotFoundError:  # a working directory that Ray has shipped is run without being installed
            number = "of a checkout that is not installed"
        typer.echo(f"labelmill {number}")
        raise typer.Exit


def version(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn a pile of images into a clean, labelled dataset. A pipeline is one YAML file."""


@user_errors
def ops(name: OperatorName = None, as_json: AsJson = False) -> None:
    """List the operators, or show one: what it does, its parameters."""
    from labelmill.pipelines.commands.catalogue import (
        describe_operator,
        list_operators,
        print_operator,
        print_operators,
    )

    if name is None:
        listed = list_operators()
        show(listed, as_json, print_operators)
    else:
        described = describe_operator(name)
        show(described, as_json, print_operator)


@user_errors
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the model cards and whether their weights are on this machine."""
    if context.invoked_subcommand is not None:
        return
    from labelmill.pipelines.commands.catalogue import list_models, print_models

    listed = list_models()
    show(listed, as_json, print_models)


@user_errors
def pull(cards: CardNames, as_json: AsJson = False) -> None:
    """Download the weights of model cards, and verify them."""
    from labelmill.pipelines.commands.catalogue import pull_models

    pulled = pull_models(cards, console(stderr=as_json))
    if as_json:
        typer.echo(json.dumps(pulled, indent=2))


@user_errors
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write; must be empty or new.")],
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw images with exact truth beside them, to try things on.

    Objects with boxes and masks, words, faces, captions, duplicates and bad images. The same seed draws the same.
    """
    from labelmill.pipelines.commands.catalogue import draw_world

    drawn = draw_world(out, images, seed, console(stderr=as_json))
    if as_json:
        typer.echo(json.dumps(drawn, indent=2))
