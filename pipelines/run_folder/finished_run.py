"""A finished run, as those read it who hold it against truth."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from functools import cached_property
from typing import Any

import pyarrow as pa

from labelmill.operators.errors import RowError
from labelmill.pipelines.errors import UnfinishedRun
from labelmill.pipelines.exports.columns import export_labels, labels_column
from labelmill.pipelines.run_folder.layout import column_of
from labelmill.pipelines.run_folder.outcomes import outcomes
from labelmill.pipelines.run_folder.reopen import reopen
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.steps import Input


class FinishedRun:
    """What a run says about the images it kept, by key.

    Args:
        folder: Its directory.

    Raises:
        UnfinishedRun: It is not finished.
    """

    def __init__(self, folder: str) -> None:
        self.pipeline, self.layout, self.shards = reopen(folder)
        self.folder = folder
        self.keys: dict[int, list[str]] = {}
        self.outcome: dict[str, str] = {}
        try:
            for outcome in outcomes(self.layout, self.shards):
                keys = read_shard(self.layout.store, outcome.shard, ["key"]).column(0).to_pylist()
                self.keys[outcome.shard] = keys
                self.outcome.update(zip(keys, outcome.final, strict=True))
        except FileNotFoundError as error:
            raise UnfinishedRun(folder) from error

    def values(self, column: Input, only: Collection[str]) -> dict[str, Any]:
        """A column's values of those images that were kept and for which there is one.

        Args:
            column: Which.
            only: Keys. Of the others nothing is held in memory.
        """
        found: dict[str, Any] = {}
        for keys, table in self.tables({column.column: column}, only):
            values = table.column(0).to_pylist()
            found.update((key, value) for key, value in zip(keys, values, strict=True) if value is not None)
        return found

    def tables(self, columns: Mapping[str, Input], only: Collection[str]) -> Iterator[tuple[list[str], pa.Table]]:
        """Shard by shard, some columns of the images that were kept and are asked for, and their keys."""
        wanted = only if isinstance(only, (Set, Mapping)) else set(only)
        for shard, keys in self.keys.items():
            rows = [row for row, key in enumerate(keys) if key in wanted and self.outcome[key] == "kept"]
            if not rows:
                continue
            given = {name: column_of(self.layout, column, shard) for name, column in columns.items()}
            yield [keys[row] for row in rows], pa.table(given).take(pa.array(rows, pa.int64()))

    def labels_column(self) -> Input:
        """Where the run's labels come from: those of its exports, or raw ones before the source's."""
        steps, wanted = self.layout.steps, self.pipeline.labels
        column = export_labels(steps, wanted)
        return column if column.step is not None or wanted is not None else labels_column(steps, wanted)

    def labels(self, only: Collection[str]) -> dict[str, Any]:
        """The labels of those images that were kept and that somebody, or a model, has looked at.

        Where they are the source's, not those of images of which some could not be taken.
        """
        column = self.labels_column()
        found = self.values(column, only)
        if column.step is None:
            states = self.values(Input(None, "label_state", pa.string()), found)
            found = {key: labels for key, labels in found.items() if states[key] == "read"}
        return found

    def uris(self) -> Iterator[tuple[str, str]]:
        """Key and uri of every image."""
        for shard in self.keys:
            yield from zip(*read_shard(self.layout.store, shard, ["key", "uri"]).to_pydict().values(), strict=True)

    def image_ids(self) -> Iterator[tuple[str, int]]:
        """Key and image_id of every image."""
        for shard in self.keys:
            columns = read_shard(self.layout.store, shard, ["key", "image_id"]).to_pydict()
            yield from zip(*columns.values(), strict=True)

    def size(self, key: str) -> tuple[int, int] | None:
        """Width and height of an image, upright, as `inspect` says or else its file; None for one that has none."""
        if key not in self.outcome:
            return None
        if key in self._sizes:
            return self._sizes[key]
        return self._read_size(key)

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """By key, of the images that an `inspect` step has seen."""
        found: dict[str, tuple[int, int]] = {}
        width, height = (self.last(side) for side in ("width", "height"))
        if width is None or height is None or width.step != height.step:
            return found
        for shard, keys in self.keys.items():
            sides = (column_of(self.layout, column, shard).to_pylist() for column in (width, height))
            found.update(
                (key, (w, h)) for key, w, h in zip(keys, *sides, strict=True) if w is not None and h is not None
            )
        return found

    def _read_size(self, key: str) -> tuple[int, int] | None:
        from labelmill.operators.images.decoded import DecodeError, image_size

        try:
            return image_size(self._fetch(self._uris[key]))
        except (RowError, DecodeError):
            return None

    @cached_property
    def _uris(self) -> dict[str, str]:
        return dict(self.uris())

    @cached_property
    def _fetch(self) -> Fetcher:
        return Fetcher(dict(self.pipeline.settings.source.storage_options))

    def last(self, name: str, fields: Iterable[str] = ()) -> Input | None:
        """The last step's column of that name whose values are lists of structs with these fields, if any is asked."""
        for step in reversed(self.layout.steps):
            for column in step.operator.writes():
                if column.name == name and set(fields) <= _fields(column.type):
                    return Input(step.position, name, column.type)
        return None


def _fields(kind: pa.DataType) -> set[str]:
    inner = kind.value_type if pa.types.is_list(kind) else kind
    return {inner.field(index).name for index in range(inner.num_fields)}
