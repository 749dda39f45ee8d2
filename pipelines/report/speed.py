"""Where the time of a run went, from ``events.jsonl``."""

from __future__ import annotations

import json
from typing import Any

from labelmill.pipelines.report.run_reader import Figures, RunReader


def speed(run: RunReader) -> Figures | None:
    """Time and rate of each step; None where nothing was recorded.

    A step that ran more than once for a shard counts with the last time. ``seconds`` are added up over workers:
    ``infer`` in the model, ``wait`` for decoded and prepared images, ``other`` everything else. ``wall`` is the time in
    which any shard was worked on.
    """
    receipts = _receipts(run)
    if not receipts:
        return None
    steps = []
    for step in run.steps:
        mine = [receipt for (name, _), receipt in receipts.items() if name == step.name]
        seconds = sum(receipt["seconds"] for receipt in mine)
        infer = min(seconds, sum(receipt["infer"] for receipt in mine))
        wait = min(seconds - infer, sum(receipt["wait"] for receipt in mine))
        seen = sum(receipt["seen"] for receipt in mine)
        steps.append(
            {"step": step.name, "operator": step.operator_name, "images": seen, "seconds": seconds, "infer": infer,
             "wait": wait, "other": seconds - infer - wait, "rate": seen / seconds if seconds > 0 else None}
        )  # fmt: skip
    wall = _covered([(receipt["began"] or receipt["at"], receipt["at"]) for receipt in receipts.values()])
    images = run.summary["images"]
    return {
        "steps": steps,
        "seconds": sum(step["seconds"] for step in steps),
        "wall": wall,
        "rate": images / wall if wall > 0 else None,
    }


def _receipts(run: RunReader) -> dict[tuple[str, int], dict[str, Any]]:
    """The last receipt of each of the run's steps and shards."""
    try:
        lines = run.layout.store.read("events.jsonl").splitlines()
    except FileNotFoundError:
        return {}
    names = {step.name for step in run.steps}
    found = {}
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if event.get("event") == "receipt" and event["step"] in names:
            found[event["step"], event["shard"]] = event
    return found


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
