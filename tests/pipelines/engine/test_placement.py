from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pytest

from labelmill.operators.base import DatasetOperator, ImageOperator, Needs, OperatorParams, TableOperator, TableResult
from labelmill.pipelines.engine.placement import place, segments
from labelmill.pipelines.engine.resources import Node, Resources
from labelmill.pipelines.errors import UserError
from labelmill.pipelines.steps import Step, chain


class Params(OperatorParams):
    gpu: bool = False
    memory_gb: float = 0.0


class Look(ImageOperator):
    Params = Params

    def writes(self) -> pa.Schema:
        return pa.schema([])

    def needs(self) -> Needs:
        return Needs(self.params.gpu, self.params.memory_gb)

    def infer(self, items: list[Any]) -> list[Any]:
        raise AssertionError


class Decide(TableOperator):
    def writes(self) -> pa.Schema:
        return pa.schema([])

    def compute(self, table: pa.Table) -> TableResult:
        raise AssertionError


class Whole(DatasetOperator):
    def writes(self) -> pa.Schema:
        return pa.schema([])

    def compute(self, new: pa.Table, old: pa.Table) -> TableResult:
        raise AssertionError


def pipeline(*operators: Any) -> list[Step]:
    steps: list[Step] = []
    for index, operator in enumerate(operators):
        steps.append(chain(steps, f"s{index}", type(operator).__name__, operator))
    return steps


def cpu(memory_gb: float = 0.0) -> Look:
    return Look(Params(memory_gb=memory_gb))


def gpu(memory_gb: float) -> Look:
    return Look(Params(gpu=True, memory_gb=memory_gb))


def table() -> Decide:
    return Decide(Decide.Params())


def shape(phases: Any) -> list[list[tuple[tuple[int, ...], int, float]]]:
    return [[(pool.positions, pool.workers, pool.gpus) for pool in phase.pools] for phase in phases]


def test_dataset_steps_are_barriers() -> None:
    steps = pipeline(cpu(), table(), Whole(Whole.Params()), Whole(Whole.Params()), cpu())
    assert [[step.position for step in segment] for segment in segments(steps)] == [[0, 1], [2], [3], [4]]


def test_without_gpus_everything_shares_one_pool_that_fills_the_cpus() -> None:
    steps = pipeline(cpu(), table(), gpu(2.0), table())
    assert shape(place(steps, Resources(cpus=4, memory_gb=64))) == [[((0, 1, 2, 3), 4, 0.0)]]
    assert shape(place(steps, Resources(cpus=4, memory_gb=64), workers=2)) == [[((0, 1, 2, 3), 2, 0.0)]]


def test_memory_bounds_the_workers() -> None:
    assert shape(place(pipeline(gpu(7.0)), Resources(cpus=16, memory_gb=40))) == [[((0,), 4, 0.0)]]


def test_models_that_do_not_fit_into_memory_together_run_in_phases() -> None:
    phases = place(pipeline(gpu(7.0), gpu(7.0)), Resources(cpus=8, memory_gb=16))
    assert shape(phases) == [[((0,), 1, 0.0)], [((1,), 1, 0.0)]]


def test_models_that_fit_on_a_gpu_and_cpu_steps_around_them_share_workers_that_fill_it() -> None:
    """12 GB and CUDA's own go three times into 40 GB; four CPUs are for each worker. An image is decoded once."""
    steps = pipeline(cpu(), table(), gpu(4.0), table(), gpu(8.0), cpu())
    assert shape(place(steps, Resources(cpus=16, gpus=1, gpu_memory_gb=40, memory_gb=128))) == [
        [((0, 1, 2, 3, 4, 5), 3, 0.3333)]
    ]


def test_models_that_fill_a_gpu_run_in_phases() -> None:
    steps = pipeline(cpu(), gpu(14.0), gpu(12.0), gpu(3.0))
    phases = place(steps, Resources(cpus=8, gpus=1, gpu_memory_gb=16, memory_gb=64))
    assert [[positions for positions, _, _ in pools] for pools in shape(phases)] == [[(0, 1)], [(2, 3)]]


def test_in_each_phase_one_model_has_all_gpus() -> None:
    """Side by side, each on a GPU of its own, the slower would keep the faster waiting."""
    steps = pipeline(gpu(9.6), gpu(9.6), gpu(9.6))
    phases = place(steps, Resources(cpus=32, gpus=2, gpu_memory_gb=16, memory_gb=64))
    assert shape(phases) == [[((0,), 2, 1.0)], [((1,), 2, 1.0)], [((2,), 2, 1.0)]]


