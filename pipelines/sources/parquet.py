"""Images in Parquet files, as the datasets package and many others write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from labelmill.operators.wording import counted
from labelmill.pipelines.sources.base import Entry, Refused, Source, SourceError, in_order, normal_key, problem_text
from labelmill.pipelines.sources.cells import cell_kind, cell_value, image_column, row_name
from labelmill.pipelines.sources.coco_folder import SPLITS
from labelmill.pipelines.sources.labels import LabelError, bytes_shape, stored_shape
from labelmill.pipelines.sources.metadata import said_size, scalar_columns, scalars
from labelmill.pipelines.sources.object_rows import CLASS_KEYS, objects_column, read_objects, unread_boxes
from labelmill.pipelines.sources.patterns import Container, locate
from labelmill.pipelines.sources.storage import Storage, Unavailable
from labelmill.pipelines.sources.uri import file_uri, is_remote, member_uri, parent, resolve

ROW_GROUP_BYTES = 2**28
"""Row groups with more image bytes than this are worth a note: a worker holds one in memory."""
BATCH_ROWS = 8192
IMAGE_ROWS = 64
"""Rows made Python objects at once where the images are among them."""
FOOTERS_AT_ONCE = 8


@dataclass(frozen=True)
class _File:
    """A Parquet file's footer, or why it cannot be read."""

    container: Container
    metadata: Any = None
    version: str | None = None
    error: str = ""


@dataclass
class _Layout:
    """What the columns of a file are.

    Attributes:
        file: The file.
        image: The column with the images.
        by_path: Whether it holds paths.
        others: Columns of scalars.
        objects: The column of objects, if there is one.
        names: Class names of objects by number, if the file says them.
        labelled: Column of class numbers → names.
        split: That the file's name says.
        measures: Whether the images' sizes are looked at.
    """

    file: _File
    image: str
    by_path: bool
    others: list[str]
    objects: str | None
    names: list[str] | None
    labelled: dict[str, list[str]]
    split: str | None
    measures: bool = False


