"""How label errors look in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted


def print_label_errors(found: dict[str, Any], console: Console) -> None:
    """Print `pipelines.label_errors.collect.list_label_errors`, with the address of its contact sheet if it has one."""
    console.print(escape(headline(found)))
    if found["errors"]:
        table = Table(box=None, pad_edge=False)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("kind", no_wrap=True)
        table.add_column("key", overflow="fold", ratio=2)
        table.add_column("label", no_wrap=True)
        table.add_column("reason", overflow="fold", ratio=3)
        for row in found["errors"]:
            label = "" if row["label"] is None else f"{row['label']}"
            table.add_row(f"{row['score']:.2f}", row["kind"], escape(row["key"]), label, escape(row["reason"]))
        console.print(table)
    total = sum(found["counts"].values())
    if total > len(found["errors"]):
        console.print(f"… and {total - len(found['errors']):,} more: --top shows more of them, --out FILE holds all")
    for name in ("sheet", "out"):
        if found.get(name):
            label = "contact sheet" if name == "sheet" else "all errors"
            console.print(f"{label}: {escape(found[name])}", soft_wrap=True)


def headline(found: dict[str, Any]) -> str:
    """How many errors of which kinds, and among what."""
    counts = ", ".join(f"{number:,} {kind}" for kind, number in found["counts"].items())
    total = sum(found["counts"].values())
    kinds = f" of kind {', '.join(found['kinds'])}" if found["kinds"] else ""
    said = f": {counts}" if counts and not found["kinds"] else ""
    number = counted(total, "label error")
    return f"{number}{kinds} with a score of {found['least']:g} or more in {counted(found['images'], 'image')}{said}"
