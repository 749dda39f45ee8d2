"""Hands what a run decided to its exports, image by image, and puts each finished export in place whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.operators.errors import RowError
from labelmill.operators.images.decoded import image_size
from labelmill.operators.ontology import Ontology
from labelmill.pipelines.config.pipeline import Export, Pipeline
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports import exporter
from labelmill.pipelines.exports.base import Exporter
from labelmill.pipelines.exports.columns import (
    export_labels,
    find_column,
    made_of_source,
    models_used,
    raw_problem,
    raw_step,
)
from labelmill.pipelines.exports.dataset import Dataset, ExportError, ExportImage, Fetch, unreadable
from labelmill.pipelines.exports.files import Output
from labelmill.pipelines.run_folder.arrived import read_categories
from labelmill.pipelines.run_folder.layout import Layout, column_of
from labelmill.pipelines.run_folder.outcomes import outcomes
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.run_folder.store import TEMPORARY
from labelmill.pipelines.steps import ColumnError, Input, Step, resolve

MARKER = "export.json"

REVIEWED = "reviewed_at"
"""The column that says that a person decided; see `operators.review`."""


def export_all(
    pipeline: Pipeline, layout: Layout, shards: dict[int, int], classes: list[str], fetch: Fetch
) -> list[dict[str, Any]]:
    """Write every export that is not there yet.

    Args:
        pipeline: Whose exports are written.
        layout: The finished run.
        shards: Number of images by shard.
        classes: Class names in order; the position is the class id.
        fetch: Gives the bytes behind a uri.

    Returns:
        The summary of each export.

    Raises:
        UserError: The labels cannot be written in that format.
    """
    summaries = []
    for export in pipeline.exports:
        fingerprint = _fingerprint(pipeline, layout, shards, classes, export)
        marker = f"exports/{export.name}.{MARKER}"
        known = _read_json(layout, marker)
        if known is None or known["fingerprint"] != fingerprint:
            try:
                known = {"fingerprint": fingerprint, **_write(pipeline, layout, shards, classes, export, fetch)}
            except ExportError as error:
                raise UserError(f"export {export.name}: {error}") from error
            text = json.dumps(known, indent=2, ensure_ascii=False)
            layout.store.write(marker, text.encode())
            known = json.loads(text)
        summaries.append({"export": export.name, "path": f"{pipeline.settings.output}/exports/{export.name}", **known})
    return summaries


def _write(
    pipeline: Pipeline, layout: Layout, shards: dict[int, int], classes: list[str], export: Export, fetch: Fetch
) -> dict[str, Any]:
    store, name = layout.store, f"exports/{export.name}"
    writer = exporter(export.name)(export.params)
    if "class" in writer.needs():
        classes = _image_classes(pipeline, layout, shards)
    provenance = {
        "pipeline": pipeline.settings.name,
        "steps": [
            {"step": step.name, "operator": step.operator_name, "fingerprint": step.fingerprint}
            for step in layout.steps
        ],
        "models": models_used(layout.steps),
    }
    left_out: Counter[str] = Counter()
    images = _wanted(
        export_images(pipeline, layout, shards, fetch), writer, _labelled(pipeline, layout, shards), left_out
    )
    dataset = Dataset(images, classes, _splits(layout, shards), fetch, provenance, left_out, read_categories(store))
    if store.is_local:
        final, temporary = store.path(name), store.path(f"exports/{TEMPORARY}{export.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        summary = writer.write(dataset, Output(store.fs, temporary))
        # The marker goes first: between the two renames there is no export that claims to be whole.
        _forget(layout, f"exports/{export.name}.{MARKER}")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    else:
        _forget(layout, f"exports/{export.name}.{MARKER}")
        if store.exists(name):
            store.fs.rm(store.path(name), recursive=True)
        summary = writer.write(dataset, Output(store.fs, store.path(name)))
    return {**asdict(summary), "left_out": dict(left_out)}


def _labelled(pipeline: Pipeline, layout: Layout, shards: dict[int, int]) -> bool:
    """Whether anybody, a step or the source, looked for objects in any image.

    Raises:
        ExportError: Nobody has decided about the detections that there are.
    """
    if export_labels(layout.steps, pipeline.labels).step is not None:
        return True
    states = (read_shard(layout.store, shard, ["label_state"]).column(0).unique().to_pylist() for shard in shards)
    if any(set(found) - {"unread"} for found in states):
        return True
    if (step := raw_step(layout.steps)) is not None:
        raise ExportError(f"the dataset {raw_problem(step)}; the source has no labels either")
    return False


def _wanted(
    images: Iterator[ExportImage], writer: Exporter, labelled: bool, left_out: Counter[str]
) -> Iterator[ExportImage]:
    """The images that an export writes: those that somebody looked at, unless it is told otherwise.

    Args:
        images: All that the run kept.
        writer: The export.
        labelled: Whether somebody looked at any.
        left_out: Counts the others.
    """
    alone = writer.images_alone == "always" or (not labelled and writer.images_alone != "never")
    for image in images:
        if writer.labelled(image) or (image.label_state == "refused" and writer.params.refused == "rest"):
            yield image
        elif image.label_state == "refused" and writer.images_alone == "always":
            yield replace(image, detections=[], label_state="unread")
        elif image.label_state == "unread" and writer.params.unread == "background":
            yield replace(image, label_state="read")
        elif image.label_state == "unread" and alone:
            yield image
        else:
            left_out[image.label_state] += 1


def export_images(pipeline: Pipeline, layout: Layout, shards: dict[int, int], fetch: Fetch) -> Iterator[ExportImage]:
    """The images that every step kept, in order of image_id, with what the run says of them."""
    steps, wanted = layout.steps, pipeline.columns
    labels = export_labels(steps, wanted.labels)
    from_source = made_of_source(labels, steps)
    more = [find_column(key, wanted, steps) for key in ("words", "caption", "class")]
    split = _optional("split", steps) or Input(None, "split", pa.string())
    sizes = [_optional(name, steps) for name in ("width", "height", "format")]
    for outcome in outcomes(layout, shards):
        rows = read_shard(layout.store, outcome.shard, ["image_id", "key", "uri", "label_state"]).to_pylist()
        reviewed = _reviewed(layout, labels, outcome.shard)
        found = column_of(layout, labels, outcome.shard)
        splits = column_of(layout, split, outcome.shard).to_pylist()
        known, told = (
            [None if column is None else column_of(layout, column, outcome.shard) for column in columns]
            for columns in (sizes, more)
        )
        for index, row in enumerate(rows):
            if outcome.final[index] != "kept":
                continue
            width, height, kind = (None if column is None else column[index].as_py() for column in known)
            if width is None or height is None or kind is None:
                try:
                    width, height, kind = _measure(fetch(row["uri"]))
                except RowError as error:
                    raise unreadable(row["key"], error) from error
            detections, state = found[index].as_py(), "read"
            if from_source and index not in reviewed:
                state = row["label_state"]
            elif detections is None:
                state = "unread"
            words, caption, image_class = (None if column is None else column[index].as_py() for column in told)
            yield ExportImage(
                image_id=row["image_id"],
                key=row["key"],
                uri=row["uri"],
                width=int(width),
                height=int(height),
                split=splits[index],
                detections=detections or [],
                format=kind,
                words=words,
                caption=caption,
                image_class=image_class,
                label_state=state,
            )


def _reviewed(layout: Layout, labels: Input, shard: int) -> set[int]:
    """The rows whose labels are those of a person: whatever the source's were, these are all."""
    step = labels.step
    while step is not None:
        schema = layout.steps[step].operator.writes()
        if REVIEWED in schema.names:
            told = column_of(layout, Input(step, REVIEWED, schema.field(REVIEWED).type), shard)
            return {index for index, value in enumerate(told.to_pylist()) if value is not None}
        read = [each.step for each in layout.steps[step].inputs.values() if each.type.equals(DETECTIONS)]
        step = next((each for each in read if each is not None), None)
    return set()


