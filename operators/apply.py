"""Applies an operator to a shard: the one place that threads, batches, halves, bisects, checks and times.

The Ray worker, the in-process runner and the tests all call `apply`.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import KEPT, Decision, ImageOperator, Operator, RowError, TableOperator, TableResult
from operators.columns import ContractError, RowValue, join_result, null_rows, step_table
from operators.loading import ShardImages

THREADS = 4
"""Threads that prepare images ahead of the model, per worker. Decoding releases the GIL."""


@dataclass(slots=True)
class Timing:
    """Where the seconds of one step on one shard went.

    Attributes:
        wait: Waiting for prepared images: how much decoding and preparing did not hide behind the model.
        infer: In `infer` or `compute`.
        total: From the call to the finished table.
    """

    wait: float = 0.0
    infer: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class Worker:
    """What a worker remembers of one operator between shards.

    Attributes:
        operator: Loaded.
        batch: Images per micro-batch; halved for good when the accelerator runs out of memory.
    """

    operator: Operator
    batch: int = field(init=False)

    def __post_init__(self) -> None:
        self.batch = self.operator.batch if isinstance(self.operator, ImageOperator) else 1


def apply(
    worker: Worker,
    rows: pa.Table,
    active: np.ndarray,
    images: ShardImages | None = None,
    threads: int = THREADS,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[pa.Table, Timing]:
    """Apply an ImageOperator or a TableOperator to one shard.

    Args:
        worker: The loaded operator.
        rows: `image_id`, `key` and the operator's read columns, one row per image of the shard.
        active: bool, one per row: the images still in play. The others are passed over.
        images: The shard's images; an ImageOperator needs them.
        threads: How many threads prepare.
        on_progress: Told after every micro-batch how many images are done.

    Returns:
        The step's table (see `operators.columns.step_schema`), one row per row of `rows`, in the same order; and
        the time it took.

    Raises:
        ContractError: The operator gave columns or rows that its `writes()` does not promise.
    """
    started = time.perf_counter()
    timing = Timing()
    indices = np.flatnonzero(active)
    operator = worker.operator
    if isinstance(operator, ImageOperator):
        if images is None:
            raise ContractError(f"{operator.name} needs images but was given none")
        values = _run_images(worker, rows, indices, images, threads, timing, on_progress)
        table = step_table(operator, rows.column("image_id"), indices, values)
    elif isinstance(operator, TableOperator):
        shown = rows.take(pa.array(indices))
        infer_started = time.perf_counter()
        result = _compute_rows(operator, shown)
        timing.infer = time.perf_counter() - infer_started
        table = join_result(operator, rows.column("image_id"), indices, result)
    else:
        raise ContractError(f"{operator.name} must be an ImageOperator or a TableOperator to be applied to a shard")
    timing.total = time.perf_counter() - started
    return table, timing


def _run_images(
    worker: Worker,
    rows: pa.Table,
    indices: np.ndarray,
    images: ShardImages,
    threads: int,
    timing: Timing,
    on_progress: Callable[[int], None] | None,
) -> list[RowValue]:
    operator = worker.operator
    assert isinstance(operator, ImageOperator)
    values: list[RowValue] = [None] * len(indices)
    waiting: dict[Hashable, list[tuple[int, Any]]] = defaultdict(list)

    def flush(bucket: Hashable) -> None:
        batch = waiting.pop(bucket)
        started = time.perf_counter()
        for (position, _), value in zip(batch, _infer(worker, [item for _, item in batch]), strict=True):
            values[position] = value
        timing.infer += time.perf_counter() - started
        if on_progress is not None:
            on_progress(sum(value is not None for value in values))

    started = time.perf_counter()
    for position, prepared in _prepare_ahead(worker, rows, indices, images, threads):
        timing.wait += time.perf_counter() - started
        if isinstance(prepared, Decision):
            values[position] = prepared
        else:
            bucket = operator.bucket(prepared)
            waiting[bucket].append((position, prepared))
            if len(waiting[bucket]) >= worker.batch:
                flush(bucket)
        started = time.perf_counter()
    for bucket in list(waiting):
        flush(bucket)
    return values


def _prepare_ahead(
    worker: Worker, rows: pa.Table, indices: np.ndarray, images: ShardImages, threads: int
) -> Iterator[tuple[int, Any]]:
    """Prepared items, or failed decisions, in row order, while threads work two micro-batches ahead."""
    operator = worker.operator
    assert isinstance(operator, ImageOperator)

    def prepare(index: int, row: dict[str, Any]) -> Any:
        try:
            return operator.prepare(images.get(index), row)
        except Exception as error:
            return failed(error)

    row_columns = [rows.column(name) for name in rows.column_names]
    ahead: deque[tuple[int, Future[Any]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix=f"prepare-{operator.name}") as pool:
        try:
            for position, index in enumerate(indices.tolist()):
                row = {name: column[index].as_py() for name, column in zip(rows.column_names, row_columns, strict=True)}
                ahead.append((position, pool.submit(prepare, index, row)))
                if len(ahead) > 2 * worker.batch + threads:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _infer(worker: Worker, items: list[Any]) -> list[RowValue]:
    """One value per item: halves the batch when memory runs out, else bisects down to the rows that fail."""
    operator = worker.operator
    assert isinstance(operator, ImageOperator)

    def run(part: list[Any]) -> list[RowValue]:
        outputs = operator.infer(part)
        if not isinstance(outputs, list) or len(outputs) != len(part):
            count = len(outputs) if hasattr(outputs, "__len__") else type(outputs).__name__
            raise ContractError(f"{operator.name}.infer must give one dict per item: {len(part)} but gave {count}")
        return [failed(output) if isinstance(output, RowError) else output for output in outputs]

    def out_of_memory(part: list[Any]) -> None:
        worker.batch = max(1, min(worker.batch, (len(part) + 1) // 2))
        _empty_accelerator_cache()

    return bisect(run, items, fail=lambda error: [failed(error)], on_memory=out_of_memory)


def _compute_rows(operator: TableOperator, table: pa.Table) -> TableResult:
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


def bisect(
    run: Callable[[Any], list[Any]],
    items: Any,
    fail: Callable[[Exception], list[Any]],
    on_memory: Callable[[Any], None] | None = None,
) -> list[Any]:
    """Run over all items at once; when that raises, over each half, down to single items.

    Args:
        run: Gives a list of results for a sliceable sequence of items.
        items: A list or a pyarrow.Table with at least one row.
        fail: Gives the result of a single item that raised.
        on_memory: Told of the items that did not fit into memory.

    Raises:
        ContractError: From `run`: the operator is wrong, not the row.
        RuntimeError: The accelerator is in a state that no retry in this process mends.
    """
    try:
        return run(items)
    except ContractError:
        raise
    except Exception as error:
        if _accelerator_is_lost(error):
            raise
        if on_memory is not None and _out_of_memory(error):
            on_memory(items)
        if len(items) == 1:
            return fail(error)
    middle = len(items) // 2
    first, second = (
        (items.slice(0, middle), items.slice(middle))
        if isinstance(items, pa.Table)
        else (items[:middle], items[middle:])
    )
    return bisect(run, first, fail, on_memory) + bisect(run, second, fail, on_memory)


def failed(error: Exception) -> Decision:
    """The decision for a row that raised: a RowError speaks for itself, anything else is named by its type."""
    text = str(error).strip()
    reason = text if isinstance(error, RowError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    return Decision("failed", reason)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _accelerator_is_lost(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and "CUDA error" in text and "out of memory" not in text


def _empty_accelerator_cache() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
