"""How an evaluation looks in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelmill.operators.wording import counted

Figures = dict[str, Any]


def print_evaluation(found: Figures, console: Console) -> None:
    """Print `pipelines.evaluation.evaluate.evaluate_run`."""
    console.print(f"{escape(found['run'])} against {escape(found['truth'])}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, describe in PARTS.items():
        if name in found:
            for row in describe(found[name]):
                table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _coverage(part: Figures) -> list[tuple[str, str]]:
    there = f"{counted(part['in_truth'], 'image')}, read as {part['kind']}"
    told = f"{there}; the run has {part['in_run']:,} of them and kept {part['kept']:,}"
    rows = [("truth", told)]
    out = []
    if part["unread"]:
        out.append(f"{part['unread']:,} that nobody has labelled")
    if part["refused"]:
        out.append(f"{part['refused']:,} whose labels could not be taken")
    if out:
        rows.append(("", f"without {' and '.join(out)}"))
    if part["refused_labels"]:
        rows.append(("", f"{counted(part['refused_labels'], 'label')} of the truth could not be taken"))
    rows += [("", f"! {problem}") for problem in part["problems"][:SHOWN]]
    if part["problem_count"] > SHOWN:
        rows.append(("", f"! and {counted(part['problem_count'] - SHOWN, 'more problem')} of the truth"))
    return rows


SHOWN = 5
"""Problems of the truth that are printed; --json gives more."""


def _bad_images(part: Figures) -> list[tuple[str, str]]:
    caught = [(name, sum(counts.values()) - counts.get("kept", 0), sum(counts.values()))
              for name, counts in part["by_defect"].items()]  # fmt: skip
    told = ", ".join(f"{name} {out} of {number}" for name, out, number in caught)
    total = f"{sum(out for _, out, _ in caught)} of {sum(number for _, _, number in caught)} kept out"
    return [("bad images", f"{total}: {told}"), ("good images", f"{part['good_lost']} of {part['good']} lost")]


def _duplicates(part: Figures) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{kind} {hits['found']} of {hits['of']}" for kind, hits in part["recall_by_kind"].items())
    pairs = f"{counted(part['pairs_found'], 'pair')} found, {part['pairs_right']} of them right"
    return [("duplicates", f"{pairs}; {kinds}" if kinds else pairs)]


def _labels(part: Figures) -> list[tuple[str, str]]:
    counts = f"{part['labels']:,} for {counted(part['objects'], 'object')} in {counted(part['images'], 'image')}"
    rows = [
        ("labels", f"{counts}: {_share(part, 'precision')}, {_share(part, 'recall')} at IoU 0.5"),
        ("", f"{_averages(part)} of these labels, average recall {_number(part['average_recall'])}"),
        *((name, _class(each)) for name, each in part["classes"].items()),
    ]
    if part["raw"]:
        rows.append(("", f"these are raw: no step has decided which of {part['column']} are labels (add `select`)"))
    if unknown := part["classes_not_in_truth"]:
        told = ", ".join(f"{name} {number}" for name, number in unknown.items())
        rows.append(("", f"not judged, since the truth has no such class: {told}"))
    if part["ignored"]:
        rows.append(("", f"{counted(part['ignored'], 'label')} in regions to ignore, neither right nor wrong"))
    masks = part.get("masks")
    if masks and "objects_without_mask" in masks:
        bare = counted(masks["objects_without_mask"], "object")
        rows.append(("masks", f"{masks['labels']:,}, not judged, since the truth has {bare} without a mask"))
    elif masks:
        told = f"mean IoU {_number(masks['mean_iou'])}, {_averages(masks)}"
        rows.append(("masks", f"{masks['labels']}: {told}"))
    return rows


def _averages(part: Figures) -> str:
    return ", ".join(f"{told} {_number(part[name])}" for name, told in
                     (("ap50", "AP50"), ("ap75", "AP75"), ("ap", "AP")))  # fmt: skip


def _class(each: Figures) -> str:
    counts = f"{each['labels']} for {each['objects']}: {_share(each, 'precision')}, {_share(each, 'recall')}"
    return f"{counts}, AP50 {_number(each['ap50'])}, AP {_number(each['ap'])}"


def _verification(part: Figures) -> list[tuple[str, str]]:
    before, after = part["before"], part["after"]
    let_go = f"{before['labels'] - after['labels']} of {counted(before['labels'], 'label')} below an agreement of"
    changes = f"precision gained {_number(part['precision_gained'])}, recall lost {_number(part['recall_lost'])}"
    told = f"{_share(after, 'precision')}, {_share(after, 'recall')}"
    return [(part["step"], f"{let_go} {part['agreement']:g}: {changes}; left: {told}")]


def _thresholds(part: Figures) -> list[tuple[str, str]]:
    return [
        ("detections", f"AP50 {_number(part['ap50'])}, AP {_number(part['ap'])} without the scores of {part['step']}")
    ]


def _calibration(part: Figures) -> list[tuple[str, str]]:
    aim = "for F1" if part["precision"] is None else f"for a precision of {part['precision']:g}"
    rows = [("scores", f"{aim}, written to {part['file']}, for step {part['step']}")]
    for name in ("before", "after"):
        shares = ", ".join(_share(part[name], share) for share in ("f1", "precision", "recall"))
        rows.append((name, f"{shares}; {counted(part[name]['labels'], 'label')}"))
    for name, each in part["classes"].items():
        if each["reason"]:
            rows.append((name, f"keeps {each['was']:g}: {each['reason']}"))
        else:
            f1 = f"f1 {_number(each['before']['f1'])} → {_number(each['after']['f1'])}"
            number = counted(each["after"]["labels"], "label")
            rows.append((name, f"{each['score']:g}, was {each['was']:g}: {f1}, {_share(each['after'], 'precision')}, "
                         f"{_share(each['after'], 'recall')}; {number}"))  # fmt: skip
    return rows


def _fusion(part: Figures) -> list[tuple[str, str]]:
    rows = []
    for name, each in part["scores"].items():
        platt = (
            "too little to go by" if each["slope"] is None else f"slope {each['slope']}, intercept {each['intercept']}"
        )
        rows.append((name, f"{platt}: {each['right']} of {counted(each['labels'], 'detection')} are right"))
    return rows


def _words(part: Figures) -> list[tuple[str, str]]:
    number = counted(part["images"], "image")
    found = f"{part['words']:,} in {number}: {_share(part, 'precision')}, {_share(part, 'recall')}"
    return [("words", f"{found}, character error rate {_number(part['character_error_rate'])}")]


def _gaze(part: Figures) -> list[tuple[str, str]]:
    error = part["mean_angular_error"]
    told = f"{part['matched']} of {part['faces']} faces found"
    return [("gaze", told if error is None else f"{told}, mean angular error {error:.1f} degrees")]


def _captions(part: Figures) -> list[tuple[str, str]]:
    return [("captions", f"{part['right']} of {part['images']} say exactly what is there")]


PARTS = {
    "coverage": _coverage,
    "images": _bad_images,
    "duplicates": _duplicates,
    "labels": _labels,
    "verification": _verification,
    "thresholds": _thresholds,
    "calibration": _calibration,
    "fusion": _fusion,
    "words": _words,
    "gaze": _gaze,
    "captions": _captions,
}


def _share(part: Figures, name: str) -> str:
    return f"{name} {_number(part[name])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