def test_a_model_on_the_cpu_has_workers_of_its_own_beside_a_gpu() -> None:
    """It would keep the GPU waiting. CPUs are shared by what the steps cost, and every GPU has a worker."""
    steps = pipeline(cpu(), gpu(4.0), cpu(1.0), gpu(4.0))
    phases = place(steps, Resources(cpus=64, gpus=4, gpu_memory_gb=40, memory_gb=256))
    assert shape(phases) == [[((0, 1), 4, 1.0), ((2,), 60, 0.0)], [((3,), 32, 0.125)]]


def test_cpus_that_no_gpu_worker_can_take_do_the_cpu_steps() -> None:
    """Eight CPUs on each of 8 nodes with a GPU, 3,200 on nodes without: `inspect` there is faster than beside the GPUs,
    and on those nodes it takes nothing from them."""
    nodes = [Node(8, 1, 64, f"gpu{number}") for number in range(8)] + [Node(64, 0, 256, f"cpu{n}") for n in range(50)]
    (phase,) = place(pipeline(cpu(), table(), gpu(2.0)), Resources.of(nodes, 24))
    first, second = phase.pools
    assert (first.positions, first.workers) == ((0, 1), 3200)
    assert {node for node, _ in first.nodes} == {f"cpu{number}" for number in range(50)}
    assert (second.workers, second.cpus, second.gpus) == (32, 2.0, 0.25)
    assert dict(second.nodes) == {f"gpu{number}": 4 for number in range(8)}


@pytest.mark.parametrize(
    ("bound", "workers", "gpus", "cpus"),
    [(1, 1, 1.0, 8), (7, 7, 1.0, 8), (8, 8, 1.0, 8), (15, 8, 1.0, 8), (16, 16, 0.5, 8), (40, 40, 0.2, 3)],
)
@pytest.mark.parametrize("name", ["workers", "shards"])
def test_fewer_workers_than_fit_are_on_all_gpus_alike(
    name: str, bound: int, workers: int, gpus: float, cpus: int
) -> None:
    """Of 15, one GPU would have one and the others two: those who come last would wait for it."""
    (phase,) = place(pipeline(gpu(2.0)), Resources(cpus=128, gpus=8, gpu_memory_gb=80), **{name: bound})
    assert [(pool.workers, pool.gpus, pool.cpus) for pool in phase.pools] == [(workers, gpus, cpus)]


def test_the_node_with_the_least_for_its_gpus_decides_how_many_share_one() -> None:
    (phase,) = place(pipeline(gpu(2.0)), Resources.of([Node(32, 2, id="a"), Node(4, 2, id="b")], 80))
    (pool,) = phase.pools
    assert (pool.nodes, pool.gpus, pool.cpus) == ((("a", 2), ("b", 2)), 1.0, 2.0)


def test_a_worker_fits_on_one_node_whatever_they_have_together() -> None:
    """Ten nodes of 8 GB are no machine of 80, and those of 16 with 4 CPUs hold one worker of 8 GB each."""
    with pytest.raises(UserError, match=r"needs 8 GB of memory but workers may use 6\.4 GB"):
        place(pipeline(cpu(7.0)), Resources.of([Node(4, 0, 8)] * 10))
    assert shape(place(pipeline(cpu(7.0)), Resources.of([Node(4, 0, 16)] * 10))) == [[((0,), 10, 0.0)]]


def test_a_gpu_without_a_cpu_beside_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"no worker can do s0: a node with a GPU must have a CPU and .* GB of memory"):
        place(pipeline(gpu(2.0)), Resources.of([Node(0, 1, 64), Node(8, 0, 64)], 24))


@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_a_plan_never_asks_for_more_cpus_than_there_are(cpus: int) -> None:
    steps = pipeline(cpu(), gpu(4.0), cpu(), gpu(4.0), cpu())
    for phase in place(steps, Resources(cpus=cpus, gpus=1, gpu_memory_gb=16, memory_gb=64)):
        assert sum(pool.workers * pool.cpus for pool in phase.pools) <= cpus


def test_what_no_machine_has_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="needs a GPU with 20 GB but the smallest here has 16 GB"):
        place(pipeline(gpu(20)), Resources(cpus=8, gpus=1, gpu_memory_gb=16))
    with pytest.raises(UserError, match="needs 21 GB of memory"):
        place(pipeline(gpu(20)), Resources(cpus=8, memory_gb=16))
    with pytest.raises(UserError, match="at least one CPU"):
        place(pipeline(cpu()), Resources(cpus=0))


def test_a_plan_for_a_thousand_nodes_is_made_in_a_moment() -> None:
    began = time.process_time()
    (phase,) = place(pipeline(cpu(), gpu(2.0), cpu(1.0)), Resources.of([Node(64, 8, 512, "n")] * 1_000, 80))
    assert time.process_time() - began < 5
    assert sum(pool.workers * pool.cpus for pool in phase.pools) <= 64_000
