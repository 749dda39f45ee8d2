"""Images in a dataset that the Hugging Face datasets package saved with ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Entry, Source, SourceError, problem_text, valid_text
from pipelines.sources.cells import cell_kind, cell_value, image_column, row_name
from pipelines.sources.labels import OVERFLOW, LabelError, bytes_size, clip, detection, numbers, stored_size
from pipelines.sources.metadata import scalar_columns, scalars
from pipelines.sources.storage import Storage, Unavailable
from pipelines.sources.uri import is_remote, member_uri, resolve

BATCH_ROWS = 256
SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
"""Other names of the splits train, val and test."""


class HuggingFaceSource(Source):
    """One image a row of a saved Dataset or DatasetDict, memory-mapped. The other scalar columns become metadata.

    A column ``objects`` with ``bbox`` (COCO's x, y, width, height) and ``category`` or ``categories`` becomes labels.

    Args:
        folder: Where the dataset was saved, on this machine.
        image: The column with the images; None if there is only one that it can be.
        storage: Reads images that the dataset only points at.
    """

    def __init__(self, folder: str, image: str | None, storage: Storage) -> None:
        super().__init__()
        self.folder = folder
        self.image = image
        self.storage = storage

    def __str__(self) -> str:
        return f"huggingface {self.folder}"

    @property
    def classes(self) -> list[str] | None:
        names: list[str] = []
        for dataset in load_saved(self.folder).values():
            names += _class_names(dataset.features.get("objects")) or []
        return [valid_text(name) for name in dict.fromkeys(names)] or None

    def _entries(self) -> Iterator[Entry]:
        for split, dataset in sorted(load_saved(self.folder).items()):
            yield from self._rows(split, dataset)

    def _empty(self) -> str:
        return f"the dataset in {self.folder} has no rows"

    def _rows(self, split: str, dataset: Any) -> Iterator[Entry]:
        schema = dataset.features.arrow_schema
        declared = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
        where = f"{self.folder} ({split})" if split else self.folder
        image = image_column(schema, self.image, where, declared)
        others = scalar_columns(schema, without=(image,))
        objects = ["objects"] if _holds_objects(schema) else []
        names = _class_names(dataset.features.get("objects")) if objects else None
        version = _version(dataset)
        labelled = {name: dataset.features[name] for name in others if hasattr(dataset.features[name], "int2str")}
        shown = split or str(dataset.split or "")
        rows = len(dataset)
        wanted = [*others, *objects, *([image] if objects or cell_kind(schema.field(image).type) == "text" else [])]
        for row, values in enumerate(_values(dataset, wanted, rows)):
            problems: list[str] = []
            labels = self._labels(values, image, names, problems) if objects else None
            for name, feature in labelled.items():
                values[name] = _class_name(feature, values[name])
            yield Entry(
                f"{split}/{row_name(row, rows)}" if split else row_name(row, rows),
                member_uri(self.folder, split=split, row=row, column=image),
                f"{version}#row={row}",
                labels,
                SPLITS.get(shown, shown) or None,
                scalars({name: values[name] for name in others}),
                problem_text(problems),
            )

    def _labels(
        self, values: dict[str, Any], image: str, names: list[str] | None, problems: list[str]
    ) -> list[dict[str, Any]] | None:
        objects = _rows_of(values["objects"])
        if objects is None:
            return None
        size = None
        if objects:
            try:
                cell = cell_value(values[image])
                if cell is None:
                    raise LabelError("it is empty")
                size = bytes_size(cell) if isinstance(cell, bytes) else stored_size(self.storage, self._file(cell))
            except (LabelError, Unavailable, ValueError) as error:
                problems.append(f"the image's width and height are not known: {error}")
        labels = []
        for number, item in enumerate(objects, 1):
            try:
                x, y, width, height = numbers(item.get("bbox"), 4)
                box, outside = clip((x, y, x + width, y + height), size)
                if outside > OVERFLOW:
                    problems.append(f"object {number} has a box that leaves the image by {outside:g} pixels; clipped")
                labels.append(detection(box, _category(item, names)))
            except LabelError as error:
                problems.append(f"object {number} {error}")
        return labels

    def _file(self, reference: str) -> str:
        return resolve(reference, self.folder)


def load_saved(folder: str) -> dict[str, Any]:
    """The datasets saved in a folder, by split; a single one under the empty name. Their rows stay on disk.

    Raises:
        SourceError: There is none, or the folder is on another machine.
    """
    if is_remote(folder):
        raise SourceError(
            f"huggingface must be a local folder, because it is memory-mapped, but is {folder}; copy it, "
            "or save the dataset as Parquet and use parquet:"
        )
    if not os.path.isdir(folder):
        error = Storage().missing(folder, "the folder")
        raise SourceError(f"{error}; nothing is downloaded: save a dataset with dataset.save_to_disk({folder!r})")
    import datasets

    try:
        found = datasets.load_from_disk(folder, keep_in_memory=False)
    except FileNotFoundError as error:
        names = ", ".join(Storage().names(folder)[:8])
        raise SourceError(
            f"{folder} must be a folder that dataset.save_to_disk wrote but holds {names or 'nothing'}"
        ) from error
    except IndexError as error:  # the package's answer to a dataset without data files
        raise SourceError(f"the dataset in {folder} has no rows") from error
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise SourceError(f"the dataset in {folder} cannot be opened: {error}") from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}


def _values(dataset: Any, columns: list[str], rows: int) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(rows))
        return
    for table in dataset.select_columns(columns).with_format("arrow").iter(BATCH_ROWS):
        yield from table.to_pylist()


def _version(dataset: Any) -> str:
    status = [os.stat(file["filename"]) for file in dataset.cache_files]
    return f"{sum(s.st_size for s in status)}-{max((s.st_mtime_ns for s in status), default=0)}"


def _class_name(feature: Any, value: int | None) -> str | int | None:
    return feature.int2str(value) if value is not None and 0 <= value < feature.num_classes else value


def _holds_objects(schema: pa.Schema) -> bool:
    if "objects" not in schema.names:
        return False
    kind = schema.field("objects").type
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    return "bbox" in names and ("category" in names or "categories" in names)


def _class_names(feature: Any) -> list[str] | None:
    """The names of the ClassLabel among the fields of ``objects``, however lists and mappings nest."""
    if feature is None:
        return None
    if hasattr(feature, "int2str"):
        return list(feature.names)
    if isinstance(feature, dict):
        return _class_names(feature.get("category", feature.get("categories")))
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else None
    return _class_names(getattr(feature, "feature", None))


def _rows_of(objects: Any) -> list[dict[str, Any]] | None:
    """Objects as one dict each, from a list of dicts or a dict of lists; None where there are no labels."""
    if objects is None or isinstance(objects, list):
        return [item or {} for item in objects] if objects is not None else None
    boxes = objects.get("bbox")
    if boxes is None:
        return None
    categories = objects.get("category", objects.get("categories")) or []
    padded = [*categories, *[None] * (len(boxes) - len(categories))]
    return [{"bbox": box, "category": category} for box, category in zip(boxes, padded, strict=False)]


def _category(item: dict[str, Any], names: list[str] | None) -> str:
    value = item.get("category", item.get("categories"))
    if value is None or (isinstance(value, int) and names is not None and not 0 <= value < len(names)):
        raise LabelError(f"has the category {value}, which has no name")
    return names[value] if names is not None and isinstance(value, int) else str(value)
