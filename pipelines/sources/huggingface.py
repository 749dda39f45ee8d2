"""Images in a dataset that the Hugging Face datasets package saved with ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from labelmill.pipelines.sources.base import Entry, Refused, Source, SourceError, problem_text, valid_text
from labelmill.pipelines.sources.cells import cell_kind, cell_value, image_column, row_name
from labelmill.pipelines.sources.labels import LabelError, bytes_shape, stored_shape
from labelmill.pipelines.sources.metadata import said_size, scalar_columns, scalars
from labelmill.pipelines.sources.object_rows import CLASS_KEYS, objects_column, read_objects, unread_boxes
from labelmill.pipelines.sources.storage import Storage, Unavailable
from labelmill.pipelines.sources.uri import is_remote, member_uri, resolve

BATCH_ROWS = 256
SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
"""Other names of the splits train, val and test."""


class HuggingFaceSource(Source):
    """One image a row of a saved Dataset or DatasetDict, memory-mapped. The other scalar columns become metadata.

    A column ``objects`` with ``bbox`` (COCO's x, y, width, height) and ``category`` or ``label`` becomes labels; see
    `pipelines.sources.object_rows`.

    Args:
        folder: Where the dataset was saved, on this machine.
        image: The column with the images; None if there is only one that it can be.
        storage: Reads images that the dataset only points at.
        rescale: Whether labels of images that were evenly scaled since are scaled with them.
    """

    def __init__(self, folder: str, image: str | None, storage: Storage, rescale: bool = False) -> None:
        super().__init__()
        self.rescale = rescale
        self._labelled = False
        self.folder = folder
        self.image = image
        self.storage = storage

    def __str__(self) -> str:
        return f"huggingface {self.folder}"

    @property
    def classes(self) -> list[str] | None:
        names: list[str] = []
        for dataset in load_saved(self.folder).values():
            objects = objects_column(dataset.features.arrow_schema)
            names += _class_names(dataset.features.get(objects)) or [] if objects else []
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
        objects = objects_column(schema)
        self._labelled |= objects is not None
        if ignored := unread_boxes(schema, objects):
            self.missing.append(
                f"{where} has boxes that are not read in {', '.join(ignored)}; objects must be in a column of "
                "lists or structs with bbox (x, y, width, height) and category or label"
            )
        names = _class_names(dataset.features.get(objects)) if objects else None
        version = _version(dataset)
        labelled = {name: dataset.features[name] for name in others if hasattr(dataset.features[name], "int2str")}
        shown = split or str(dataset.split or "")
        rows = len(dataset)
        needed = objects or cell_kind(schema.field(image).type) == "text"
        wanted = [*others, *([objects] if objects else []), *([image] if needed else [])]
        for row, values in enumerate(_values(dataset, wanted, rows)):
            problems: list[str] = []
            labels, refused = self._labels(values, objects, image, names, problems) if objects else (None, [])
            for name, feature in labelled.items():
                values[name] = _class_name(feature, values[name])
            yield Entry(
                f"{split}/{row_name(row, rows)}" if split else row_name(row, rows),
                member_uri(self.folder, split=split, row=row, column=image),
                f"{version}#row={row}",
                labels,
                SPLITS.get(shown, shown) or None,
                scalars({name: values[name] for name in others}),
                problem_text([*problems, *map(str, refused)]),
                tuple(refused),
            )

    def _labels(
        self, values: dict[str, Any], objects: str, image: str, names: list[str] | None, problems: list[str]
    ) -> tuple[list[dict[str, Any]] | None, list[Refused]]:
        shape = None
        if values[objects]:
            try:
                cell = cell_value(values[image])
                if cell is None:
                    raise LabelError("it is empty")
                shape = bytes_shape(cell) if isinstance(cell, bytes) else stored_shape(self.storage, self._file(cell))
            except (LabelError, Unavailable, ValueError) as error:
                problems.append(f"the image's width and height are not known: {error}")
        labels, refused, notes = read_objects(values[objects], names, shape, said_size(values), self.rescale)
        problems += notes
        return labels, refused

    def looked_for(self) -> str | None:
        return "a column such as objects with bbox and category" if self._labelled else None

    def _file(self, reference: str) -> str:
        return resolve(reference, self.folder)


def holds_parquet_alone(folder: str, storage: Storage) -> bool:
    """Whether a local folder has Parquet files, and nothing that ``save_to_disk`` wrote."""
    if is_remote(folder) or not storage.is_folder(folder):
        return False
    names = storage.names(folder)
    if "dataset_info.json" in names or "dataset_dict.json" in names:
        return False
    return any(name.endswith(".parquet") for name in [*names, *storage.names(os.path.join(folder, "data"))])


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


def _class_names(feature: Any) -> list[str] | None:
    """The names of the ClassLabel among the fields of ``objects``, however lists and mappings nest."""
    if feature is None:
        return None
    if hasattr(feature, "int2str"):
        return list(feature.names)
    if isinstance(feature, dict):
        return next((_class_names(feature[key]) for key in CLASS_KEYS if key in feature), None)
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else None
    return _class_names(getattr(feature, "feature", None))
