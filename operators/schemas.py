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
    ]
)
"""One object: its box, canonical class, score, and where known the prompt that found it, its mask and its makers."""

DETECTIONS = pa.list_(DETECTION)
"""All objects of one image. An empty list says that there are none; null that nobody looked."""


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
    ]
)
"""One row per image in ``shards/*.parquet``."""

SOURCE_COLUMNS = ("labels", "split", "metadata")
"""What a step can read of the source, as ``source.<column>``."""
