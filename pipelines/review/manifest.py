"""What was given out for review: one Parquet file for each, in the run and beside the tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labelmill.operators.columns.schemas import DETECTIONS
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.exports.dataset import ExportImage
from labelmill.pipelines.run_folder.store import Store, parquet_bytes

FOLDER = "review/given"
"""Where a run keeps them."""

_DETAILS = b"labelmill.review"

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),  # as the tasks call the image's file
        pa.field("width", pa.int32(), nullable=False),  # pixels, upright
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),  # Pillow's name
        pa.field("random", pa.bool_(), nullable=False),  # in the slice that the statistics are made of
        pa.field("reasons", pa.list_(pa.string()), nullable=False),  # why else it was chosen
        pa.field("detections", DETECTIONS, nullable=False),  # the labels that were shown
    ]
)


@dataclass(frozen=True)
class Details:
    """What a review is about.

    Attributes:
        review: Its name: 8 hex digits of all that is below and the images.
        pipeline: Name of the pipeline.
        tool: label_studio or cvat.
        labels: The column that was reviewed.
        fingerprint: Of the step that wrote it; empty for the source's labels.
        classes: In the order of class ids.
        seed: Of the random slice.
        images: How many images the run kept: what the random slice stands for.
        number: 1 for the run's first review, and so on.
    """

    review: str
    pipeline: str
    tool: str
    labels: str
    fingerprint: str
    classes: tuple[str, ...]
    seed: int
    images: int
    number: int


@dataclass(frozen=True)
class Given:
    """One image as it was given out.

    Attributes:
        image: With the labels that were shown as its detections; its uri is empty.
        file_name: As the tasks call it.
        random: Whether it belongs to the random slice.
        details: Of its review.
    """

    image: ExportImage
    file_name: str
    random: bool
    details: Details


def manifest_bytes(rows: Sequence[dict[str, Any]], details: Details) -> bytes:
    """The manifest as a Parquet file."""
    content = json.dumps({**details.__dict__, "classes": list(details.classes)}, sort_keys=True).encode()
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    return parquet_bytes(table.replace_schema_metadata({_DETAILS: content}))


def read_manifests(store: Store) -> list[tuple[Details, pa.Table]]:
    """All manifests of a run, the first review first.

    Raises:
        UserError: One is not what was written.
    """
    found = []
    for name in store.names(FOLDER):
        table = store.read_table(f"{FOLDER}/{name}")
        content = (table.schema.metadata or {}).get(_DETAILS)
        if content is None or not set(SCHEMA.names) <= set(table.column_names):
            raise UserError(f"{store.address(f'{FOLDER}/{name}')} must be a review's manifest but is not; remove it")
        values = json.loads(content)
        found.append((Details(**{**values, "classes": tuple(values["classes"])}), table))
    return sorted(found, key=lambda pair: (pair[0].number, pair[0].review))


def given_images(manifests: Sequence[tuple[Details, pa.Table]]) -> dict[int, Given]:
    """Every image that was given out, by image_id; the last review of an image counts."""
    found = {}
    for details, table in manifests:
        for row in table.to_pylist():
            image = ExportImage(
                image_id=row["image_id"],
                key=row["key"],
                uri="",
                width=row["width"],
                height=row["height"],
                split=None,
                detections=row["detections"],
                format=row["format"],
            )
            found[image.image_id] = Given(image, row["file_name"], row["random"], details)
    return found
