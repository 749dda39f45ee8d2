"""The one rule: a step's result for a shard is a file; if the file is there, the step is done for that shard.

Every process that computes anything, under Ray or not, does it through `ShardWorker.run`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from operators.apply import THREADS, Worker, apply
from operators.base import OperatorError
from operators.loading import ShardImages
from pipelines.errors import UserError
from pipelines.shards import read_shard, shard_name
from pipelines.sources import Fetcher
from pipelines.steps import Input, Step
from pipelines.store import Store

CACHE_BYTES = 512 * 2**20
"""Decoded images that one worker remembers of its current shard."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one step did to one shard.

    Attributes:
        step: Name of the step.
        shard: Number of the shard.
        images: Rows of the shard.
        seen, kept, dropped, duplicate, failed: Images that were in play, and what became of them.
        computed: False where the file was there already.
        seconds: Wall time; `wait` of it for prepared images, `infer` of it in the model.
        at: Unix time when it was done.
    """

    step: str
    shard: int
    images: int
    seen: int
    kept: int
    dropped: int
    duplicate: int
    failed: int
    computed: bool = True
    seconds: float = 0.0
    wait: float = 0.0
    infer: float = 0.0
    at: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Partial:
    """How far a step is with a shard that it is working on.

    Attributes:
        step: Name of the step.
        shard: Number of the shard.
        images: Images done, in so many seconds.
        at: Unix time.
    """

    step: str
    shard: int
    images: int
    seconds: float
    at: float


OnNews = Callable[["Receipt | Partial"], None]
"""Told of every receipt, and about once a second of what is under way."""

PARTIAL_SECONDS = 1.0


def receipt_of(step: Step, shard: int, table: pa.Table, **timing: float | bool) -> Receipt:
    """Count a step's table."""
    decisions = table.column("decision").to_pylist()
    counts = {kind: decisions.count(kind) for kind in ("kept", "dropped", "duplicate", "failed")}
    seen = sum(decision is not None for decision in decisions)
    return Receipt(step.name, shard, table.num_rows, seen, **counts, at=time.time(), **timing)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """Where a run keeps things: its store, its steps and the folder of each.

    Attributes:
        store: The run's directory.
        steps: All steps of the pipeline.
        folders: Folder of each step below ``steps/``, by position.
    """

    store: Store
    steps: tuple[Step, ...]
    folders: tuple[str, ...]

    @classmethod
    def of(cls, store: Store, steps: Sequence[Step]) -> Layout:
        """Find the folders of the steps. One with the same fingerprint is the same step, whatever its place or name."""
        there = {name.rpartition("-")[2]: name for name in store.names("steps")}
        return cls(store, tuple(steps), tuple(there.get(step.fingerprint, step.folder) for step in steps))

    def file(self, position: int, shard: int) -> str:
        """The file of a step's result for a shard."""
        return f"steps/{self.folders[position]}/{shard_name(shard)}"

    def table(self, position: int, shard: int, columns: list[str] | None = None) -> pa.Table:
        """A step's result for a shard. Raises FileNotFoundError where it is not done."""
        return self.store.read_table(self.file(position, shard), columns)

    def done(self, position: int) -> set[int]:
        """The shards for which a step is done."""
        from pipelines.shards import shard_numbers

        return set(shard_numbers(self.store.names(f"steps/{self.folders[position]}")))


def column_of(layout: Layout, source: Input, shard: int, tables: dict[int, pa.Table] | None = None) -> pa.ChunkedArray:
    """The values of one column for the rows of a shard."""
    if source.step is None:
        return read_shard(layout.store, shard, [source.column]).column(0)
    if tables and source.step in tables:
        return tables[source.step].column(source.column)
    return layout.table(source.step, shard, [source.column]).column(0)


def active_rows(
    layout: Layout, step: Step, shard: int, rows: int, tables: dict[int, pa.Table] | None = None
) -> np.ndarray:
    """Which images of a shard a step sees: those that every step it depends on has kept. bool, one per row."""
    active = np.ones(rows, dtype=bool)
    for position in step.depends:
        decisions = column_of(layout, Input(position, "decision", pa.string()), shard, tables)
        active &= np.array([decision == "kept" for decision in decisions.to_pylist()], dtype=bool)
    return active


class ShardWorker:
    """Applies consecutive image and table steps to one shard after another.

    Operators are loaded when the first shard needs them, so a worker with nothing to do costs nothing.
    """

    def __init__(
        self,
        layout: Layout,
        positions: Sequence[int],
        fetch: Fetcher,
        threads: int = THREADS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._layout = layout
        self._positions = tuple(positions)
        self._fetch = fetch
        self._threads = threads
        self._cache_bytes = cache_bytes
        self._workers: dict[int, Worker] = {}

    def run(self, shard: int, on_news: OnNews | None = None) -> list[Receipt]:
        """Do what is not done yet of the steps for a shard, in order; one receipt per step."""
        layout, receipts = self._layout, []
        rows = read_shard(layout.store, shard, ["image_id", "key", "uri"])
        images = ShardImages(rows.column("uri").to_pylist(), self._fetch, self._cache_bytes)
        tables: dict[int, pa.Table] = {}
        for position in self._positions:
            step = layout.steps[position]
            if layout.store.exists(layout.file(position, shard)):
                table = layout.table(position, shard, ["decision"])
                receipt = receipt_of(step, shard, table, computed=False)
            else:
                table, receipt = self._compute(step, shard, rows, images, tables, on_news)
                tables[position] = table
            receipts.append(receipt)
            if on_news is not None:
                on_news(receipt)
        return receipts

    def _compute(
        self,
        step: Step,
        shard: int,
        rows: pa.Table,
        images: ShardImages,
        tables: dict[int, pa.Table],
        on_news: OnNews | None,
    ) -> tuple[pa.Table, Receipt]:
        started = time.perf_counter()
        layout = self._layout
        shown = rows.select(["image_id", "key"])
        for reference, source in step.inputs.items():
            shown = shown.append_column(reference, column_of(layout, source, shard, tables))
        active = active_rows(layout, step, shard, rows.num_rows, tables)
        on_progress = None if on_news is None else _at_intervals(on_news, step.name, shard)
        table, timing = apply(self._worker(step), shown, active, images, self._threads, on_progress)
        layout.store.write_table(layout.file(step.position, shard), table)
        seconds = time.perf_counter() - started
        return table, receipt_of(step, shard, table, seconds=seconds, wait=timing.wait, infer=timing.infer)

    def _worker(self, step: Step) -> Worker:
        if step.position not in self._workers:
            load(step)
            self._workers[step.position] = Worker(step.operator)
        return self._workers[step.position]


def load(step: Step) -> None:
    """Load a step's operator.

    Raises:
        UserError: What it needs is not here, or is not what it must be.
    """
    try:
        step.operator.load()
    except OperatorError as error:
        raise UserError(f"step {step.name!r}: {error}") from error


def _at_intervals(on_news: OnNews, step: str, shard: int) -> Callable[[int], None]:
    started = told = time.monotonic()

    def tell(images: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= PARTIAL_SECONDS:
            told = now
            on_news(Partial(step, shard, images, now - started, time.time()))

    return tell


def use_one_thread() -> None:
    """One compute thread per worker: results must not depend on how many a machine has, and workers fill the cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
