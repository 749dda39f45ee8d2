"""From a uri to bytes, in the workers."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from labelmill.operators.errors import RowError
from labelmill.operators.secrets import keep_all, keep_options, known
from labelmill.pipelines.sources.base import SourceError
from labelmill.pipelines.sources.storage import Storage, Unavailable
from labelmill.pipelines.sources.uri import parent, parse, resolve

CACHE_BYTES = 2**28
"""Image bytes of Parquet row groups that a fetcher keeps; at least the last row group."""


class Fetcher:
    """Loads the bytes of an image. One serves all threads of a worker; pickled, it opens everything again.

    Args:
        storage_options: Handed to fsspec for remote locations.
        secrets: What is not to be told in messages of this process; see `operators.secrets`.
    """

    def __init__(
        self, storage_options: Mapping[str, Any] | None = None, secrets: Mapping[str, str] | None = None
    ) -> None:
        self.storage_options = dict(storage_options or {})
        keep_all(secrets or {})
        keep_options(self.storage_options)
        self._storage = Storage(self.storage_options)
        self._row_groups = RowGroups(self._storage)
        self._datasets: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.storage_options, known())

    def __call__(self, uri: str) -> bytes:
        """The encoded image at a uri of `pipelines.sources.uri`.

        Raises:
            RowError: It is gone, forbidden, cut short or empty, or the network failed; says which.
        """
        try:
            location, fields = parse(uri)
            value = self._part(location, fields) if fields else self._storage.read(location)
            if isinstance(value, str):  # a cell that points at a file
                folder = location if "split" in fields else parent(location)
                value = self._storage.read(resolve(value, folder))
        except (SourceError, ValueError) as error:
            raise RowError(str(error)) from error
        except KeyError as error:
            raise RowError(f"{uri} must name {error} after # but does not") from error
        if not value:
            raise RowError(f"the file is empty: {uri}")
        return value

    def _part(self, location: str, fields: dict[str, str]) -> bytes | str | None:
        if "offset" in fields:
            offset, length = int(fields["offset"]), int(fields["length"])
            data = self._storage.read(location, offset, length)
            if len(data) < length:
                raise Unavailable(f"{location} is cut short: {len(data)} of {length} bytes from {offset} are there")
            return data
        if "split" in fields:
            return self._dataset_cell(location, fields["split"], int(fields["row"]), fields["column"])
        if "row" in fields:
            return self._row_groups.cell(location, int(fields["row"]), fields["column"])
        raise ValueError(f"{location} has no part called {fields}")

    def _dataset_cell(self, folder: str, split: str, row: int, column: str) -> bytes | str | None:
        from labelmill.pipelines.sources.cells import cell_value
        from labelmill.pipelines.sources.huggingface import load_saved

        with self._lock:
            if folder not in self._datasets:
                loaded = load_saved(folder)
                self._datasets[folder] = {name: dataset.with_format("arrow") for name, dataset in loaded.items()}
        dataset = self._datasets[folder].get(split)
        if dataset is None or row >= len(dataset) or column not in dataset.column_names:
            raise Unavailable(f"row {row} of column {column!r} is gone from {os.path.join(folder, split)}")
        return cell_value(dataset[row].column(column)[0].as_py())


class RowGroups:
    """The image column of the last few row groups read, `CACHE_BYTES` at most or one. Thread-safe.

    Threads that want the same row group wait for one of them to read it.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._ends: dict[str, list[int]] = {}
        self._groups: OrderedDict[tuple[str, int, str], Future[Any]] = OrderedDict()

    def cell(self, location: str, row: int, column: str) -> bytes | str | None:
        """The bytes, or the path or URL, in a cell. Raises: Unavailable, Missing."""
        from labelmill.pipelines.sources.cells import cell_value

        group, first = self._group_of(location, row)
        mine: Future[Any] = Future()
        with self._lock:
            future = self._groups.setdefault((location, group, column), mine)
            self._groups.move_to_end((location, group, column))
        if future is mine:
            try:
                mine.set_result(self._read(location, group, column))
            except BaseException as error:
                with self._lock:
                    self._groups.pop((location, group, column), None)
                mine.set_exception(error)
                raise
            self._evict()
        return cell_value(future.result()[row - first].as_py())

    def _group_of(self, location: str, row: int) -> tuple[int, int]:
        """The row group that holds a row, and its first row."""
        import bisect
        import itertools

        with self._lock:
            ends = self._ends.get(location)
        if ends is None:
            metadata = self._use(location, lambda file: file.metadata)
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            ends = list(itertools.accumulate(sizes))
            with self._lock:
                self._ends[location] = ends
        group = bisect.bisect_right(ends, row)
        if group == len(ends):
            raise Unavailable(f"row {row} is gone: {location} has {ends[-1] if ends else 0} rows")
        return group, ends[group - 1] if group else 0

    def _read(self, location: str, group: int, column: str) -> Any:
        def read(file: Any) -> Any:
            if column not in file.schema_arrow.names:
                raise Unavailable(f"the column {column!r} is gone from {location}")
            return file.read_row_group(group, columns=[column], use_threads=False).column(column)

        return self._use(location, read)

    def _use(self, location: str, action: Any) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return self._storage.use(location, lambda file: action(pq.ParquetFile(file)))
        except pa.ArrowException as error:
            raise Unavailable(f"{location} cannot be read as Parquet: {error}") from error

    def _evict(self) -> None:
        with self._lock:
            done = [key for key, future in self._groups.items() if future.done() and not future.exception()]
            size = {key: self._groups[key].result().nbytes for key in done}
            total = sum(size.values())
            for key in done[:-1]:
                if total <= CACHE_BYTES:
                    break
                total -= size[key]
                del self._groups[key]
