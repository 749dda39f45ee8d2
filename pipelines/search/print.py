"""How a search looks in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted


def print_search(found: dict[str, Any], console: Console) -> None:
    """Print `pipelines.search.search.search_run`, with the address of its contact sheet."""
    if not found["results"]:
        console.print("no image was found")
    table = Table(box=None, pad_edge=False)
    table.add_column("cosine", justify="right")
    table.add_column("key", overflow="fold")
    if found["everything"]:
        table.add_column("outcome")
    for row in found["results"]:
        more = [row["outcome"]] if found["everything"] else []
        table.add_row(f"{row['cosine']:.3f}", escape(row["key"]), *more)
    if found["results"]:
        console.print(table)
    for line in describe_index(found):
        console.print(escape(line), soft_wrap=True)
    console.print(f"contact sheet: {escape(found['sheet'])}", soft_wrap=True)


def describe_index(found: dict[str, Any]) -> list[str]:
    """What was searched, and what to know about it, in sentences."""
    index = found["index"]
    model = f" ({found['model']})" if found["model"] else ""
    only = "" if found["everything"] else ", kept images only"
    lines = [f"searched {counted(index['vectors'], 'vector')} of step {found['step']}{model}{only}"]
    if index["recall"] is not None:
        lines.append(f"the index is approximate: it finds {index['recall']:.1%} of the ten nearest, as measured")
    if index["shards"] < index["shards_of_run"]:
        lines.append(
            f"the run goes on: {index['shards']} of {counted(index['shards_of_run'], 'shard')} have vectors so far"
        )
    return lines
