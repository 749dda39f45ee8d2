"""What there is to use: operators and model cards, listed and described; and the drawn world."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.base import DatasetOperator, ImageOperator, Operator, OperatorParams
from labelmill.operators.registry import UnknownOperator, find, names
from labelmill.operators.wording import counted
from labelmill.pipelines.errors import UserError


def _kind(cls: type[Operator]) -> str:
    return "image" if issubclass(cls, ImageOperator) else "dataset" if issubclass(cls, DatasetOperator) else "table"


def _summary(cls: type[Operator]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def list_operators() -> list[dict[str, str]]:
    """Name, kind and one sentence of every operator that a pipeline can name."""
    return [{"name": name, "kind": _kind(find(name)), "summary": _summary(find(name))} for name in names()]


def print_prose(text: str, console: Console) -> None:
    """Print a docstring as wide as the terminal: paragraphs flow, lists stay, reStructuredText's tables are drawn."""
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and re.fullmatch(r"=+( +=+)+", lines[0]):
            starts = [match.start() for match in re.finditer("=+", lines[0])]
            table = Table(box=None, pad_edge=False, show_header=False)
            for line in (line for line in lines if not line.startswith("==")):
                ends = [*starts[1:], None]
                table.add_row(*(escape(line[start:end].strip()) for start, end in zip(starts, ends, strict=True)))
            console.print(table)
        elif any(line.startswith((" ", "- ")) for line in lines):
            console.print(escape(block))
        else:
            console.print(escape(" ".join(lines)))
        console.print()


def print_operators(listed: list[dict[str, str]], console: Console) -> None:
    """Print `list_operators`."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column()
    for row in listed:
        table.add_row(row["name"], row["kind"], escape(row["summary"]))
    console.print(table)
    console.print("\nlabelmill ops NAME shows one whole. Your own: `- my_module:MyOperator` in a pipeline.")


def describe_operator(name: str) -> dict[str, Any]:
    """Docstring, parameters and columns of an operator.

    Raises:
        UserError: There is none of that name.
    """
    try:
        cls = find(name)
    except UnknownOperator as error:
        raise UserError(str(error)) from error
    told = _about_params(cls)
    types = cls.Params.model_json_schema().get("properties", {})
    params = []
    for key, field in cls.Params.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        params.append(
            {
                "name": field.alias or key,
                "type": _type_name(types.get(field.alias or key, {})),
                "default": default,
                "about": told.get(key, ""),
                "tuning": bool(extra.get("tuning")) and not field.is_required(),
            }
        )
    about = inspect.getdoc(cls) or ""
    return {"name": name, "kind": _kind(cls), "decides": cls.decides, "about": about, "parameters": params}


def _about_params(cls: type[Operator]) -> dict[str, str]:
    """What the docstrings of an operator's Params and of what it inherits from say of each of them, on one line."""
    from docstring_parser import DocstringStyle, parse

    told: dict[str, str] = {}
    for base in reversed(cls.Params.__mro__[: cls.Params.__mro__.index(OperatorParams)]):
        parsed = parse(inspect.cleandoc(base.__doc__ or ""), DocstringStyle.GOOGLE)
        told |= {item.arg_name: " ".join((item.description or "").split()) for item in parsed.params}
    return told


