"""A finished run, as those read it who hold it against truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipelines.errors import UnfinishedRun
from pipelines.inspection.status import reopen
from pipelines.run_folder.layout import column_of
from pipelines.run_folder.outcomes import outcomes
from pipelines.run_folder.shards import read_shard
from pipelines.steps import Input


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

    def values(self, column: Input) -> dict[str, Any]:
        """A column's values of the images that were kept and for which there is one."""
        found: dict[str, Any] = {}
        for shard, keys in self.keys.items():
            values = column_of(self.layout, column, shard).to_pylist()
            pairs = zip(keys, values, strict=True)
            found.update((key, value) for key, value in pairs if value is not None and self.outcome[key] == "kept")
        return found

    def tables(self, columns: Mapping[str, Input], only: Iterable[str]) -> Iterator[tuple[list[str], pa.Table]]:
        """Shard by shard, some columns of the images that were kept and are asked for, and their keys."""
        wanted = set(only)
        for shard, keys in self.keys.items():
            rows = [row for row, key in enumerate(keys) if key in wanted and self.outcome[key] == "kept"]
            given = {name: column_of(self.layout, column, shard) for name, column in columns.items()}
            yield [keys[row] for row in rows], pa.table(given).take(pa.array(rows, pa.int64()))

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
