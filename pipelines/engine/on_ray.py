"""Runs segments of a pipeline on Ray Data: one shard is one block, and no image ever leaves a worker.

What travels between pools is the number of a shard; columns are read back from the step files, bytes from the source.
A worker that dies loses the shard it was on, which Ray gives to another; the one rule skips what was finished.
Steps with models are done by actors, which hold them and give them back with their process; others by tasks, which take
the processes that are there.
"""

from __future__ import annotations

import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import pyarrow as pa

from labelmill.operators.applying.results import ContractError
from labelmill.operators.registry import is_built_in
from labelmill.pipelines.engine.dataset_steps import run_dataset_step
from labelmill.pipelines.engine.deaths import RETRIES, died_too_often
from labelmill.pipelines.engine.outages import AcceleratorLost
from labelmill.pipelines.engine.placement import Phase
from labelmill.pipelines.engine.ray_news import Teller, Watch, collected
from labelmill.pipelines.engine.ray_tasks import RayTasks
from labelmill.pipelines.engine.receipts import OnNews
from labelmill.pipelines.engine.spread import Pool
from labelmill.pipelines.engine.work import ShardWorker, use_threads
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.run_folder.layout import Layout
from labelmill.pipelines.sources import Fetcher
from labelmill.pipelines.steps import Step

FOR_EVER = -1
"""What Ray is told of retries of a shard. It counts the seconds in which a lost node is not yet known to be lost as so
many deaths; `_PoolWorker` counts how often a shard was really begun."""


def run_phase(layout: Layout, phase: Phase, shards: Sequence[int], fetch: Fetcher, on_news: OnNews) -> None:
    """Run the pools of a phase over shards, as one Ray Data execution.

    Raises:
        ContractError, UserError: What a worker raised, as it raised it.
    """
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    _ship_user_code(layout.steps)
    with collected(on_news, sum(pool.workers for pool in phase.pools)) as watch, _watched(watch):
        items = [{"shard": shard} for shard in shards]
        dataset: Any = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        for pool in phase.pools:
            size = min(pool.workers, len(items))
            # A worker has its next shard before it ends one. Where shards are few that would leave none for workers
            # that start last.
            ahead = 2 if len(items) > 4 * size else 1
            how: dict[str, Any]
            if len(phase.pools) == 1 and _holds_nothing(layout, pool):
                how = {
                    "fn": _do,
                    "fn_args": (uuid.uuid4().hex, layout, pool, fetch, watch.teller()),
                    "compute": TaskPoolStrategy(size),
                    "max_retries": FOR_EVER,
                }
            else:
                how = {
                    "fn": _ModelWorker,
                    "fn_constructor_args": (layout, pool, fetch, watch.teller()),
                    "compute": ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=ahead),
                    "ray_remote_args_fn": _Actors(pool),
                }
            with warnings.catch_warnings():
                # Ray 2.60 has no other way to bound retries and warns of this one.
                warnings.simplefilter("ignore", DeprecationWarning)
                # A block is one shard: a batch of one row is all of it, and what Ray asks for beside a GPU.
                dataset = dataset.map_batches(
                    **how,
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=pool.cpus,
                    num_gpus=pool.gpus or None,
                    memory=pool.memory_gb * 1e9,
                )
        try:
            for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                pass
        except Exception as error:
            raise _cause(error) from None


@contextmanager
def _watched(watch: Watch) -> Iterator[None]:
    """Datasets that are made in the block look at each step of their execution whether anybody works."""
    from ray.data import DataContext
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Look(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            watch.check()

    callbacks = DataContext.get_current().custom_execution_callback_classes
    callbacks.append(Look)
    try:
        yield
    finally:
        callbacks.remove(Look)


def run_barrier(layout: Layout, step: Step, shards: Sequence[int], on_news: OnNews) -> None:
    """Run a dataset step as one Ray task, which may start others. It computes on all CPUs of its node."""
    import ray

    _ship_user_code(layout.steps)
    with collected(on_news) as watch:
        teller_here = watch.teller()

        def work() -> None:
            use_threads(_cpus_of_this_node())
            teller = teller_here()
            with teller.at_work(waits=True):
                run_dataset_step(
                    layout, step, shards, teller.tell, lambda folder: RayTasks(folder, step.operator.needs().gpu)
                )

        task = ray.remote(num_cpus=1, max_retries=RETRIES)(work).remote()
        while not ray.wait([task], timeout=1.0)[0]:
            watch.check()
        try:
            ray.get(task)
        except Exception as error:
            raise _cause(error) from None


def _cpus_of_this_node() -> int:
    import ray

    here = ray.get_runtime_context().get_node_id()
    found = (node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(next(found, 1)))


class _Actors:
    """Called before each worker of a pool is started: how, and on which node the plan has it."""

    def __init__(self, pool: Pool) -> None:
        self._nodes = cycle([node for node, count in pool.nodes for _ in range(count)] or [""])

    def __call__(self) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = next(self._nodes)
        where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)} if node else {}
        return {"max_task_retries": FOR_EVER, **where}


class _PoolWorker:
    """One worker of a pool: an actor that takes a block with one shard number and hands it on."""

    def __init__(self, layout: Layout, pool: Pool, fetch: Fetcher, teller: Callable[[], Teller]) -> None:
        use_threads()
        self._worker = ShardWorker(layout, pool.positions, fetch, pool.threads)
        self._positions = pool.positions
        self._teller = teller()

    def __call__(self, block: pa.Table) -> pa.Table:
        for shard in block.column("shard").to_pylist():
            with self._teller.at_work((self._positions, shard)) as begun:
                if begun > RETRIES + 1:
                    raise died_too_often()
                try:
                    self._worker.run(shard, self._teller.tell)
                except AcceleratorLost:
                    if begun > RETRIES:
                        raise
                    os._exit(1)  # another process can use the GPU again: Ray starts one and gives it this shard
        return block


class _ModelWorker(_PoolWorker):
    """A worker in a process of its own."""

    def __init__(self, layout: Layout, pool: Pool, fetch: Fetcher, teller: Callable[[], Teller]) -> None:
        if not pool.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves a worker without a GPU all that the machine has
        super().__init__(layout, pool, fetch, teller)


_tasks: dict[str, _PoolWorker] = {}
"""What this process has loaded of the pool whose tasks it does, by the pool's id."""


def _do(block: pa.Table, pool_id: str, *pool: Any) -> pa.Table:
    """One task of a pool without actors."""
    if pool_id not in _tasks:
        _tasks.clear()
        _tasks[pool_id] = _PoolWorker(*pool)
    return _tasks[pool_id](block)


def _holds_nothing(layout: Layout, pool: Pool) -> bool:
    """Whether none of a pool's steps says that it needs memory or a GPU of its own."""
    needs = [layout.steps[position].operator.needs() for position in pool.positions]
    return not any(each.gpu or each.memory_gb for each in needs)


def _ship_user_code(steps: Sequence[Step]) -> None:
    """Modules of the user's own operators travel with the classes, so that every worker has them."""
    from ray import cloudpickle

    for step in steps:
        cls = type(step.operator)
        if not is_built_in(cls):
            cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])


def _cause(error: BaseException) -> BaseException:
    """The exception that a worker raised, out of Ray's wrappers."""
    from ray.exceptions import RayActorError, WorkerCrashedError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (ContractError, UserError)):
            return seen
        if isinstance(seen, (RayActorError, WorkerCrashedError)):
            return died_too_often()
        inner = getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return error
