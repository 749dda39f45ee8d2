"""From the scores of each detector that is fused to probabilities (Platt 1999), by holding a finished run to truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelmill.operators.fuse import Fuse, Platt, logit
from labelmill.operators.measures.detections import compare
from labelmill.pipelines.evaluation.labels import as_label, judged_classes, judged_objects
from labelmill.pipelines.evaluation.truth import Truth
from labelmill.pipelines.run_folder.finished_run import FinishedRun

Figures = dict[str, Any]

LEAST = 10
"""A detector needs so many detections that are right and as many that are wrong."""


def fusion_figures(truth: Truth, run: FinishedRun) -> Figures | None:
    """For each column of the last fuse step how its scores become probabilities of being right at an IoU of 0.5.

    Returns:
        ``step``, and under ``scores`` for each column ``slope`` and ``intercept``, as `operators.fuse.Platt` takes
        them, ``labels`` and how many of them are ``right``; slope and intercept are null where those are too few, or
        where higher scores are no better. None for a run without such a step.
    """
    step = next((each for each in reversed(run.layout.steps) if isinstance(each.operator, Fuse)), None)
    if step is None:
        return None
    numbers, scores = judged_classes(truth, run), {}
    for name, column in step.inputs.items():
        found, keys = [], []
        for key, detections in run.values(column, truth.images).items():
            keys.append(key)
            found += [
                as_label(each, truth.images[key], numbers[each["class"]])
                for each in detections
                if each["class"] in numbers and each["score"] is not None
            ]
        compared = compare(judged_objects(truth, run, keys), found)
        right = np.zeros(len(found), dtype=bool)
        right[[pair.found for pair in compared.pairs]] = True
        counts = np.array([place not in compared.ignored for place in range(len(found))], dtype=bool)
        platt = fit(np.array([each["score"] for each in found], np.float64)[counts], right[counts])
        known = {"slope": None, "intercept": None} if platt is None else platt.model_dump()
        scores[name] = {**known, "labels": compared.labels, "right": len(compared.pairs)}
    return {"step": step.name, "scores": scores}


def fit(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> Platt | None:
    """The most likely slope and intercept; None where there is too little to go by, or higher scores are no better.

    Args:
        scores: 0…1.
        right: Whether that detection was.
    """
    from sklearn.linear_model import LogisticRegression

    if min(right.sum(), (~right).sum()) < LEAST:
        return None
    # As good as no penalty, and safe where the scores tell right from wrong without an exception.
    found = LogisticRegression(C=1e3).fit(logit(scores)[:, None], right)
    slope, intercept = float(found.coef_[0, 0]), float(found.intercept_[0])
    return Platt(slope=round(slope, 3), intercept=round(intercept, 3)) if slope >= 0.001 else None
