"""How far a run is."""

from __future__ import annotations

import json
import shlex
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted
from labelmill.pipelines.engine.terminal import outcome_line
from labelmill.pipelines.run_folder.reopen import PIPELINE_FILE, SUMMARY_FILE, reopen, state_of


def status_of(folder: str) -> dict[str, Any]:
    """How far a run is, as plain values."""
    pipeline, layout, shards = reopen(folder)
    summary = json.loads(layout.store.read(SUMMARY_FILE)) if layout.store.exists(SUMMARY_FILE) else None
    steps = []
    for step in pipeline.steps:
        done = layout.done(step.position) & shards.keys()
        steps.append(
            {"step": step.name, "done": len(done), "shards": len(shards), "images": sum(shards[s] for s in done)}
        )
    complete = all(step["done"] == step["shards"] for step in steps)
    return {
        "run": folder,
        "pipeline": pipeline.settings.name,
        "images": sum(shards.values()),
        "complete": complete and summary is not None,
        "summary_is_current": summary is not None and summary.get("state") == state_of(layout, shards),
        "steps": steps,
        "summary": summary,
    }


def print_status(found: dict[str, Any], console: Console) -> None:
    """Print `status_of`."""
    state = "complete" if found["complete"] and found["summary_is_current"] else "not finished"
    console.print(
        f"{escape(found['run'])}: {found['pipeline']}, {counted(found['images'], 'image')}, {state}", soft_wrap=True
    )
    current = found["summary"] if found["summary_is_current"] else None
    sums = {row["step"]: row for row in (current or {}).get("steps", [])}
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    kinds = ["seen", "kept", "dropped", "duplicate", "failed"]
    if any(row.get("undone") for row in sums.values()):
        kinds.append("undone")
    for header in ("shards", *kinds):
        table.add_column(header, justify="right")
    for step in found["steps"]:
        row = sums.get(step["step"], {})
        counts = [f"{row[kind]:,}" if kind in row else "" for kind in kinds]
        table.add_row(step["step"], f"{step['done']:,}/{step['shards']:,}", *counts)
    console.print(table)
    if current:
        console.print(outcome_line(current["images"], current["outcome"]))
        for export in current.get("exports", []):
            console.print(f"{export['export']}: {escape(export['path'])}", soft_wrap=True)
    run = shlex.quote(found["run"])
    if state == "complete":
        console.print(f"\nOne image's story: labelmill explain KEY --run {escape(run)}", soft_wrap=True)
    else:
        file = "the pipeline again" if "://" in found["run"] else f"labelmill run {run}/{PIPELINE_FILE}"
        console.print(f"\nGo on with: {escape(file)}", soft_wrap=True)
