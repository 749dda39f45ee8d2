"""The one rule: a step's result for a shard is a file; if the file is there, the step is done for that shard.

Every process that computes anything, under Ray or not, does it through `ShardWorker.run`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from labelmill.operators.applying.apply import THREADS, Job, Timing, apply, apply_together
from labelmill.operators.applying.fetch_ahead import UNDER_WAY, FetchAhead
from labelmill.operators.applying.patience import Patience
from labelmill.operators.applying.shard_images import ShardImages
from labelmill.operators.applying.worker import Worker
from labelmill.operators.errors import OperatorError
from labelmill.operators.moment import kind_of
from labelmill.pipelines.engine.outages import Outage, stopped
from labelmill.pipelines.engine.provisional import Earlier, earlier, is_provisional, is_undone
from labelmill.pipelines.engine.receipts import Loading, OnNews, Partial, Receipt, receipt_of
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.layout import Layout, active_rows, column_of
from labelmill.pipelines.run_folder.shards import read_shard
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.sources.uri import is_remote
from labelmill.pipelines.steps import Step

CACHE_BYTES = 512 * 2**20
"""Decoded images that one worker remembers of its current shard."""

PARTIAL_SECONDS = 1.0

PART_SECONDS = 60.0
"""How often what is done of a shard is written while it is computed, so that a killed worker loses no more."""


class ShardWorker:
    """Applies image and table steps to one shard after another.

    Operators are loaded when the first shard needs them, all before any image is read: a worker with nothing to do
    costs nothing, and a model that cannot be built is found at once.
    """

    def __init__(
        self,
        layout: Layout,
        positions: Sequence[int],
        fetch: Fetcher,
        threads: int = THREADS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._patience = Patience(layout.limits)
        self._layout = layout
        self._steps = [layout.steps[position] for position in positions]
        self._fetch = fetch
        self._threads = threads
        self._cache_bytes = cache_bytes
        self._workers: dict[int, Worker] = {}
        # Threads start only when something is fetched ahead.
        self._ahead = FetchAhead(fetch, ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="fetch"))

    def run(self, shard: int, on_news: OnNews | None = None) -> list[Receipt]:
        """Do what is not done yet of the steps for a shard; one receipt per step.

        Raises:
            Outage: A step leaves so many images undone that going on makes no sense. Its results are kept.
            UserError: A step cannot go on at all.
            AcceleratorLost: This process can no longer use its GPU; another one has to do the shard.
        """
        tell = on_news or (lambda news: None)
        receipts, waiting = [], []
        for step in self._steps:
            file = self._layout.file(step.position, shard)
            if self._layout.store.exists(file):
                table = self._layout.table(step.position, shard, ["decision"])
                receipts.append(receipt_of(step, shard, table, computed=False))
                tell(receipts[-1])
            else:
                waiting.append(step)
        if waiting:
            for step in waiting:
                if step.position not in self._workers and step.operator.needs().memory_gb:
                    tell(Loading(step.name, time.time()))
                self._worker(step)
            work = _Shard(self._layout, shard, self._fetch, self._cache_bytes, self._ahead)
            order = list(waves(waiting))
            for number, wave in enumerate(order):
                work.images.remember = any(later[0].is_image for later in order[number + 1 :])
                receipts += self._run_wave(work, wave, tell)
        return sorted(receipts, key=lambda receipt: self._layout.position(receipt.step))

    def _run_wave(self, work: _Shard, wave: Sequence[Step], tell: OnNews) -> list[Receipt]:
        began = time.time()
        jobs = [work.job(step, self._worker(step), _at_intervals(tell, step.name, work.shard)) for step in wave]
        with stopped(wave):
            if wave[0].is_image:
                results = apply_together(jobs, work.images, self._threads)
            else:
                results = [apply(job) for job in jobs]
        receipts = [
            self._commit(work, step, work.whole(step, table), timing, began, tell)
            for step, (table, timing) in zip(wave, results, strict=True)
        ]
        for step in wave:
            reason = self._worker(step).watch.reason
            if reason is not None:
                raise Outage(step.name, reason)
        return receipts

    def _commit(self, work: _Shard, step: Step, table: pa.Table, timing: Timing, began: float, tell: OnNews) -> Receipt:
        started = time.perf_counter()
        work.write(step, table)
        seconds = timing.total + time.perf_counter() - started
        receipt = receipt_of(
            step, work.shard, table, seconds=seconds, wait=timing.wait, infer=timing.infer, began=began
        )
        tell(receipt)
        return receipt

    def _worker(self, step: Step) -> Worker:
        if step.position not in self._workers:
            load(step)
            self._workers[step.position] = Worker(step.operator, self._patience)
        return self._workers[step.position]


class _Shard:
    """One shard while a worker is on it: its rows, its images, and the tables computed so far."""

    def __init__(self, layout: Layout, shard: int, fetch: Fetcher, cache_bytes: int, ahead: FetchAhead) -> None:
        self.layout, self.shard = layout, shard
        self.rows = read_shard(layout.store, shard, ["image_id", "key", "uri"])
        uris = self.rows.column("uri").to_pylist()
        self.images = ShardImages(uris, fetch, cache_bytes, ahead if any(is_remote(uri) for uri in uris) else None)
        self.tables: dict[int, pa.Table] = {}
        self._provisional: set[int] = set()
        self._earlier: dict[int, Earlier] = {}

    def job(self, step: Step, worker: Worker, on_progress: Callable[[int], None]) -> Job:
        """A step's operator with the rows and columns that it sees; rows that stand from an earlier run are not."""
        shown = self.rows.select(["image_id", "key"])
        for reference, source in step.inputs.items():
            shown = shown.append_column(reference, column_of(self.layout, source, self.shard, self.tables))
        active = active_rows(self.layout, step, self.shard, self.rows.num_rows, self.tables)
        before = earlier(self.layout, step, self.shard, self.rows.column("image_id"), active)
        if before is not None:
            self._earlier[step.position] = before
            active = active & ~before.good
        file, began = self.layout.provisional(step.position, self.shard), [time.monotonic()]

        def write_part(table: pa.Table) -> None:
            self.layout.store.write_table(file, self._joined(step, table))
            began[0] = time.monotonic()

        return Job(worker, shown, active, on_progress, write_part, lambda: time.monotonic() - began[0] >= PART_SECONDS)

    def _joined(self, step: Step, table: pa.Table) -> pa.Table:
        before = self._earlier.get(step.position)
        return table if before is None else before.with_new(step.operator, table)

    def whole(self, step: Step, table: pa.Table) -> pa.Table:
        """A step's new rows with those that stand from an earlier run."""
        table = self._joined(step, table)
        self._earlier.pop(step.position, None)
        return table

    def write(self, step: Step, table: pa.Table) -> None:
        """Write a step's result, for good if nothing that it was made from can change."""
        self.tables[step.position] = table
        others = [position for position in step.depends if position not in self.tables]
        provisional = (
            is_undone(table)
            or not self._provisional.isdisjoint(step.depends)
            or is_provisional(self.layout, others, [self.shard])
        )
        if provisional:
            self._provisional.add(step.position)
        self.layout.write(step.position, self.shard, table, provisional)


def waves(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps in an order in which each comes after those it depends on, image steps together where they can be.

    Image steps that do not depend on each other are one wave, so that an image is decoded once for all of them.
    """
    waiting = list(steps)
    while waiting:
        open_positions = {step.position for step in waiting}
        ready = [step for step in waiting if not open_positions & set(step.depends)]
        tables = [step for step in ready if not step.is_image]
        wave = tables[:1] or ready
        yield wave
        waiting = [step for step in waiting if step not in wave]


def load(step: Step) -> None:
    """Load a step's operator.

    Raises:
        UserError: What it needs is not here, or is not what it must be.
    """
    with stopped([step]):
        try:
            step.operator.load()
        except OperatorError as error:
            if kind_of(error) is not None:
                raise
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


def use_threads(count: int = 1) -> None:
    """How many threads compute. One where workers fill the cores; a dataset step, which is alone, takes them all."""
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(count)  # of what is imported later
    threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
