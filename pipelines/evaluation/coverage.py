"""How far a truth and a run speak of the same images and classes; and what to say where they do not."""

from __future__ import annotations

from collections import Counter
from typing import Any

from labelmill.operators.wording import counted
from labelmill.pipelines.errors import nearest
from labelmill.pipelines.evaluation.truth import Truth
from labelmill.pipelines.run_folder.finished_run import FinishedRun

Figures = dict[str, Any]

SHOWN = 10
"""Problems of a truth that are told word for word."""


def coverage(truth: Truth, run: FinishedRun) -> Figures:
    """What of a truth took part.

    Returns:
        ``kind`` (what the truth was read as); of images ``in_truth``, ``in_run`` (of those, how many the run has),
        ``kept`` (how many it kept, labels of which are judged), and what of those that it kept took no part:
        ``unread`` (nobody labelled them) and ``refused`` (their labels could not be taken); ``refused_labels``; and
        ``problems``, the first of them, and how many there are.
    """
    known = {*truth.images, *truth.left_out}
    shared = [key for key in known if key in run.outcome]
    kept = [key for key in shared if run.outcome[key] == "kept"]
    states = Counter(truth.left_out[key] for key in kept if key in truth.left_out)
    return {
        "kind": truth.kind,
        "in_truth": len(known),
        "in_run": len(shared),
        "kept": len(kept),
        "unread": states["unread"],
        "refused": states["refused"],
        "refused_labels": truth.refused,
        "problems": truth.problems[:SHOWN],
        "problem_count": len(truth.problems),
    }


def no_image(truth: Truth, run: FinishedRun, where: str) -> str:
    """That a truth speaks of none of a run's images."""
    keys = truth.keys()
    theirs = f"{min(keys)!r}" if keys else "none"
    ours = f"{counted(len(run.outcome), 'image')} such as {next(iter(run.outcome), 'none')!r}"
    return (
        f"the run {run.folder} and the truth {where} must have keys in common, but the run has {ours} and the truth, "
        f"read as {truth.kind}, has {len(keys):,} such as {theirs}; a key is an image's path below the source's root"
    )


def no_labels(truth: Truth, run: FinishedRun, where: str) -> str:
    """That nothing of a run can be judged by a truth."""
    column = run.labels_column()
    states = Counter(truth.left_out[key] for key in truth.left_out if run.outcome.get(key) == "kept")
    judged = sum(run.outcome.get(key) == "kept" for key in truth.images)
    start = f"nothing of the run {run.folder} can be held against the truth {where}: "
    if not judged and (there := truth.images.keys() & run.outcome.keys()):
        return f"{start}of the {counted(len(there), 'image')} that it has labels for the run kept none"
    if not judged:
        told = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items())) or "none"
        first = f"; first: {truth.problems[0]}" if truth.problems else ""
        return f"{start}of the images that the run kept it has labels for none ({told}){first}"
    said = f"its labels, {column.name(run.layout.steps)}, are null for all of them"
    return (
        f"{start}they have {counted(judged, 'image')} in common, but {said}; add a step that makes labels, or a source "
        "that has some"
    )


def no_class(truth: Truth, run: FinishedRun, labels: Figures, where: str) -> str | None:
    """That a run and a truth have no class in common; None if they have, or one of them has none at all."""
    ontology = run.pipeline.settings.ontology
    ours = set(labels["classes_not_in_truth"]) | set(() if ontology is None else ontology.classes)
    if labels["labels"] or labels["ignored"] or not ours or not truth.classes or ours & set(truth.classes):
        return None
    return (
        f"the run {run.folder} and the truth {where} must have classes in common, but the run's are "
        f"{_names(sorted(ours))} and the truth's {_names(sorted(truth.classes))}{nearest(min(ours), truth.classes)}"
    )


def _names(names: list[str]) -> str:
    told = ", ".join(map(repr, names[:SHOWN]))
    return told + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
