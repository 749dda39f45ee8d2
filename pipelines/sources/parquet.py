"""Images in Parquet files, as the datasets package and many others write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from operators.wording import counted
from pipelines.sources.base import Entry, Source, SourceError, in_order, normal_key
from pipelines.sources.cells import cell_kind, image_column, row_name
from pipelines.sources.metadata import scalar_columns, scalars
from pipelines.sources.patterns import Container, locate
from pipelines.sources.storage import Storage, Unavailable
from pipelines.sources.uri import file_uri, is_remote, member_uri, parent, resolve

ROW_GROUP_BYTES = 2**28
"""Row groups with more image bytes than this are worth a note: a worker holds one in memory."""
BATCH_ROWS = 8192
FOOTERS_AT_ONCE = 8


@dataclass(frozen=True)
class _File:
    """A Parquet file's footer, or why it cannot be read."""

    container: Container
    metadata: Any = None
    version: str | None = None
    error: str = ""


class ParquetSource(Source):
    """One image a row. The other columns with scalar values become metadata.

    Keys are ``file.parquet/00000012``, or the values of the column `key`. A column of paths or URLs points at files:
    relative paths start at the Parquet file's folder, and a file on another machine cannot name files of this one.

    Args:
        pattern: A file, a folder or a glob pattern.
        image: The column with the images; None if there is only one that it can be.
        key: The column with the keys, if any.
        storage: Reads the files.
    """

    def __init__(self, pattern: str, image: str | None, key: str | None, storage: Storage) -> None:
        super().__init__()
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
        wanted = [*others, *([image] if kind == "text" else []), *([self.key] if self.key else [])]
        total = file.metadata.num_rows
        try:
            for row, values in enumerate(self._values(file, wanted)):
                yield self._entry(file, row, total, image, kind == "text", values, others)
        except (Unavailable, pa.ArrowException) as error:
            self._report(f"{location} cannot be read to its end: {_first_line(error)}")

    def _values(self, file: _File, columns: list[str]) -> Iterator[dict[str, Any]]:
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

            for batch in self.storage.use(file.container.location, read).to_batches(BATCH_ROWS):
                yield from batch.to_pylist()

    def _entry(
        self, file: _File, row: int, total: int, image: str, by_path: bool, values: dict[str, Any], others: list[str]
    ) -> Entry:
        location = file.container.location
        key, problem = f"{file.container.name}/{row_name(row, total)}", None
        if self.key is not None:
            value = values.get(self.key)
            if value is None or value == "":
                problem = f"the column {self.key!r} has no key for row {row} of {location}"
            else:
                key = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
        uri = member_uri(location, row=row, column=image)
        version = None if file.version is None else f"{file.version}#row={row}"
        if by_path:
            try:
                if not values[image]:
                    raise ValueError(f"the column {image!r} has no path in row {row} of {location}")
                target = resolve(values[image], parent(location))
                uri, version = file_uri(target), None
                if not is_remote(target):
                    version = self.storage.info(target).version
            except (ValueError, Unavailable) as error:
                problem = "; ".join(filter(None, (problem, str(error))))
        metadata = scalars({name: values[name] for name in others})
        return Entry(normal_key(key), uri, version, metadata=metadata, problem=problem)

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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
