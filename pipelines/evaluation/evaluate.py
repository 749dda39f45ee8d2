"""Holds a finished run against truth: labels, masks, words, gaze, captions, duplicates, bad images."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.measures.detections import bbox, match
from labelmill.operators.measures.gaze import angular_error
from labelmill.operators.measures.words import Read, word_scores
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.evaluation.calibrate import calibrate, select_step, sweep, threshold_figures
from labelmill.pipelines.evaluation.calibrate_file import fragment, write_fragment
from labelmill.pipelines.evaluation.calibrate_fuse import fusion_figures
from labelmill.pipelines.evaluation.coverage import coverage, no_class, no_image, no_labels
from labelmill.pipelines.evaluation.file import EvaluationFile
from labelmill.pipelines.evaluation.labels import label_figures
from labelmill.pipelines.evaluation.truth import Truth, read_truth
from labelmill.pipelines.evaluation.verify import verification_figures
from labelmill.pipelines.run_folder.finished_run import FinishedRun

Figures = dict[str, Any]


@dataclass(frozen=True)
class Calibration:
    """What to calibrate for.

    Attributes:
        out: The YAML file to write.
        precision: The precision that each class must reach; None: the best F1.
    """

    out: Path
    precision: float | None = None


def evaluate_run(folder: str, where: str | Path, calibration: Calibration | None = None) -> Figures:
    """How right a finished run is, as plain values.

    Labels, masks, words, gaze and captions are judged on the images that the run kept and the truth knows. A part of
    which the run or the truth says nothing is left out. What was found is kept in the run, and holds until the run or
    the truth is another.

    Args:
        folder: The run.
        where: The truth; see `pipelines.evaluation.truth.read_truth`.
        calibration: Also find the score that each class should have, and write it down.

    Raises:
        UserError: The run is not finished, the truth cannot be read, the two have no image or no class in common, or
            nothing of one that the other speaks of; or nothing can be calibrated.
    """
    run = FinishedRun(folder)
    truth = read_truth(where, run)
    file = EvaluationFile(folder, truth)
    parts = file.read() if calibration is None else None
    if parts is None:
        parts = _evaluate(truth, run, str(where), calibration)
        if calibration is None:
            file.write(parts)
    return {"run": folder, "truth": str(where), **parts}


def _evaluate(truth: Truth, run: FinishedRun, where: str, calibration: Calibration | None) -> Figures:
    """The figures, part by part."""
    if not truth.keys() & run.outcome.keys():
        raise UserError(no_image(truth, run, where))
    labels = label_figures(truth, run)
    every = {
        "images": _bad_images(truth, run),
        "duplicates": _duplicates(truth, run),
        "labels": labels,
        "verification": verification_figures(truth, run),
        **_thresholds(truth, run, where, calibration),
        "words": _words(truth, run),
        "gaze": _gaze(truth, run),
        "captions": _captions(truth, run),
    }
    parts = {name: part for name, part in every.items() if part is not None}
    if parts.keys() <= {"labels", "verification", "thresholds", "calibration", "fusion"}:
        if labels is None or not truth.images.keys() & run.outcome.keys():
            problem: str | None = no_labels(truth, run, where)
        else:
            problem = no_class(truth, run, labels, where)
        if problem is not None:
            raise UserError(problem)
    return {"coverage": coverage(truth, run), **parts}


def _thresholds(truth: Truth, run: FinishedRun, where: str, calibration: Calibration | None) -> dict[str, Figures]:
    """What other scores than those of the select step would give, and which are best."""
    step = select_step(run)
    if step is None:
        if calibration is not None:
            raise UserError("--calibrate needs a run whose labels come from a `select` step, but they come from none")
        return {}
    swept = sweep(truth, run, step)
    parts = {"thresholds": threshold_figures(truth, swept)}
    if calibration is not None:
        found = calibrate(truth, run, swept, calibration.precision)
        fusion = fusion_figures(truth, run)
        write_fragment(calibration.out, fragment(found, run.folder, where, fusion))
        parts["calibration"] = {"file": str(calibration.out), **found}
        if fusion is not None:
            parts["fusion"] = fusion
    return parts


def _bad_images(truth: Truth, run: FinishedRun) -> Figures | None:
    """What became of images with a known defect, and of those without."""
    if "defects" not in truth.tables:
        return None
    defects = {row["key"]: row["defect"] for row in truth.tables["defects"]}
    by_defect: dict[str, Counter[str]] = defaultdict(Counter)
    good: Counter[str] = Counter()
    for key, outcome in run.outcome.items():
        (by_defect[defects[key]] if key in defects else good)[outcome] += 1
    return {
        "by_defect": {name: dict(sorted(counts.items())) for name, counts in sorted(by_defect.items())},
        "good": good.total(),
        "good_lost": good["dropped"] + good["failed"],
    }


def _duplicates(truth: Truth, run: FinishedRun) -> Figures | None:
    """Pairs of copies that the run found, among the images that `deduplicate` saw."""
    column = run.last("group")
    if column is None or column.step is None or "duplicates" not in truth.tables:
        return None
    groups: dict[str, int] = {}
    seen: set[str] = set()
    for shard, keys in run.keys.items():
        table = run.layout.table(column.step, shard, ["group", "decision"])
        for key, group, decision in zip(keys, *(each.to_pylist() for each in table.columns), strict=True):
            if decision in ("kept", "duplicate"):
                seen.add(key)
                if group is not None:
                    groups[key] = group
    rows = {row["key"]: row for row in truth.tables["duplicates"] if row["key"] in seen}
    kinds: dict[str, list[bool]] = defaultdict(list)
    for key, row in rows.items():
        if row["of"] in rows:
            kinds[row["kind"]].append(key in groups and groups.get(row["of"]) == groups[key])
    found = _pairs(groups)
    right = sum(one in rows and other in rows and rows[one]["group"] == rows[other]["group"] for one, other in found)
    return {
        "pairs_found": len(found),
        "pairs_right": right,
        "recall_by_kind": {kind: {"found": sum(hits), "of": len(hits)} for kind, hits in sorted(kinds.items())},
    }


def _pairs(groups: dict[str, int]) -> list[tuple[str, str]]:
    members: dict[int, list[str]] = defaultdict(list)
    for key, group in sorted(groups.items()):
        members[group].append(key)
    return [pair for keys in members.values() for pair in combinations(keys, 2)]


def _words(truth: Truth, run: FinishedRun) -> Figures | None:
    column = run.last("words", ("text", *SIDES))
    if column is None or "words" not in truth.tables:
        return None
    read = run.values(column, truth.images)
    found = [Read(truth.images[key], word["text"], _box(word)) for key, words in read.items() for word in words]
    there = [
        Read(truth.images[row["key"]], row["text"], _box(row)) for row in truth.tables["words"] if row["key"] in read
    ]
    scores = word_scores(there, found)
    return {
        "images": len(read),
        "words": scores.there,
        "recall": _finite(scores.recall),
        "precision": _finite(scores.precision),
        "character_error_rate": _finite(scores.character_error_rate),
    }


def _gaze(truth: Truth, run: FinishedRun) -> Figures | None:
    column = run.last("gaze", ("yaw", "pitch", *SIDES))
    if column is None or "gaze" not in truth.tables:
        return None
    seen = run.values(column, truth.images)
    rows = [row for row in truth.tables["gaze"] if row["key"] in seen]
    there = [_face(truth.images[row["key"]], row) for row in rows]
    faces = [(key, face) for key, found in seen.items() for face in found]
    pairs = match(there, [_face(truth.images[key], face) for key, face in faces])
    errors = angular_error(
        [[faces[pair.found][1]["yaw"], faces[pair.found][1]["pitch"]] for pair in pairs],
        [[rows[pair.truth]["yaw"], rows[pair.truth]["pitch"]] for pair in pairs],
    )
    mean = float(errors.mean()) if len(errors) else None
    return {"faces": len(there), "found": len(faces), "matched": len(pairs), "mean_angular_error": mean}


def _captions(truth: Truth, run: FinishedRun) -> Figures | None:
    column = run.last("answer")
    if column is None or "captions" not in truth.tables:
        return None
    captions = {row["key"] for row in truth.tables["captions"]}
    told = run.values(column, captions)
    rows = [row for row in truth.tables["captions"] if row["key"] in told]
    right = sum(told[row["key"]] == row["caption"] for row in rows)
    return {"images": len(rows), "right": right, "share": right / len(rows) if rows else None}


def _face(image: int, row: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": bbox(*_box(row))}


def _box(row: dict[str, Any]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(row[side]) for side in SIDES)
    return x1, y1, x2, y2


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
