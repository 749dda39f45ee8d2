"""Everything that a report says about a run, as plain values: one pass over its shards, then the pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelmill.pipelines.report.clusters import ClusterSheets, EmbeddingMap
from labelmill.pipelines.report.duplicates import DuplicateGroups
from labelmill.pipelines.report.funnel import Funnel
from labelmill.pipelines.report.issues import Issues
from labelmill.pipelines.report.labels import Labels
from labelmill.pipelines.report.limits import LARGE, MAX_PICTURE_BYTES, MEDIUM, SMALL
from labelmill.pipelines.report.overlays import Overlays
from labelmill.pipelines.report.pictures import Pictures
from labelmill.pipelines.report.provenance import provenance
from labelmill.pipelines.report.quality import Quality
from labelmill.pipelines.report.run_reader import Collector, Figures, RunReader
from labelmill.pipelines.report.scores import ImageScores, ObjectScores
from labelmill.pipelines.report.speed import speed
from labelmill.pipelines.sources import Fetcher

OnProgress = Callable[[int, int], None]
"""Told how many pictures of how many are made."""


def gather(run: RunReader, truth: str | Path | None, on_progress: OnProgress = lambda done, of: None) -> Figures:
    """What the report of a finished run shows.

    Args:
        run: The run.
        truth: What to hold it against; see `pipelines.evaluation.truth.read_truth`.
        on_progress: Told about the pictures, which take most of the time.

    Raises:
        UserError: The run is not finished, or the truth cannot be read.
    """
    quality = None if truth is None else Quality(run, truth)
    funnel, issues = Funnel(run), Issues(run)
    labels = Labels(run, None if quality is None else quality.by_image)
    duplicates, clusters = DuplicateGroups.all_of(run), ClusterSheets.all_of(run)
    maps = EmbeddingMap.all_of(run, clusters)
    objects, images = ObjectScores.all_of(run), ImageScores(run)
    collectors: list[Collector] = [funnel, issues, *([] if quality is None else [quality]), labels]
    run.walk([*collectors, *duplicates, *clusters, *maps, *objects, images])

    picked = labels.picked
    found: dict[str, Any] = {
        "run": run.folder,
        "pipeline": run.pipeline.settings.name,
        "funnel": funnel.finish(),
        "labels": {**labels.finish(), "from": run.name(labels.column)},
        "scores": [score for each in objects if (score := each.finish()) is not None] + images.finish(),
        "duplicates": [each.finish() for each in duplicates],
        "clusters": [each.finish() for each in clusters],
        "maps": [points for each in maps if (points := each.finish()) is not None],
        "issues": issues.finish(),
        "quality": None if quality is None else quality.finish(),
        "speed": speed(run),
        "made_with": provenance(run),
        "problems": {"count": run.summary["source_problem_count"], "shown": run.summary["source_problems"][:100]},
    }
    pictures = _asked_for(found, picked)
    named = run.names(pictures.ids)
    made = pictures.make(
        {image_id: uri for image_id, (_, uri) in named.items()},
        Fetcher(dict(run.pipeline.settings.source.storage_options)),
        MAX_PICTURE_BYTES,
        on_progress,
    )
    overlays = Overlays(run, labels.column, {} if quality is None else quality.by_image)
    classes = [each["name"] for each in found["labels"]["classes"]]
    found["overlays"] = {
        each["image"]: each
        for each in overlays.draw(sorted({i for ids in picked.values() for i in ids}), made, classes)
    }
    found["picked"] = {name: [i for i in ids if i in found["overlays"]] for name, ids in picked.items()}
    found["keys"] = {image_id: key for image_id, (key, _) in named.items()}
    found["pictures"] = made
    found["pictures_left_out"] = len(pictures.ids) - len(made)
    return found


def _asked_for(found: Figures, picked: dict[str, list[int]]) -> Pictures:
    """Which images need pictures, the most telling first, since the budget may not last for all."""
    pictures = Pictures()
    for ids in picked.values():
        pictures.ask(ids, LARGE)
    funnel = found["funnel"]
    for reason in funnel["dropped"]:
        pictures.ask((told["image"] for told in reason["images"]), MEDIUM)
    for step in found["duplicates"]:
        for group in step["groups"]:
            pictures.ask([group["kept"], *(copy["image"] for copy in group["copies"])], MEDIUM)
    for issue in found["issues"]:
        pictures.ask((told["image"] for told in issue["images"]), MEDIUM)
    for step in found["clusters"]:
        for cluster in step["shown"]:
            pictures.ask(cluster["images"], SMALL)
    for points in found["maps"]:
        pictures.ask((point["image"] for point in points["points"]), SMALL)
    pictures.ask((told["image"] for told in funnel["failed"]), SMALL)
    return pictures
