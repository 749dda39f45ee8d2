"""Applies operators to a shard: the one place that threads, batches, halves, bisects, checks and times.

The Ray worker, the in-process runner and the tests all come through here.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from labelmill.operators.applying.bisect import bisect, failed
from labelmill.operators.applying.infer import infer
from labelmill.operators.applying.results import ContractError, RowValue, join_result, null_rows, step_table
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.tries import Tries
from labelmill.operators.applying.worker import Worker
from labelmill.operators.base import KEPT, Decision, ImageOperator, TableOperator, TableResult

THREADS = 2
"""Threads that prepare images ahead of the model, per worker on one core. Decoding releases the GIL."""


CHUNK = 8
"""Images that a thread prepares at a time, at most."""

PART = 32
"""Images of a part, at least; see `part_size`."""


def part_size(operator: ImageOperator) -> int:
    """How many images of a shard are a part, at whose end no micro-batch waits to be filled.

    A killed shard goes on where a part ended. As the cuts are always there, killed or not, the micro-batches are the
    same and so are the results, to the last bit. A multiple of the batch, so that a batch is cut short only where
    images fail or differ in shape.
    """
    return operator.batch * -(-PART // operator.batch)


@dataclass(slots=True)
class Timing:
    """Where the seconds of one step on one shard went.

    Attributes:
        wait: Waiting for prepared images: how much decoding and preparing did not hide behind the model. Steps that
            are applied together share it.
        infer: In `infer` or `compute`.
        total: From the call to the finished table; of steps that are applied together, each one's share.
    """

    wait: float = 0.0
    infer: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class Job:
    """One operator with the rows of a shard that it is applied to.

    Attributes:
        worker: The loaded operator.
        rows: `image_id`, `key` and the operator's read columns, one row per image of the shard.
        active: bool, one per row: the images still in play. The others are passed over.
        on_progress: Told after every micro-batch how many images are done.
        on_part: Given a table of the shard, as `apply` gives, in which only the images that are done so far have a
            decision; called at the end of each part of `part_size` images, when it is wanted.
        wants_part: Whether `on_part` is to be called now.
    """

    worker: Worker
    rows: pa.Table
    active: np.ndarray
    on_progress: Callable[[int], None] | None = None
    on_part: Callable[[pa.Table], None] | None = None
    wants_part: Callable[[], bool] = lambda: False


def apply(job: Job, images: ShardImages | None = None, threads: int = THREADS) -> tuple[pa.Table, Timing]:
    """Apply an ImageOperator or a TableOperator to one shard.

    Args:
        job: The operator and its rows.
        images: The shard's images; an ImageOperator needs them.
        threads: How many threads prepare.

    Returns:
        The step's table (see `operators.applying.results.step_schema`), one row per row of the shard, in the same
        order; and the time it took.

    Raises:
        ContractError: The operator gave columns or rows that its `writes()` does not promise.
    """
    operator = job.worker.operator
    if isinstance(operator, ImageOperator):
        if images is None:
            raise ContractError(f"{operator.name} needs images but was given none")
        return apply_together([job], images, threads)[0]
    if not isinstance(operator, TableOperator):
        raise ContractError(f"{operator.name} must be an ImageOperator or a TableOperator to be applied to a shard")
    timing, started = Timing(), time.perf_counter()
    indices = np.flatnonzero(job.active)
    result = _compute(operator, job.rows.take(pa.array(indices)))
    timing.infer = time.perf_counter() - started
    table = join_result(operator, job.rows.column("image_id"), indices, result)
    timing.total = time.perf_counter() - started
    return table, timing


def apply_together(jobs: Sequence[Job], images: ShardImages, threads: int = THREADS) -> list[tuple[pa.Table, Timing]]:
    """Apply several ImageOperators to one shard in one pass: every image is decoded once and prepared for each.

    The micro-batches of each operator, and so its results, are those that it would have alone.

    Args:
        jobs: Operators, none of which reads what another of them writes.
        images: The shard's images.
        threads: How many threads prepare.

    Returns:
        Table and time of each, as `apply` gives.

    Raises:
        ContractError: An operator gave columns or rows that its `writes()` does not promise.
    """
    started = time.perf_counter()
    streams = [_Stream(job, images) for job in jobs]
    wait, waiting = 0.0, time.perf_counter()
    for prepared in _prepare_ahead(streams, images, threads):
        wait += time.perf_counter() - waiting
        for stream, item in zip(streams, prepared, strict=True):
            stream.take(item)
        waiting = time.perf_counter()
    results = []
    for stream in streams:
        stream.finish()
        results.append((stream.table(), Timing(wait, stream.infer)))
    shared = (time.perf_counter() - started - sum(stream.infer for stream in streams)) / len(streams)
    for _, timing in results:
        timing.total = timing.infer + shared
    return results


_ABSENT = object()
_NOT_TRIED = Decision("undone", "not tried: the step stopped before it came to this image")


class _Stream:
    """Micro-batches of one operator while images come in."""

    def __init__(self, job: Job, images: ShardImages) -> None:
        operator = job.worker.operator
        assert isinstance(operator, ImageOperator)
        self.job, self.operator, self.images, self.watch = job, operator, images, job.worker.watch
        self.indices = np.flatnonzero(job.active)
        self.values: list[RowValue] = []
        self.infer = 0.0
        self._waiting: dict[Hashable, list[tuple[int, Any]]] = defaultdict(list)
        self._done = 0
        self._columns = [(name, job.rows.column(name)) for name in job.rows.column_names]
        self._part = part_size(operator)

    def row(self, index: int) -> dict[str, Any]:
        """What `prepare` is told of a row."""
        return {name: column[index].as_py() for name, column in self._columns}

    def take(self, item: Any) -> None:
        """A prepared item, a failed decision, or _ABSENT for an image that the operator does not see."""
        if item is _ABSENT:
            return
        self._take(item)
        if len(self.values) % self._part == 0:
            self.finish()
            if self.job.on_part is not None and self.watch.reason is None and self.job.wants_part():
                self.job.on_part(self.table())

    def table(self) -> pa.Table:
        """What is done."""
        done = self.indices[: len(self.values)]
        return step_table(self.operator, self.job.rows.column("image_id"), done, self.values)

    def _take(self, item: Any) -> None:
        position = len(self.values)
        if self.watch.reason is not None and not isinstance(item, Decision):
            item = _NOT_TRIED
        self.values.append(item if isinstance(item, Decision) else None)
        if isinstance(item, Decision):
            self._done += 1
            self._note(item)
            return
        bucket = self.operator.bucket(item)
        self._waiting[bucket].append((position, item))
        if len(self._waiting[bucket]) >= self.job.worker.batch:
            self._flush(bucket)

    def finish(self) -> None:
        """Run the micro-batches that did not fill."""
        for bucket in list(self._waiting):
            self._flush(bucket)

    def _flush(self, bucket: Hashable) -> None:
        batch = self._waiting.pop(bucket)
        started = time.perf_counter()
        if self.watch.reason is None:
            outputs = infer(self.job.worker, [item for _, item in batch], self.images)
        else:
            outputs = [_NOT_TRIED] * len(batch)
        for (position, _), value in zip(batch, outputs, strict=True):
            self.values[position] = value
            self._note(value)
        self.infer += time.perf_counter() - started
        self._done += len(batch)
        if self.job.on_progress is not None:
            self.job.on_progress(self._done)

    def _note(self, value: RowValue) -> None:
        if value is _NOT_TRIED:
            return
        undone = isinstance(value, Decision) and value.decision == "undone"
        self.watch.note(undone, value.reason if isinstance(value, Decision) else "")


def _prepare_ahead(streams: Sequence[_Stream], images: ShardImages, threads: int) -> Iterator[list[Any]]:
    """For every image that some operator sees, in row order, what each `prepare` gave; threads work ahead."""
    actives = np.stack([stream.job.active for stream in streams])
    indices = np.flatnonzero(actives.any(axis=0)).tolist()
    images.expect(indices)
    smallest = min(stream.job.worker.batch for stream in streams)
    # A thread takes several images at a time: waking the other thread for each would cost more than it hides.
    size = max(1, min(CHUNK, smallest // 2))

    tries = Tries(threads, streams[0].job.worker.patience, images)

    def prepare(index: int) -> list[Any]:
        items: list[Any] = [_ABSENT] * len(streams)
        shown = [number for number, stream in enumerate(streams) if stream.job.active[index]]
        stopped = [number for number in shown if streams[number].watch.reason is not None]
        for number in stopped:
            items[number] = _NOT_TRIED
        if len(stopped) == len(shown):
            return items
        image = tries.outcome(lambda: images.get(index))
        for number in set(shown).difference(stopped):
            stream = streams[number]
            given = image
            if not isinstance(image, Exception):
                given = tries.outcome(partial(stream.operator.prepare, image, stream.row(index)))
            items[number] = failed(given) if isinstance(given, Exception) else given
        return items

    def prepare_chunk(chunk: list[int]) -> list[list[Any]]:
        return [prepare(index) for index in chunk]

    ahead: deque[Future[list[list[Any]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        try:
            for start in range(0, len(indices), size):
                ahead.append(pool.submit(prepare_chunk, indices[start : start + size]))
                # Two of the smaller micro-batches: what waits here holds the largest model's input too.
                if len(ahead) * size > 2 * smallest + threads:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _compute(operator: TableOperator, table: pa.Table) -> TableResult:
    """Compute a shard; a row that makes it raise becomes `failed`, its neighbours are computed without it."""

    def run(part: pa.Table) -> list[tuple[int, TableResult]]:
        return [(part.num_rows, operator.compute(part))]

    def fail(error: Exception) -> list[tuple[int, TableResult]]:
        columns = null_rows(operator.writes(), 1) if len(operator.writes()) else None
        return [(1, TableResult(columns, [failed(error)]))]

    if table.num_rows == 0:
        return TableResult(operator.writes().empty_table(), [])
    results = bisect(run, table, fail=fail)
    if len(results) == 1:
        return results[0][1]
    decisions: list[Decision] = []
    for count, result in results:
        decisions += result.decisions if result.decisions is not None else [KEPT] * count
    parts = [result.columns for _, result in results if result.columns is not None]
    return TableResult(pa.concat_tables(parts) if parts else None, decisions)
