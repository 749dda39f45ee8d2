"""The questions of `labelmill new`: asked where there is a terminal, else taken from options."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import typer

from labelmill.pipelines.errors import UserError, nearest
from labelmill.pipelines.new.source import Found, look, name_of
from labelmill.pipelines.new.write import (
    NEEDS_CLASSES,
    WANTS,
    Answers,
    complete,
    default_exports,
    fitting_exports,
    parse_classes,
    parse_list,
)
from labelmill.pipelines.sources.guess import guess_kind

if TYPE_CHECKING:
    from labelmill.pipelines.sources.spec import Kind

Answer = TypeVar("Answer")

MISSING = {
    "--source": "where the images are, such as data/street",
    "--want": f"some of {','.join(WANTS)}",
    "--classes": "the classes to look for, such as 'car=car|taxi,stop sign', or an ontology file",
    "--export": "the formats to write, such as coco,yolo, or none",
    "--gpu or --no-gpu": "whether it will run on a GPU",
}


@dataclass(frozen=True)
class Given:
    """What the command line says; None where it says nothing.

    Attributes:
        source, kind, want, classes, export, gpu: The options of these names.
        yes: Take the default for whatever is not given, and ask nothing.
        terminal: There is someone to ask.
    """

    source: str | None = None
    kind: str | None = None
    want: str | None = None
    classes: str | None = None
    export: str | None = None
    gpu: bool | None = None
    yes: bool = False
    terminal: bool = False


def answers_of(given: Given) -> Answers:
    """What someone has and wants, from the options and, in a terminal, from questions.

    Raises:
        UserError: An answer cannot be; or some are missing and there is no terminal to ask in: it names the options.
    """
    if not given.terminal or given.yes:
        _refuse_missing(given)
    source, kind, found = _source(given)
    wants = complete(_ask(given, "want", lambda text: parse_list(text, list(WANTS), "want"), _wants_question), kind)
    ontology = _ask(given, "classes", parse_classes, _classes_question) if set(wants) & set(NEEDS_CLASSES) else None
    gpu = given.gpu
    if gpu is None:
        here = shutil.which("nvidia-smi") is not None
        gpu = here if given.yes else typer.confirm("Will it run on a GPU?", default=here)
    exports = _exports(given, wants, kind)
    return Answers(name_of(source), source, kind, wants, ontology, exports, gpu, found)


def _refuse_missing(given: Given) -> None:
    missing = [] if given.source else ["--source"]
    if given.want is None and not given.yes:
        missing.append("--want")
    kind = given.kind or guess_kind(given.source or "")[1]
    wants = complete(parse_list(given.want or "", list(WANTS), "want"), kind)
    if given.classes is None and set(wants) & set(NEEDS_CLASSES):
        missing.append("--classes")
    if not given.yes:
        missing += ["--export"] * (given.export is None) + ["--gpu or --no-gpu"] * (given.gpu is None)
    if not missing:
        return
    told = "\n".join(f"  {name:<20}{MISSING[name]}" for name in missing)
    why = "" if given.yes else ", or --yes for the defaults of the others"
    where = "with --yes nothing is asked" if given.yes else "there is no terminal to ask in"
    raise UserError(f"{where}; give these options{why}:\n{told}")


def _source(given: Given) -> tuple[str, Kind, Found]:
    """Where the images are, what that is, and what is found there. A person may try again."""
    from labelmill.pipelines.sources.spec import KINDS

    text = given.source
    while True:
        asked = text is None
        source = (text if text is not None else typer.prompt("Where are the images?", type=str)).strip()
        source, guessed = guess_kind(source)
        told_kind = given.kind
        if told_kind is None:
            told_kind = typer.prompt(f"What is it? ({', '.join(KINDS)})", default=guessed) if asked else guessed
        try:
            kind = next((kind for kind in KINDS if kind == told_kind), None)
            if kind is None:
                hint = nearest(told_kind, KINDS)
                raise UserError(f"kind must be one of {', '.join(KINDS)} but is {told_kind!r}{hint}")
            found = look(source, kind)
        except UserError as error:
            if not asked:
                raise
            typer.echo(f"  {error}")
            continue
        told = found.told()
        if told and asked:
            typer.echo(f"  {told} there")
        return source, kind, found


def _ask(given: Given, name: str, parse: Callable[[str], Answer], question: Callable[[], str]) -> Answer:
    """The option's answer, else a person's, asked again until it can be."""
    text: str | None = getattr(given, name)
    if text is not None:
        return parse(text)
    if given.yes and name == "want":
        return parse("clean,deduplicate" + (",boxes" if given.classes else ""))
    while True:
        try:
            return parse(question())
        except UserError as error:
            typer.echo(f"  {error}")


def _wants_question() -> str:
    typer.echo("What do you want? Several, between commas:")
    for name, about in WANTS.items():
        typer.echo(f"  {name:<13}{about}")
    return str(typer.prompt("Want", default="clean,deduplicate,boxes"))


def _classes_question() -> str:
    typer.echo("Which classes? NAME, or NAME=PROMPT|PROMPT where other words mean it; or an ontology file.")
    return str(typer.prompt("Classes, such as car=car|taxi,stop sign", type=str))


def _exports(given: Given, wants: tuple[str, ...], kind: Kind) -> tuple[str, ...]:
    fitting = fitting_exports(wants)

    def parse(text: str) -> tuple[str, ...]:
        chosen = parse_list(text, list(fitting), "export")
        for name in chosen:
            if fitting[name] is not None:
                raise UserError(f"export {name} needs {fitting[name]}; add it to --want, or leave {name} out")
        return chosen

    default = ",".join(default_exports(wants, kind))
    if given.export is None and given.yes:
        return parse(default)

    def question() -> str:
        offered = [name for name, lacks in fitting.items() if lacks is None]
        typer.echo(f"Which formats to train on? Several, between commas, or none: {', '.join(offered)}")
        return str(typer.prompt("Export", default=default))

    return _ask(given, "export", parse, question)