def _image_classes(pipeline: Pipeline, layout: Layout, shards: dict[int, int]) -> list[str]:
    """Names of the classes of images: those of the ontology of the step that wrote them, else those found, by name."""
    column = find_column("class", pipeline.columns, layout.steps)
    if column is None:
        return []
    if column.step is not None:
        ontology = getattr(layout.steps[column.step].operator.params, "ontology", None)
        if isinstance(ontology, Ontology):
            return list(ontology.classes)
    found: set[str] = set()
    for shard in shards:
        found.update(name for name in column_of(layout, column, shard).unique().to_pylist() if name is not None)
    return sorted(found)


def _optional(column: str, steps: tuple[Step, ...]) -> Input | None:
    try:
        return resolve(column, steps)
    except ColumnError:
        return None


def _measure(data: bytes) -> tuple[int, int, str]:
    from labelmill.operators.images.decoded import image_format

    width, height = image_size(data)
    return width, height, image_format(data)


def _splits(layout: Layout, shards: dict[int, int]) -> list[str]:
    """The splits that images of the run are in, in the usual order."""
    column = _optional("split", layout.steps) or Input(None, "split", pa.string())
    found: set[str] = set()
    for shard in shards:
        found.update(name for name in column_of(layout, column, shard).to_pylist() if name is not None)
    usual = ["train", "val", "test"]
    return [name for name in usual if name in found] + sorted(found - set(usual))


def _fingerprint(pipeline: Pipeline, layout: Layout, shards: dict[int, int], classes: list[str], export: Export) -> str:
    content = {
        "export": export.name,
        "params": export.params.model_dump(mode="json"),
        "version": exporter(export.name).version,
        "columns": pipeline.columns.named(),
        "classes": classes,
        "steps": [step.fingerprint for step in layout.steps],
        "shards": sorted(shards.items()),
    }
    provisional = layout.provisional_state()
    if provisional:
        content["provisional"] = provisional
    if layout.departed.revision:
        content["revision"] = layout.departed.revision
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_json(layout: Layout, name: str) -> dict[str, Any] | None:
    try:
        value = json.loads(layout.store.read(name))
    except FileNotFoundError:
        return None
    return value if isinstance(value, dict) else None


def _forget(layout: Layout, name: str) -> None:
    if layout.store.exists(name):
        layout.store.fs.rm(layout.store.path(name))
