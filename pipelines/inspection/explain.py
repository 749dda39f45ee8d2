"""One image's story, for a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape


def print_explanation(story: dict[str, Any], console: Console) -> None:
    """Print `explain_image`."""
    console.print(f"{escape(story['key'])}  image_id {story['image_id']}, shard {story['shard']}")
    console.print(f"  {escape(story['uri'])}", soft_wrap=True)
    if story["gone"]:
        console.print("  gone: the source no longer has it; this is what was known of it")
    for name in ("split", "metadata", "problem"):
        if story[name] is not None:
            console.print(f"  source.{name}: {escape(str(story[name]))}", soft_wrap=True)
    if story["labels"] is not None:
        console.print(f"  source.labels: {escape(_short(story['labels']))}", soft_wrap=True)
    for step in story["steps"]:
        reason = f": {step['reason']}" if step.get("reason") else ""
        console.print(f"{step['step']:<14}{step['decision']}{escape(reason)}", soft_wrap=True)
        for name, value in step["columns"].items():
            if value is not None:
                console.print(f"  {name:<18}{escape(_short(value, max(40, console.width - 20)))}", soft_wrap=True)


def _short(value: Any, room: int = 160) -> str:
    """A value on one line of so many characters; detections are listed whole."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            shown = "; ".join(_detection(item) for item in value[:5])
            return f"{len(value)}: {shown}" + ("; …" if len(value) > 5 else "")
        items = [_short(item) for item in value[:8]]
        rest = f", … {len(value)} values" if len(value) > 8 else ""
        while len(items) > 1 and len(", ".join(items)) + len(rest) + 2 > room:
            items.pop()
            rest = f", … {len(value)} values"
        return f"[{', '.join(items)}{rest}]"
    text = str(value)
    return text if len(text) <= room else text[: room - 1] + "…"


def _detection(item: dict[str, Any]) -> str:
    if {"class", "x1", "y1", "x2", "y2"} <= item.keys():
        score = "" if item.get("score") is None else f" {item['score']:.2f}"
        return f"{item['class']}{score} [{item['x1']:.0f} {item['y1']:.0f} {item['x2']:.0f} {item['y2']:.0f}]"
    return ", ".join(f"{name} {_short(value, 40)}" for name, value in item.items() if value is not None)
