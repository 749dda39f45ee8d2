"""The truth that a run is held against: a COCO file, or a folder as `labelmill world` writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.errors import UserError

TABLES = {
    "words": ("key", "text", "x1", "y1", "x2", "y2"),
    "gaze": ("key", "yaw", "pitch", "x1", "y1", "x2", "y2"),
    "captions": ("key", "caption"),
    "duplicates": ("key", "group", "kind", "of"),
    "defects": ("key", "defect"),
}
"""Parquet files that may stand beside `INSTANCES`, and the columns that they must have."""

INSTANCES = "instances.json"


@dataclass(frozen=True)
class Truth:
    """What is true about images, by key (their path below the source).

    Attributes:
        classes: Class names of the objects; the place is the category's number, from 1.
        images: Image number of each key that the COCO file knows.
        sizes: Height and width in pixels, by image number.
        objects: In COCO's keys; ``image_id`` and ``category_id`` are those numbers.
        tables: Rows of each of `TABLES` that is there.
    """

    classes: tuple[str, ...]
    images: dict[str, int]
    sizes: dict[int, list[int]]
    objects: list[dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_truth(path: Path) -> Truth:
    """Read a COCO file, or a folder with ``instances.json`` and any of `TABLES`.

    Raises:
        UserError: It is not there, or not what it should be.
    """
    if path.is_dir():
        tables = {name: _table(_table_file(path, name), columns) for name, columns in TABLES.items()}
        document = _json(path / INSTANCES)
    elif path.is_file():
        tables, document = {}, _json(path)
    else:
        raise UserError(f"truth must be a COCO file or a folder with instances.json, but there is nothing at {path}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise UserError(f"{path} must be a COCO document with a list of {key}")
    try:
        return _truth(document, {name: rows for name, rows in tables.items() if rows is not None})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} must be a COCO document, but {type(error).__name__}: {error}") from error


def truth_files(path: Path) -> list[Path]:
    """The files that `read_truth` would read, of those that are there."""
    files = [path / INSTANCES, *(_table_file(path, name) for name in TABLES)] if path.is_dir() else [path]
    return [file for file in files if file.is_file()]


def _table_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"


def _truth(document: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> Truth:
    names: Sequence[dict[str, Any]] = document["categories"]
    categories = {category["id"]: number for number, category in enumerate(names, 1)}
    images = {image["id"]: (number, image["file_name"]) for number, image in enumerate(document["images"], 1)}
    sizes = {image["id"]: [image["height"], image["width"]] for image in document["images"]}
    objects = []
    for annotation in document["annotations"]:
        if annotation.get("iscrowd"):
            continue
        shape = annotation.get("segmentation")
        objects.append(
            {
                "image_id": images[annotation["image_id"]][0],
                "category_id": categories[annotation["category_id"]],
                "bbox": [float(value) for value in annotation["bbox"]],
                "segmentation": _rle(shape, sizes[annotation["image_id"]]) if shape else None,
            }
        )
    keys = {key: number for number, key in images.values()}
    shapes = {images[image][0]: size for image, size in sizes.items()}
    return Truth(tuple(str(category["name"]) for category in names), keys, shapes, objects, tables)


def _rle(shape: Any, size: list[int]) -> dict[str, Any]:
    """Compressed RLE of any of COCO's three ways to write a mask."""
    from pycocotools import mask

    if isinstance(shape, list):
        merged: dict[str, Any] = mask.merge(mask.frPyObjects(shape, *size))
        return merged
    if isinstance(shape["counts"], list):
        compressed: dict[str, Any] = mask.frPyObjects(shape, *size)
        return compressed
    return {"size": shape["size"], "counts": shape["counts"].encode()}


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"truth cannot be read from {path}: {error}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} must be a COCO document but is a {type(document).__name__}")
    return document


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise UserError(f"truth cannot be read from {path}: {error}") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise UserError(f"{path} must have the columns {', '.join(columns)} but lacks {', '.join(missing)}")
    rows: list[dict[str, Any]] = table.select(list(columns)).to_pylist()
    return rows
