"""Runs segments of a pipeline in processes of this machine, without Ray.

Each worker takes a shard, does what is not done of it, and takes the next. One that dies is replaced and its shard is
tried again; the one rule skips what was finished. Workers are forked from a process that has imported the libraries and
has no other thread (see `local_worker`): imports are paid once, and start while this process still reads the source.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from typing import Any

from labelmill import IMPORT_PATH
from labelmill.pipelines.engine.deaths import RETRIES, died_too_often
from labelmill.pipelines.engine.local_worker import CAN_FORK
from labelmill.pipelines.engine.outages import AcceleratorLost
from labelmill.pipelines.engine.placement import Phase
from labelmill.pipelines.engine.receipts import OnNews
from labelmill.pipelines.engine.resources import Resources
from labelmill.pipelines.engine.spread import Pool
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.steps import Step

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""What keeps libraries from starting threads while they are imported; OpenBLAS and MKL heed it too. A dataset step
raises it for itself, and for what it imports later."""

COMMON = [
    *("numpy", "pyarrow.parquet", "PIL.Image", "threadpoolctl", "fsspec", "labelmill.operators.applying.apply"),
    *("labelmill.pipelines.engine.work", "labelmill.pipelines.engine.dataset_steps"),
]
"""What every worker imports."""


class _First:
    """The process that workers are forked from; or, where that is not safe, one worker that will be."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        checkout = str(IMPORT_PATH)
        known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join([checkout, *(each for each in known if each not in ("", checkout))])
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.local_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
        )
        theirs.close()
        self._orders = Connection(mine.detach())
        self.order("path", list(sys.path))

    def order(self, *order: Any) -> None:
        """Tell it what to do. That it is gone is seen elsewhere."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._orders.send(order)

    def hand_over(self, end: socket.socket) -> None:
        """Give it one end of a worker's connection."""
        with suppress(BrokenPipeError, ConnectionResetError):
            send_handle(self._orders, end.fileno(), self._process.pid)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End it, and with it what was forked from it."""
        self._process.kill()
        self._process.wait()
        self._orders.close()


@dataclass
class _Worker:
    """A process at work, and the work that it is on."""

    connection: Connection
    pool: int
    place: int
    own: _First | None = None
    pid: int = 0
    work: Any = None
    is_idle: bool = True


@dataclass
class Processes:
    """The processes of one run. They end with the block of `local_session`."""

    _first: _First = field(default_factory=_First)
    _workers: list[_Worker] = field(default_factory=list)
    _job: bytes = b""
    _libraries: list[str] = field(default_factory=list)
    _forks: bool = CAN_FORK

    def prepare(self, steps: Sequence[Step]) -> None:
        """Import what steps will load, in the background."""
        self._libraries = [*COMMON, *dict.fromkeys(name for step in steps for name in step.operator.libraries())]
        self._first.order("import", self._libraries)

    def run_phase(
        self,
        layout: Layout,
        phase: Phase,
        shards: Sequence[int],
        fetch: Fetcher,
        on_news: OnNews,
        resources: Resources,
    ) -> None:
        """Run the pools of a phase over shards, each shard passing from one to the next.

        Raises:
            UserError: Workers died on the same shard again and again. Exception: What a worker raised, as it did.
        """
        pools = [
            {"positions": pool.positions, "threads": pool.threads, "count": min(pool.workers, len(shards)),
             "places": _places(pool, resources)}
            for pool in phase.pools
        ]  # fmt: skip
        self._run(layout, fetch, pools, list(shards), on_news)

    def run_barrier(self, layout: Layout, step: Step, shards: Sequence[int], fetch: Fetcher, on_news: OnNews) -> None:
        """Run a dataset step in one process, which computes on all CPUs. Raises: see `run_phase`."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        pools = [{"step": step.position, "cpus": cpus, "count": 1, "places": []}]
        self._run(layout, fetch, pools, [list(shards)], on_news)

    def _run(
        self, layout: Layout, fetch: Fetcher, pools: list[dict[str, Any]], work: list[Any], on_news: OnNews
    ) -> None:
        try:
            self._job = pickle.dumps((layout, fetch))
        except Exception as error:
            raise UserError(f"the steps cannot be sent to other processes: {error}; use --inline") from error
        self._first.order("job", self._job)
        queues = [deque(work), *(deque[Any]() for _ in pools[1:])]
        deaths: Counter[str] = Counter()
        finished = 0
        for number, pool in enumerate(pools):
            for place in range(pool["count"]):
                self._start(number, pool, place)
        while finished < len(work):
            for worker in self._workers:
                if worker.is_idle and worker.pid and queues[worker.pool]:
                    worker.work, worker.is_idle = queues[worker.pool].popleft(), False
                    with suppress(BrokenPipeError, ConnectionResetError):
                        worker.connection.send(worker.work)
            for connection in wait([worker.connection for worker in self._workers]):
                worker = next(each for each in self._workers if each.connection is connection)
                try:
                    kind, *told = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    self._replace(worker, pools, queues, deaths)
                    continue
                if kind == "here":
                    worker.pid = told[0]
                elif kind == "news":
                    on_news(told[0])
                elif kind == "threads":
                    self._forks = False
                    self._start_again(worker, pools)
                elif kind == "failed":
                    told[0].add_note(told[1])
                    if not isinstance(told[0], AcceleratorLost):
                        raise told[0]
                    self._replace(worker, pools, queues, deaths, told[0])
                else:
                    if worker.pool + 1 < len(queues):
                        queues[worker.pool + 1].append(worker.work)
                    else:
                        finished += 1
                    worker.is_idle = True
                    deaths.pop(_starting(worker.pool), None)
        self._end_workers()

    def _start(self, number: int, pool: dict[str, Any], place: int) -> None:
        mine, theirs = socket.socketpair()
        role = {key: value for key, value in pool.items() if key not in ("count", "places")}
        environment = {**ONE_THREAD, **(pool["places"][place] if pool["places"] else {})}
        own = None
        if not self._forks:
            own = _First()
            own.order("job", self._job)
        elif not self._first.is_alive:
            self._first.end()
            self._first = _First()
            self._first.order("import", self._libraries)
            self._first.order("job", self._job)
        first = own or self._first
        first.order("work" if own else "fork", role, environment)
        first.hand_over(theirs)
        theirs.close()
        self._workers.append(_Worker(Connection(mine.detach()), number, place, own))

    def _replace(
        self,
        worker: _Worker,
        pools: list[dict[str, Any]],
        queues: list[deque[Any]],
        deaths: Counter[str],
        error: UserError | None = None,
    ) -> None:
        """Start another worker for one that died, or can only be mended by another process, and give its work back."""
        where = _starting(worker.pool) if worker.is_idle else f"{worker.pool} {worker.work}"
        deaths[where] += 1
        if deaths[where] > RETRIES:
            raise error or died_too_often()
        if not worker.is_idle:
            queues[worker.pool].appendleft(worker.work)
        self._start_again(worker, pools)

    def _start_again(self, worker: _Worker, pools: list[dict[str, Any]]) -> None:
        self._workers.remove(worker)
        _end(worker)
        self._start(worker.pool, pools[worker.pool], worker.place)

    def _end_workers(self) -> None:
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def end(self) -> None:
        """End all processes at once. What they were on is not lost: it is not done, and the next run does it."""
        self._end_workers()
        self._first.end()