class ParquetSource(Source):
    """One image a row. The other columns with scalar values become metadata, one of objects labels.

    Objects are what `pipelines.sources.object_rows` reads; class names and splits are taken from what the datasets
    package notes in the file and its name.

    Keys are ``file.parquet/00000012``, or the values of the column `key`. A column of paths or URLs points at files:
    relative paths start at the Parquet file's folder, and a file on another machine cannot name files of this one.

    Args:
        pattern: A file, a folder or a glob pattern.
        image: The column with the images; None if there is only one that it can be.
        key: The column with the keys, if any.
        storage: Reads the files.
        rescale: Whether labels of images that were evenly scaled since are scaled with them.
    """

    def __init__(
        self, pattern: str, image: str | None, key: str | None, storage: Storage, rescale: bool = False
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self._labelled = False
        self.pattern = pattern
        self.image = image
        self.key = key
        self.storage = storage

    def __str__(self) -> str:
        return f"parquet {self.pattern}"

    def _entries(self) -> Iterator[Entry]:
        containers = locate([self.pattern], ".parquet", self.storage, self._report)
        workers = FOOTERS_AT_ONCE if is_remote(self.pattern) else 1
        broken = []
        for file in in_order(self._open, containers, workers):
            if file.error:
                broken.append(file.error)
                self._report(file.error)
            else:
                yield from self._rows(file)
        if len(broken) == len(containers):
            raise SourceError(
                broken[0] + (f"; nor can {counted(len(broken) - 1, 'other file')}" if len(broken) > 1 else "")
            )

    def _empty(self) -> str:
        return f"the Parquet files of {self.pattern} have no rows" + "".join(f"; {text}" for text in self.problems[:3])

    def _open(self, container: Container) -> _File:
        import pyarrow.parquet as pq

        location = container.location
        try:
            version = self.storage.info(location).version
            return _File(container, self.storage.use(location, pq.read_metadata), version)
        except (Unavailable, pa.ArrowException) as error:
            return _File(container, error=f"{location} cannot be read as Parquet: {_first_line(error)}")

    def _rows(self, file: _File) -> Iterator[Entry]:
        location = file.container.location
        schema = file.metadata.schema.to_arrow_schema()
        image = image_column(schema, self.image, location)
        if self.key is not None and self.key not in schema.names:
            raise SourceError(
                f"key must be a column of {location}, but {self.key!r} is not; "
                f"its columns are {', '.join(schema.names)}"
            )
        self._note_large_groups(file, image)
        kind = cell_kind(schema.field(image).type)
        others = scalar_columns(schema, without=(image, self.key or ""))
        layout = _Layout(file, image, kind == "text", others, *_labels_of(schema), split_of_name(file.container.name))
        self._labelled |= layout.objects is not None
        if ignored := unread_boxes(schema, layout.objects):
            self.missing.append(
                f"{location} has boxes that are not read in {', '.join(ignored)}; objects must be in a column of "
                "lists or structs with bbox (x, y, width, height) and category or label"
            )
        # The sizes of the images here are looked at; elsewhere that would bring every image over.
        layout.measures = layout.objects is not None and (
            not is_remote(location) or not {"width", "height"} <= set(others)
        )
        shown = [image] if kind == "text" or layout.measures else []
        wanted = [*others, *shown, *([self.key] if self.key else []), *([layout.objects] if layout.objects else [])]
        total = file.metadata.num_rows
        try:
            for row, values in enumerate(self._values(file, wanted, IMAGE_ROWS if layout.measures else BATCH_ROWS)):
                yield self._entry(layout, row, total, values)
        except (Unavailable, pa.ArrowException) as error:
            self._report(f"{location} cannot be read to its end: {_first_line(error)}")

    def _values(self, file: _File, columns: list[str], rows: int) -> Iterator[dict[str, Any]]:
        """The values of some columns, row after row; the images are not read."""
        import pyarrow.parquet as pq

        if not columns:
            yield from ({} for _ in range(file.metadata.num_rows))
            return
        for group in range(file.metadata.num_row_groups):

            def read(handle: BinaryIO, group: int = group) -> pa.Table:
                return pq.ParquetFile(handle, metadata=file.metadata).read_row_group(
                    group, columns=columns, use_threads=False
                )

            for batch in self.storage.use(file.container.location, read).to_batches(rows):
                yield from batch.to_pylist()

    def _entry(self, layout: _Layout, row: int, total: int, values: dict[str, Any]) -> Entry:
        file, image = layout.file, layout.image
        location = file.container.location
        key, problems = f"{file.container.name}/{row_name(row, total)}", []
        if self.key is not None:
            value = values.get(self.key)
            if value is None or value == "":
                problems.append(f"the column {self.key!r} has no key for row {row} of {location}")
            else:
                key = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
        uri = member_uri(location, row=row, column=image)
        version = None if file.version is None else f"{file.version}#row={row}"
        target = None
        if layout.by_path:
            try:
                if not values[image]:
                    raise ValueError(f"the column {image!r} has no path in row {row} of {location}")
                target = resolve(values[image], parent(location))
                uri, version = file_uri(target), None
                if not is_remote(target):
                    version = self.storage.info(target).version
            except (ValueError, Unavailable) as error:
                problems.append(str(error))
        labels, refused = self._labels(layout, values, target, problems)
        for name, names in layout.labelled.items():
            number = values.get(name)
            if isinstance(number, int) and 0 <= number < len(names):
                values[name] = names[number]
        metadata = scalars({name: values[name] for name in layout.others})
        problem = problem_text([*problems, *map(str, refused)])
        return Entry(
            normal_key(key), uri, version, labels, layout.split, metadata, problem=problem, refused=tuple(refused)
        )

    def _labels(
        self, layout: _Layout, values: dict[str, Any], target: str | None, problems: list[str]
    ) -> tuple[list[dict[str, Any]] | None, list[Refused]]:
        if layout.objects is None:
            return None, []
        shape = None
        if layout.measures and values[layout.objects]:
            try:
                cell = target if layout.by_path else cell_value(values[layout.image])
                if cell is None:
                    raise LabelError("it is empty")
                shape = bytes_shape(cell) if isinstance(cell, bytes) else stored_shape(self.storage, cell)
            except (LabelError, Unavailable, ValueError) as error:
                problems.append(f"the image's width and height are not known: {error}")
        labels, refused, notes = read_objects(
            values[layout.objects], layout.names, shape, said_size(values), self.rescale
        )
        problems += notes
        return labels, refused

    def looked_for(self) -> str | None:
        return "a column such as objects with bbox and category" if self._labelled else None

    @property
    def classes(self) -> list[str] | None:
        """The class order that files written by `datasets` carry."""
        found: list[str] = []
        for container in locate([self.pattern], ".parquet", self.storage, lambda _: None):
            file = self._open(container)
            if not file.error:
                found += _labels_of(file.metadata.schema.to_arrow_schema())[1] or []
        return list(dict.fromkeys(found)) or None

    def _note_large_groups(self, file: _File, image: str) -> None:
        largest = 0
        for group in range(file.metadata.num_row_groups):
            columns = file.metadata.row_group(group)
            parts = (columns.column(number) for number in range(columns.num_columns))
            size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == image)
            largest = max(largest, size)
        if largest > ROW_GROUP_BYTES:
            self._report(
                f"{file.container.location} has row groups of {largest / 1e6:.0f} MB, and each worker holds one in "
                "memory; write it with smaller row groups (row_group_size=100) if memory is short"
            )


def split_of_name(name: str) -> str | None:
    """The split that a file's name or folder says, as `datasets` writes them: ``data/train-00000-of-00001.parquet``."""
    parts = name.lower().split("/")
    words = [re.split(r"[-_.]", part)[0] for part in reversed(parts)]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _labels_of(schema: pa.Schema) -> tuple[str | None, list[str] | None, dict[str, list[str]]]:
    """The column of objects, its class names, and those of columns of class numbers, as `datasets` notes them."""
    objects = objects_column(schema)
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return objects, None, {}
    if not isinstance(noted, dict):
        return objects, None, {}
    labelled = {
        name: feature["names"] for name, feature in noted.items() if isinstance(feature, dict) and "names" in feature
    }
    return objects, _noted_names(noted.get(objects)) if objects else None, labelled


def _noted_names(feature: Any) -> list[str] | None:
    """The names of the ClassLabel among the fields of objects, however lists and mappings nest."""
    if isinstance(feature, list):
        return _noted_names(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    if isinstance(feature.get("names"), list) and feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature["names"]]
    inner = [feature[key] for key in (*CLASS_KEYS, "feature") if key in feature]
    return next((names for names in map(_noted_names, inner) if names is not None), None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