def _type_name(schema: dict[str, Any]) -> str:
    """A parameter's type in a few words, from its JSON schema."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type_name(part) for part in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_type_name(schema['additionalProperties'])}"
    return str(schema.get("type", schema.get("const", "any")))


def print_operator(described: dict[str, Any], console: Console) -> None:
    """Print `describe_operator`."""
    decides = ", decides" if described["decides"] else ""
    console.print(f"{described['name']}  ({described['kind']} operator{decides})\n")
    print_prose(described["about"], console)
    if described["parameters"]:
        console.print("parameters")
        table = Table(box=None, show_header=False, pad_edge=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for row in described["parameters"]:
            about = (row["about"] or row["type"]) + (" Changes speed only." if row["tuning"] else "")
            table.add_row(f"  {row['name']}", escape(row["default"]), escape(about))
        console.print(table)


def list_models() -> list[dict[str, Any]]:
    """Every model card, with whether its weights are on this machine. A card that is wrong says why."""
    from labelmill.operators.models.weights import available
    from labelmill.pipelines.config.cards import card_files, find_card

    listed: list[dict[str, Any]] = []
    for name, path in card_files().items():
        try:
            card = find_card(name)
        except UserError as error:
            listed.append({"name": name, "file": str(path), "problem": str(error)})
            continue
        weights = card.weights
        listed.append(
            {
                "name": name,
                "task": card.task,
                "engine": card.engine,
                "architecture": card.architecture,
                "weights": weights.hub
                or weights.url
                or weights.path
                or (weights.package and f"{weights.package}: {weights.file}")
                or weights.endpoint
                or f"random, seed {weights.random}",
                "licence": card.licence,
                "memory_gb": card.memory_gb,
                "here": available(card),
                "file": str(path),
            }
        )
    return listed


def print_models(listed: list[dict[str, Any]], console: Console) -> None:
    """Print `list_models`."""
    table = Table(box=None, pad_edge=False)
    for header in ("card", "task", "GB", "licence", "here"):
        justify: Any = "right" if header == "GB" else "left"
        table.add_column(header, justify=justify, overflow="fold", no_wrap=header == "card")
    for row in listed:
        if "problem" in row:
            continue
        licence = row["licence"].removeprefix("LicenseRef-")
        here = "yes" if row["here"] else "no"
        table.add_row(row["name"], row["task"], f"{row['memory_gb']:g}", licence, here)
    console.print(table)
    for row in listed:
        if "problem" in row:
            console.print(f"[red]wrong[/] {escape(row['problem'])}", soft_wrap=True)
    if any(not row.get("here", True) for row in listed):
        console.print("\nlabelmill models pull CARD… brings weights here; a run never downloads.")


def pull_models(names: list[str], console: Console) -> list[dict[str, Any]]:
    """Download and verify the weights of cards, one after the other.

    Returns:
        For each card its name, the files of its weights and their size in bytes.

    Raises:
        UserError: A card is not there, or its weights cannot be fetched or are not what it names.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from labelmill.operators.models.card import ModelError
    from labelmill.operators.models.weights import pull
    from labelmill.pipelines.config.cards import find_card

    cards = [find_card(name) for name in names]
    pulled: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    for card in cards:
        console.print(f"{card.name}: licence {card.licence}, {card.memory_gb:g} GB in memory")
        with Progress(*columns, console=console) as progress:
            tasks: dict[str, Any] = {}

            def report(
                name: str, done: int, total: int | None, progress: Progress = progress, tasks: dict[str, Any] = tasks
            ) -> None:
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=total)
                progress.update(tasks[name], completed=done, total=total)

            try:
                paths = pull(card, report)
            except ModelError as error:
                raise UserError(str(error)) from error
        if card.weights.endpoint is not None:
            told = f"there is nothing to fetch: it runs at {card.weights.endpoint}"
        elif not paths:
            told = "there is nothing to fetch: its weights are random"
        else:
            told = f"here and verified, {sum(path.stat().st_size for path in paths) / 1e6:,.0f} MB"
        console.print(f"  {told}", markup=False)
        size = sum(path.stat().st_size for path in paths)
        pulled.append({"card": card.name, "files": [str(path) for path in paths], "bytes": size})
    return pulled


def draw_world(out: Path, images: int, seed: int, console: Console) -> dict[str, Any]:
    """Draw images with exact truth beside them.

    Returns:
        Where they are and how many things they show.

    Raises:
        UserError: The directory holds something already.
    """
    from rich.progress import Progress

    from labelmill.operators.miniatures.write import write_world

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another directory")
    with Progress(console=console) as progress:
        task = progress.add_task(f"drawing {counted(images, 'image')}", total=images)
        summary = write_world(out, images, seed, progress=lambda done, _: progress.update(task, completed=done))
    things = (f"{getattr(summary, name):,} {name}" for name in ("objects", "words", "faces", "signs"))
    console.print(f"{counted(summary.images, 'image')} with {', '.join(things)}")
    for name in ("duplicates", "defects"):
        kinds = getattr(summary, name)
        counts = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
        console.print(f"{sum(kinds.values()):,} {name}{f': {counts}' if counts else ''}")
    console.print(f"source  {escape(str(out / 'images'))}\ntruth   {escape(str(out / 'truth'))}", soft_wrap=True)
    return {"source": str(out / "images"), "truth": str(out / "truth"), **asdict(summary)}
