"""Runs a DatasetOperator: a barrier that sees all shards, and stays resumable and incremental.

The shards that a dataset step decides about together are a generation. A generation is named by how many shards there
were when it was decided; every file of it says so. Results of earlier generations stand. When a run is killed between
two files of one generation, the generation is computed again from the same input, which gives the same files, and the
missing ones are written.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.results import join_result
from labelmill.operators.base import DatasetOperator, TableResult, Tasks
from labelmill.pipelines.engine.outages import stopped
from labelmill.pipelines.engine.provisional import is_provisional
from labelmill.pipelines.engine.receipts import OnNews, Receipt, Working, receipt_of
from labelmill.pipelines.engine.work import PARTIAL_SECONDS, load
from labelmill.pipelines.run_folder.invalidate import GENERATION
from labelmill.pipelines.run_folder.layout import Layout, active_rows, column_of
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.run_folder.store import TEMPORARY
from labelmill.pipelines.steps import Step

StartTasks = Callable[[str], Tasks]
"""Gives an operator's `tasks`, for the folder that they may use."""


def run_dataset_step(
    layout: Layout,
    step: Step,
    shards: Iterable[int],
    on_news: OnNews | None = None,
    start_tasks: StartTasks | None = None,
) -> list[Receipt]:
    """Do what is not done yet of a dataset step; one receipt per shard.

    Args:
        layout: The run.
        step: Whose operator is a DatasetOperator. Every step that it depends on must be done for all shards.
        shards: All shards of the run.
        on_news: Told of every receipt when its file is written.
        start_tasks: Where the operator may have parts of its work done; None for in this process.
    """
    operator = step.operator
    assert isinstance(operator, DatasetOperator)
    everything = sorted(shards)
    generations = _generations(layout, step, everything)
    done = layout.done(step.position)
    receipts = []
    decided: list[int] = []
    for generation in sorted(generations):
        members = generations[generation]
        began, started = time.time(), time.perf_counter()
        if not done.issuperset(members):
            load(step)
            if on_news is not None:
                on_news(Working(step.name, 0, began))
            told = start_tasks and partial(_TellingTasks, start_tasks, step.name, began, on_news)
            # They are decided together: none is for good while images may come to one of them.
            provisional = is_provisional(layout, step.depends, members)
            for shard, table in _compute(layout, step, operator, members, decided, told):
                if shard in done:
                    continue
                table = table.replace_schema_metadata({GENERATION: str(generation).encode()})
                layout.write(step.position, shard, table, provisional)
                seconds = (time.perf_counter() - started) / max(1, len(members))
                receipt = receipt_of(step, shard, table, seconds=seconds, began=began)
                receipts.append(receipt)
                if on_news is not None:
                    on_news(receipt)
        decided += members
    for shard in sorted(done):
        receipts.append(receipt_of(step, shard, layout.table(step.position, shard, ["decision"]), computed=False))
    return sorted(receipts, key=lambda receipt: receipt.shard)


def _generations(layout: Layout, step: Step, shards: list[int]) -> dict[int, list[int]]:
    """Members of each generation, by its name; the last one holds the shards that have no file yet."""
    import pyarrow.parquet as pq

    named: dict[int, int] = {}
    for shard in layout.done(step.position):
        with layout.store.fs.open(layout.store.path(layout.file(step.position, shard)), "rb") as file:
            named[shard] = int((pq.read_schema(file).metadata or {}).get(GENERATION, b"0"))
    generations: dict[int, list[int]] = defaultdict(list)
    names = sorted({*named.values(), len(shards)})
    for shard in shards:
        # A shard without a file belongs to the first generation that was decided when the shard was there.
        generation = named.get(shard, next(name for name in names if name > shard))
        generations[generation].append(shard)
    return generations


def _compute(
    layout: Layout,
    step: Step,
    operator: DatasetOperator,
    members: list[int],
    decided: list[int],
    start_tasks: StartTasks | None,
) -> Iterable[tuple[int, pa.Table]]:
    """The step's table for every shard of a generation."""
    with tempfile.TemporaryDirectory(prefix="labelmill-") as folder:
        new, positions = _gather(layout, step, members, os.path.join(folder, "new.arrow"), with_results=False)
        old, _ = _gather(layout, step, decided, os.path.join(folder, "old.arrow"), with_results=True)
        with _tasks(layout, start_tasks) as operator.tasks, stopped([step]):
            result = operator.compute(new, old)
        start = 0
        for shard in members:
            indices = positions[shard]
            part = TableResult(
                None if result.columns is None else result.columns.slice(start, len(indices)),
                None if result.decisions is None else result.decisions[start : start + len(indices)],
            )
            image_ids = read_shard(layout.store, shard, ["image_id"]).column(0)
            yield shard, join_result(operator, image_ids, indices, part)
            start += len(indices)


class _TellingTasks:
    """Tasks that tell how many parts are done."""

    def __init__(self, start: StartTasks, step: str, began: float, on_news: OnNews | None, folder: str) -> None:
        self._tasks = start(folder)
        self.folder, self.width = folder, self._tasks.width
        self._step, self._began, self._on_news = step, began, on_news
        self._parts, self._told = 0, 0.0

    def map(
        self, function: Callable[[Any, Any], Any], shared: Any, arguments: Iterable[Any]
    ) -> Iterator[tuple[int, Any]]:
        """See `operators.base.Tasks`."""
        for result in self._tasks.map(function, shared, arguments):
            self._parts += 1
            if self._on_news is not None and time.monotonic() - self._told >= PARTIAL_SECONDS:
                self._told = time.monotonic()
                self._on_news(Working(self._step, self._parts, self._began))
            yield result


@contextmanager
def _tasks(layout: Layout, start: StartTasks | None) -> Iterator[Tasks | None]:
    """Tasks with a folder in the run, which all workers can reach. What a killed run leaves there the next removes."""
    if start is None:
        yield None
        return
    store, folder = layout.store, f"{TEMPORARY}{uuid.uuid4().hex}"
    store.fs.makedirs(store.path(folder), exist_ok=True)
    try:
        yield start(store.address(folder))
    finally:
        if store.exists(folder):
            store.fs.rm(store.path(folder), recursive=True)


def _gather(
    layout: Layout, step: Step, shards: list[int], path: str, with_results: bool
) -> tuple[pa.Table, dict[int, np.ndarray]]:
    """The rows in play of some shards in one memory-mapped table, and where they stand in their shards."""
    schema = pa.schema([("image_id", pa.int64()), ("key", pa.string())])
    for reference, source in step.inputs.items():
        schema = schema.append(pa.field(reference, source.type))
    results = [*step.operator.writes(), pa.field("decision", pa.string())] if with_results else []
    for field in results:
        schema = schema.append(field)
    positions: dict[int, np.ndarray] = {}
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for shard in shards:
            rows = read_shard(layout.store, shard, ["image_id", "key"])
            columns = [*rows.columns, *(column_of(layout, source, shard) for source in step.inputs.values())]
            if results:
                columns += layout.table(step.position, shard, [field.name for field in results]).columns
            positions[shard] = np.flatnonzero(active_rows(layout, step, shard, rows.num_rows))
            writer.write_table(pa.table(columns, schema=schema).take(pa.array(positions[shard])))
    with pa.memory_map(path) as source_file:
        return pa.ipc.open_file(source_file).read_all(), positions