def _starting(pool: int) -> str:
    """What a death of a worker without work is counted as: a few in a row mean that none can be started."""
    return f"{pool} starting"


def _end(worker: _Worker) -> None:
    worker.connection.close()
    if worker.own is not None:
        worker.own.end()
    elif worker.pid:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


def _places(pool: Pool, resources: Resources) -> list[dict[str, str]]:
    """What each worker of a pool has in its environment: its GPU, in turns; nothing where there is none."""
    count = int(resources.gpus)
    if not count:
        return []
    if not pool.gpus:
        return [{"CUDA_VISIBLE_DEVICES": ""}] * pool.workers
    here = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    gpus = here or [str(number) for number in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": gpus[worker % count].strip()} for worker in range(pool.workers)]


_early: list[Processes] = []
"""Processes that were started before it was known what they would do."""


def start_early() -> None:
    """Start the first process: it imports what every worker needs while this one still reads the pipeline."""
    if not _early:
        _early.append(Processes())
        _early[0].prepare([])


def prepare(steps: Sequence[Step]) -> None:
    """Have the process that was started early import what steps will load."""
    for processes in _early:
        processes.prepare(steps)


def end_early() -> None:
    """End processes that were started early and never used."""
    while _early:
        _early.pop().end()


@contextmanager
def local_session() -> Iterator[Processes]:
    """Processes for one run, those that were started early if there are; they end when the block is left."""
    processes = _early.pop() if _early else Processes()
    try:
        yield processes
    finally:
        processes.end()
