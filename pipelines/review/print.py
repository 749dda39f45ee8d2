"""Prints what a review gave out and what came back."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted

MOST_PROBLEMS = 20
"""Problems that are printed; --json gives all."""


def print_exported(found: dict[str, Any], console: Console) -> None:
    """Print what `pipelines.review.export.export_review` gives."""
    number = counted(found["kept"], "image")
    console.print(
        f"review {found['review']}: {found['images']:,} of {number} with {counted(found['objects'], 'label')} "
        f"of {escape(found['labels'])}, for {found['tool']}"
    )
    console.print(
        f"  {found['with_reasons']:,} have something that speaks for a look; {found['random']:,} are the random slice "
        "that says how right all labels are"
    )
    for reason, count in found["skipped"].items():
        console.print(f"  {counted(count, 'label')} left out: {escape(reason)}")
    for note in found["notes"]:
        console.print(f"  {escape(note)}")
    for path in found["paths"]:
        console.print(f"  {escape(path)}")
    console.print("README.md beside them says how to load them; bring back with: labelmill review import FILE")


def print_imported(found: dict[str, Any], console: Console) -> None:
    """Print what `pipelines.review.collect.import_review` gives."""
    rest = ", ".join(
        f"{found[name]:,} {text}"
        for name, text in (("not_reviewed", "not reviewed yet"), ("skipped", "skipped"))
        if found[name]
    )
    console.print(
        f"{counted(found['reviewed'], 'image')} reviewed{f'; {rest}' if rest else ''} → {escape(found['decisions'])}"
    )
    console.print(
        f"labels: {found['untouched']:,} untouched, {found['changed']:,} moved or redrawn, "
        f"{found['removed']:,} removed, {found['added']:,} added"
    )
    _print_estimate(found, console)
    problems = found["problems"]
    for problem in problems[:MOST_PROBLEMS]:
        console.print(f"  ! {escape(problem)}")
    if len(problems) > MOST_PROBLEMS:
        console.print(f"  ! and {counted(len(problems) - MOST_PROBLEMS, 'more problem')}; --json lists them all")
    if found["reviewed"]:
        console.print(f"apply them with a step:  - review: {{decisions: {escape(found['decisions'])}}}")


def _print_estimate(found: dict[str, Any], console: Console) -> None:
    figures = found["estimate"]
    if not found["random_reviewed"]:
        console.print("no image of a random slice is among them, so nothing can be said of all labels")
        return
    console.print(
        f"from the random slice, {found['random_reviewed']:,} of {counted(found['random'], 'image')} reviewed:"
    )
    if found["random_reviewed"] < found["random"]:
        console.print("  not all of it is done: if somebody chose which, the figures are not those of all images")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in ("precision", "recall"):
        table.add_row(f"  {name}", _share(figures[name]))
    for name, share in figures["precision_by_class"].items():
        table.add_row(f"  precision of {escape(name)}", _share(share))
    console.print(table)


def _share(share: dict[str, Any]) -> str:
    if share["estimate"] is None:
        return "no labels"
    low, high = share["low"] * 100, share["high"] * 100
    return f"{share['estimate'] * 100:.1f} % ({low:.1f}–{high:.1f} % at 95 %), {share['right']:,} of {share['of']:,}"
