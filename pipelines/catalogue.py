"""What there is to use: operators and model cards, listed and described; and the drawn world."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from operators.base import DatasetOperator, ImageOperator, Operator
from operators.registry import UnknownOperator, find, names
from pipelines.errors import UserError


def _kind(cls: type[Operator]) -> str:
    return "image" if issubclass(cls, ImageOperator) else "dataset" if issubclass(cls, DatasetOperator) else "table"


def _summary(cls: type[Operator]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def list_operators() -> list[dict[str, str]]:
    """Name, kind and one sentence of every operator that a pipeline can name."""
    return [{"name": name, "kind": _kind(find(name)), "summary": _summary(find(name))} for name in names()]


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
    params = []
    for key, field in cls.Params.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        if field.default is PydanticUndefined and not field.is_required():
            default = "optional"
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        params.append(
            {
                "name": field.alias or key,
                "type": _type_name(field.annotation),
                "default": default,
                "about": field.description or "",
                "tuning": bool(extra.get("tuning")),
            }
        )
    return {
        "name": name,
        "kind": _kind(cls),
        "decides": cls.decides,
        "about": inspect.getdoc(cls) or "",
        "parameters": params,
        "parameters_about": inspect.getdoc(cls.Params) or "" if cls.Params is not Operator.Params else "",
    }


def _type_name(annotation: Any) -> str:
    text = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    return text or str(annotation).replace("typing.", "").replace("NoneType", "None")


def print_operator(described: dict[str, Any], console: Console) -> None:
    """Print `describe_operator`."""
    decides = ", decides" if described["decides"] else ""
    console.print(f"{described['name']}  ({described['kind']} operator{decides})\n")
    console.print(escape(described["about"]), soft_wrap=True)
    if described["parameters_about"]:
        console.print("\n" + escape(described["parameters_about"]), soft_wrap=True)
    if described["parameters"]:
        console.print("\nparameters")
        table = Table(box=None, show_header=False, pad_edge=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for row in described["parameters"]:
            about = row["about"] + (" (changes speed only)" if row["tuning"] else "")
            table.add_row(f"  {row['name']}", escape(row["default"]), escape(about or row["type"]))
        console.print(table)
