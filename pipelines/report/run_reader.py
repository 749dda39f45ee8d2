"""A finished run, read shard by shard; each step's file is read once for all parts of the report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelmill.pipelines.errors import UnfinishedRun
from labelmill.pipelines.run_folder.layout import Layout, column_of
from labelmill.pipelines.run_folder.outcomes import Outcome, outcomes
from labelmill.pipelines.run_folder.reopen import SUMMARY_FILE, reopen
from labelmill.pipelines.run_folder.shards import read_shard, size_of_shards
from labelmill.pipelines.steps import Input, Step

Figures = dict[str, Any]


class Collector(Protocol):
    """A part of the report that looks at every shard."""

    def reads(self) -> Sequence[Input]:
        """The columns it looks at."""

    def see(self, shard: ShardView) -> None:
        """Take what it needs of a shard; shards come in order."""


class ShardView:
    """One shard: what became of its images, and the columns that collectors asked for."""

    def __init__(self, layout: Layout, outcome: Outcome, first_id: int, wanted: dict[int | None, list[str]]) -> None:
        self._layout, self._wanted = layout, wanted
        self._tables: dict[int | None, pa.Table] = {}
        self.outcome = outcome
        self.ids: NDArray[np.int64] = np.arange(first_id, first_id + len(outcome.final), dtype=np.int64)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Whether no step decided against the image; one per row."""
        return np.array([final == "kept" for final in self.outcome.final], dtype=bool)

    def column(self, source: Input) -> pa.ChunkedArray:
        """The values of a column, one per row."""
        if source.step not in self._tables:
            names, shard = self._wanted[source.step], self.outcome.shard
            self._tables[source.step] = (
                read_shard(self._layout.store, shard, names)
                if source.step is None
                else self._layout.table(source.step, shard, names)
            )
        return self._tables[source.step].column(source.column)


class RunReader:
    """A finished run.

    Attributes:
        folder: As it was named.
        summary: What its ``summary.json`` holds.

    Raises:
        UnfinishedRun: It is not finished.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.pipeline, self.layout, self.shards = reopen(folder)
        if not self.layout.store.exists(SUMMARY_FILE):
            raise UnfinishedRun(folder)
        self.summary: Figures = json.loads(self.layout.store.read(SUMMARY_FILE))
        self._size = size_of_shards(self.layout.store, self.shards, self.pipeline.settings.shard_size)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.layout.steps

    def columns(self, wanted: Callable[[Step, pa.Field], bool]) -> list[Input]:
        """The columns of steps for which a condition holds, in the order of the pipeline."""
        return [
            Input(step.position, field.name, field.type)
            for step in self.steps
            for field in step.operator.writes()
            if wanted(step, field)
        ]

    def name(self, column: Input) -> str:
        """How a pipeline calls a column: ``step.column``."""
        return column.name(self.steps)

    def walk(self, collectors: Sequence[Collector]) -> None:
        """Show every shard to every collector.

        Raises:
            UnfinishedRun: A step is not done for a shard.
        """
        wanted: dict[int | None, list[str]] = defaultdict(list)
        for column in (column for collector in collectors for column in collector.reads()):
            if column.column not in wanted[column.step]:
                wanted[column.step].append(column.column)
        try:
            for outcome in outcomes(self.layout, self.shards):
                view = ShardView(self.layout, outcome, outcome.shard * self._size + 1, wanted)
                for collector in collectors:
                    collector.see(view)
        except FileNotFoundError as error:
            raise UnfinishedRun(self.folder) from error

    def names(self, ids: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Key and uri of chosen images, by image_id."""
        found: dict[int, tuple[str, str]] = {}
        for shard, rows in self._by_shard(ids):
            table = read_shard(self.layout.store, shard, ["image_id", "key", "uri"]).take(pa.array(rows))
            found.update((image_id, (key, uri)) for image_id, key, uri in zip(*table.to_pydict().values(), strict=True))
        return found

    def values(self, ids: Iterable[int], column: Input) -> dict[int, Any]:
        """A column's values for chosen images, by image_id."""
        found: dict[int, Any] = {}
        for shard, rows in self._by_shard(ids):
            values = column_of(self.layout, column, shard).take(pa.array(rows)).to_pylist()
            found.update(zip((shard * self._size + row + 1 for row in rows), values, strict=True))
        return found

    def _by_shard(self, ids: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
        rows: dict[int, list[int]] = defaultdict(list)
        for image_id in sorted(set(ids)):
            rows[(image_id - 1) // self._size].append((image_id - 1) % self._size)
        return iter(rows.items())
