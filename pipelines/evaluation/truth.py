"""The truth that a run is held against: labels of any kind that a source can read, a run, or a person's decisions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from labelmill.operators.columns.schemas import SIDES
from labelmill.operators.review import REVIEWS
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.evaluation.keys import aligned
from labelmill.pipelines.review.collect import DECISIONS_FILE, read_decisions
from labelmill.pipelines.run_folder.finished_run import FinishedRun
from labelmill.pipelines.run_folder.reopen import PIPELINE_FILE
from labelmill.pipelines.run_folder.store import Store
from labelmill.pipelines.sources.base import Entry
from labelmill.pipelines.sources.labels import LabelError, rle_mask
from labelmill.pipelines.sources.read_labels import Labels, extra_of, read_labels
from labelmill.pipelines.sources.uri import is_remote

TABLES = {
    "words": ("key", "text", "x1", "y1", "x2", "y2"),
    "gaze": ("key", "yaw", "pitch", "x1", "y1", "x2", "y2"),
    "captions": ("key", "caption"),
    "duplicates": ("key", "group", "kind", "of"),
    "defects": ("key", "defect"),
}
"""Parquet files that may stand beside `INSTANCES`, and the columns that they must have."""

INSTANCES = "instances.json"

DECIMALS = 9
"""More than any pixel coordinate has; sums of decimals are rounded to so many."""


@dataclass(frozen=True)
class Truth:
    """What is true about images, by key (their path below the source).

    Attributes:
        classes: Class names of the objects; the place is the category's number, from 1.
        images: Image number of each key whose labels somebody looked at; as COCO's own ids are ordered, else the keys.
        sizes: Height and width in pixels, by image number, as far as the truth knows them.
        objects: In COCO's keys; ``image_id`` and ``category_id`` are those numbers. With ``iscrowd`` it is a region to
            ignore; ``area`` is there where the truth says it.
        tables: Rows of each of `TABLES` that is there.
        kind: What it was read as.
        left_out: Key → ``unread`` or ``refused`` of each image whose labels nobody looked at, or could not be taken.
        refused: How many labels could not be taken.
        problems: What is wrong with it, one sentence each.
    """

    classes: tuple[str, ...]
    images: dict[str, int]
    sizes: dict[int, list[int]]
    objects: list[dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kind: str = "coco"
    left_out: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    problems: list[str] = field(default_factory=list)

    def keys(self) -> set[str]:
        """Every key that it speaks of."""
        return {*self.images, *self.left_out, *(row["key"] for rows in self.tables.values() for row in rows)}

    def digest(self) -> str:
        """Of all that it says."""
        parts = (self.classes, self.images, self.sizes, self.objects, self.tables, self.kind, self.left_out,
                 self.refused, self.problems)  # fmt: skip
        digest = hashlib.sha256()
        for part in json.JSONEncoder(default=_text).iterencode(parts):
            digest.update(part.encode())
        return digest.hexdigest()


def read_truth(where: str | Path, run: FinishedRun | None = None) -> Truth:
    """Read the truth, with the same code and the same tolerance as a source.

    Args:
        where: Whatever a source may be: a COCO file, a ``data.yaml``, a folder with labels, Parquet, …; a folder with
            ``instances.json`` and any of `TABLES`, as ``labelmill world`` writes it; a run, whose reviewed images are
            the truth, or if nobody has reviewed any, all that it kept, with its labels; or the decisions of
            ``labelmill review import``.
        run: The run that is to be held against it. It says how large images are that lie elsewhere, and which image is
            meant where keys begin in another folder.

    Raises:
        UserError: It is not there, or not what it should be.
    """
    location = str(where)
    path = Path(location)
    if not is_remote(location) and not path.exists() and not any(sign in location for sign in "*?[{"):
        raise UserError(
            "truth must be labels of any kind that a source can be (a COCO file, a data.yaml, a folder, …), a run, or "
            f"the decisions of `labelmill review import`, but there is nothing at {location}"
        )
    tables: dict[str, list[dict[str, Any]]] = {}
    if (path / INSTANCES).is_file():
        found = {name: _table(path / f"{name}.parquet", columns) for name, columns in TABLES.items()}
        tables = {name: rows for name, rows in found.items() if rows is not None}
        location = str(path / INSTANCES)
    if (path / PIPELINE_FILE).is_file() and (path / "shards").is_dir():
        labels = _of_run(location, run)
    elif _is_decisions(path):
        labels = _of_decisions(Store(str(path.parent)), path.name, location)
    else:
        # A COCO file says where its images are, but for truth they need not be there.
        size = (lambda key: None) if run is None else run.size
        labels = read_labels(location, size if location.lower().endswith(".json") else None)
    if run is not None:
        labels = aligned(labels, run)
    return _truth(labels, tables, run)


def _of_run(folder: str, judged: FinishedRun | None) -> Labels:
    """A run's reviewed images; if nobody has reviewed any, all that it kept."""
    other = FinishedRun(folder)
    if other.layout.store.exists(DECISIONS_FILE):
        return _of_decisions(other.layout.store, DECISIONS_FILE, folder)
    if judged is not None and judged.layout.store.address() == other.layout.store.address():
        raise UserError(
            f"the truth must be somebody else's labels but is the run {folder} itself, of which nobody has reviewed "
            f"an image: labelmill review export OUT --run {folder}"
        )
    images = {key: Entry(key, "", labels=found) for key, found in other.labels(other.outcome).items()}
    return Labels(folder, "run", _classes(images), images)


