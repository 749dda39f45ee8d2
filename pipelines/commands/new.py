"""The command that writes a first pipeline file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipelines.commands.options import user_errors


def in_terminal() -> bool:
    """Whether there is someone to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@user_errors
def new(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The file to write; named like the source if not given."),
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="PATH", help="Where the images are: a path or URL.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="What that is, such as folder, coco or yolo; guessed if not given."),
    ] = None,
    want: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Of clean, deduplicate, classify, boxes, masks, text, captions; between commas."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Classes, such as 'car=car|taxi,stop sign', or an ontology file."),
    ] = None,
    export: Annotated[
        str | None, typer.Option(metavar="LIST", help="Formats to write, such as coco,yolo; or none.")
    ] = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="Choose large models, or small ones; asked if not given.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("-y", "--yes", help="Ask nothing; take the defaults for what is not given.")
    ] = False,
) -> None:
    """Write a first pipeline file from a few questions.

    Each question is also an option. The file is commented and passes `labelmill check`. No file is overwritten
    unless you say so.
    """
    from labelmill.pipelines.errors import UserError
    from labelmill.pipelines.new.questions import Given, answers_of
    from labelmill.pipelines.new.source import recognised
    from labelmill.pipelines.new.write import pipeline_text

    terminal = in_terminal()
    answers = answers_of(Given(source, kind, want, classes, export, gpu, yes, terminal))
    text = pipeline_text(answers)
    path = file or Path(f"{answers.name}.yaml")
    overwrite = path.exists() and terminal and not yes and typer.confirm(f"{path} is there already. Overwrite it?")
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{path} is there already and was left as it is; name another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file") from error
    typer.echo(recognised(answers.kind, answers.found))
    for sentence in answers.found.missing:
        typer.echo(f"warning {sentence}")
    counted = answers.found.told()
    typer.echo(f"wrote {path}{f', for {counted}' if counted else ''}")
    _say_next(path, list(answers.models.values()))


def _say_next(path: Path, cards: list[str]) -> None:
    from labelmill.operators.models.weights import available
    from labelmill.pipelines.config.cards import find_card

    missing = [card for card in cards if not available(find_card(card))]
    name = shlex.quote(str(path))
    typer.echo("Next:")
    if missing:
        typer.echo(f"  labelmill models pull {' '.join(missing)}")
    typer.echo(f"  labelmill plan {name}\n  labelmill run {name}")
