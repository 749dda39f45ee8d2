"""How an evaluation looks in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Figures = dict[str, Any]


def print_evaluation(found: Figures, console: Console) -> None:
    """Print `pipelines.evaluate.evaluate_run`."""
    console.print(f"{escape(found['run'])} against {escape(found['truth'])}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, describe in _PARTS.items():
        if name in found:
            for row in describe(found[name]):
                table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _bad_images(part: Figures) -> list[tuple[str, str]]:
    caught = [(name, sum(counts.values()) - counts.get("kept", 0), sum(counts.values()))
              for name, counts in part["by_defect"].items()]  # fmt: skip
    told = ", ".join(f"{name} {out} of {number}" for name, out, number in caught)
    total = f"{sum(out for _, out, _ in caught)} of {sum(number for _, _, number in caught)} kept out"
    return [("bad images", f"{total}: {told}"), ("good images", f"{part['good_lost']} of {part['good']} lost")]


def _duplicates(part: Figures) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{kind} {hits['found']} of {hits['of']}" for kind, hits in part["recall_by_kind"].items())
    pairs = f"{part['pairs_found']} pairs found, {part['pairs_right']} of them right"
    return [("duplicates", f"{pairs}; {kinds}" if kinds else pairs)]


def _labels(part: Figures) -> list[tuple[str, str]]:
    counts = f"{part['labels']} for {part['objects']} objects in {part['images']} images"
    rows = [
        ("labels", f"{counts}: {_share(part, 'precision')}, {_share(part, 'recall')} at IoU 0.5"),
        ("", f"AP50 {_number(part['ap50'])}, AP {_number(part['ap'])} of these labels"),
    ]
    if unknown := part["classes_not_in_truth"]:
        told = ", ".join(f"{name} {number}" for name, number in unknown.items())
        rows.append(("", f"not judged, since the truth has no such class: {told}"))
    if masks := part.get("masks"):
        told = f"mean IoU {_number(masks['mean_iou'])}, AP50 {_number(masks['ap50'])}, AP {_number(masks['ap'])}"
        rows.append(("masks", f"{masks['labels']}: {told}"))
    return rows


def _words(part: Figures) -> list[tuple[str, str]]:
    found = f"{part['words']} in {part['images']} images: {_share(part, 'precision')}, {_share(part, 'recall')}"
    return [("words", f"{found}, character error rate {_number(part['character_error_rate'])}")]


def _gaze(part: Figures) -> list[tuple[str, str]]:
    error = part["mean_angular_error"]
    told = f"{part['matched']} of {part['faces']} faces found"
    return [("gaze", told if error is None else f"{told}, mean angular error {error:.1f} degrees")]


def _captions(part: Figures) -> list[tuple[str, str]]:
    return [("captions", f"{part['right']} of {part['images']} say exactly what is there")]


_PARTS = {
    "images": _bad_images,
    "duplicates": _duplicates,
    "labels": _labels,
    "words": _words,
    "gaze": _gaze,
    "captions": _captions,
}


def _share(part: Figures, name: str) -> str:
    return f"{name} {_number(part[name])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
