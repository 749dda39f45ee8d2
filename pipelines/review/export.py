"""Writes what a person should look at as tasks of a labelling tool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelmill.operators.wording import counted
from labelmill.pipelines.engine.export_run import export_images
from labelmill.pipelines.errors import UnfinishedRun, UserError, nearest
from labelmill.pipelines.exports import exporter
from labelmill.pipelines.exports.base import Exporter
from labelmill.pipelines.exports.columns import labels_column, models_used
from labelmill.pipelines.exports.dataset import Dataset, ExportError, ExportImage, Fetch
from labelmill.pipelines.exports.files import Output, file_name
from labelmill.pipelines.exports.label_studio import LabelStudio
from labelmill.pipelines.review.collect import DECISIONS_FILE, read_decisions
from labelmill.pipelines.review.manifest import FOLDER, Details, manifest_bytes, read_manifests
from labelmill.pipelines.review.pick import Pick, pick
from labelmill.pipelines.run_folder.reopen import export_classes, reopen
from labelmill.pipelines.run_folder.shards import size_of_shards
from labelmill.pipelines.sources import Fetcher, open_source

MANIFEST = "review.parquet"

TOOLS = {"label-studio": "label_studio", "cvat": "cvat"}
"""What a person calls a tool → its exporter."""


class ReviewTasks(LabelStudio):
    """Label Studio tasks whose ``data`` says why an image was chosen."""

    reasons: dict[int, tuple[str, ...]]

    def data(self, image: ExportImage, fetch: Fetch, out: Output) -> dict[str, Any]:
        return {**super().data(image, fetch, out), "reasons": list(self.reasons[image.image_id])}


def export_review(
    run: str, tool: str, out: Path, images: int, random_images: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Choose images of a finished run and write them as tasks with pre-annotations.

    Args:
        run: The run's directory.
        tool: One of `TOOLS`.
        out: A directory; new or empty.
        images: How many images.
        random_images: How many of them make the random slice; a fifth if not given.
        seed: Of the random slice.

    Returns:
        ``review`` (its name), ``tool``, ``images``, ``random`` and ``with_reasons`` (images), ``kept`` (images of the
        run), ``labels`` (the column), ``objects``, ``paths``, and the exporter's ``skipped`` and ``notes``.

    Raises:
        UserError: The run is not finished or has no labels, `out` holds something, or the labels cannot be written.
    """
    if tool not in TOOLS:
        raise UserError(f"--to must be one of {', '.join(TOOLS)} but is {tool!r}{nearest(tool, TOOLS)}")
    if random_images is None:
        random_images = max(1, images // 5)
    if random_images > images:
        raise UserError(f"--random must be at most --images, {images}, but is {random_images}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} must be a new or empty directory but holds something; choose another one")
    pipeline, layout, shards = reopen(run)
    labels = labels_column(layout.steps, pipeline.labels)
    manifests = read_manifests(layout.store)
    step = None if labels.step is None else layout.steps[labels.step]
    fingerprint = "" if step is None else step.fingerprint
    drawn = [
        table.column("image_id").filter(table.column("random")).to_pylist()
        for details, table in manifests
        if details.fingerprint == fingerprint
    ]
    reviewed = read_decisions(layout.store, DECISIONS_FILE)
    seen = frozenset(reviewed.column("image_id").to_pylist())
    given = frozenset(image_id for ids in drawn for image_id in ids)
    try:
        picks, kept = pick(layout, shards, labels, images, random_images, seed, seen, given)
        again = not picks and bool(given - seen)
        if again:  # tasks that were lost, or are wanted for another tool
            picks, kept = pick(layout, shards, labels, images, random_images, seed, seen, given & seen)
        classes = export_classes(pipeline, layout, shards, open_source(pipeline.settings.source))
    except FileNotFoundError as error:
        raise UnfinishedRun(run) from error
    told = f"{counted(len(seen), 'image has', 'images have')} been reviewed"
    if not picks:
        why = f"{told}, every one that it kept" if seen else "it kept none"
        raise UserError(f"the run {run} must have images to review but {why}")
    content = [TOOLS[tool], labels.column, fingerprint, seed, classes, [[each.image_id, each.random] for each in picks]]
    details = Details(
        review=hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8],
        pipeline=pipeline.settings.name,
        tool=TOOLS[tool],
        labels=labels.name(layout.steps),
        fingerprint=fingerprint,
        classes=tuple(classes),
        seed=seed,
        images=kept,
        number=len(manifests) + 1,
    )
    chosen = {each.image_id: each for each in picks}
    rows: list[dict[str, Any]] = []
    size = size_of_shards(layout.store, shards, pipeline.settings.shard_size)
    few = {shard: count for shard, count in shards.items() if any((each - 1) // size == shard for each in chosen)}
    fetch = Fetcher(dict(pipeline.settings.source.storage_options))
    shown = _noting(export_images(pipeline, layout, few, fetch), chosen, rows)
    provenance = {"pipeline": details.pipeline, "review": details.review, "models": models_used(layout.steps)}
    target = _output(out)
    try:
        summary = _exporter(tool, chosen).write(Dataset(shown, classes, [], fetch, provenance), target)
    except ExportError as error:
        raise UserError(f"the tasks cannot be written: {error}") from error
    manifest = manifest_bytes(rows, details)
    target.write(MANIFEST, manifest)
    layout.store.write(f"{FOLDER}/{details.number:04d}-{details.review}.parquet", manifest)
    return {
        "review": details.review,
        "tool": tool,
        "images": len(rows),
        "random": sum(each.random for each in picks),
        "kept": kept,
        "labels": details.labels,
        "objects": sum(summary.annotations.values()),
        "with_reasons": sum(bool(each.reasons) for each in picks),
        "paths": [str(out / path) for path in (*summary.paths, MANIFEST)],
        "skipped": summary.skipped,
        "notes": [
            *(["These were given out before and nobody has reviewed them yet; " + f"{told}."] if again else []),
            *summary.notes,
        ],
    }


def _exporter(tool: str, chosen: dict[int, Pick]) -> Exporter:
    if TOOLS[tool] != LabelStudio.name:
        cls = exporter(TOOLS[tool])
        return cls(cls.Params())
    tasks = ReviewTasks(LabelStudio.Params())
    tasks.reasons = {image_id: each.reasons for image_id, each in chosen.items()}
    return tasks


def _noting(
    images: Iterator[ExportImage], chosen: dict[int, Pick], rows: list[dict[str, Any]]
) -> Iterator[ExportImage]:
    """The chosen images, without splits; notes each in `rows` as the manifest has it."""
    for image in images:
        picked = chosen.get(image.image_id)
        if picked is None:
            continue
        rows.append(
            {
                "image_id": image.image_id,
                "key": image.key,
                "file_name": file_name(image),
                "width": image.width,
                "height": image.height,
                "format": image.format,
                "random": picked.random,
                "reasons": list(picked.reasons),
                "detections": image.detections,
            }
        )
        yield replace(image, split=None, words=None, caption=None, image_class=None)


def _output(out: Path) -> Output:
    from fsspec.implementations.local import LocalFileSystem

    out.mkdir(parents=True, exist_ok=True)
    return Output(LocalFileSystem(), str(out))