def _is_decisions(path: Path) -> bool:
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        return set(REVIEWS.names) <= set(pq.read_schema(path).names)
    except (OSError, ValueError):
        return False


def _of_decisions(store: Store, name: str, where: str) -> Labels:
    rows = read_decisions(store, name).select(["key", "detections"]).to_pylist()
    images = {row["key"]: Entry(row["key"], "", labels=row["detections"]) for row in rows}
    return Labels(where, "review", _classes(images), images)


def _classes(images: Mapping[str, Entry]) -> list[str]:
    return sorted({label["class"] for entry in images.values() for label in entry.labels or ()})


def _truth(labels: Labels, tables: dict[str, list[dict[str, Any]]], run: FinishedRun | None) -> Truth:
    looked = {key: entry for key, entry in labels.images.items() if entry.label_state == "read"}
    images = {key: number for number, key in enumerate(_ordered(looked, labels.kind), 1)}
    classes = {name: number for number, name in enumerate(labels.classes, 1)}
    sizes: dict[int, list[int]] = {}
    objects = []
    for key, number in images.items():
        entry = looked[key]
        known = [size for size in (None if run is None else run.size(key), _said(entry)) if size is not None]
        if known:
            sizes[number] = [known[0][1], known[0][0]]
        for label in entry.labels or ():
            classes.setdefault(label["class"], len(classes) + 1)
            objects.append(_object(label, number, classes[label["class"]], known))
    entries = labels.images.values()
    refused = len(labels.refused) + sum(len(entry.refused) for entry in entries)
    problems = [*labels.problems, *(f"{entry.key}: {entry.problem}" for entry in entries if entry.problem)]
    left_out = {key: entry.label_state for key, entry in labels.images.items() if key not in looked}
    return Truth(tuple(classes), images, sizes, objects, tables, labels.kind, left_out, refused, problems)


def _ordered(images: Mapping[str, Entry], kind: str) -> Iterator[str]:
    """Keys in the order of COCO's image ids, which decides which of two equal scores comes first; else of the keys."""

    def place(key: str) -> tuple[Any, ...]:
        number = (images[key].metadata or {}).get("id") if kind == "coco" else None
        known = isinstance(number, (int, float)) and not isinstance(number, bool)
        return (0, number, key) if known else (1, 0, key)

    yield from sorted(images, key=place)


def _object(label: dict[str, Any], image: int, number: int, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(label[side]) for side in SIDES)
    found: dict[str, Any] = {
        "image_id": image,
        "category_id": number,
        "bbox": [x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)],
        "segmentation": _rle(label.get("mask"), sizes),
        "iscrowd": int(bool(label.get("crowd"))),
    }
    area = extra_of(label).get("area")
    return found if area is None else {**found, "area": float(area)}


def _rle(counts: str | None, sizes: list[tuple[int, int]]) -> dict[str, Any] | None:
    """A mask with the size of its image, the first that its counts fill; None where it has none that is known."""
    for width, height in sizes if counts else ():
        try:
            checked = rle_mask({"counts": counts}, (width, height))
        except LabelError:
            continue
        return {"size": [height, width], "counts": checked.encode()}
    return None


def _said(entry: Entry) -> tuple[int, int] | None:
    """Width and height that the truth itself says."""
    said = entry.metadata or {}
    width, height = said.get("width"), said.get("height")
    whole = all(isinstance(side, (int, float)) and side == int(side) and side > 0 for side in (width, height))
    return (int(width), int(height)) if whole else None  # type: ignore[arg-type]


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


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
