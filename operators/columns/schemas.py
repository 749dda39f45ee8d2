"""Arrow types that several operators, sources and exports share.

Coordinates are pixels of the upright image (EXIF orientation applied), origin at the top left corner, `xyxy`,
with ``0 ≤ x1 ≤ x2 ≤ width`` and ``0 ≤ y1 ≤ y2 ≤ height``.
"""

from __future__ import annotations

import pyarrow as pa

SIDES = ("x1", "y1", "x2", "y2")
"""Names of a box's coordinates, in the order of `xyxy`."""

DETECTION = pa.struct(
    [
        pa.field("x1", pa.float32()),
        pa.field("y1", pa.float32()),
        pa.field("x2", pa.float32()),
        pa.field("y2", pa.float32()),
        pa.field("class", pa.string()),
        pa.field("score", pa.float32()),  # 0…1; null for a label that a person made
        pa.field("prompt", pa.string()),  # the phrase that was asked; null where none was
        pa.field("mask", pa.string()),  # COCO compressed RLE counts over (height, width); null for a box alone
        pa.field("models", pa.list_(pa.string())),  # cards that made it, box first: name@digest; null: none known
        pa.field("crowd", pa.bool_()),  # true: no object but a region to ignore, COCO's iscrowd; null as false
        pa.field("extra", pa.string()),  # a JSON object of what else its source said: COCO's area, keypoints, …
    ]
)
"""One object: its box, canonical class, score, and where known the prompt that found it, its mask and its makers.

With `crowd` it is a region in which objects of its class were not told apart: what is found in it is neither right nor
wrong, and it is nothing to train on (COCO's ``iscrowd``; Lin et al. 2014).
"""

DETECTIONS = pa.list_(DETECTION)
"""All objects of one image. An empty list says that there are none; null that nobody looked."""


EARLIEST_FIELDS = 8
"""Fields that detections had in the first runs; whatever has fewer is something else."""


def as_detections(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of detections as they are now; one that an earlier version wrote gets null for what it did not have."""
    kind = column.type
    if kind.equals(DETECTIONS) or not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return column
    known, fields = {field.name: field.type for field in DETECTION}, list(kind.value_type)
    first = [field.name for field in DETECTION][: len(fields)]
    same = [field.name for field in fields] == first and all(field.type.equals(known[field.name]) for field in fields)
    return column.cast(DETECTIONS) if same and len(fields) >= EARLIEST_FIELDS else column


LABEL_STATES = ("read", "unread", "refused")
"""What became of an image's labels as they came in.

read: all were, or the source says that there are none. unread: nobody looked, so `labels` is null. refused: something
was there and could not be taken; `refused` says what, and `labels` holds the rest, or is null where there is none.
"""

REFUSED = pa.list_(
    pa.struct(
        [
            pa.field("place", pa.string(), nullable=False),  # where it stands: file:line, annotation 7, object 3 of …
            pa.field("reason", pa.string(), nullable=False),
        ]
    )
)
"""The labels of one image that could not be taken, one each."""


def embedding(dimensions: int) -> pa.DataType:
    """The type of an L2-normalised float16 vector of `dimensions` values."""
    return pa.list_(pa.float16(), dimensions)


SHARD = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),  # shard × shard size + row + 1
        pa.field("key", pa.string(), nullable=False),  # path below the source's root, '/' between parts, unique
        pa.field("uri", pa.string(), nullable=False),  # where the bytes are; see pipelines.sources
        pa.field("version", pa.string()),  # changes when the bytes do (size and time, or ETag)
        pa.field("labels", DETECTIONS),  # null: the source has no labels for this image
        pa.field("split", pa.string()),  # train, val, test as the source had it
        pa.field("metadata", pa.string()),  # a JSON object: what else the source knew
        pa.field("problem", pa.string()),  # what is wrong with the source's entry, if anything
        pa.field("label_state", pa.string()),  # one of LABEL_STATES
        pa.field("refused", REFUSED),  # null: none
        pa.field("stamp", pa.string()),  # changes with what the source says of the image, all but its version
    ]
)
"""One row per image in ``shards/*.parquet``."""

SOURCE_COLUMNS = ("labels", "split", "metadata", "label_state")
"""What a step can read of the source, as ``source.<column>``."""
